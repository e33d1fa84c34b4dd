"""Checkpoints that Olive's passes make: rewritten over the source's own files, and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from phipipe.algorithms.olive_packed import PARTS
from phipipe.errors import StepFailed
from phipipe.models.tensors import LINEAR, read, rewrite, tensors, where_are
from phipipe.models.weight_files import shards
from phipipe.steps import Params

HEAD = "lm_head"
EMBEDDING = "model.embed_tokens.weight"


def write_rotated(source: Path, result: Path, out: Path) -> None:
    """The files of ``source`` with the weights of ``result``; an LM head of its own beside the
    embedding."""
    where = where_are(shards(result))
    tied = f"{HEAD}.weight" not in where_are(shards(source))

    def change(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        names = [name, *([f"{HEAD}.weight"] if tied and name == EMBEDDING else [])]
        if missing := [one for one in names if one not in where]:
            raise StepFailed(f"Olive left `{missing[0]}` out")
        return {one: read(where[one], one) for one in names}

    settings = {"torch_dtype": "float32", "tie_word_embeddings": False}
    rewrite(source, out, change, settings)


def verify_rotated(source: Path, folder: Path) -> None:
    """Every tensor is there in fp32, norms are fused away, linears rotated, the embedding's rows of
    equal length.

    That the whole model computes the same is for the parity check behind the conversion to prove.

    Raises:
        StepFailed: names the first tensor that is not as it should be.
    """
    present = where_are(shards(folder))
    own = set(where_are(shards(source)))
    if set(present) != own | {f"{HEAD}.weight"}:
        odd = min(set(present) ^ (own | {f"{HEAD}.weight"}))
        raise StepFailed(f"the rotated checkpoint and its source differ in `{odd}`")
    for name, tensor in (pair for path in shards(source) for pair in tensors(path)):
        rotated = read(present[name], name)
        if (
            rotated.dtype != torch.float32
            or rotated.shape != tensor.shape
            or not rotated.isfinite().all()
        ):
            raise StepFailed(
                f"`{name}` is {rotated.dtype} {tuple(rotated.shape)} after rotation, or not finite"
            )
        if tensor.dim() == 1:
            if name.endswith("norm.weight") and not rotated.eq(1).all():
                raise StepFailed(f"`{name}` was not fused into the linears behind it")
        elif rotated.equal(tensor.float()):
            raise StepFailed(f"`{name}` was not rotated")
        if name == EMBEDDING:
            lengths = [value.double().norm(dim=1) for value in (tensor, rotated)]
            if not torch.allclose(*lengths, rtol=1e-4, atol=1e-6):
                raise StepFailed(
                    f"`{name}` was not rotated but distorted: its rows changed in length"
                )


def write_packed(source: Path, result: Path, out: Path) -> None:
    """Files of ``source`` with the integers and scales of ``result`` in place of its linears."""
    where = where_are(shards(result))
    settings = json.loads((result / "config.json").read_text("utf-8")).get("quantization_config")
    if not settings:
        raise StepFailed("Olive's checkpoint does not say that it is quantized")
    tied = f"{HEAD}.weight" not in where_are(shards(source))

    def change(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        linears = [name.removesuffix(".weight"), *([HEAD] if tied and name == EMBEDDING else [])]
        keys = [f"{linear}.{part}" for linear in linears for part in PARTS]
        packed = {key: read(where[key], key) for key in keys if key in where}
        return packed if name != EMBEDDING and packed else {name: tensor, **packed}

    changes = {"quantization_config": settings} | ({"tie_word_embeddings": False} if tied else {})
    rewrite(source, out, change, changes)


def verify_packed(source: Path, folder: Path, params: Params, raised: Mapping[str, int]) -> None:
    """Every linear, the LM head included, is packed as asked: ``raised`` names those with other
    bits than usual.

    Every other tensor is the source's own.

    Raises:
        StepFailed: names the first tensor that is not as it should be.
    """
    settings = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    wanted = {name: params[name] for name in ("bits", "group_size", "symmetric")}
    wanted |= {"quant_method": "olive", "lm_head": True, "embeds": False}
    wanted["overrides"] = {name: {"bits": bits} for name, bits in raised.items()} or None
    for key, value in wanted.items():
        if settings.get(key) != value:
            raise StepFailed(f"Olive wrote `{key}: {settings.get(key)}`, not {value}")
    present = where_are(shards(folder))
    shapes: dict[str, tuple[int, int]] = {}
    for name, tensor in (pair for path in shards(source) for pair in tensors(path)):
        linear = name.removesuffix(".weight")
        if tensor.dim() == 2 and (linear == HEAD or LINEAR.fullmatch(name)):
            shapes[linear] = tuple(tensor.shape)
        elif name not in present or not read(present.pop(name), name).equal(tensor):
            raise StepFailed(f"`{name}` is not the source's own")
        if name == EMBEDDING:
            shapes.setdefault(HEAD, tuple(tensor.shape))
    if unknown := set(raised) - set(shapes):
        raise StepFailed(f"Olive keeps `{min(unknown)}` at 8 bits, which is no linear of the model")
    for linear, shape in shapes.items():
        _check_packed(linear, shape, raised.get(linear, params["bits"]), present, params)
    if present:
        raise StepFailed(f"unexpected tensor `{min(present)}`")


def _check_packed(
    linear: str, shape: tuple[int, int], bits: int, present: dict[str, Path], params: Params
) -> None:
    """Take the parts of ``linear``, whose weight is ``shape`` in the source, out of ``present`` and
    check them."""
    rows, width = shape
    groups = width // params["group_size"]
    expected = {
        "qweight": (torch.uint8, (rows, width * bits // 8)),
        "scales": (torch.float32, (rows, groups)),
    } | (
        {}
        if params["symmetric"]
        else {"qzeros": (torch.uint8, (rows, math.ceil(groups * bits / 8)))}
    )
    for part, wanted in expected.items():
        name = f"{linear}.{part}"
        if name not in present:
            raise StepFailed(f"Olive left `{linear}` unquantized: there is no `{part}`")
        tensor = read(present.pop(name), name)
        if (tensor.dtype, tuple(tensor.shape)) != wanted:
            raise StepFailed(f"`{name}` is {tensor.dtype} {tuple(tensor.shape)}, not {wanted}")
        if part == "scales" and not (tensor.isfinite().all() and (tensor > 0).all()):
            raise StepFailed(f"`{name}` has values that are not positive numbers")
