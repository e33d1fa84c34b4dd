"""The matrices of a built artifact, each as its own backend decodes it: for that backend's
toolchain.

Every function takes the artifact's folder and yields matrix (``models.linears``) and values,
float32 [rows, columns].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phipipe.models import linears, tensor_places

Matrices = Iterator[tuple[str, Any]]


def original(folder: Path) -> dict[str, Any]:
    """The matrices of a checkpoint in bf16."""
    found = {}
    for tensor, place in tensor_places.places(folder).items():
        if name := linears.linear_of(tensor):
            raw = np.memmap(folder / place.file, "<u2", "r", place.offset, place.shape)
            found[name] = (raw.astype(np.uint32) << 16).view(np.float32)
    return found


def of_onnxruntime(folder: Path) -> Matrices:
    """Gates and ups joined again, which the builder cuts apart."""
    found = dict(_in_graph(folder))
    for name in list(found):
        if name.endswith("gate_proj"):
            parts = found.pop(name), found.pop(name.replace("gate_proj", "up_proj"))
            found[name.replace("gate_proj", "gate_up_proj")] = np.concatenate(parts)
    yield from found.items()


def _in_graph(folder: Path) -> Matrices:
    from onnx import TensorProto, helper

    from phipipe.algorithms.olive_packed import Packed
    from phipipe.backends.onnxruntime import graph, layout, links, schemes

    model, weights = graph.load(folder), links.Weights(folder)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def values(name: str, rows: int) -> Any:
        kind, raw = tensors[name].data_type, weights.raw(tensors[name])
        if kind in (TensorProto.INT4, TensorProto.UINT4):
            return (raw ^ (0x88 if kind == TensorProto.INT4 else 0)).reshape(rows, -1)
        return raw.view(helper.tensor_dtype_to_np_dtype(kind)).reshape(rows, -1)

    for linear in graph.linears(model):
        yield str(schemes.matrix_of(linear.name)), values(linear.weight, linear.k).T.astype("f4")
    for node in model.graph.node:
        looked_up = node.op_type == "GatherBlockQuantized"
        if node.name == layout.LOOKUP:
            rows = tensors[node.input[0]].dims[0]
            yield linears.EMBEDDING, values(node.input[0], rows).astype("f4")
        if node.op_type != "MatMulNBits" and not looked_up:
            continue
        told, (codes, *others) = graph.attributes(node), node.input[looked_up ^ 1 :]
        codes, scales, *zeros = [codes, *others[1:]] if looked_up else [codes, *others]
        rows = tensors[codes].dims[0]
        packed = Packed(
            bits=told.get("bits", 4),
            group_size=told["block_size"],
            weight=values(codes, rows),
            scales=values(scales, rows).astype("f4"),
            zeros=values(zeros[0], rows) if zeros else None,
        )
        name = node.name.rpartition("_Q")[0]
        yield linears.EMBEDDING if looked_up else str(schemes.matrix_of(name)), packed.dense()


def of_llamacpp(folder: Path) -> Matrices:
    import gguf

    from phipipe.backends.llamacpp.names import tensor_of

    reader = gguf.GGUFReader(folder / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for layer in range(100):
        names = [f"layers.{layer}.{one}" for one in PHI3]
        names += [linears.HEAD, linears.EMBEDDING] if layer == 0 else []
        for name in names:
            if tensor := tensors.get(tensor_of(name)):
                yield name, gguf.dequantize(np.asarray(tensor.data), tensor.tensor_type)


PHI3 = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def of_openvino(folder: Path) -> Matrices:
    from phipipe.backends.openvino import stored

    model = stored.read(folder)
    constants = {n.get_friendly_name(): n for n in model.get_ops() if stored._is_constant(n)}

    def numbers(name: str) -> Any:
        constant = constants[name]
        raw = np.asarray(constant.data)
        kind = constant.get_element_type().get_type_name()
        if kind in ("i4", "u4"):
            raw = raw.reshape(-1).view(np.uint8)
            halves = np.stack([raw & 15, raw >> 4], -1).reshape(-1).astype(np.int8)
            raw = (halves ^ 8) - 8 if kind == "i4" else halves
        return raw.astype("f4").reshape(list(constant.get_output_shape(0)))

    for weight in stored.weights(model):
        values = numbers(weight.constant)
        if weight.zero_point:
            values -= numbers(f"{weight.constant}/zero_point")
        if weight.scale:
            values *= numbers(weight.scale)
        yield str(weight.matrix), values.reshape(-1, weight.width)


def of_mlx(folder: Path) -> Matrices:
    import mlx.core as mx

    from phipipe.backends.mlx.convert import stored

    tensors = stored(folder)
    for key, words in tensors.items():
        name, path = linears.linear_of(key), key.removesuffix(".weight")
        if not name:
            continue
        if f"{path}.scales" not in tensors:
            yield name, np.array(words.astype(mx.float32))
            continue
        scales, biases = (tensors[f"{path}.{one}"].astype(mx.float32) for one in PARTS)
        columns = COLUMNS.get(name.rpartition(".")[2], 256)
        how = {
            "bits": words.shape[1] * 32 // columns,
            "group_size": columns // scales.shape[1],
        }
        yield name, np.array(mx.dequantize(words, scales, biases, **how))


PARTS = ("scales", "biases")
COLUMNS = {"down_proj": 768}  # of the embedded model


def of_torch(folder: Path) -> Matrices:
    from phipipe.backends.torch.session import _load
    from phipipe.models import compute

    for key, weight in _load(folder, compute.CPU).named_parameters():
        if name := linears.linear_of(key):
            yield name, weight.detach().float().numpy()


def of_litert(folder: Path) -> Matrices:
    """Each by the matrix of the embedded model that it is nearest to: files have no names."""
    from phipipe.backends.litert import exact
    from phipipe.hub.take import BUILTIN_MODELS

    originals, done = original(BUILTIN_MODELS["tiny-phi3"]), set()
    for _, held in exact.decoded(folder / "model.tflite"):
        values = held.dense()
        off = {
            name: float(np.square(values[::16] - one[::16]).sum())
            for name, one in originals.items()
            if one.shape == values.shape
        }
        name = min(off, key=off.__getitem__)
        if name not in done:
            done.add(name)
            yield name, values


def of_qnn(folder: Path) -> Matrices:
    """Queries, keys and values joined again, and gates and ups, which the graphs hold apart."""
    import onnx
    from onnx import numpy_helper

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*_token.onnx")):
        graph = onnx.load(str(path)).graph
        values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        for key in values:
            name = linears.linear_of(key.removesuffix("_quantized"))
            if name and key.endswith("_quantized"):
                scales = values[key.replace("_quantized", "_step")]
                found[name] = (values[key].astype("f4") * scales).T
    for name in list(found):
        whole = linears.joined(name)
        if whole and name in found:
            prefix, _, last = whole.rpartition(".")
            parts = [found.pop(f"{prefix}.{part}") for part in linears.JOINED[last]]
            found[whole] = np.concatenate(parts)
    yield from found.items()


READERS: Mapping[str, Callable[[Path], Matrices]] = {
    "onnxruntime": of_onnxruntime,
    "llamacpp": of_llamacpp,
    "openvino": of_openvino,
    "mlx": of_mlx,
    "torch": of_torch,
    "litert": of_litert,
    "qnn": of_qnn,
}
