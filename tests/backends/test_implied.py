"""What a config leaves out is written out for converters with other defaults."""

from __future__ import annotations

from typing import Any

import pytest
from testing.shapes import phi3

from phipipe.backends import implied
from phipipe.models import checkpoints, family
from phipipe.models.members import NEIGHBOUR

QWEN3 = next(m for m in family.MEMBERS if m.name == "Qwen3-0.6B")
LLAMA = next(m for m in family.MEMBERS if m.name == "Phi-4 as Llama")
# Published configs say all but the width of a head where it is hidden size / heads.
SAYING = [m for m in family.MEMBERS if m.group == NEIGHBOUR and "gemma" not in m.name.lower()]


def left_out(member: family.Member, *keys: str) -> dict[str, Any]:
    config = {key: value for key, value in member.config.items() if key not in keys}
    return implied.missing(checkpoints.of_config(config))


@pytest.mark.parametrize("member", SAYING, ids=lambda m: m.name)
def test_published_configs_need_nothing(member: family.Member) -> None:
    assert left_out(member) == {}


def test_what_transformers_has_a_default_for_is_written_out() -> None:
    assert left_out(LLAMA, "tie_word_embeddings") == {"tie_word_embeddings": False}
    assert left_out(LLAMA, "rope_theta") == {"rope_theta": 10000.0}
    assert left_out(LLAMA, "rms_norm_eps") == {"rms_norm_eps": 1e-6}
    assert left_out(LLAMA, "head_dim") == {}
    assert left_out(QWEN3, "head_dim") == {"head_dim": 128}


def test_a_saved_again_config_has_its_base_elsewhere() -> None:
    config = {key: value for key, value in LLAMA.config.items() if key != "rope_theta"}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 250000.0}
    assert implied.missing(checkpoints.of_config(config)) == {}


def test_phis_own_configs_are_left_as_they_are() -> None:
    assert implied.missing(phi3()) == {}
