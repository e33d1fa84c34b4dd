"""`validate`, `plan` and `run` say everything that is impossible, of every variant, each at its
place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from testing.places import RECIPES
from testing.shell import Run

from phipipe import backends
from phipipe.backends import model_rules, rules
from phipipe.backends.base import Job
from phipipe.errors import PhipipeError, RecipeError, SourceError, TargetError
from phipipe.hub import take
from phipipe.models.any_model import ANY_MODEL
from phipipe.planning import plans, targets
from phipipe.recipe import device, loading, recipe
from phipipe.recipe.recipe import PRECISIONS
from phipipe.recipe.source import Source

HEAD = (
    "name: x\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nbackend: "
    "onnxruntime\nprecision: int4\nmatrix:\n"
)
FIRST = HEAD.count("\n") + 1  # the line of the first variant
UNITS = ("cpu", "cuda", "metal", "hexagon", "intel-npu", "nosuch")


def written(folder: Path, *variants: str, head: str = HEAD) -> Path:
    path = folder / "r.yaml"
    path.write_text(head + "".join(f"  - {variant}\n" for variant in variants), "utf-8")
    return path


@contextlib.contextmanager
def refused(kind: type[PhipipeError] = TargetError) -> Iterator[pytest.ExceptionInfo[PhipipeError]]:
    with pytest.raises(kind) as caught:
        yield caught


def possible(name: str, unit: str | None, backend: str, precision: str) -> bool:
    if name not in device.names():
        return False
    target = device.load(name)
    units = [one for one in target.units if unit in (None, one.api)]
    return any(precision in backends.able(backend, target, one) for one in units)


variants = st.lists(
    st.tuples(
        st.sampled_from([*device.names(), "nosuch", "intel-npuu"]),
        st.none() | st.sampled_from(UNITS),
        st.sampled_from(backends.names()),
        st.sampled_from(PRECISIONS),
    ),
    min_size=1,
    max_size=8,
)


@examples(max_examples=60, deadline=None)
@given(variants)
def test_the_lines_of_the_variants_that_cannot_be_are_named_and_no_others(
    tmp_path: Path, chosen: list[tuple[str, str | None, str, str]]
) -> None:
    told = [
        f"{{name: v{i}, device: {name}, backend: {backend}, precision: "
        f"{precision}{f', unit: {unit}' if unit else ''}}}"
        for i, (name, unit, backend, precision) in enumerate(chosen)
    ]
    path = written(tmp_path, *told)
    wrong = {FIRST + i for i, one in enumerate(chosen) if not possible(*one)}
    if not wrong:
        assert len(targets.checked(path)) == len(chosen)
        return
    with refused() as caught:
        targets.checked(path)
    error = caught.value
    assert {problem.place.line for problem in error.problems} == wrong
    for problem in error.problems:
        assert problem.place.file == str(path)
        assert (
            f"{path}:{problem.place.line}:{problem.place.column}: {problem.message}"
            in error.message
        )


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_every_command_says_all_of_them_with_the_line_and_the_caret(
    run: Run,
    tmp_path: Path,
    command: str,
) -> None:
    written(
        tmp_path,
        "{name: a, device: nosuch}",
        "{name: b, device: intel-npu}",
        "{name: c, unit: cuda}",
        "{name: d}",
    )
    code, out, err = run(command, "r.yaml")
    assert (code, out) == (3, "")
    for place, words, caret in (
        ("7:23", "unknown device `nosuch`", "  - {name: a, device: nosuch}"),
        (
            "8:23",
            "backend `onnxruntime` does not run on Intel NPU (Core Ultra)",
            "  - {name: b, device: intel-npu}",
        ),
        ("9:21", "CPU (x86-64) has no unit `cuda`", "  - {name: c, unit: cuda}"),
    ):
        column = int(place.partition(":")[2])
        assert f"r.yaml:{place}: {words}\n    {caret}\n    {' ' * (column - 1)}^" in err
    assert err.count("r.yaml:") == 3
    assert err.count("  try: ") == 3


@pytest.mark.parametrize(
    ("head", "variant", "sets", "place"),
    [
        (HEAD, "{precision: fp16}", (), (7, 17)),  # what the variant says decides
        (HEAD, "{unit: cuda}", (), (7, 12)),
        (HEAD.replace("int4", "fp16"), "{name: a}", (), (5, 12)),  # else what all share
        (
            HEAD.replace("backend: onnxruntime\n", ""),
            "{device: intel-npu}",
            (),
            (6, 14),
        ),
        (
            HEAD.replace("cpu-x86_64", "intel-npu"),
            "{backend: openvino, precision: int8}",
            (),
            (7, 36),
        ),
        (HEAD, "{device: intel-npu, backend: openvino, quantize: {symmetric: false}}", (), (7, 66)),
        (
            HEAD,
            "{name: a}",
            ("device=intel-npu",),
            (None, None),
        ),  # the command line has the last word
        (HEAD, "{precision: int8}", ("precision=fp16",), (None, None)),
        (HEAD, "{precision: int8, quantize: {algorithm: gptq}}", (), (7, 33)),
    ],
)
def test_the_key_that_decides_is_the_place(
    tmp_path: Path,
    head: str,
    variant: str,
    sets: tuple[str, ...],
    place: tuple[int | None, int | None],
) -> None:
    path = written(tmp_path, variant, head=head)
    with refused() as caught:
        targets.checked(path, sets)
    assert caught.value.place is not None
    assert caught.value.place[1:] == place
    if sets:
        assert caught.value.message.startswith(f"--set {sets[0]}: ")


def test_what_is_wrong_with_the_file_and_with_the_target_is_said_together(
    run: Run,
    tmp_path: Path,
) -> None:
    written(
        tmp_path,
        "{name: a, device: nosuch}",
        "{name: b, precision: int5}",
        "{name: c, quantize: {blok_size: 32}}",
    )
    for command in ("validate", "plan", "run"):
        code, _, err = run(command, "r.yaml")
        assert code == 3  # the highest, as a batch ends
        for words in ("unknown device `nosuch`", "unknown value `int5`", "unknown key `blok_size`"):
            assert words in err


def test_options_are_those_of_each_variants_own_backend(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "{name: a, backend: openvino, quantize: {block_size: 32}}",
        "{name: b, quantize: {block_size: 32}}",
        "{name: c, backend: mlx, device: mac-8gb, quantize: {group_size: 33}}",
    )
    with refused(RecipeError) as caught:
        targets.checked(path)
    assert {problem.place.line for problem in caught.value.problems} == {FIRST, FIRST + 2}


def test_what_a_device_insists_on_is_said_of_every_option_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "{device: intel-npu, backend: openvino, quantize: {symmetric: false, group_size: 64, "
        "ratio: 0.5}}",
    )
    with refused() as caught:
        targets.checked(path)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("variant", "rule"),
    [
        ("{precision: int8, quantize: {algorithm: gptq}}", "O22"),
        ("{backend: openvino, precision: int8, quantize: {group_size: 64}}", "V02"),
    ],
)
def test_a_rule_that_needs_no_model_is_known_to_validate(
    tmp_path: Path, variant: str, rule: str
) -> None:
    path = written(tmp_path, variant)
    with refused() as caught:
        targets.checked(path)
    assert f"[{rule}]" in caught.value.message


@pytest.mark.parametrize("backend", backends.names())
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_said_without_a_model_is_said_of_the_embedded_one_too(
    backend: str, precision: str
) -> None:
    source = Source(builtin="tiny-phi3")
    made = recipe.Recipe(
        name="x", source=source, device="any", backend=backend, precision=precision
    )  # type: ignore[arg-type]
    module, checkpoint = backends.load(backend), take.original(source, Path()).checkpoint
    for options in (module.options(), *with_one_changed(module.options)):
        job, unread = Job(made, options, checkpoint), Job(made, options, ANY_MODEL)
        known = [*rules.check(job, model_rules.RULES), *rules.check(job, module.rules)]
        names = {advice.rule for advice in known}
        assert {advice.rule for advice in rules.check(unread, model_rules.RULES)} <= names
        assert {advice.rule for advice in rules.check(unread, module.rules)} <= names


def with_one_changed(model: type) -> Iterator[object]:
    """Options with one flag or choice set to another value."""
    for name in model.model_fields:  # type: ignore[attr-defined]
        for value in (True, False, "gptq", "k_quant", "layers", 64):
            with contextlib.suppress(ValueError):
                yield model.model_validate({name: value}, strict=True)  # type: ignore[attr-defined]


def test_a_wrong_device_file_is_said_at_its_own_place_and_a_missing_one_at_the_recipes(
    tmp_path: Path,
) -> None:
    (tmp_path / "bad.yaml").write_text(
        "title: Mine\nunits: [{api: gpu, precisions: [int4]}]\n", "utf-8"
    )
    path = written(tmp_path, "{name: a, device: ./bad.yaml}", "{name: b, device: ./gone.yaml}")
    with refused(RecipeError) as caught:
        targets.checked(path)
    places = {
        (Path(problem.place.file).name, problem.place.line) for problem in caught.value.problems
    }
    assert {("bad.yaml", 2), ("r.yaml", FIRST + 1)} <= places


def test_a_source_that_cannot_be_had_is_said_once_and_asked_for_once(tmp_path: Path) -> None:
    head = HEAD.replace("{builtin: tiny-phi3}", "{path: nowhere}")
    path = written(
        tmp_path, "{name: a}", "{name: b, precision: int8}", "{name: c, device: nosuch}", head=head
    )
    with refused(SourceError) as caught:  # the higher exit code
        plans.planned(path)
    assert caught.value.message.count("no such folder") == 1
    assert "unknown device `nosuch`" in caught.value.message
    assert [part.exit_code for part in caught.value.parts] == [8, 3]


def test_validate_needs_no_source(tmp_path: Path) -> None:
    head = HEAD.replace("{builtin: tiny-phi3}", "{path: nowhere}")
    assert [build.name for build in targets.checked(written(tmp_path, "{name: a}", head=head))] == [
        "x-a"
    ]


def test_of_a_hundred_variants_the_first_fifty_are_told_and_the_others_counted(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, *(f"{{name: v{i}, device: no{i}}}" for i in range(100)))
    with refused() as caught:
        targets.checked(path)
    assert caught.value.message.count("unknown device") == 50
    assert "and 50 more" in caught.value.message
    assert len(caught.value.problems) == 100


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_nothing_that_is_shipped_is_refused(path: Path) -> None:
    assert targets.problems(loading.load(path, options=backends.OptionsOf())) == []
