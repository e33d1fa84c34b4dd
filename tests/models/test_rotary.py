"""Every kind of rotary scaling on every backend: converted and compared with transformers, within
the original context and beyond it; or refused with its rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import rotary_checkpoints as rotaries
from testing import small_checkpoints
from testing.drive import drive
from testing.family_builds import BUILDS, NEAR, THREADS, WINDOWS, found_by, name_of, plan_of
from testing.hostile_checkpoints import GONE
from testing.rotary_checkpoints import KINDS

from phipipe import backends
from phipipe.backends.qnn import rotary as qnn_rotary
from phipipe.errors import SourceError, TargetError
from phipipe.evaluate.gates import PARITY_KLD_MEAN
from phipipe.models import checkpoints as models
from phipipe.models import config_check, rotary

LIMIT = PARITY_KLD_MEAN
QUICK = ("onnxruntime", "linear", "source", "long")  # the others run at night
SCALED = [kind for kind in KINDS if not kind.startswith(("default", "longrope"))]
pytestmark = pytest.mark.timeout(600)


def config(kind: str, *, new: bool = False) -> dict[str, Any]:
    return rotaries.spelled(KINDS[kind], new=new)


def is_able(backend: str, kind: str) -> bool:
    return set(rotary.features(config(kind))) <= backends.load(backend).rotary


def cases() -> Iterator[Any]:
    for backend in sorted(sorted(set(BUILDS) - {"qnn"}), key="llamacpp".__eq__):
        for kind in KINDS:
            for spelling in ("source", "respelled"):
                for window in WINDOWS:
                    case = backend, kind, spelling, window
                    marks = [] if case == QUICK else [pytest.mark.nightly]
                    if is_able(backend, kind):
                        yield pytest.param(*case, marks=marks, id="-".join(case))


@pytest.fixture(scope="session")
def small(python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small checkpoint of each kind."""
    root = tmp_path_factory.mktemp("rotary")
    drive(python_of("torch"), "-m", "testing.rotary_checkpoints", root, **THREADS)
    return root


@pytest.fixture(scope="session")
def found(
    small: Path, python_of: Callable[[str], Path], request: pytest.FixtureRequest
) -> Callable[[str], dict[str, Any]]:
    """What the driver found out about a backend's jobs, by their names."""
    words = ("backend", "kind", "spelling", "window")
    return found_by(small, __file__, words, request, python_of)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("backend", "kind", "spelling", "window"), list(cases()))
def test_scaled_positions_are_exact(
    found: Callable[[str], dict[str, Any]], backend: str, kind: str, spelling: str, window: str
) -> None:
    facts = found(backend)[name_of(kind, spelling, window)]
    assert "error" not in facts, facts["error"][-3000:]
    assert facts["kld"] < LIMIT
    assert max(facts["gaps"]) < NEAR, "with a cache, the answer is what the logits say"


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "default"])
@pytest.mark.parametrize("new", [False, True], ids=["rope_scaling", "rope_parameters"])
def test_frequencies_of_fixed_graphs_are_those_of_transformers(
    small: Path, kind: str, new: bool
) -> None:
    """qnn's, which it works out in Python; its int8 graphs are compared elsewhere."""
    if not is_able("qnn", kind):
        return
    size = rotaries.HIDDEN // rotaries.HEADS
    told = json.loads((small / kind / "frequencies.json").read_text("utf-8"))
    for context, (expected, scale) in told.items():
        found, factor = qnn_rotary.frequencies(config(kind, new=new), size, int(context))
        assert found == pytest.approx(expected, rel=1e-6)
        assert factor == pytest.approx(scale, rel=1e-6)


def llama(folder: Path, told: dict[str, Any]) -> Path:
    """A checkpoint of a few kilobytes in Llama's layout."""
    keys = ("rope_scaling", "rope_parameters", "rope_theta")
    return small_checkpoints.write(
        folder, head_dim=32, **{key: told.get(key, GONE) for key in keys}
    )


@pytest.mark.parametrize("backend", BUILDS)
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not kind.startswith(("default", "longrope"))]
)
@pytest.mark.parametrize("new", [False, True], ids=["rope_scaling", "rope_parameters"])
def test_what_a_backend_is_not_proven_to_compute_is_refused_in_plan(
    tmp_path: Path, backend: str, kind: str, new: bool
) -> None:
    folder = llama(tmp_path / "small", config(kind, new=new))
    assert models.read(folder).scaling == KINDS[kind]["rope_type"]
    try:
        plan_of(folder, backend, "short")
        found = ""
    except TargetError as error:
        found = f"{error.message} {error.hint}"
    assert ("[M24]" not in found) == is_able(backend, kind)
    assert is_able(backend, kind) or "torch" in found, "which computes all of them"


