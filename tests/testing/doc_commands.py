"""Commands of phipipe's in text, held against the real command line."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator

import click

from phipipe import cli

CALL = re.compile(r"(?:^|.*/)phipipe(?:\.exe)?$")
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_/:.,…-]*$")
ENDS = frozenset({"|", "||", "&&", ";", "&", ")", ">", ">>", "<", "2>"})


def in_shell(text: str) -> Iterator[list[str]]:
    """Arguments of each call of phipipe in a block for a shell."""
    for line in re.sub(r"\\\n\s*", " ", text).split("\n"):
        words = _words(line)
        for start, word in enumerate(words):
            if CALL.match(word) and (start == 0 or _begins(words[start - 1])):
                yield list(itertools.takewhile(lambda w: w not in ENDS, words[start + 1 :]))


def in_words(code: str) -> Iterator[list[str]]:
    """Arguments that a mention such as `phipipe cache ls|gc [--json]` stands for."""
    if not code.startswith("phipipe ") or PLACEHOLDER.match(code.split()[1]):
        return
    plain = re.sub(r"[\[\]]", " ", code.replace(r"\|", "|")).replace("…", " ").replace("...", " ")
    choices = [word.split("|") if word[0] != "-" else [word] for word in shlex.split(plain)[1:]]
    for words in itertools.product(*choices):
        yield list(words)


def complaint(words: list[str], *, complete: bool) -> str | None:
    """Why the command line would refuse ``words``; None if it would not. ``complete``: what it
    needs has to be there, too."""
    command: click.Command = cli.cli
    # click keeps a command's `--help` as it is first asked for, so with the command line's settings
    context = click.Context(command, info_name="phipipe", **cli.cli.context_settings)
    try:
        while isinstance(command, click.Group) and words and words[0] not in ("-h", "--help"):
            if words[0].startswith("-"):
                command.make_parser(context).parse_args(list(words))
                words = _after_options(command, words)
                continue
            name, found, words = command.resolve_command(context, list(words))
            assert found is not None
            command, context = found, click.Context(found, info_name=name, parent=context)
        if isinstance(command, click.Group) or {"-h", "--help"} & {*words}:
            return None
        return _leaf(command, context, words, complete)
    except click.UsageError as error:
        return error.format_message()


def _after_options(command: click.Command, words: list[str]) -> list[str]:
    """``words`` from the first that is no option of a group's."""
    flags = {name for p in command.params if getattr(p, "is_flag", False) for name in p.opts}
    return words[1:] if words[0] in {*flags, "--version"} or "=" in words[0] else words[2:]


def _leaf(
    command: click.Command, context: click.Context, words: list[str], complete: bool
) -> str | None:
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    for param in command.params:
        value = values.get(param.name or "")
        if _is_missing(param, value):
            if complete and param.required:
                return f"{param.human_readable_name} is missing"
        elif isinstance(param.type, click.Choice) and _is_meant(value):
            param.type.convert(value, param, context)
    return f"too many arguments: {rest}" if rest else None


def _is_meant(value: object) -> bool:
    """Whether a value is one, and stands for no other, as NAME and $NAME do."""
    return isinstance(value, str) and not PLACEHOLDER.match(value) and not value.startswith("$")


def _is_missing(param: click.Parameter, value: object) -> bool:
    return value is None or value == () or repr(value).endswith("UNSET")


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        return list(lexer)
    except ValueError:  # a quote that goes on in the next line
        return line.split()


def _begins(before: str) -> bool:
    """Whether a command can stand after the word ``before``."""
    return before in ENDS or "=" in before or before in ("then", "do", "time", "!", "(", "env")
