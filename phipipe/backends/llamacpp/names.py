"""What GGUF calls the matrices of ``models.linears``. Light: plans ask it."""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.models import linears

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_OUTSIDE = {linears.EMBEDDING: EMBEDDING, linears.HEAD: OUTPUT}
_IN_LAYER: Mapping[str, str] = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "gate_up_proj": "ffn_up",  # Phi-3's joined one
    "down_proj": "ffn_down",
}


def tensor_of(matrix: str) -> str:
    """The tensor that holds ``matrix``."""
    layer = linears.layer_of(matrix)
    if layer is None:
        return _OUTSIDE[matrix]
    return f"blk.{layer}.{_IN_LAYER[matrix.rpartition('.')[2]]}.weight"
