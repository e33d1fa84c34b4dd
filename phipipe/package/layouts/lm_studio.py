"""LM Studio: a GGUF file, or on a Mac an MLX folder, at `PUBLISHER/MODEL/` in its models folder.

What its code asks for (lms, src/subcommands/importCmd.ts; lmstudio-js, findLMStudioHome): two
folder levels; the models folder is `downloadsFolder` of `settings.json` in its home, else `models`
there. The home is what `~/.lmstudio-home-pointer` says, else `~/.cache/lm-studio` if there is one,
else `~/.lmstudio`. `lms import --copy --user-repo` puts one file at its place and asks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phipipe.errors import TargetError
from phipipe.files import json_files
from phipipe.package.layout import PUBLISHER, Built, Facts, Layout, Use, only, whole

GGUF = "llamacpp"
MAX_POINTER_BYTES = 2**15


def _takes(facts: Facts) -> Mapping[str, str]:
    """Its list shows a GGUF by the file's name."""
    if facts.backend != GGUF:
        return whole(facts)
    own = f"{facts.name}.gguf"
    return {own if p == "model.gguf" else p: p for p in only("model.gguf")(facts)}


def _use(facts: Facts) -> Use:
    return _commands(facts, "model.gguf")


def _after(facts: Facts) -> Use:
    return _commands(facts, f"{facts.name}.gguf")


def _commands(facts: Facts, model: str) -> Use:
    place = f"{PUBLISHER}/{facts.name}"
    if facts.backend == GGUF:
        return Use(
            commands=(
                f"lms import {model} --copy --user-repo {place}",
                f"lms load {facts.name}",
            )
        )
    return Use(
        words="On a Mac with Apple silicon:",
        commands=(
            f"mkdir -p ~/.lmstudio/models/{PUBLISHER}",
            f"cp -R . ~/.lmstudio/models/{place}",
            f"lms load {facts.name}",
        ),
    )


def home(facts: Facts) -> Path:
    """Its folder in LM Studio's models folder.

    Raises:
        TargetError: LM Studio has no home here.
        SourceError: its settings cannot be read.
    """
    own = _own_home()
    if not own.is_dir():
        raise TargetError(
            f"LM Studio is not installed: there is no folder `{own}`",
            hint="install it and start it once, or export with --to",
        )
    settings = own / "settings.json"
    told = json_files.read_object(settings) if settings.is_file() else {}
    folder = told.get("downloadsFolder")
    models = Path(folder) if isinstance(folder, str) and folder else own / "models"
    return models / PUBLISHER / facts.name


def _own_home() -> Path:
    pointer = Path.home() / ".lmstudio-home-pointer"
    if pointer.is_file():
        return Path(json_files.read_bytes(pointer, MAX_POINTER_BYTES).decode("utf-8").strip())
    older = Path.home() / ".cache" / "lm-studio"
    return older if older.is_dir() else Path.home() / ".lmstudio"


def _refuses(built: Built) -> str | None:
    return "shows pictures to MLX models of other layouts alone" if built.sees else None


LAYOUT = Layout(
    title="LM Studio",
    about="Chats with models in a window, and serves them: Windows, macOS, Linux.",
    backends={GGUF: "", "mlx": "on Apple silicon"},
    use=_use,
    after=_after,
    refuses=_refuses,
    home=home,
    takes=_takes,
)
