"""The one door to packages of others: their files are checked, and then who made them, as the
user's trust file demands.

Every command and function that opens a package for use comes in here, not at ``package.open_``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from phipipe.package import package
from phipipe.package.manifest import Finding
from phipipe.package.manifest_schema import Manifest
from phipipe.settings import Settings
from phipipe.signing import trust_file, verdict
from phipipe.signing.demands import Policy, Trust
from phipipe.signing.verdict import Verdict


def open_(folder: Path, note: Callable[[str], None]) -> Manifest:
    """The manifest of the package in ``folder``, every file of which is as it was packaged, has
    passed the gate, and was signed as the user's trust file demands.

    ``note`` hears what that file only wants a warning of.

    Raises:
        RecipeError: the trust file, or another setting, makes no sense.
        SourceError: it is no package, was changed, holds what phipipe never packages, or must not
            be trusted.
        ToolchainError: a signature is to be checked, and the library for that is missing.
    """
    trust = trust_file.of_user(Settings.read().trust)
    manifest = package.open_(folder)
    if trust is not None:
        verdict.obey(verdict.judge(folder, manifest, trust.demand(manifest.name)), note)
    return manifest


def examine(
    folder: Path, trust: Trust | None, policy: Policy | None = None
) -> tuple[list[Finding], Verdict | None]:
    """All that is wrong with the files of the package in ``folder``; and where that is nothing,
    what its signature is worth to ``trust``, whose own policy ``policy`` replaces.

    Raises:
        SourceError: there is no such folder, a newer phipipe made the package, or a key, a
            certificate or a list that ``trust`` names cannot be used.
        ToolchainError: as ``open_``.
    """
    findings = package.verify(folder)
    if findings:
        return findings, None
    manifest = package.read_manifest(folder)
    demand = trust.demand(manifest.name) if trust else None
    if demand and policy:
        demand = replace(demand, policy=policy)
    return [], verdict.judge(folder, manifest, demand)
