"""AI Dev Gallery, Microsoft's app for Windows: a folder of ONNX Runtime GenAI's, well named.

What its code asks for (microsoft/ai-dev-gallery, AIDevGallery/Utils/UserAddedModelUtil.cs,
Helpers/ModelDetailsHelper.cs, Samples/promptTemplates.json): `genai_config.json` in the folder that
is picked, and execution providers among cpu, dml, cuda, qnn and others of Windows'. The prompt
template is guessed from the folder's whole path: the first of "phi", "deepseek", "llama",
"mistral", "qwen", "gemma" that is in it, in small letters, decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phipipe.package import template
from phipipe.package.layout import Built, Facts, Layout, Use, whole

ORDER = ("phi", "deepseek", "llama", "mistral", "qwen", "gemma")
# What stands in the chat template → the family whose template the app has for it.
MARKS = {
    "<|im_sep|>": None,  # Phi-4's own
    "<|end|>": "phi",
    "<|start_header_id|>": "llama",
    "[INST]": "mistral",
    "<|im_start|>": "qwen",
    "<start_of_turn>": "gemma",
}
PROVIDERS = frozenset({"cpu", "cuda", "directml", "hexagon"})


def family(facts: Facts) -> str | None:
    """The word that has to be the first in the path; None: the app has no such template."""
    text = template.template_of(facts.folder) or ""
    return next((word for mark, word in MARKS.items() if mark in text), None)


def _home(facts: Facts) -> str:
    word = str(family(facts))
    return facts.name if _guess(facts.name) == word else f"{word}-{facts.name}"


def _guess(path: str) -> str | None:
    return next((word for word in ORDER if word in path.lower()), None)


def _takes(facts: Facts) -> Mapping[str, str]:
    return {f"{_home(facts)}/{to}": path for to, path in whole(facts).items()}


def _misplaced(facts: Facts, folder: Path) -> str | None:
    word, guess = family(facts), _guess(str(folder.absolute() / _home(facts)))
    if guess == word:
        return None
    return f"would take it for a {guess} model, whose name is in the path `{folder}`"


def _use(facts: Facts) -> Use:
    return Use(
        words="In the app's model picker, choose **Add model**, then **From disk**, and pick this "
        f"folder. The app guesses the prompt template from the folder's path, in which "
        f"`{family(facts)}` has to be the first name of a model family."
    )


def _after(facts: Facts) -> Use:
    return Use(
        words="In the app's model picker, choose **Add model**, then **From disk**, and pick the "
        f"folder `{_home(facts)}`."
    )


def _refuses(built: Built) -> str | None:
    if built.sees:
        return "adds models of text alone"
    if built.api not in PROVIDERS:
        return f"has no execution provider for `{built.api}`"
    return None


def _unfit(facts: Facts) -> str | None:
    return None if family(facts) else "has no prompt template like this model's"


LAYOUT = Layout(
    title="AI Dev Gallery",
    about="Microsoft's app with samples for Windows ML: Windows.",
    backends={"onnxruntime": "for a CPU, CUDA or DirectML", "qnn": ""},
    use=_use,
    after=_after,
    refuses=_refuses,
    unfit=_unfit,
    misplaced=_misplaced,
    takes=_takes,
    needs=("genai_config.json",),
)
