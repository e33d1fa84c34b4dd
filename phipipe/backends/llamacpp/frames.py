"""How a chat template lays messages out: the text around each role's content, found by rendering
chats with marks for contents, and kept only if it gives the very text of the template on longer
chats.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from phipipe.sandbox.limited import Raised

TOOLS = "⟦tools⟧"
Frames = Mapping[str, tuple[str, str]]  # role → text before and after a content
MAX_STARTS = 64  # special tokens that are tried as the beginning of a turn
Render = Callable[[Sequence[Mapping[str, str]]], str]
CHATS: Sequence[Sequence[str]] = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
AMID = ("user", "assistant", "system", "user")


class Layout(NamedTuple):
    """How a template lays chats out: the text before all, around the contents of each role, that
    asks for the answer, and that stands before a chat which no system message begins."""

    head: str
    frames: Frames
    ask: str
    silent: str = ""


class _Parts(NamedTuple):
    """Texts between the contents of a question, of one after an answer, and of one that a system
    message begins (None: it is refused)."""

    bare: list[str]
    twice: list[str]
    whole: list[str] | None


def frames(render: Render) -> Layout | None:
    """How it lays chats out, or None if that is not by text around contents.

    A role that the template refuses has no frame; only "system" and "tool" may be such.
    """
    bare = _marked(render, ("user",))
    twice = _marked(render, ("user", "assistant", "user"))
    whole = _marked(render, ("system", "user"))
    if (
        bare is None
        or twice is None
        or (whole is None and _rendered(render, ("system", "user")) is not None)
    ):
        return None
    parts = _Parts(bare, twice, whole)
    chats = [chat for chat in CHATS if whole is not None or "system" not in chat]
    wanted = [_rendered(render, chat) for chat in chats]
    amid = _rendered(render, AMID)
    for opening in _openings(bare[0], twice[2]):
        found = [one for one in _candidates(parts, opening) if one]
        fits = [c for c in found if [carried_out(c, chat) for chat in chats] == wanted]
        # Several give the same text for these chats: the best says the same where the system speaks
        # later, and ends a user's turn as an assistant's.
        fits.sort(key=lambda c: c.frames["user"][1] != c.frames["assistant"][1])
        if whole is not None and amid is not None:
            fits.sort(key=lambda c: carried_out(c, AMID) != amid)
        if fits:
            return _with_tool_role(render, fits[0])
    return None


def _with_tool_role(render: Render, layout: Layout) -> Layout:
    """``layout``, and what stands around a tool's answer if the template takes one."""
    frame, ask = layout.frames, layout.ask
    chat = ("user", "assistant", "tool")
    parts, after = _marked(render, chat), frame["assistant"][1]
    if parts is None or not parts[2].startswith(after) or not parts[3].endswith(ask):
        return layout
    tool = (parts[2][len(after) :], parts[3][: len(parts[3]) - len(ask)])
    more = layout._replace(frames={**frame, "tool": tool})
    return more if carried_out(more, chat) == _rendered(render, chat) else layout


def tool_frame(render: Render, layout: Layout) -> tuple[str, str] | None:
    """Text between a system message's content and the tools that it carries, and after these; None
    without such."""
    if "system" not in layout.frames:
        return None
    system, user = messages(("system", "user"))
    try:
        whole = render([{**system, "tools": TOOLS}, user])
    except Raised:
        return None
    before, after = layout.frames["system"]
    opening = f"{layout.head}{before}{system['content']}"
    closing = carried_out(layout._replace(head=""), ("system", "user"))
    closing = closing[len(before + system["content"] + after) :]
    inside = whole.removeprefix(opening).removesuffix(closing)
    left, mark, right = inside.partition(TOOLS)
    fits = mark and TOOLS not in right and f"{opening}{inside}{closing}" == whole
    return (left, right) if fits else None


def _candidates(parts: _Parts, opening: str) -> Iterator[Layout | None]:
    """Layouts in which a user's turn begins with ``opening``; None for cuts that cannot be."""
    bare, twice, whole = parts
    head, ask = bare[0][: len(bare[0]) - len(opening)], bare[1]
    if not twice[2].endswith(opening):
        return
    before_user = twice[2][: len(twice[2]) - len(opening)]
    # The head ends before the system message, or before what is said in its place.
    shared = [n for n in _starts(head) if whole and whole[0].startswith(head[:n])] or [len(head)]
    for i, n in itertools.product(range(len(ask) + 1), reversed(shared)):
        after = ask[:i]
        if not twice[1].startswith(after):
            continue
        frame = {"user": (opening, after), "assistant": (twice[1][len(after) :], before_user)}
        if whole is None:
            yield Layout(head, frame, ask[i:])
        elif whole[1].endswith(opening):
            system = (whole[0][n:], whole[1][: len(whole[1]) - len(opening)])
            yield Layout(head[:n], {"system": system, **frame}, ask[i:], silent=head[n:])


def messages(chat: Sequence[str]) -> list[dict[str, str]]:
    """A message of each role, with a mark for its content."""
    return [{"role": role, "content": f"⟦{i}⟧"} for i, role in enumerate(chat)]


def _rendered(render: Render, chat: Sequence[str]) -> str | None:
    """``chat`` in the template; None if it refuses."""
    try:
        return render(messages(chat))
    except Raised:
        return None


def trims(render: Render) -> bool:
    """Whether white space around a content is lost."""
    try:
        return " ⟦0⟧ " not in render([{"role": "user", "content": " ⟦0⟧ "}])
    except Raised:
        return False


def _marked(render: Render, chat: Sequence[str]) -> list[str] | None:
    """The texts between contents, first and last included."""
    rest, parts = _rendered(render, chat) or "", []
    for i in range(len(chat)):
        before, mark, rest = rest.partition(f"⟦{i}⟧")
        if not mark:
            return None
        parts.append(before)
    return [*parts, rest]


def _openings(a: str, b: str) -> Iterator[str]:
    """What a user's turn may begin with, which both end with, the likeliest first.

    The repeat also ends the answer before: what belongs to the user's turn starts at a special
    token, mostly the last.
    """
    length = 0
    while length < min(len(a), len(b)) and a[-1 - length] == b[-1 - length]:
        length += 1
    common = a[len(a) - length :]
    starts = _starts(common)
    special = [n for n in starts if common.startswith("<|", n)]
    yield from (common[n:] for n in dict.fromkeys([*reversed(special), *starts]))


def _starts(text: str) -> list[int]:
    """Where in ``text`` a special token may begin, and both its ends; few, whatever it is."""
    inner = [n for n, c in enumerate(text) if n and c in "<["][:MAX_STARTS]
    return list(dict.fromkeys((0, *inner, len(text))))


def carried_out(candidate: Layout, chat: Sequence[str]) -> str:
    """``chat`` as ``candidate`` has it."""
    frame = candidate.frames
    body = "".join(
        f"{frame[m['role']][0]}{m['content']}{frame[m['role']][1]}" for m in messages(chat)
    )
    silent = "" if chat[0] == "system" else candidate.silent
    return candidate.head + silent + body + candidate.ask
