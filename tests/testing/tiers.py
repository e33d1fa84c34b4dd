"""Which tests a run takes: those without a tier, and those of the tiers that it asks for.

    integration   uses a real toolchain: asks for the fixture ``toolchains``, maybe through others
    full          needs none, but costs much
    nightly       sizes of a release, the whole matrix

``--full`` asks for the first two, ``--nightly`` for all three, ``-m`` for those that it names. Who
names a file asks for its tests, nightly ones aside; who names a test asks for that one.
"""

from __future__ import annotations

import re

import pytest

TIERS = ("nightly", "integration", "full")  # a test with two of the marks is in the first


def asked(config: pytest.Config) -> set[str]:
    """The tiers that a run asks for."""
    option, files = config.option, [word for word in config.args if ".py" in word]
    if option.nightly or any("::" in word for word in files):
        return set(TIERS)
    if option.full or (files and not option.markexpr):
        return {"integration", "full"}
    return set(TIERS).intersection(re.findall(r"(?<!not )\b\w+", option.markexpr))


def takes_all(config: pytest.Config) -> bool:
    """Whether a run is about all toolchains: nothing is picked by a name or a file."""
    picked = config.option.keyword or any(".py" in word for word in config.args)
    return "integration" in asked(config) and not picked


def sizes(usual: int, release: int) -> list[pytest.ParameterSet]:
    """Values to parametrize with: the usual size, and that of a release at night."""
    at_night = (pytest.mark.nightly, pytest.mark.timeout(4 * 3600))
    return [pytest.param(usual), pytest.param(release, marks=at_night)]


def derive(item: pytest.Item) -> None:
    """Mark a test that may use a real toolchain."""
    if "toolchains" in getattr(item, "fixturenames", ()):
        item.add_marker("integration")


def is_taken(item: pytest.Item) -> bool:
    tier = next((name for name in TIERS if item.get_closest_marker(name)), None)
    return (
        tier is None or tier in asked(item.config) or item.get_closest_marker("always") is not None
    )
