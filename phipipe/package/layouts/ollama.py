"""Ollama: a GGUF file and a Modelfile.

What its code asks for (ollama, parser/parser.go and docs/modelfile.md): `FROM` a GGUF beside the
Modelfile; `TEMPLATE`, Go's templates over `.Messages` (template/template.go); `PARAMETER num_ctx`
and `stop`; `LICENSE`, whose text `ollama show --license` prints. A text between three quotes has no
three quotes in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from phipipe.errors import StoreError, TargetError
from phipipe.package import app_commands
from phipipe.package.layout import Facts, Layout, Use, only

MODELFILE, MODEL = "Modelfile", "model.gguf"


def _makes(facts: Facts) -> Mapping[str, bytes]:
    """The package's Modelfile with the licences in it."""
    own = facts.text(MODELFILE)
    texts = [] if "\nLICENSE " in own else [facts.text(name).strip() for name in facts.licences]
    lines = [f'LICENSE """{text}\n"""\n' for text in texts if text and '"""' not in text]
    return {MODELFILE: (own + "".join(lines)).encode()}


def create(facts: Facts, force: bool) -> str:
    """Have Ollama take the package's files into its own store, under the package's name.

    Raises:
        TargetError: Ollama is not installed.
        StoreError: it has a model of that name, and ``force`` is not given.
        StepFailed: it refuses, or does not run.
    """
    if not app_commands.is_here("ollama"):
        raise TargetError(
            "Ollama is not installed: there is no command `ollama`",
            hint="install it, or export with --to for another machine",
        )
    if not force and app_commands.output("ollama", "show", facts.name) is not None:
        raise StoreError(
            f"Ollama has a model `{facts.name}` already", hint="--force puts this one in its place"
        )
    text = _makes(facts)[MODELFILE].decode()
    with tempfile.TemporaryDirectory(prefix="phipipe-") as folder:
        file = Path(folder) / MODELFILE
        model = (facts.folder / MODEL).absolute()
        file.write_text(text.replace(f"FROM ./{MODEL}\n", f"FROM {model}\n"), "utf-8")
        app_commands.run("ollama", "create", facts.name, "-f", str(file))
    return f"Ollama has it as `{facts.name}`: ollama run {facts.name}"


def _use(facts: Facts) -> Use:
    return Use(commands=(f"ollama create {facts.name} -f Modelfile", f"ollama run {facts.name}"))


LAYOUT = Layout(
    title="Ollama",
    about="Runs models behind a command and a local server: Windows, macOS, Linux.",
    backends={"llamacpp": ""},
    use=_use,
    takes=only(MODEL),
    needs=(MODEL, MODELFILE),
    makes=_makes,
    create=create,
    inside=(MODELFILE,),
)
