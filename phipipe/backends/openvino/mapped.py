"""NNCF with a map: some matrices get another width than its options say, or codes that were learned
elsewhere.

NNCF decides on a width for each matrix, and then does all with it: AWQ, estimation of scales, the
constants and the nodes that read them. So the map replaces its decision, and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import cast

import nncf
import openvino
from nncf.openvino.quantization import quantize_model
from nncf.quantization.algorithms.weight_compression import openvino_backend
from nncf.quantization.algorithms.weight_compression.algorithm import WeightCompression
from nncf.quantization.algorithms.weight_compression.config import (
    WeightCompressionConfig,
    WeightCompressionParameters,
)
from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
from nncf.tensor import Tensor

from phipipe.algorithms.lattice import Lattice
from phipipe.backends.openvino.patches import replaced
from phipipe.backends.openvino.sizes import Widths
from phipipe.backends.openvino.stored import matrix_of
from phipipe.backends.widths import FLOAT_BITS

Weights = list[WeightCompressionParameters]


@contextlib.contextmanager
def mapped(widths: Widths, kind: str, learned: Lattice | None) -> Iterator[None]:
    """Have NNCF store the matrices in ``widths`` so, as ``kind`` ("SYM", "ASYM"); with ``learned``,
    in its codes and scales."""

    class Mapped(WeightCompression):  # type: ignore[misc]
        def get_weight_compression_parameters(self, *given: object) -> tuple[Weights, ...]:
            every, ranked, skipped = super().get_weight_compression_parameters(*given)
            for weight in every:
                width = widths.get(matrix_of(weight.weight_name) or "")
                if width:
                    weight.compression_config = config_of(*width, kind)
            return every, [w for w in ranked if matrix_of(w.weight_name) not in widths], skipped

        def collect_statistics_and_statistic_points(self, *given: object) -> object:
            *others, _, every = given  # NNCF looks at ranked matrices alone where backup is "none"
            return super().collect_statistics_and_statistic_points(*others, every, every)

        def apply_with_parameters(self, *given: object) -> openvino.Model:
            if learned is None:
                return super().apply_with_parameters(*given)
            model, graph, _, _, every = given
            codes = _Codes(learned, cast(Weights, every))
            return self._backend_entity.transform_model(model, graph, every, codes)

    functions: dict[str, object] = {"compress_weight": _given} if learned else {}
    algorithm: dict[str, object] = {WeightCompression.__name__: Mapped}
    with replaced(openvino_backend, functions), replaced(quantize_model, algorithm):
        yield


def config_of(bits: int, size: int, kind: str) -> WeightCompressionConfig | None:
    """NNCF's words for integers of ``bits`` in groups of ``size``, rounded as ``kind``; None for
    floats."""
    if bits == FLOAT_BITS:
        return None
    mode = nncf.CompressWeightsMode[f"INT{bits}_{kind}"]
    return WeightCompressionConfig(mode=mode, group_size=size)


def _given(weight: object, axes: object, config: object, stored: CompressedWeight) -> object:
    """In the place of NNCF's rounding: the codes as they are."""
    return stored


class _Codes:
    """What NNCF stores for the constant of each of ``every`` matrix, read when it asks."""

    def __init__(self, learned: Lattice, every: Sequence[WeightCompressionParameters]) -> None:
        self._learned = learned
        self._rows = {weight.weight_name: weight.weight_shape[0] for weight in every}
        configs = {weight.weight_name: weight.compression_config for weight in every}
        self._by_row = {name for name, one in configs.items() if one and one.group_size == -1}

    def get(self, constant: str) -> CompressedWeight:
        """Codes int8 [rows, groups, size], scales float16 [rows, groups, 1]; with a scale per row
        [rows, columns] and [rows, 1].

        Raises:
            StepFailed: the matrix was not learned.
        """
        matrix = self._learned.rows_of(matrix_of(constant) or constant, self._rows[constant])
        if constant in self._by_row:
            return CompressedWeight(Tensor(matrix.codes), Tensor(matrix.scales))
        codes = matrix.codes.reshape(*matrix.scales.shape, -1)
        return CompressedWeight(Tensor(codes), Tensor(matrix.scales[..., None]))
