"""Widths of groups as a map, and back."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing import shapes

from phipipe.backends import widths
from phipipe.backends.widths import Stored, Width
from phipipe.models import checkpoints, family, linears
from phipipe.models.checkpoint import Checkpoint
from phipipe.tuning import maps

WIDTHS = st.sampled_from(
    [
        Width(bits=4, group_size=32),
        Width(bits=8, group_size=-1),
        Width(bits=16),
        Width(bits=4),
        "Q4_K",
        "IQ4_NL",
    ]
)
JOINED = shapes.phi3({"num_hidden_layers": 3})
TIED = shapes.phi3({"num_hidden_layers": 12, "tie_word_embeddings": True}, tied=True)
APART = checkpoints.of_config(
    next(one.config for one in family.MEMBERS if one.config["model_type"] == "phi"), "bpe"
)
MODELS = {"joined": JOINED, "tied": TIED, "apart": APART}


def groups(checkpoint: Checkpoint) -> list[str]:
    return list(dict.fromkeys(linears.joined(n) or n for n in linears.shapes(checkpoint)))


@pytest.mark.parametrize("name", MODELS)
@given(st.data())
def test_a_map_gives_every_matrix_the_width_of_its_group(name: str, data: st.DataObject) -> None:
    checkpoint = MODELS[name]
    chosen: Mapping[str, Stored] = {one: data.draw(WIDTHS, label=one) for one in groups(checkpoint)}
    written = widths.from_params(maps.patterns(chosen))
    found = widths.resolve(written, checkpoint)
    assert found == {one: chosen[linears.joined(one) or one] for one in linears.shapes(checkpoint)}


def test_exceptions_stand_before_the_width_that_most_layers_have() -> None:
    most, other = Width(bits=4, group_size=32), Width(bits=8)
    chosen: dict[str, Stored] = {f"layers.{i}.mlp.down_proj": most for i in range(5)}
    chosen |= {"layers.3.mlp.down_proj": other, "lm_head": "Q6_K"}
    assert list(maps.patterns(chosen).items()) == [
        ("layers.3.mlp.down_proj", {"bits": 8}),
        ("layers.*.mlp.down_proj", {"bits": 4, "group_size": 32}),
        ("lm_head", "Q6_K"),
    ]
