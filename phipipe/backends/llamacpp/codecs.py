"""What a GGUF holds of a weight: ggml's own rounding, called on rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np

from phipipe.backends.llamacpp import ggml
from phipipe.backends.llamacpp.options import tensor_type
from phipipe.backends.llamacpp.types import WEIGHED, float_type
from phipipe.backends.widths import Stored
from phipipe.errors import StepFailed
from phipipe.steps import Params

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Floats


def codec(params: Params) -> Codec:
    """Types as the map has them. Errors are weighed by the importance where ``params["imatrix"]``
    says so or the type needs it, unless it is zero throughout: as in llama.cpp, where the embedding
    has none."""
    own = float_type(params["source_dtype"])

    def held(weight: Floats, stored: Stored, importance: Floats) -> Floats:
        name = tensor_type(stored, own)
        weighed = bool(importance.any()) and (params["imatrix"] or name in WEIGHED)
        if name in WEIGHED and not weighed:
            raise StepFailed(f"{name} needs an importance matrix")
        raw = ggml.quantized(weight, name, importance if weighed else None)
        return np.asarray(gguf.dequantize(raw, gguf.GGMLQuantizationType[name]), np.float32)

    return held
