"""A finished package: what it says of itself, a look at whether it is unchanged, a talk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from phipipe.api import apps as exports
from phipipe.api import building, publishing, serving, workplace
from phipipe.api.apps import Export
from phipipe.api.building import Where
from phipipe.api.events import OnProgress, Telling
from phipipe.api.measurements import ImportedSpeeds, Measurement
from phipipe.api.publishing import Pushed
from phipipe.api.results import Result
from phipipe.api.said import Said
from phipipe.api.workplace import UserPath
from phipipe.chat import start
from phipipe.chat.conversation import Conversation as Conversation
from phipipe.chat.conversation import OnText, check_prompt
from phipipe.execution import finished
from phipipe.serving.server import Server as Server
from phipipe.signing import opening

if TYPE_CHECKING:
    from phipipe.api.rebuilding import Rebuilt

TOKENS = 256  # of an answer, at most
LEAST_TOKENS = 256  # of an evaluation


class Package(Said):
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

    @classmethod
    def open(cls, path: UserPath) -> Package:
        """Open the package in the folder ``path``.

        Every file's size and SHA-256 is checked, that nothing in it runs or loads code, and the
        signature as the trust file of your settings demands. Of a batch's folder of versions it is
        the one that was accepted last.

        Raises:
            SourceError: it is no package, was changed, holds what phipipe never packages, or must
                not be trusted.
        """
        folder = workplace.package_path(path)
        return cls(folder, opening.open_(folder, workplace.warned))

    def push(
        self,
        address: str,
        *,
        force: bool = False,
        dry_run: bool = False,
        private: bool | None = None,
    ) -> Pushed:
        """Publish the package, as the function ``push`` does.

        Raises:
            PhipipeError: as ``push``.
        """
        return publishing.push(self.path, address, force=force, dry_run=dry_run, private=private)

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

    def serve(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        allow_origins: Sequence[str] = (),
        context: int | None = None,
        tokens: int = 1024,
        waiting: int = 32,
    ) -> Server:
        """Serve the package to what speaks OpenAI's API, until the ``with`` block ends.

        Args:
            host: the address to listen on; one that others can reach needs a ``token``.
            port: 0 for any that is free.
            token: what clients must bring as their API key.
            allow_origins: web pages that may ask from a browser.
            context: tokens of a prompt with its answer, at most; None for the package's own.
            tokens: the longest answer where a request does not say.
            waiting: requests that may wait while one is answered.

        Raises:
            RecipeError: an argument makes no sense, or the port is in use.
            ToolchainError: the extra ``serve`` or a toolchain cannot be had.
            PhipipeError: as ``chat``.
        """
        options = serving.Options(
            host=host,
            port=port,
            token=token,
            origins=allow_origins,
            context=context,
            tokens=tokens,
            waiting=waiting,
        )
        return serving.serve(self.path, options)

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
            listener.note,
            text=workplace.file_path(text, "the text"),
            tokens=tokens,
            source=None if source is None else workplace.original_path(source),
            prompts=workplace.file_path(prompts, "the file of prompts"),
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
        plan = finished.plan_measurement(self.path, listener.note)
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

    def rebuild(
        self,
        on_progress: OnProgress | None = None,
        *,
        out: UserPath | None = None,
        source: UserPath | None = None,
        adapter: UserPath | None = None,
        texts: Sequence[UserPath] = (),
        device: UserPath | None = None,
    ) -> Rebuilt:
        """As the function ``rebuild``: make the package again, and compare."""
        from phipipe.api.rebuilding import rebuild

        return rebuild(
            self.path,
            on_progress,
            out=out,
            source=source,
            adapter=adapter,
            texts=texts,
            device=device,
        )
