"""One conversation with a package's model: what was said, and the answers as they come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from phipipe.backends.base import Runtime, Tokenizer
from phipipe.backends.choosing import Choose
from phipipe.chat.pieces import ended, pieces
from phipipe.chat.screen import say, show
from phipipe.errors import PhipipeError, StepFailed, StepKilled, ToolchainError
from phipipe.sandbox.child import NO_MEMORY
from phipipe.sandbox.limited import Raised
from phipipe.visible import visible

OK, TOO_LONG, INTERRUPTED = 0, 2, 130  # exit codes of a chat


@dataclass(kw_only=True)
class Talk:
    """One conversation: what was said, and with whom."""

    runtime: Runtime
    tokenizer: Tokenizer
    context: int  # tokens
    limit: int
    system: str | None = None
    # Without a template, a prompt is text to be continued, and nothing is remembered.
    template: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)
    show: Callable[[str], None] = show  # a piece of an answer
    say: Callable[[str], None] = say  # a line of ours

    def once(self, prompt: str) -> int:
        """Answer ``prompt``; the exit code."""
        try:
            return OK if self.answer(prompt) else TOO_LONG
        except KeyboardInterrupt:
            self.show("\n")
            return INTERRUPTED

    def answer(self, prompt: str) -> bool:
        """Stream the answer to ``prompt`` and remember both; False if the context has no room for
        it.

        An answer that is interrupted is remembered as far as it came.
        """
        asked = [*self.messages, {"role": "user", "content": prompt}]
        ids = self._ids(asked)
        if len(ids) >= self.context:
            more = "; /reset forgets what was said" if self.messages else ""
            self.say(
                f"[that makes {len(ids)} tokens, and the model's context ends at "
                f"{self.context}{more}]"
            )
            return False
        shown: list[str] = []
        answered: list[int] = []
        try:
            room = min(self.limit, self.context - len(ids))
            with closing(generated(self.runtime, ids, room)) as tokens:
                for piece in pieces(self.tokenizer.decode, noted(tokens, answered)):
                    shown.append(piece)
                    self.show(visible(piece))
            self.show("\n")
        finally:
            if self.template and shown:
                self.messages = [*asked, {"role": "assistant", "content": "".join(shown)}]
        self._explain_ending(ids, answered)
        return True

    def _ids(self, asked: Sequence[Mapping[str, str]]) -> list[int]:
        text = asked[-1]["content"]
        if self.template:
            system = [{"role": "system", "content": self.system}] if self.system else []
            try:
                text = self.tokenizer.render([*system, *asked])
            except Raised as error:
                hint = "leave --system out" if self.system else None
                raise StepFailed(
                    f"the package's chat template refuses this conversation: {error}", hint=hint
                ) from None
        return encoded(self.tokenizer, text)

    def _explain_ending(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Say so where it was not the model that ended the answer."""
        if len(prompt) + len(answer) >= self.context:
            self.say(f"[the model's context of {self.context} tokens is full]")
        elif len(answer) >= self.limit and not ended(self.tokenizer.decode, answer):
            self.say(f"[cut after {self.limit} tokens; --tokens allows more]")

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = []


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of ``text``, at least one.

    Raises:
        StepFailed: the tokenizer refuses it, or makes nothing of it.
        SourceError: it takes more than it may.
    """
    with refusing("the package's tokenizer refuses this text"):
        ids = tokenizer.encode(text)
    if not ids:
        raise StepFailed("the package's tokenizer makes no tokens of this text")
    return ids


def generated(
    runtime: Runtime, ids: Sequence[int], room: int, choose: Choose | None = None
) -> Generator[int, None, None]:
    """The tokens of an answer to ``ids``, at most ``room``, as they come.

    Raises:
        PhipipeError: the runtime cannot answer.
    """
    what = "the package's runtime cannot answer"
    with refusing(what):
        answer = (
            runtime.generate(ids, room) if choose is None else runtime.generate(ids, room, choose)
        )
    with closing(answer) as tokens:
        while True:
            with refusing(what):
                token = next(tokens, None)
            if token is None:
                return
            yield token


def noted(tokens: Iterable[int], notes: list[int]) -> Iterator[int]:
    """The ``tokens``, each written into ``notes`` as it comes."""
    for token in tokens:
        notes.append(token)
        yield token


@contextlib.contextmanager
def closing(tokens: Iterator[int]) -> Iterator[Iterator[int]]:
    """Ends a generator that is left early, so that its runtime can free what it holds."""
    try:
        yield tokens
    finally:
        if isinstance(tokens, Generator):
            tokens.close()


@contextlib.contextmanager
def refusing(what: str, hint: str | None = None, toolchain: str | None = None) -> Iterator[None]:
    """What a runtime or a library raises in this block, as a failure of ours; ``what`` begins its
    sentence.

    Raises:
        ToolchainError: a package is missing.
        StepKilled: there is not enough memory.
        StepFailed: anything else.
    """
    try:
        yield
    except Raised as error:
        raise StepFailed(f"{what}: {error}", hint=hint) from None
    except (PhipipeError, BrokenPipeError):
        raise
    except ImportError as error:
        install = f"phipipe toolchain install {toolchain} --force" if toolchain else None
        raise ToolchainError(f"the toolchain is damaged: {error}", hint=install) from None
    except Exception as error:  # noqa: BLE001 (runtimes raise whatever they like)
        if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            raise StepKilled(
                f"{what}: there is not enough memory", hint="close other programs"
            ) from None
        raise StepFailed(f"{what}: {type(error).__name__}: {error}", hint=hint) from None
