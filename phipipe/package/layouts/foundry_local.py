"""Foundry Local, Microsoft's: a package of ONNX Runtime's, registered as it is or in the cache.

What its code asks for (microsoft/Foundry-Local, sdk_v2/cpp/src/catalog/local_model_scanner.cc,
download/inference_model_writer.cc; foundry-local-sdk 2.2.1, catalog.py): a folder with
`genai_config.json`; in the cache at `PUBLISHER/MODEL/` also `inference_model.json`, with `Name`
("name:version") and `PromptTemplate`, and no `download.tmp`. `PromptTemplate` is an object of texts
around `{Content}`, or null; newer versions render the tokenizer's own chat template instead.
The SDK from version 2 on knows what is registered and what is in Microsoft's catalog, no other
folder of the cache (azure_model_catalog.cc); the command line before it takes any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from phipipe.errors import TargetError
from phipipe.files import json_files
from phipipe.package import app_commands, template
from phipipe.package.layout import PUBLISHER, Built, Facts, Layout, Use
from phipipe.sandbox import chat_templates
from phipipe.sandbox.limited import Raised

INDEX = "inference_model.json"
VERSION = 1
CONTENT = "{Content}"


def _makes(facts: Facts) -> Mapping[str, bytes]:
    prompt = _prompt(facts)
    templates = {"assistant": CONTENT, "prompt": prompt} if prompt else None
    index = {"Name": f"{facts.name}:{VERSION}", "PromptTemplate": templates}
    return {INDEX: (json.dumps(index, indent=2) + "\n").encode()}


def _prompt(facts: Facts) -> str | None:
    """A question and what leads to its answer; None where there is no chat template, or it refuses
    one question alone or changes it."""
    text = template.template_of(facts.folder)
    if text is None:
        return None
    config = facts.folder / "tokenizer_config.json"
    told = json_files.read_object(config) if config.is_file() else {}
    specials = {n: told[n] for n in ("bos_token", "eos_token") if isinstance(told.get(n), str)}
    renderer = chat_templates.Renderer(text, specials=specials, clock=False)
    try:
        rendered = renderer.render([{"role": "user", "content": CONTENT}])
    except Raised:
        return None
    finally:
        renderer.close()
    return rendered if rendered.count(CONTENT) == 1 else None


def _use(facts: Facts) -> Use:
    return Use(
        words="In Python, after `pip install foundry-local-sdk`:",
        language="python",
        commands=(
            "from foundry_local_sdk import CatalogType, ChatSession, Configuration",
            "from foundry_local_sdk import FoundryLocalManager, ModelInfoBuilder",
            "",
            'FoundryLocalManager.initialize(Configuration(app_name="my-app"))',
            "local = FoundryLocalManager.instance.get_catalog(CatalogType.LOCAL)",
            'task = ModelInfoBuilder().set_string_property("task", "chat-completion")',
            f'name = "{facts.name}:{VERSION}"',
            # what is registered stays so from one program to the next
            'model = local.get_model_variant(name) or local.register_model(".", name, task)',
            "model.load()",
            "session = ChatSession(model)",
        ),
    )


def _after(facts: Facts) -> Use:
    return replace(
        _use(facts),
        then=f"Foundry Local's command line before version 2 takes this folder as "
        f"`{PUBLISHER}/{facts.name}` in its cache, whose place `foundry cache location` tells: "
        f"`foundry model run {facts.name}`.",
    )


def home(facts: Facts) -> Path:
    """Its folder in the cache of Foundry Local's own service; `foundry cache cd` may have moved
    that.

    Raises:
        TargetError: there is no such cache.
    """
    usual = Path.home() / ".foundry" / "cache" / "models"
    told = app_commands.output("foundry", "cache", "location") or ""
    named = (line.partition(": ")[2].strip() for line in told.splitlines())
    found = next((Path(text) for text in named if text and Path(text).is_dir()), usual)
    if not found.is_dir():
        raise TargetError(
            f"Foundry Local is not installed: there is no cache at `{usual}`",
            hint="install it, or export with --to and register the folder in your app",
        )
    return found / PUBLISHER / facts.name


def _refuses(built: Built) -> str | None:
    return "is tried with models of text alone" if built.sees else None


LAYOUT = Layout(
    title="Foundry Local",
    about="Microsoft's local runtime and SDK: Windows, macOS, Linux.",
    backends={"onnxruntime": ""},
    use=_use,
    after=_after,
    refuses=_refuses,
    makes=_makes,
    needs=("genai_config.json",),
    home=home,
    inside=(INDEX,),
)
