"""A cache apart for a rebuild: gone at the end, but for the logs of what failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from phipipe.api import rebuilding, workplace
from phipipe.api.rebuilding import Rebuilt
from phipipe.errors import StepFailed
from phipipe.package.manifest import Finding
from phipipe.settings import Settings


def test_nothing_of_it_stays(own_cache: Path) -> None:
    user = workplace.of_user(workplace.silent)
    with rebuilding._apart(user) as (place, folder):
        assert place.store.root == Settings.read().cache != own_cache
        assert folder.is_relative_to(own_cache)
        assert not list(place.store.records())
        assert not place.settings.keep_all  # it is removed: what no step reads takes no room
    assert not folder.exists()
    assert Settings.read().cache == own_cache
    assert not list((own_cache / "tmp").iterdir())


def failing() -> None:
    """A step of a rebuild that fails and says where its log is."""
    with rebuilding._apart(workplace.of_user(workplace.silent)) as (place, _):
        log = place.store.root / "logs" / "convert.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text("what went wrong", "utf-8")
        raise StepFailed("step `convert` failed", hint=f"its log: {log}")


def test_the_log_of_what_failed_is_kept_where_the_error_says(own_cache: Path) -> None:
    with pytest.raises(StepFailed) as failed:
        failing()
    kept = Path(str(failed.value.hint).removeprefix("its log: "))
    assert kept.parent == own_cache / "logs"
    assert kept.read_text("utf-8") == "what went wrong"
    assert not list((own_cache / "tmp").iterdir())


def test_another_package_is_a_failure_with_the_likely_reason() -> None:
    made = Rebuilt(
        equal=False,
        differences=tuple(Finding(f"file{i}", "has other content") for i in range(5)),
        reasons=("phipipe 0.1 made the package, and this is 0.2", "other"),
        taken_over=(),
        package=None,
    )
    with pytest.raises(StepFailed, match=r"5 files differ \(file0, file1, file2 …\)") as failed:
        made.check()
    assert failed.value.hint == "phipipe 0.1 made the package, and this is 0.2"