@pytest.mark.parametrize("backend", BUILDS)
def test_scaling_by_the_length_of_each_text_is_refused_everywhere(
    tmp_path: Path, backend: str
) -> None:
    told = {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
    with pytest.raises(TargetError, match=r"\[M22\]"):
        plan_of(llama(tmp_path / "small", told), backend, "short")


UNSOUND: dict[str, tuple[dict[str, Any], str]] = {
    "no factor": ({"rope_type": "linear"}, "rope_scaling.factor"),
    "no original context": (
        {"rope_type": "yarn", "factor": 4.0},
        "rope_scaling.original_max_position_embeddings",
    ),
    "half of llama3": (
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256},
        "rope_scaling.low_freq_factor",
    ),
    "llama3 turned round": (
        {**(KINDS["llama3"] or {}), "low_freq_factor": 4.0, "high_freq_factor": 1.0},
        "rope_scaling.high_freq_factor",
    ),
    "betas turned round": ({**rotaries.YARN, "beta_fast": 1.0, "beta_slow": 32.0}, "beta_fast"),
    "a beta of zero": ({**rotaries.YARN, "beta_slow": 0.0}, "beta_slow"),
    "half of mscale": ({**rotaries.YARN, "mscale": 1.0}, "mscale_all_dim"),
    "shorter": ({"rope_type": "linear", "factor": 0.5}, "longer, not shorter"),
    "a key of a fork": ({**rotaries.YARN, "attn_factor": 1.0}, "attn_factor"),
    "no lists": ({"rope_type": "longrope", "factor": 4.0}, "short_factor"),
    "a truth for a number": ({"rope_type": "linear", "factor": True}, "rope_scaling.factor"),
    "a number for a truth": ({**rotaries.YARN, "truncate": 0}, "rope_scaling.truncate"),
    "endless": ({"rope_type": "linear", "factor": 1e9}, "rope_scaling.factor"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_what_tools_would_guess_or_skip_is_refused_by_name(tmp_path: Path, case: str) -> None:
    scaling, words = UNSOUND[case]
    with pytest.raises(SourceError) as refused:
        models.read(llama(tmp_path / "small", {"rope_scaling": scaling}))
    assert words in refused.value.message
    assert refused.value.hint


def test_two_original_contexts_are_refused(tmp_path: Path) -> None:
    folder = llama(tmp_path / "small", {"rope_scaling": rotaries.YARN})
    path = folder / "config.json"
    told = json.loads(path.read_text("utf-8")) | {"original_max_position_embeddings": 1024}
    path.write_text(json.dumps(told), "utf-8")
    with pytest.raises(SourceError, match=r"is 256, and .* is 1024"):
        models.read(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_both_spellings_say_the_same_and_are_handed_on_in_the_hubs(kind: str) -> None:
    old, new = config(kind), config(kind, new=True)
    assert rotary.features(old) == rotary.features(new)
    assert rotary.respelled(old) == rotary.respelled(new)
    handed = rotary.respelled(new)
    assert rotary.features({**CONFIG, "rope_scaling": handed}) == rotary.features(old)
    assert rotary.problem({**CONFIG, "rope_scaling": handed}) is None


CONFIG = rotaries.CONFIG
NUMBERS = st.none() | st.booleans() | st.integers(-3, 10**7) | st.floats(allow_nan=False)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*rotary.NEEDED, "default", "mrope", "x"]),
    st.dictionaries(
        st.sampled_from([*sorted({k for keys in rotary.NEEDED.values() for k in keys})])
        | st.sampled_from([*rotary.OPTIONAL["yarn"], "odd", "rope_theta"]),
        NUMBERS | st.lists(NUMBERS, max_size=3) | st.text(max_size=3),
        max_size=7,
    ),
)
def test_whatever_the_settings_say_they_are_refused_or_sound(
    kind: str, told: dict[str, Any]
) -> None:
    """Nothing ends as a bug, and what is accepted has every number that its kind needs."""
    whole = {**CONFIG, "rope_scaling": {"rope_type": kind, **told}}
    try:
        config_check._check_all(Path("config.json"), whole, "")
        config_check.check_model(Path("config.json"), whole)
    except SourceError:
        return
    assert all(whole["rope_scaling"].get(key) is not None for key in rotary.NEEDED.get(kind, ()))
    rotary.features(whole)
    rotary.respelled(whole)
