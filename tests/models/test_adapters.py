"""What an adapter makes of its base is known from headers and settings; what does not fit is said
by name, before a weight is read."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import adapters as small
from testing import hostile_checkpoints as hostile
from testing.adapters import PREFIX, RANK, USUAL
from testing.hostile_checkpoints import HIDDEN, VOCABULARY

from phipipe.errors import SourceError
from phipipe.models import adapter_settings, adapters, checkpoints
from phipipe.models.adapters import Merged
from phipipe.models.layouts import EMBEDDING, HEAD

EVERY = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
APART = tuple(f"self_attn.{part}_proj" for part in "qkv")
FIRST = f"{PREFIX}model.layers.0.self_attn.o_proj"
LOW = f"{FIRST}.lora_A.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    hostile.base(tmp_path / "tiny")
    return tmp_path / "tiny"


def merged(base: Path, told: dict[str, Any], wanted: small.Shapes) -> Merged:
    folder = small.write(base.parent / "adapter", told, wanted)
    return adapters.merged(checkpoints.read(base), folder)


def tie(base: Path) -> None:
    """Take the head away, and say so."""
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    (base / hostile.INDEX).unlink()
    shapes = {name: shape for name, shape in hostile.shapes().items() if name != HEAD}
    small.save(base / hostile.WEIGHTS, shapes)


def test_an_adapter_changes_the_modules_that_it_names_and_no_others(base: Path) -> None:
    found = merged(base, small.settings(), small.shapes())
    assert set(found.changes) == {
        f"model.layers.{layer}.{module}.weight" for layer in range(2) for module in USUAL
    }
    (low,) = found.changes["model.layers.1.self_attn.o_proj.weight"].lows
    assert (low.rows, low.scale) == ((0, HIDDEN), 2.0)
    assert found.checkpoint == checkpoints.read(base)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"o_proj": 1}}, 0.25),
        ({"alpha_pattern": {r"model\.layers\.\d+\.self_attn\.o_proj": 1}}, 0.25),
        ({"alpha_pattern": {"layers.1.self_attn.o_proj": 1}}, 2.0),
        ({"alpha_pattern": {"qkv_proj": 1}}, 2.0),
    ],
)
def test_the_scale_is_what_peft_makes_of_rank_and_alpha(
    base: Path, changes: dict[str, Any], scale: float
) -> None:
    found = merged(base, small.settings(**changes), small.shapes())
    assert found.changes["model.layers.0.self_attn.o_proj.weight"].lows[0].scale == scale


def test_an_adapter_of_parts_changes_rows_of_what_is_joined_here(base: Path) -> None:
    found = merged(base, small.settings(*APART), small.shapes(*APART))
    lows = found.changes["model.layers.0.self_attn.qkv_proj.weight"].lows
    assert [(low.rows, low.of) for low in lows] == [
        ((0, 32), (0, 32)),
        ((32, 48), (0, 16)),
        ((48, 64), (0, 16)),
    ]


def test_tables_that_were_made_longer_make_the_vocabulary_longer(base: Path) -> None:
    found = merged(base, small.settings(), small.shapes() | small.tables(VOCABULARY + 8))
    grown = found.checkpoint.parameters - checkpoints.read(base).parameters
    assert found.checkpoint.vocab_size == VOCABULARY + 8
    assert found.checkpoint.config["vocab_size"] == VOCABULARY + 8
    assert grown == 2 * 8 * HIDDEN


@pytest.mark.parametrize(
    ("saved", "stored", "tied"),
    [
        ([], [], True),
        ([], ["model.embed_tokens", "lm_head"], True),  # one tensor, saved twice
        ([], ["model.embed_tokens"], True),
        (["embed_tokens"], ["model.embed_tokens"], False),  # a copy, which the head never saw
        (["lm_head"], ["lm_head"], False),
        (["embed_tokens", "lm_head"], ["model.embed_tokens", "lm_head"], False),
    ],
)
def test_a_tied_head_stays_tied_unless_one_of_the_two_was_trained_alone(
    base: Path, saved: list[str], stored: list[str], tied: bool
) -> None:
    tie(base)
    tables = {f"{PREFIX}{name}.weight": [VOCABULARY, HIDDEN] for name in stored}
    found = merged(base, small.settings(modules_to_save=saved), small.shapes() | tables)
    assert found.checkpoint.tied is tied
    assert found.checkpoint.config["tie_word_embeddings"] is tied
    assert (HEAD in found.changes) is not tied
    if not tied and "lm_head" not in stored:
        assert found.changes[HEAD].start == EMBEDDING
        assert found.changes[HEAD].saved is None


def without(name: str) -> small.Shapes:
    return {known: shape for known, shape in small.shapes().items() if known != name}


BAD: dict[str, tuple[dict[str, Any], small.Shapes, str]] = {
    "rank 0": (small.settings(r=0), small.shapes(), "the rank 0"),
    "empty matrices": (small.settings(), small.shapes() | {LOW: [0, HIDDEN]}, "rank 0"),
    "another rank": (small.settings(r=8), small.shapes(), "should be 8 × 32"),
    "rank in a pattern": (
        small.settings(rank_pattern={"o_proj": 2}),
        small.shapes(),
        "should be 2 × 32",
    ),
    "A without B": (small.settings(), without(f"{FIRST}.lora_B.weight"), "no `lora_B`"),
    "B without A": (small.settings(), without(LOW), "no `lora_A`"),
    "other shape": (small.settings(), small.shapes() | {LOW: [RANK, 48]}, "should be 4 × 32"),
    "other module": (
        small.settings(),
        small.shapes()
        | {
            f"{PREFIX}model.layers.0.mlp.experts.lora_{which}.weight": [RANK, RANK]
            for which in "AB"
        },
        "`model.layers.0.mlp.experts` is missing here",
    ),
    "more layers": (
        small.settings(),
        small.shapes()
        | {
            f"{PREFIX}model.layers.7.self_attn.o_proj.lora_{w}.weight": s
            for w, s in (("A", [RANK, HIDDEN]), ("B", [HIDDEN, RANK]))
        },
        "another base",
    ),
    "a layer lost": (
        small.settings(),
        {n: s for n, s in small.shapes().items() if ".layers.1.self_attn.o_proj" not in n},
        "incomplete",
    ),
    "a saved module lost": (
        small.settings(modules_to_save=["lm_head"]),
        small.shapes(),
        "incomplete: its settings name `lm_head`",
    ),
    "two adapters": (
        small.settings(),
        small.shapes()
        | {
            f"{FIRST}.lora_A.first.weight": [RANK, HIDDEN],
            f"{FIRST}.lora_B.second.weight": [HIDDEN, RANK],
        },
        "several adapters in one file",
    ),
    "half of a resize": (
        small.settings(),
        small.shapes() | {f"{PREFIX}lm_head.weight": [VOCABULARY + 8, HIDDEN]},
        "different numbers of tokens",
    ),
    "larger than the base": (
        small.settings(r=4096),
        small.shapes(rank=4096),
        "of a larger model, or no adapter",
    ),
    "row lengths unsaid": (
        small.settings(),
        small.shapes() | {f"{FIRST}.lora_magnitude_vector": [HIDDEN]},
        "row lengths of DoRA",
    ),
    "row lengths lost": (small.settings(use_dora=True), small.shapes(), "row lengths of DoRA"),
    "a bias that is none here": (
        small.settings(bias="all"),
        small.shapes() | {f"{FIRST}.base_layer.bias": [HIDDEN]},
        "missing here",
    ),
    "a layer that its settings leave out": (
        small.settings(layers_to_transform=[1]),
        small.shapes(),
        "`model.layers.0.self_attn.o_proj`, which its settings leave out "
        "(`layers_to_transform: [1]`)",
    ),
    "a layer beside the one of its settings": (
        small.settings(layers_to_transform=0),
        small.shapes(),
        "`model.layers.1.self_attn.o_proj`, which",
    ),
    "a head where only layers are named": (
        small.settings("self_attn.o_proj", "lm_head", layers_to_transform=[0, 1]),
        small.shapes("self_attn.o_proj")
        | {
            f"{PREFIX}lm_head.lora_A.weight": [RANK, HIDDEN],
            f"{PREFIX}lm_head.lora_B.weight": [VOCABULARY, RANK],
        },
        "`lm_head`, which its settings leave out",
    ),
    "a module that its settings leave out": (
        small.settings("self_attn.o_proj"),
        small.shapes(),
        "`model.layers.0.self_attn.qkv_proj`, which its settings leave out "
        '(`target_modules: ["o_proj"]`)',
    ),
    "no PEFT": (small.settings(), {"layers.0.lora_a": [RANK, HIDDEN]}, "as peft saves it"),
    "no weights": (small.settings(), {}, "holds no weights"),
    **{
        kind: (small.settings(peft_type=kind), small.shapes(), "another kind than LoRA")
        for kind in ("IA3", "ADALORA", "LOHA", "PREFIX_TUNING", "new")
    },
    **{
        key: (small.settings(**{key: value}), small.shapes(), key)
        for key, value in {
            "layer_replication": [[0, 1]],
            "alora_invocation_tokens": [1],
            "use_qalora": True,
            "lora_bias": True,
            "target_parameters": ["experts"],
            "trainable_token_indices": [1, 2],
            "init_lora_weights": "pissa_niter_4",
        }.items()
    },
    "a greedy expression": (
        small.settings(alpha_pattern={"(a+)+b": 1}),
        small.shapes(),
        "`alpha_pattern`",
    ),
    "mlx": ({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}, {}, "MLX's own layout"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_said_by_name(base: Path, case: str) -> None:
    told, wanted, words = BAD[case]
    with pytest.raises(SourceError, match="adapter") as error:
        merged(base, told, wanted or {f"{PREFIX}x.lora_A.weight": [0, 0]})
    assert words in error.value.message, error.value.message
    assert error.value.hint


def test_an_adapter_for_a_model_of_unknown_layout_is_refused(base: Path) -> None:
    folder = small.write(base.parent / "adapter", small.settings(), small.shapes())
    checkpoint = checkpoints.read(base)
    odd = type(checkpoint)(**{**vars(checkpoint), "architecture": "OtherForCausalLM"})
    with pytest.raises(SourceError, match="cannot be merged into a OtherForCausalLM"):
        adapters.merged(odd, folder)


def test_a_folder_that_is_no_adapter_says_what_it_is(base: Path) -> None:
    checkpoint = checkpoints.read(base)
    with pytest.raises(SourceError, match="whole model, no adapter"):
        adapters.merged(checkpoint, base)
    root = base.parent / "several"
    for name in ("first", "second"):
        small.write(root / name, small.settings(), small.shapes())
    with pytest.raises(SourceError, match="several adapters"):
        adapters.merged(checkpoint, root)
    shutil.rmtree(root / "second")
    with pytest.raises(SourceError, match="`first` has one"):
        adapters.merged(checkpoint, root)
    (root / "first" / small.WEIGHTS).rename(root / "first" / "adapter_model.bin")
    with pytest.raises(SourceError, match="pickle"):
        adapters.merged(checkpoint, root / "first")


def test_an_adapter_alone_says_how_it_is_written(base: Path) -> None:
    folder = small.write(base.parent / "adapter", small.settings(), small.shapes())
    with pytest.raises(SourceError) as error:
        checkpoints.read(folder)
    assert "source: {base: {repo: someone/tiny" in str(error.value.hint)


def test_another_base_than_the_adapter_names_is_remarked() -> None:
    told = adapter_settings.AdapterSettings(rank=1, alpha=1, base="someone/tiny")
    assert not adapters.note_other_base(told, ["other", "SomeoneElse/Tiny"])
    (remark,) = adapters.note_other_base(told, ["someone/large"])
    assert (remark.rule, "someone/tiny" in remark.message) == ("W30", True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(small.settings())), value=JSON)
@settings(max_examples=200)
def test_any_value_of_any_setting_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    root = tmp_path_factory.mktemp("odd")
    folder = small.write(root / "adapter", small.settings(**{key: value}), small.shapes())
    with contextlib.suppress(SourceError):
        found = adapter_settings.read(folder)
        assert found.scale_of("model.layers.0.self_attn.o_proj") > 0


@given(dropped=st.sampled_from(sorted(small.shapes(*EVERY))))
@settings(max_examples=16)
def test_an_adapter_that_lacks_any_tensor_is_refused(
    tmp_path_factory: pytest.TempPathFactory, dropped: str
) -> None:
    root = tmp_path_factory.mktemp("lost")
    hostile.base(root / "tiny")
    wanted = small.shapes(*EVERY)
    del wanted[dropped]
    with pytest.raises(SourceError, match="incomplete"):
        merged(root / "tiny", small.settings(*EVERY), wanted)
