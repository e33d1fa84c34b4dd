"""What changed between two recipes, packages or runs: in figures beyond their errors, and in
inputs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing import documents, small_package
from testing.places import QUICKSTART, RECIPES
from testing.plans import plan, recorded, step
from testing.shell import Run

from phipipe.batch import accept
from phipipe.diff.changes import changes
from phipipe.diff.measured import Measured, figures
from phipipe.evaluate import sampling
from phipipe.metrics import METRICS
from phipipe.package import manifest, manifest_schema

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
VALUES = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


def package(folder: Path, kld: float = 0.01, error: float = 0.001, **changed: Any) -> Path:
    fidelity = small_package.described()["fidelity"]
    fidelity["metrics"] = {"kld_mean": kld, "size_gib": 0.5, "bits_per_weight": 4.5}
    made = small_package.written(folder, fidelity=fidelity, **changed)
    path = made / "manifest.json"
    told = json.loads(path.read_text("utf-8"))
    for name in ("files", "digest"):
        del told[name]
    told["fidelity"]["stderr"] = {"kld_mean": error}
    for name in ("manifest.json", "SHA256SUMS"):
        (made / name).unlink()
    small_package.manifest.seal(made, told)
    return made


def compared(run: Run, *words: str | Path) -> Any:
    code, out, err = run("diff", *words, "--json")
    assert code == 0, err
    return documents.fits(["diff"], out)


def test_two_recipes_differ_in_the_values_that_differ_defaults_included(run: Run) -> None:
    told = compared(run, QUICKSTART, RECIPES / "phi4mini-cpu-int4.yaml")
    (pair,) = told["pairs"]
    found = {change["what"]: (change["before"], change["after"]) for change in pair["inputs"]}
    assert found["quantize.mixed"] == ("none", "layers")
    assert found["context"] == (None, 8192)
    assert "device" not in found
    assert pair["figures"] == []
    _, out, _ = run("diff", QUICKSTART, RECIPES / "phi4mini-cpu-int4.yaml")
    assert "quantize.mixed: none → layers" in out
    assert "context: absent → 8192" in out


def test_variants_of_two_matrices_are_paired_by_their_names(run: Run, tmp_path: Path) -> None:
    text = "name: {}\nsource: {{builtin: tiny-phi3}}\ndevice: cpu-x86_64\nmatrix:\n"
    first = text.format("a") + "  - {precision: int4}\n  - {precision: int8}\n"
    second = text.format("b") + "  - {precision: int8}\n  - {precision: fp32}\n"
    (tmp_path / "a.yaml").write_text(first, "utf-8")
    (tmp_path / "b.yaml").write_text(second, "utf-8")
    told = compared(run, "a.yaml", "b.yaml")
    (pair,) = told["pairs"]
    assert (pair["before"], pair["after"]) == ("a-onnxruntime-int8", "b-onnxruntime-int8")
    assert [change["what"] for change in pair["inputs"]] == ["name"]
    assert told["only_before"] == ["a-onnxruntime-int4"]
    assert told["only_after"] == ["b-onnxruntime-fp32"]


def test_a_change_within_twice_the_error_is_called_none(run: Run, tmp_path: Path) -> None:
    first = package(tmp_path / "a", kld=0.0100)
    near, far = package(tmp_path / "b", kld=0.0120), package(tmp_path / "c", kld=0.0140)
    verdicts = []
    for other in (near, far):
        (pair,) = compared(run, first, other)["pairs"]
        verdicts.append({one["metric"]: one["verdict"] for one in pair["figures"]}["kld_mean"])
    assert verdicts == ["same", "worse"]
    assert "no change beyond ± 0.0028" in run("diff", first, near)[1]
    assert "worse" in run("diff", first, far)[1]
    assert "nothing differs" in run("diff", first, first)[1]


def test_packages_scored_on_other_tokens_are_not_compared(run: Run, tmp_path: Path) -> None:
    first, second = package(tmp_path / "a"), package(tmp_path / "b", kld=0.5)
    path = second / "manifest.json"
    told = json.loads(path.read_text("utf-8"))
    told["fidelity"]["baseline"]["tokens"] = 8192
    for name in ("files", "digest"):
        del told[name]
    for name in ("manifest.json", "SHA256SUMS"):
        (second / name).unlink()
    small_package.manifest.seal(second, told)
    (pair,) = compared(run, first, second)["pairs"]
    verdicts = {one["metric"]: one["verdict"] for one in pair["figures"]}
    assert (verdicts["kld_mean"], verdicts["size_gib"]) == ("unlike", "same")
    assert "fidelity was measured on other tokens" in pair["notes"]


def sampled(folder: Path, klds: dict[int, float], **changed: Any) -> Path:
    """A package that scored some windows of the text: place → mean divergence."""
    figures = {name: [0.5] * len(klds) for name in sampling.FIGURES} | {"kld": [*klds.values()]}
    told = {
        "tokens": 512 * len(klds),
        "cap": 4096,
        "reason": "decided",
        "windows": [*klds],
        "figures": {**figures, **changed},
    }
    fidelity = small_package.described()["fidelity"]
    fidelity["metrics"] = {
        "kld_mean": sum(klds.values()) / len(klds),
        "kld_max": 3.0,
        "size_gib": 0.5,
        "bits_per_weight": 4.5,
    }
    return small_package.written(folder, fidelity={**fidelity, "sampling": told})


def test_packages_are_compared_over_the_windows_that_both_scored(run: Run, tmp_path: Path) -> None:
    easy = sampled(tmp_path / "easy", {0: 0.010, 1: 0.011, 2: 0.012})
    hard = sampled(tmp_path / "hard", {0: 0.010, 1: 0.011, 5: 0.09})
    (pair,) = compared(run, easy, hard)["pairs"]
    figures = {figure["metric"]: figure for figure in pair["figures"]}
    kld = figures["kld_mean"]
    assert kld["before"] == kld["after"] == pytest.approx(0.0105)
    assert kld["verdict"] == "same"
    assert "kld_max" not in figures  # of both windows nobody knows it
    assert (
        "fidelity is compared over the 1,024 tokens that both scored, of 1,536 and 1,536"
        in pair["notes"]
    )
    other = sampled(tmp_path / "other", {6: 0.01})
    for side in (other, package(tmp_path / "whole")):
        (pair,) = compared(run, easy, side)["pairs"]
        assert "fidelity was measured on other tokens" in pair["notes"]
        told = {figure["metric"]: figure["verdict"] for figure in pair["figures"]}
        assert told["kld_mean"] == "unlike"


def test_a_later_version_is_judged_over_the_windows_of_both(tmp_path: Path) -> None:
    old, new = (
        manifest.read_manifest(sampled(tmp_path / str(i), klds))
        for i, klds in enumerate(({0: 0.01, 1: 0.01}, {0: 0.01, 5: 0.09}))
    )
    compared = accept.comparable(old, new)
    assert "kld_mean" in compared
    assert "kld_max" not in compared
    assert "size_gib" in compared


def test_windows_of_a_strangers_package_are_held_to_bounds(tmp_path: Path) -> None:
    for changed in ({"nll": [0.5]}, {"nll": [1e9]}, {"kld": [-1.0]}):
        made = sampled(tmp_path / "good", {0: 0.01, 1: 0.02})
        told = json.loads((made / "manifest.json").read_text("utf-8"))
        told["fidelity"]["sampling"]["figures"] |= changed
        with pytest.raises(manifest_schema.Malformed):
            manifest_schema.parse(told)
        shutil.rmtree(made)


def test_versions_of_a_batch_are_found_by_the_builds_folder(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "batch" / "small"
    old, new = package(home / ("a" * 16)), package(home / ("b" * 16), kld=0.02)
    os.utime(old, (1, 1))
    told = compared(run, home)
    assert (told["before"], told["after"]) == (str(old), str(new))
    (home / "latest").write_text("a" * 16 + "\n", "utf-8")
    assert compared(run, home, new)["before"] == str(old)  # what was accepted last


def test_runs_differ_in_the_steps_that_were_done_otherwise(run: Run, own_cache: Path) -> None:
    ids = []
    for bits in (4, 8):
        made = plan("a", step("source"), step("quantize", "source", bits=bits))
        ids.append(recorded(own_cache, made)[0]["run"])
    (pair,) = compared(run, *ids)["pairs"]
    assert [(one["what"], one["words"]) for one in pair["inputs"]] == [
        ("quantize: params.bits", "4 → 8")
    ]
    failed = plan("a", step("source"), step("quantize", "source", fail=True))
    recorded(own_cache, failed)
    (pair,) = compared(run, ids[0], "latest")["pairs"]
    assert pair["notes"] == ["before: it was built; after: quantize cannot"]
    assert "quantize: done → not done" in run("diff", ids[0], "latest")[1]
    assert "nothing differs" in run("diff", "latest", "latest")[1]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([str(QUICKSTART), "latest"], 2, "a run"),
        (["nope.yaml", "also.yaml"], 2, "nope.yaml"),
        (["none", "latest"], 8, "there is no run `none`"),
        (["none"], 8, "no two versions to compare"),
        (["x" * 5000, "y"], 8, "there is no run"),
        (["a/b", "c/d"], 2, "a/b"),
        ([str(QUICKSTART), "nope"], 8, "`nope` is no file or folder, and there is no run `nope`"),
        (["nope", str(QUICKSTART)], 8, "`nope` is no file or folder"),
        (["", "latest"], 2, "one side is empty"),
        ([str(QUICKSTART), " "], 2, "one side is empty"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(
    run: Run, words: list[str], code: int, said: str
) -> None:
    ended, _, err = run("diff", *words)
    assert said in err
    assert ended == code


@given(VALUES)
def test_equal_values_have_no_difference(value: dict[str, Any]) -> None:
    assert changes(value, value) == []


@given(VALUES, VALUES)
def test_a_difference_turned_around_has_its_sides_exchanged(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    there, back = changes(first, second), changes(second, first)
    assert [(c.what, c.before, c.after) for c in there] == [
        (c.what, c.after, c.before) for c in back
    ]


@given(
    st.sampled_from([*METRICS]),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1e3),
    st.floats(0, 1e3),
)
def test_a_verdict_turned_around_is_the_other_one(
    name: str, was: float, now: float, error: float, other: float
) -> None:
    sides = [
        Measured(values={name: was}, stderr={name: error}),
        Measured(values={name: now}, stderr={name: other}),
    ]
    (there,), (back,) = figures(sides[0], sides[1], {name}), figures(sides[1], sides[0], {name})
    turned = {"better": "worse", "worse": "better", "same": "same"}
    assert turned[there.verdict] == back.verdict
    assert (there.verdict == "same") == (abs(was - now) <= (there.limit or 0))


@pytest.mark.parametrize(
    ("how", "host", "alike"),
    [
        ("16-bit arithmetic", {"cores": 2}, True),
        ("16-bit arithmetic", {"cores": 4}, False),  # another machine rounds otherwise
        ("", {"cores": 4}, True),  # it is `kld_mean`
    ],
)
def test_runs_compare_on_one_machine_alone(
    tmp_path: Path, how: str, host: dict[str, int], alike: bool
) -> None:
    sides = []
    for name, cores in (("one", {"cores": 2}), ("two", host)):
        fidelity = small_package.described()["fidelity"]
        figures_of = {**fidelity["metrics"], "kld_run": 0.02}
        told = {**fidelity, "metrics": figures_of, "run": {"how": how, "positions": 100}}
        speed = {"metrics": {"ttft_s": 0.1}, "host": cores}
        described = small_package.described(fidelity=told, speed=speed)
        sides.append(manifest_schema.parse({**described, "name": name}))
    found = accept.comparable(*sides)
    assert "kld_mean" in found
    assert ("kld_run" in found) == alike
