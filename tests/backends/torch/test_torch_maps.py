"""PyTorch: widths of single matrices, and weights that were learned for all runtimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testing.drive import facts_of, section
from testing.plans import planned
from testing.shapes import phi3

from phipipe import backends
from phipipe.backends import torch
from phipipe.backends.base import Job
from phipipe.backends.rules import check
from phipipe.backends.torch.sizes import packed_bytes
from phipipe.backends.widths import Width
from phipipe.errors import TargetError
from phipipe.hub.take import BUILTIN_MODELS
from phipipe.models import checkpoints, linears
from phipipe.planning.plan import Plan

DRIVER = Path(__file__).parent / "map_driver.py"
CASES = ["tiny", "tiny 64", "tiny 128", "tiny rows", "tied", "copied", "llama", "qwen"]
EIGHT = {"bits": 8, "group_size": 32}


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return facts_of(python_of("torch"), DRIVER, tmp_path_factory.mktemp("torch-maps"))


def plan(chosen: str, *more: str) -> Plan:
    return planned("backend=torch", f"quantize={{map: {{{chosen}}}}}", *more)


def step(found: Plan, name: str) -> Any:
    return next(one for one in found.steps if one.name == name)


def rules(options: dict[str, Any], learn: str | None = None, **changes: Any) -> list[str]:
    weights = SimpleNamespace(learn=learn, group_size=32, smooth=None)
    recipe: Any = SimpleNamespace(precision="int4", backend="torch", weights=weights)
    job = Job(recipe, torch.Options.model_validate(options), phi3(**changes))
    return [advice.rule for advice in check(job, torch.RULES)]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("lm_head: {bits: 6}", "no 6 bits, but 4, 8 and 16"),
        ("lm_head: {bits: 8, group_size: 16}", "no groups of 16 at 8 bits"),
        ("lm_head: Q6_K", "no type `Q6_K`"),
        ("embed_tokens: {bits: 8}", "no choice of widths for `embed_tokens`"),
        ("layers.*.mlp.donw_proj: {bits: 8}", "did you mean `layers.*.mlp.down_proj`"),
        ("lm_*: {bits: 4}, lm_head: {bits: 8}", "decides nothing"),
    ],
)
def test_a_map_that_cannot_be_stored_is_refused_by_the_plan(chosen: str, words: str) -> None:
    with pytest.raises(TargetError) as refused:
        plan(chosen)
    assert words in refused.value.message


def test_a_map_is_part_of_the_quantize_step_and_only_where_there_is_one() -> None:
    without = planned("backend=torch", "quantize={}")
    mapped = plan("lm_head: {bits: 8}, '*.o_proj': {bits: 8, group_size: 64}")
    assert not {"widths", "map"} & step(without, "quantize").params.keys()
    found = step(mapped, "quantize").params["widths"]
    assert found["lm_head"] == {"bits": 8, "group_size": 128}
    assert found["layers.0.self_attn.o_proj"] == {"bits": 8, "group_size": 64}
    assert len(found) == 6
    assert "precision map" in str(step(mapped, "package").params)


def test_learned_weights_come_before_they_are_stored() -> None:
    more = ("weights={learn: round, group_size: 64}", "quantize={map: {embed_tokens: {bits: 4}}}")
    found = planned("backend=torch", *more)
    names = [one.name for one in found.steps]
    assert names.index("weights") < names.index("quantize")
    quantize = step(found, "quantize")
    assert quantize.needs == {"source": "source", "weights": "weights"}
    assert quantize.params["group_size"] == 64
    widths = quantize.params["widths"]
    assert widths["lm_head"] == {"bits": 8, "group_size": 64}
    assert widths["embed_tokens"] == widths["layers.0.mlp.down_proj"]
    assert widths["embed_tokens"] == {"bits": 4, "group_size": 64}


@pytest.mark.parametrize(
    ("rule", "options", "more"),
    [
        ("T07", {"symmetric": False, "map": {"lm_head": EIGHT}}, {}),
        ("T08", {"map": {"lm_head": EIGHT}}, {"vocab_size": 32011}),
        ("T09", {"algorithm": "signround"}, {"learn": "round"}),
        ("T09", {"group_size": 64}, {"learn": "round"}),
    ],
)
def test_what_does_not_go_together_is_told(
    rule: str, options: dict[str, Any], more: dict[str, Any]
) -> None:
    assert rules(options, **more) == [rule]


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"symmetric": False, "map": {"lm_head": {"bits": 16}}}, {}),
        ({"map": {"lm_head": {"bits": 16}}}, {"vocab_size": 32011}),
        ({"map": {"layers.*": EIGHT}}, {"vocab_size": 32011}),
        ({"map": {"lm_head": EIGHT}}, {"vocab_size": 32011, "learn": "round"}),
        ({"group_size": 32}, {"learn": "round"}),
    ],
)
def test_what_goes_together_is_not(options: dict[str, Any], more: dict[str, Any]) -> None:
    assert rules(options, **more) == []


@pytest.mark.parametrize(("bits", "floats"), [(4, 2), (8, 4)])
def test_a_learned_embedding_is_estimated_in_the_floats_that_hold_it(
    bits: int, floats: int
) -> None:
    shape = phi3(weight_bytes=2 * phi3().parameters)
    name, told = linears.EMBEDDING, torch.Options(group_size=32)
    rows, columns = linears.shapes(shape)[name]
    mapped = {name: Width(bits=bits, group_size=32)}  # type: ignore[arg-type]
    plain = packed_bytes(4, told, shape, {name: Width(bits=16)}, True)
    assert packed_bytes(4, told, shape, mapped, True) - plain == (floats - 2) * rows * columns


def test_a_map_that_widens_layers_makes_a_build_of_several_widths() -> None:
    uniform = backends.load("torch").is_uniform
    assert uniform(torch.Options())
    assert uniform(torch.Options.model_validate({"map": {"lm_head": EIGHT}}))
    assert not uniform(torch.Options.model_validate({"map": {"*.down_proj": EIGHT}}))


def test_widths_stand_side_by_side(facts: dict[str, Any]) -> None:
    found = section(facts, "mixture")
    others = {
        "lm_head": [8, 64],
        "layers.0.mlp.down_proj": [8, 32],
        "layers.2.mlp.gate_up_proj": [4, 256],
        "layers.3.self_attn.o_proj": [8, 128],
    }
    assert {name: one for name, one in found["read"].items() if one != [4, 128]} == others
    assert len(found["read"]) == 20
    assert found["floats"].keys() == {"embed_tokens", "layers.1.self_attn.qkv_proj"}
    assert max(found["kld"]["rtn"], found["kld"]["signround"]) < found["kld"]["plain"]
    assert found["kld"]["asymmetric"] < 2 * found["kld"]["plain"]
    assert found["kld"]["int8"] < found["kld"]["rtn"] / 10


def test_the_estimate_of_a_mapped_build_is_near_its_files(facts: dict[str, Any]) -> None:
    shape = checkpoints.read(BUILTIN_MODELS["tiny-phi3"])
    mapped = {
        "lm_head": Width(bits=8, group_size=64),
        "layers.0.mlp.down_proj": Width(bits=8, group_size=32),
        "layers.1.self_attn.qkv_proj": Width(bits=16),
        "layers.2.mlp.gate_up_proj": Width(bits=4, group_size=-1),
        "layers.3.self_attn.o_proj": Width(bits=8, group_size=128),
    }
    told = packed_bytes(4, torch.Options(), shape, mapped)
    assert told == pytest.approx(section(facts, "mixture")["bytes"], rel=0.02)


def test_a_map_of_what_the_options_say_gives_the_same_files(facts: dict[str, Any]) -> None:
    assert section(facts, "same")["files"]


@pytest.mark.parametrize("case", CASES)
def test_learned_weights_are_computed_as_they_are(facts: dict[str, Any], case: str) -> None:
    found = section(facts, f"learned {case}")
    assert found["difference"] < 1e-5 * found["size"]
    assert found["kld"] < 1e-9


def test_what_is_no_linear_layer_is_in_floats_that_hold_it(facts: dict[str, Any]) -> None:
    assert section(facts, "learned tiny")["floats"] == {"embed_tokens": "torch.float32"}
    assert section(facts, "learned tiny 64")["floats"] == {"embed_tokens": "torch.float16"}
    wide = {"embed_tokens", "lm_head", "layers.1.mlp.down_proj"}
    assert section(facts, "learned tiny 128")["floats"].keys() == wide


def test_any_matrix_of_the_lattice_is_packed_exactly(facts: dict[str, Any]) -> None:
    assert section(facts, "packed") == {"decoded": 60, "described": 60}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("other", "does not hold the learned weights as they are"),
        ("width", "8 bits in groups of 32, and not 4 in groups of 64"),
        ("shape", "the shape of another model"),
        ("bits", "exceptions that were not asked for"),
        ("plain", "auto-round's config has `"),
    ],
)
def test_what_was_not_asked_for_fails(facts: dict[str, Any], case: str, words: str) -> None:
    kind, message, _ = section(facts, "refused")[case]
    assert (kind, words in message) == ("StepFailed", True), message


def test_what_was_asked_for_passes(facts: dict[str, Any]) -> None:
    found = section(facts, "refused")
    assert {found["same"][0], found["mapped"][0]} == {"nothing raised"}
