"""ai-edge-quantizer with a map: some matrices get another width than its recipe says, or codes
that were learned elsewhere.

Its recipes name operators by a pattern over the names of their outputs, which litert-torch joins
and shortens. What it asks for the parameters of a weight is replaced instead, and told by the
buffer that holds it. Types, scales, packing and the file are the quantizer's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from ai_edge_quantizer import algorithm_manager, qtyping
from ai_edge_quantizer.algorithms.nonlinear_quantize import float_casting
from ai_edge_quantizer.algorithms.uniform_quantize import (
    common_quantize,
    naive_min_max_quantize,
    uniform_quantize_tensor,
)

from phipipe.algorithms.lattice import Lattice
from phipipe.backends.litert.sizes import SMALLEST_SCALE
from phipipe.backends.widths import FLOAT_BITS
from phipipe.errors import StepFailed

MIN_MAX = algorithm_manager.AlgorithmName.MIN_MAX_UNIFORM_QUANT
_FUNCTIONS = {
    qtyping.TFLOperationName.FULLY_CONNECTED: common_quantize.materialize_fc_conv,
    qtyping.TFLOperationName.EMBEDDING_LOOKUP: common_quantize.materialize_embedding_lookup,
}
_WEIGHT = 1  # of both, the input that is stored
_FLOATS = qtyping.OpQuantizationConfig(
    weight_tensor_config=qtyping.TensorQuantizationConfig(
        num_bits=FLOAT_BITS, dtype=qtyping.TensorDataType.FLOAT
    ),
    compute_precision=qtyping.ComputePrecision.FLOAT,
    explicit_dequantize=True,
)
Widths = Mapping[str, Sequence[int]]
"""Matrix (``models.linears``) → bits, and weights that share a scale (-1: a row)."""


def config_of(bits: int, group: int, scheme: str) -> qtyping.OpQuantizationConfig:
    """The quantizer's words for integers of ``bits`` in groups of ``group`` (-1: a row)."""
    size = "CHANNELWISE" if group < 0 else f"BLOCKWISE_{group}"
    is_dynamic = scheme == "dynamic"
    return qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=bits, symmetric=True, granularity=qtyping.QuantGranularity(size)
        ),
        compute_precision=qtyping.ComputePrecision["INTEGER" if is_dynamic else "FLOAT"],
        explicit_dequantize=not is_dynamic,
    )


@contextlib.contextmanager
def mapped(
    names: Mapping[int, str], widths: Widths, scheme: str, learned: Lattice | None = None
) -> Iterator[None]:
    """Have the quantizer store the matrices in ``widths``, which the buffers in ``names`` hold, so;
    with ``learned``, in its codes and scales. Groups of zeros get a scale that kernels take."""

    def materialize(
        operator: qtyping.TFLOperationName,
        op_info: qtyping.OpInfo,
        graph_info: qtyping.GraphInfo,
        **others: object,
    ) -> list[qtyping.TensorTransformationParams]:
        tensor = graph_info.subgraph_tensors[op_info.op.inputs[_WEIGHT]]
        name = names.get(tensor.buffer, "")
        bits, group = widths.get(name, (0, 0))
        if bits == FLOAT_BITS:
            told = dataclasses.replace(op_info, op_quant_config=_FLOATS)
            return list(float_casting.materialize_fc_conv(told, graph_info, **others))
        if bits:
            config = config_of(bits, group, scheme)
            op_info = dataclasses.replace(op_info, op_quant_config=config)
        rounded = partial(_learned, learned, name) if learned and bits else _rounded
        return list(_FUNCTIONS[operator](rounded, op_info, graph_info, **others))

    _register({name: partial(materialize, name) for name in _FUNCTIONS})
    try:
        yield
    finally:
        usual = naive_min_max_quantize.get_tensor_quant_params
        _register({name: partial(one, usual) for name, one in _FUNCTIONS.items()})


def _register(functions: Mapping[qtyping.TFLOperationName, object]) -> None:
    for name, function in functions.items():
        algorithm_manager.register_quantized_op(
            MIN_MAX,
            name,
            naive_min_max_quantize.init_qsvs,
            calibration_func=naive_min_max_quantize.min_max_calibrate,
            materialize_func=function,
        )


def _rounded(
    op_info: qtyping.OpInfo,
    config: qtyping.TensorQuantizationConfig,
    content: npt.NDArray[np.float32] | None,
    seen: object = None,
) -> qtyping.UniformQuantParams:
    """The quantizer's own rounding, but that no group has a scale that float16 holds as 0, which
    XNNPACK refuses, and with it the whole model."""
    params = naive_min_max_quantize.get_tensor_quant_params(op_info, config, content, seen)
    if content is None or not params.block_size or (params.scale >= SMALLEST_SCALE).all():
        return params
    scale = np.maximum(params.scale, np.float32(SMALLEST_SCALE))
    params = dataclasses.replace(params, scale=scale, quantized_data=None)
    codes = uniform_quantize_tensor.uniform_quantize(content, params, is_blockwise_quant=True)
    return dataclasses.replace(params, quantized_data=codes)


def _learned(
    learned: Lattice,
    name: str,
    op_info: qtyping.OpInfo,
    config: qtyping.TensorQuantizationConfig,
    content: npt.NDArray[np.float32] | None,
    seen: object = None,
) -> qtyping.UniformQuantParams:
    """In the place of rounding: the codes as they are."""
    matrix = learned[name]
    size = uniform_quantize_tensor.extract_block_size_from_granularity(config.granularity)
    return qtyping.UniformQuantParams(
        scale=matrix.scales.astype(np.float32),
        zero_point=np.zeros(matrix.scales.shape, np.int32),
        num_bits=matrix.bits,
        symmetric=True,
        quantized_dimension=1 if size else 0,
        block_size=size,
        quantized_data=matrix.codes,
    )


def check_learned(learned: Lattice, widths: Widths, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """LiteRT can store ``learned`` as ``widths`` say in matrices of such ``shapes``.

    Raises:
        StepFailed: a matrix has another shape or width, or a scale that is not above 0.
    """
    for name in sorted(learned.names):
        if learned.shape(name) != shapes.get(name):
            raise StepFailed(f"the learned weights of `{name}` have the shape of another model")
        bits, group = widths[name]
        asked = bits, learned.shape(name)[1] if group < 0 else group
        if learned.width(name) != asked:
            raise StepFailed(
                "the learned weights of `{}` have {} bits in groups of {}, and not {} in groups "
                "of {}".format(name, *learned.width(name), *asked)
            )
        if not (learned[name].scales > 0).all():
            raise StepFailed(
                f"the learned weights of `{name}` have scales below 0, which XNNPACK refuses"
            )
