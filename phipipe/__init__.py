"""One recipe in, one verified artifact out: small language models for edge devices.

    import phipipe

    plan = phipipe.plan("recipe.yaml")          # every step: cached or not, and why
    results = phipipe.run("recipe.yaml")        # build, evaluate, package
    package = results.package                   # or phipipe.Package.open("packages/quickstart")
    print(package.figures["kld_mean"], package.chat("Tell me a story."))
    phipipe.Board(package, "packages/another")  # builds side by side

The names below are imported when they are first used, so that ``import phipipe`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phipipe.api.apps import App as App
    from phipipe.api.apps import Export as Export
    from phipipe.api.apps import apps as apps
    from phipipe.api.batches import Batch as Batch
    from phipipe.api.batches import run_batch as run_batch
    from phipipe.api.boards import Board as Board
    from phipipe.api.events import Event as Event
    from phipipe.api.figures import Figures as Figures
    from phipipe.api.measurements import ImportedSpeeds as ImportedSpeeds
    from phipipe.api.measurements import Measurement as Measurement
    from phipipe.api.packages import Conversation as Conversation
    from phipipe.api.packages import Package as Package
    from phipipe.api.packages import Server as Server
    from phipipe.api.plans import Plan as Plan
    from phipipe.api.plans import PlannedBuild as PlannedBuild
    from phipipe.api.plans import plan as plan
    from phipipe.api.progress_display import Progress as Progress
    from phipipe.api.publishing import Pulled as Pulled
    from phipipe.api.publishing import Pushed as Pushed
    from phipipe.api.publishing import pull as pull
    from phipipe.api.publishing import push as push
    from phipipe.api.rebuilding import Rebuilt as Rebuilt
    from phipipe.api.rebuilding import rebuild as rebuild
    from phipipe.api.recipes import Recipe as Recipe
    from phipipe.api.results import Result as Result
    from phipipe.api.results import Results as Results
    from phipipe.api.runs import run as run
    from phipipe.api.signatures import Trust as Trust
    from phipipe.api.signatures import sign as sign
    from phipipe.api.signatures import verify as verify
    from phipipe.api.tuning import Tuning as Tuning
    from phipipe.api.tuning import tune as tune
    from phipipe.batch.selection import Wanted as Wanted
    from phipipe.errors import GateFailed as GateFailed
    from phipipe.errors import Interrupted as Interrupted
    from phipipe.errors import PhipipeError as PhipipeError
    from phipipe.errors import RecipeError as RecipeError
    from phipipe.errors import SourceError as SourceError
    from phipipe.errors import StepFailed as StepFailed
    from phipipe.errors import StepKilled as StepKilled
    from phipipe.errors import StoreError as StoreError
    from phipipe.errors import TargetError as TargetError
    from phipipe.errors import ToolchainError as ToolchainError

__version__ = "0.1.0"

_HOMES = {
    "phipipe.api.recipes": ("Recipe",),
    "phipipe.api.plans": ("Plan", "PlannedBuild", "plan"),
    "phipipe.api.runs": ("run",),
    "phipipe.api.rebuilding": ("Rebuilt", "rebuild"),
    "phipipe.api.tuning": ("Tuning", "tune"),
    "phipipe.api.results": ("Result", "Results"),
    "phipipe.api.packages": ("Conversation", "Package", "Server"),
    "phipipe.api.measurements": ("ImportedSpeeds", "Measurement"),
    "phipipe.api.signatures": ("Trust", "sign", "verify"),
    "phipipe.api.publishing": ("Pulled", "Pushed", "pull", "push"),
    "phipipe.api.apps": ("App", "Export", "apps"),
    "phipipe.api.figures": ("Figures",),
    "phipipe.api.boards": ("Board",),
    "phipipe.api.batches": ("Batch", "Wanted", "run_batch"),
    "phipipe.api.events": ("Event",),
    "phipipe.api.progress_display": ("Progress",),
    "phipipe.errors": (
        "PhipipeError",
        "RecipeError",
        "TargetError",
        "ToolchainError",
        "StepFailed",
        "StepKilled",
        "GateFailed",
        "SourceError",
        "StoreError",
        "Interrupted",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME]

if not TYPE_CHECKING:

    def __getattr__(name):
        """The public name ``name``, imported now."""
        if name not in _HOME:
            raise AttributeError(f"module `phipipe` has no attribute `{name}`")
        import importlib

        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *_HOME})
