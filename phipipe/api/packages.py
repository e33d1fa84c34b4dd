"""A finished package: what it says of itself, a look at whether it is unchanged, a talk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phipipe.api import apps as exports
from phipipe.api import building, pages, workplace
from phipipe.api.apps import Export
from phipipe.api.building import Where
from phipipe.api.events import OnProgress, Telling
from phipipe.api.figures import Figures
from phipipe.api.measurements import ImportedSpeeds, Measurement
from phipipe.api.results import Result
from phipipe.api.workplace import UserPath, path_of
from phipipe.chat import start
from phipipe.chat.conversation import Conversation as Conversation
from phipipe.chat.conversation import OnText, check_prompt
from phipipe.errors import SourceError
from phipipe.execution import finished
from phipipe.files.user_paths import Kind
from phipipe.models import gguf_files
from phipipe.package import package as packages
from phipipe.package.manifest import Finding
from phipipe.package.manifest_schema import Manifest
from phipipe.steps import Json
from phipipe.visible import visible
from phipipe.words import counted, human

TOKENS = 256  # of an answer, at most
LEAST_TOKENS = 256  # of an evaluation


class Package:
    """A finished package, every file of which was as it was packaged when it was opened.

    Attributes:
        path: its folder.
        name: the build's name.
        device: the device in words.
        unit: which unit of the device it runs on.
        backend: its runtime family.
        precision: of the weights.
        scheme: how the backend calls that.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """As ``Package.open``, which looks at the files first."""
        self.path, self._manifest = path, manifest
        self.name, self.device, self.unit = manifest.name, manifest.device.title, manifest.api
        self.backend, self.precision = manifest.backend, manifest.precision
        self.scheme = manifest.scheme
        self._figures: Figures | None = None

    @classmethod
    def open(cls, path: UserPath) -> Package:
        """Open the package in the folder ``path``.

        Every file's size and SHA-256 is checked, and that nothing in it runs or loads code. Of a
        batch's folder of versions it is the one that was accepted last.

        Raises:
            SourceError: it is no package, was changed, or holds what phipipe never packages.
        """
        folder = exports.folder_of(path)
        return cls(folder, packages.open_(folder))

    @property
    def figures(self) -> Figures:
        """What was measured when it was built."""
        if self._figures is None:
            self._figures = Figures.of_manifest(self._manifest)
        return self._figures

    @property
    def manifest(self) -> Json:
        """All that the package says of itself: the content of ``manifest.json``."""
        return self._manifest.as_json()

    @property
    def card(self) -> str:
        """Its model card, in Markdown."""
        return (self.path / packages.CARD).read_text("utf-8", errors="replace")

    @property
    def size_bytes(self) -> int:
        """All its files together."""
        return sum(one.size for one in self._manifest.files)

    def verify(self) -> list[Finding]:
        """As the function ``verify``: everything by which the package has changed by now."""
        return packages.verify(self.path)

    def chat(
        self,
        prompt: str,
        *,
        system: str | None = None,
        tokens: int = TOKENS,
        on_text: OnText | None = None,
    ) -> str:
        """Ask the package, in its own runtime, and return its whole answer.

        The model is loaded for each call; ``conversation`` loads it once. Control characters in
        the answer are escaped.

        Args:
            prompt: the question.
            system: a system message.
            tokens: the longest answer.
            on_text: a function that gets the answer piece by piece.

        Raises:
            RecipeError: the prompt is empty, or longer than the model's context.
            SourceError: the package was changed, or its template or tokenizer takes too much.
            ToolchainError: its toolchain cannot be installed.
            StepFailed, StepKilled: its runtime refuses it, or was ended.
        """
        check_prompt(prompt)
        with self.conversation(system=system, tokens=tokens) as talk:
            return talk.ask(prompt, on_text)

    def conversation(self, *, system: str | None = None, tokens: int = TOKENS) -> Conversation:
        """Begin a conversation, which remembers what was said; use it in a ``with`` block.

        Args:
            system: a system message.
            tokens: the longest answer.

        Raises:
            PhipipeError: as ``chat``.
        """
        workplace.check_count(tokens, "tokens")
        place = workplace.of_user(workplace.silent)
        return start.converse(
            self.path, place.settings, workplace.silent, system=system, tokens=tokens
        )

    def export(
        self,
        apps: Sequence[str] | str,
        to: UserPath | None = None,
        *,
        install: bool = False,
        force: bool = False,
    ) -> list[Export]:
        """Lay the package out as apps that people already have want to find it.

        Every file is looked at first. A folder that holds the very same files is left as it is.

        Args:
            apps: one name, or several, of ``apps()``.
            to: the folder; for several apps, each gets one of its own there.
            install: put it where the app finds it on this machine.
            force: replace an earlier export, or a model of the same name.

        Raises:
            TargetError: there is no such app, it cannot open the package, or is not installed.
            SourceError: the package was changed.
            StoreError: something else is there.
            StepFailed: the app's own command fails.
        """
        return exports.exported(self.path, apps, to, install=install, force=force)

    def evaluate(
        self,
        *,
        text: UserPath | None = None,
        tokens: int | None = None,
        source: UserPath | None = None,
        prompts: UserPath | None = None,
        kv: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Evaluate the package again, on this machine: same metrics, other text or length.

        Args:
            text: another evaluation text, in UTF-8.
            tokens: how many tokens of it.
            source: the original's folder or GGUF; without it from the cache, or its hub again.
            prompts: a file of chats to answer, beside the original.
            kv: "q8" or "q4": once more with keys and values in 8 or 4 bits.
            on_progress: as for ``run``.

        Raises:
            SourceError: the package was changed, or its original cannot be had.
            TargetError: its runtime cannot keep keys and values so.
            PhipipeError: a step failed.
        """
        workplace.check_count(tokens, "tokens", LEAST_TOKENS)
        listener = Telling(on_progress)
        place = workplace.of_user(listener.note)
        plan = finished.plan_evaluation(
            self.path,
            place.store,
            text=_file(text, "the text"),
            tokens=tokens,
            source=None if source is None else _source(source),
            prompts=_file(prompts, "the file of prompts"),
            kv=kv,
        )
        (outcome,) = building.attempt("eval", [plan], place, listener.audience, Where())
        return Result(outcome).check()

    def measure(self, on_progress: OnProgress | None = None) -> Measurement:
        """Measure the package on the device it is for, which this machine must be.

        Neither the original nor its cache is needed. A ``Board`` puts the measurement in place of
        the figures that the build machine took.

        Raises:
            TargetError: this machine is not the device.
            SourceError: the package was changed.
            PhipipeError: a step failed.
        """
        listener = Telling(on_progress)
        place = workplace.of_user(listener.note)
        plan = finished.plan_measurement(self.path)
        (outcome,) = building.attempt("measure", [plan], place, listener.audience, Where())
        return Measurement(self.path, outcome).check()

    def import_speeds(self, path: UserPath, *, machine: str | None = None) -> ImportedSpeeds:
        """Take speeds that another tool printed on the device, where phipipe does not run.

        Args:
            path: what llama-bench (``-o json``), LiteRT-LM's benchmark or MLX's printed.
            machine: what it ran on, in words; llama-bench says it itself.

        Raises:
            SourceError: no known tool prints this, it is of another package, or the package was
                changed.
        """
        return ImportedSpeeds(self.path, path, machine)

    def __repr__(self) -> str:
        return f"<Package {self.name}: {self.backend} {self.precision} for {self.device}>"

    def __str__(self) -> str:
        return visible(f"{self._heading()}\n{self.figures}\n\npackage  {self.path}")

    def _heading(self) -> str:
        manifest = self._manifest
        return (
            f"{self.name}: {manifest.source.title} → {self.precision} for {self.device}, "
            f"{self.backend}; {counted(len(manifest.files), 'file')}, {human(self.size_bytes)}"
        )

    def _repr_html_(self) -> str:
        head = pages.paragraph(self._heading())
        return head + self.figures._repr_html_() + pages.paragraph(str(self.path))


def verify(path: UserPath) -> list[Finding]:
    """Everything by which the folder ``path`` differs from what was packaged, or that phipipe
    never packages; often nothing.

    Nothing in it is run. Each finding has ``path`` and ``message``.

    Raises:
        SourceError: there is no such folder, or a newer phipipe made the package.
    """
    return packages.verify(exports.folder_of(path))


def _file(path: UserPath | None, what: str) -> Path | None:
    return None if path is None else path_of(path, Kind.FILE, what, SourceError)


def _source(path: UserPath) -> Path:
    kind = Kind.FILE if str(path).lower().endswith(gguf_files.SUFFIX) else Kind.FOLDER
    return path_of(path, kind, "the original", SourceError)
