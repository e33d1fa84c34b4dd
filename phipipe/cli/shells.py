"""How shells ask for completions, and get them: scripts, and the words of a command line that is
being typed.

click knows zsh and fish. Bash is here since it takes words apart at `=` and `:`, which values of
ours hold; PowerShell since click has none.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from click import shell_completion
from click.shell_completion import CompletionItem, ShellComplete

if TYPE_CHECKING:
    import click

VARIABLE = "_PHIPIPE_COMPLETE"
NAME = "phipipe"
SHELLS = ("bash", "zsh", "fish", "powershell")

BASH = """\
%(complete_func)s() {
    local kind word
    COMPREPLY=()
    while IFS=, read -r kind word; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("$word")
                [[ $word == *= ]] && compopt -o nospace
                ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

POWERSHELL = """\
Register-ArgumentCompleter -Native -CommandName %(prog_name)s -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements |
        Where-Object { $_.Extent.EndOffset -lt $cursorPosition } |
        ForEach-Object { if ($null -ne $_.Value) { $_.Value } else { $_.Extent.Text } })
    $env:COMP_WORDS = ($words + $wordToComplete) -join "`n"
    $env:%(complete_var)s = 'powershell_complete'
    try {
        & %(prog_name)s 2>$null | ForEach-Object {
            $kind, $word, $meaning = $_ -split "`t", 3
            if ($kind -eq 'plain') {
                $typed = $word
                if ($word -match '[^\\w.:=/+-]') { $typed = "'" + $word.Replace("'", "''") + "'" }
                if (-not $meaning) { $meaning = $word }
                [System.Management.Automation.CompletionResult]::new(
                    $typed, $word, 'ParameterValue', $meaning)
            }
        }
    }
    finally {
        Remove-Item Env:%(complete_var)s, Env:COMP_WORDS -ErrorAction SilentlyContinue
    }
}
"""


class Bash(ShellComplete):
    """Bash gets ``kind,word`` in lines; of a word, what comes after the last sign at which it takes
    words apart."""

    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = BASH
    _begun = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor's, and that."""
        line = os.environ["COMP_LINE"]
        words = shell_completion.split_arg_string(line)
        last = "" if line[-1:].isspace() or len(words) < 2 else words.pop()
        signs = [sign for sign in "=:" if sign in os.environ.get("COMP_BREAKS", "")]
        self._begun = last[: max((last.rfind(sign) + 1 for sign in signs), default=0)]
        return words[1:], last

    def format_completion(self, item: CompletionItem[str]) -> str:
        """A line for the script."""
        return f"{item.type},{str(item.value).removeprefix(self._begun)}"


class PowerShell(ShellComplete):
    """PowerShell gets ``kind``, word and meaning, with tabs between. It offers files itself."""

    name: ClassVar[str] = "powershell"
    source_template: ClassVar[str] = POWERSHELL

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor's, and that."""
        words = os.environ["COMP_WORDS"].split("\n")
        return words[1:-1], words[-1]

    def format_completion(self, item: CompletionItem[str]) -> str:
        """A line for the script."""
        return f"{item.type}\t{item.value}\t{' '.join((item.help or '').split())}"


for _kind in (Bash, PowerShell):
    shell_completion.add_completion_class(_kind)


def script(command: click.Command, shell: str) -> str:
    """The text that ``shell`` runs to have completion."""
    kind = shell_completion.get_completion_class(shell)
    assert kind is not None  # one of SHELLS
    return kind(command, {}, NAME, VARIABLE).source()


def answer(command: click.Command) -> int:
    """Print what fits the command line that is being typed; the exit code. Says nothing else."""
    asked = os.environ[VARIABLE]
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            return shell_completion.shell_complete(command, {}, NAME, VARIABLE, asked)
        except Exception:  # noqa: BLE001 (somebody is typing: no place for a message)
            return 1
