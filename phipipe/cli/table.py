"""Which commands there are, and what each does in a sentence: all that ``phipipe --help`` needs.

A command's module is imported when the command is called. A test holds each sentence to the one in
the command's own docstring.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A command: ``address`` is ``module:function`` within this room."""

    name: str
    address: str
    summary: str


COMMANDS = {  # heading → commands, in the order a user meets them
    "Build": (
        Row("run", "build:run", "Build, evaluate and package what a recipe describes."),
        Row(
            "plan",
            "plan:plan",
            "Show what `run` would do: every step, cached or not, why, what it needs, how "
            "long it takes.",
        ),
        Row(
            "tune",
            "tune:tune",
            "Choose the bits of each matrix under a budget, and write them as a recipe.",
        ),
        Row(
            "graph",
            "graph:graph",
            "Print the steps of a recipe as a graph; cached steps have a colour of their own.",
        ),
    ),
    "Packages": (
        Row("chat", "packages:chat", "Talk to a package through its own runtime, greedily."),
        Row(
            "compare",
            "packages:compare",
            "Make one board of finished packages and runs: table, board.json, board.md and "
            "board.html.",
        ),
        Row(
            "diff",
            "diff:diff",
            "Show what changed between two recipes, two packages or two runs.",
        ),
        Row(
            "apps",
            "apps:apps",
            "List apps that open packages, and what they need; of PACKAGE, which of them open it.",
        ),
        Row(
            "export",
            "apps:export",
            "Lay a package out as an app wants to find it, and name the next commands.",
        ),
        Row(
            "eval",
            "packages:eval_",
            "Evaluate a finished package again: same metrics, other text or length, this machine.",
        ),
        Row(
            "measure",
            "packages:measure",
            "Measure a package on the device it is for, which this machine must be: fidelity, "
            "speed, memory.",
        ),
        Row("sign", "signing:sign", "Sign a package with a key, a certificate or an identity."),
        Row(
            "pull",
            "publishing:pull",
            "Fetch a package from where `push` published it, verify it, and put it into its "
            "folder.",
        ),
        Row(
            "push",
            "publishing:push",
            "Publish a package on the Hugging Face hub, in an OCI registry or in a bucket.",
        ),
        Row(
            "rebuild",
            "rebuild:rebuild",
            "Make a package again from its own recipe, in an empty cache, and compare the two.",
        ),
        Row(
            "serve",
            "serve:serve",
            "Serve a package to apps that speak OpenAI's API, until Ctrl-C.",
        ),
        Row(
            "verify",
            "signing:verify",
            "Check that a package is complete and unchanged, that nothing in it runs or loads "
            "code, and who signed it.",
        ),
    ),
    "Recipes": (
        Row("init", "recipes:init", "Write a commented starter recipe that validates and plans."),
        Row(
            "recipes",
            "shipped:recipes",
            "The recipes that come with phipipe: list them, show one, copy one to start from.",
        ),
        Row(
            "validate",
            "recipes:validate",
            "Check recipes: every problem with file, line and column.",
        ),
        Row(
            "pin",
            "recipes:pin",
            "Write the commits that branches are at into a recipe; its comments stay.",
        ),
        Row(
            "schema",
            "schema:schema",
            "Print a JSON schema: of recipes, for editors' YAML language servers, or of what "
            "a command prints with --json.",
        ),
    ),
    "Targets": (
        Row("devices", "lists:devices", "List target devices; `show NAME` for one."),
        Row("backends", "lists:backends", "List backends; `show NAME` for one."),
    ),
    "Many builds, many machines": (
        Row(
            "batch",
            "batch:batch",
            "Build many recipes as one, and compare with what was accepted before.",
        ),
        Row("schedule", "schedule:schedule", "Batches on a timetable."),
        Row(
            "worker",
            "batch:worker",
            "Do steps of `run --on` and `batch --on` here, until it is stopped; a scheduler "
            "may come and go.",
        ),
    ),
    "This machine": (
        Row(
            "doctor",
            "help:doctor",
            "Tell what this machine has and what is missing; of RECIPES, whether they could "
            "run here (exit code 1 if not).",
        ),
        Row(
            "config",
            "config:config",
            "The settings that hold here, and the files that they come from.",
        ),
        Row("toolchain", "toolchains:toolchain", "The isolated environments that backends run in."),
        Row(
            "cache",
            "cache:cache",
            "What the cache holds, whether it is intact, and how to shrink it.",
        ),
        Row(
            "runs",
            "runs:runs",
            "What `run`, `batch`, `eval` and `measure` did: which steps, how long, how they ended.",
        ),
    ),
    "Help": (
        Row("docs", "docs:docs", "Print a page of the documentation."),
        Row(
            "explain",
            "help:explain",
            "Say what stands behind a rule, a fix-up or an exit code: why, since when, what to do.",
        ),
        Row(
            "completion",
            "help:completion",
            "Print the shell's completion script: commands, options, and names of devices, "
            "backends, variants, runs, toolchains and rules.",
        ),
    ),
}
