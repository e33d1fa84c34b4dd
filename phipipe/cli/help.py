"""The commands that help: explain, doctor, completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from phipipe.cli import answers, completions
from phipipe.cli.groups import command
from phipipe.cli.messages import echo
from phipipe.cli.options import AS_JSON, UserPath
from phipipe.cli.workplace import settings_of_user


@command("phipipe explain M20")
@click.argument("name", metavar="ID", required=False, shell_complete=completions.explained)
@AS_JSON
def explain(name: str | None, as_json: bool) -> None:
    """Say what stands behind a rule, a fix-up or an exit code: why, since when, what to do. Without
    ID: all of them."""
    from phipipe.cli import explain as explaining
    from phipipe.cli import tables

    if name is None:
        every = list(explaining.explanations().values())
        answers.give(every) if as_json else echo(tables.table(explaining.rows()))
        return
    one = explaining.find(name)
    answers.give(one) if as_json else echo(explaining.text(one))


@command("phipipe doctor recipes/quickstart.yaml")
@click.argument("recipes", nargs=-1, type=UserPath())
@AS_JSON
def doctor(recipes: Sequence[Path], as_json: bool) -> None:
    """Tell what this machine has and what is missing; of RECIPES, whether they could run here (exit
    code 1 if not)."""
    from phipipe.cli import doctor as checks
    from phipipe.cli import facts, recipe_checks, tables
    from phipipe.output import lists

    settings = settings_of_user()
    findings = list(checks.machine(settings))
    findings += recipe_checks.recipes(recipes, settings, findings)
    rows = [lists.Check(**asdict(check)) for check in findings]
    machine = facts.doctor(settings, rows)
    if as_json:
        answers.give(machine)
    else:
        echo(f"{tables.doctor(machine)}\nchecks\n{checks.text(findings)}")
    if not recipe_checks.fit_to_run(findings):
        raise click.exceptions.Exit(1)


@command('eval "$(phipipe completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish", "powershell"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the shell's completion script: commands, options, and names of devices, backends,
    variants, runs, toolchains and rules.

    \b
    bash, zsh:   eval "$(phipipe completion bash)"
    fish:        phipipe completion fish | source
    PowerShell:  phipipe completion powershell | Out-String | Invoke-Expression
    """
    from phipipe.cli import shells

    echo(shells.script(context.find_root().command, shell).rstrip("\n"))
