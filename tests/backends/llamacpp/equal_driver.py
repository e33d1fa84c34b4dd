"""What the backend writes, byte by byte against what llama.cpp makes of the whole conversion.

    python equal_driver.py FOLDER torch|llamacpp

In the torch toolchain: makes checkpoints, their outlines, and the files that llama.cpp's converter
writes. Then in llama.cpp's: names of the types in which two files differ, or that llama.cpp would
choose otherwise for the whole file. Each writes ``FOLDER/<toolchain>.json``.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from testing.drive import answer
from testing.gguf_steps import PLAIN, convert, fresh, outline, upstream

from phipipe.backends.llamacpp.types import FLOATS, TYPES, float_type
from phipipe.hub import take

# Member, what is changed of its small shape, and the dtype that it is stored in. Counts of layers
# and of heads decide llama.cpp's types, and rows that blocks of 256 or 32 do not divide.
MADE: dict[str, tuple[str, dict[str, Any], str]] = {
    "rows of 192": ("Phi-3.5-mini", {"num_hidden_layers": 11}, "bfloat16"),
    "shared heads": (
        "Phi-3-medium-4k",
        {"num_hidden_layers": 9, "num_attention_heads": 8, "intermediate_size": 256},
        "float16",
    ),
    "tied": ("Llama-3.2-1B", {"num_hidden_layers": 8, "intermediate_size": 256}, "bfloat16"),
    "rows of 400": ("Qwen2.5-7B", {"intermediate_size": 400}, "float32"),
    "Phi-2": ("Phi-2", {}, "bfloat16"),
    "mixed": ("Mistral-7B-v0.3", {"intermediate_size": 512}, "mixed"),
    "small": ("Phi-4", {"num_hidden_layers": 1, "intermediate_size": 256}, "bfloat16"),
}
DIVERSE = ("rows of 192", "shared heads", "tied")
QUANTIZED = [name for name in TYPES if name not in FLOATS]
# Of a tensor, when llama.cpp only looks: name, type, and the type that it would have.
LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), size = [^\n(]*(?:\((\w+)\))?")
SOME = ["Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M"]
OPTIONS: dict[str, dict[str, Any]] = {
    "pure": {"pure": True},
    "named": {
        "tensors": [["ffn_down", "Q8_0"], ["blk.0.ffn_up", "IQ4_NL"]],
        "output_type": "Q5_K",
        "embedding_type": "Q4_0",
    },
    "floats": {"tensors": [["attn", "BF16"], ["ffn_down", "F16"]], "output_type": "F32"},
    "map": {
        "widths": {
            "layers.0.mlp.down_proj": "Q6_K",
            "layers.1.mlp.down_proj": "BF16",
            "embed_tokens": "Q8_0",
        }
    },
}


def with_torch(root: Path) -> dict[str, Any]:
    tiny = root / "sources" / "tiny"
    files = ("*.md", "LICENSE*")
    shutil.copytree(take.BUILTIN_MODELS["tiny-phi3"], tiny, ignore=shutil.ignore_patterns(*files))
    for name, (member, changes, dtype) in MADE.items():
        make(root / "sources" / name, member, changes, dtype)
    kept: dict[str, list[str]] = {}
    for source in sorted((root / "sources").iterdir()):
        for kind in {own(source), "F16", "F32"} if source == tiny else {own(source)}:
            at = outline(source, root / "outlines" / source.name / kind, kind)
            upstream(source, root / "whole" / source.name / f"{kind}.gguf", kind)
            listed = json.loads((at / "outline.json").read_text())["tensors"]
            kept[f"{source.name} {kind}"] = [
                one["name"] for one in listed if len(one["shape"]) > 1 and one["source"] is None
            ]
    return {"kept": kept}


def make(folder: Path, name: str, changes: dict[str, Any], dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from testing import family_checkpoints, neighbour_checkpoints

    from phipipe.models import family

    member = next(one for one in family.MEMBERS if one.name == name)
    maker = family_checkpoints if name in family_checkpoints.SIZES else neighbour_checkpoints
    maker.make(member, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    family_checkpoints.weights(config, maker.shapes(config), folder)
    tensors = load_file(folder / "model.safetensors")
    ends = ("down_proj.weight", "fc2.weight")
    next(t for n, t in tensors.items() if n.endswith(ends))[0, :4] = 1e-39  # subnormal
    if dtype != "mixed":
        tensors = {n: t.to(getattr(torch, dtype)) for n, t in tensors.items()}
        config |= {"torch_dtype": dtype}
    else:
        wider = {n: torch.nn.init.normal_(t.float()) for n, t in tensors.items() if "o_proj" in n}
        tensors |= wider | {n: t.half() for n, t in tensors.items() if "up_proj" in n}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def own(source: Path) -> str:
    return float_type(json.loads((source / "config.json").read_text())["torch_dtype"])


def floats(root: Path) -> list[str]:
    """Conversions in floats that are not the converter's file."""
    wrong = []
    for at in sorted((root / "outlines").glob("*/*")):
        whole = root / "whole" / at.parent.name / f"{at.name}.gguf"
        source = root / "sources" / at.parent.name
        made = convert(at, source, fresh(root / "converted"), at.name) / "model.gguf"
        if made.read_bytes() != whole.read_bytes():
            wrong.append(f"{at.parent.name} {at.name}")
    return wrong


def quantized(root: Path, name: str, kinds: list[str]) -> list[str]:
    """Types, with an importance matrix or without, in which the two files differ."""
    weighed = vectors(root, name)
    wrong = []
    for kind in kinds:
        for importance in (weighed, None):
            if importance is None and TYPES[kind].needs_imatrix:
                continue
            if not alike(root, name, kind, importance):
                wrong.append(f"{kind}{', weighed' if importance else ''}")
    return wrong


def options(root: Path) -> list[str]:
    """Options with which the two files differ."""
    return [
        f"{name} {kind}"
        for name, told in OPTIONS.items()
        for kind in ("Q4_K_M", "Q8_0", "Q4_0")
        if not alike(root, "tiny", kind, None, **told)
    ]


def vectors(root: Path, name: str) -> Path:
    """Any importance of every linear's inputs."""
    from phipipe.backends.llamacpp import header, stored

    (whole,) = (root / "whole" / name).glob(f"{own(root / 'sources' / name)}.gguf")
    random = np.random.default_rng(5)
    linears = stored.linears(header.tensors(whole))
    folder = fresh(root / "imatrix" / name)
    folder.mkdir(parents=True)
    rows = {one.name: random.lognormal(size=one.shape[0]).astype(np.float32) for one in linears}
    np.savez(folder / "imatrix.npz", **rows)
    return folder


def alike(root: Path, name: str, kind: str, imatrix: Path | None, **told: Any) -> bool:
    """Whether llama.cpp makes the same file of the whole conversion."""
    from phipipe.backends.llamacpp import choice, header
    from phipipe.backends.llamacpp.names import OUTPUT, tensor_of
    from phipipe.backends.llamacpp.quantize import _with_map, write
    from phipipe.backends.llamacpp.rows import Outline

    source = root / "sources" / name
    at, whole = (
        root / "outlines" / name / own(source),
        root / "whole" / name / f"{own(source)}.gguf",
    )
    widths = {tensor_of(matrix): stored for matrix, stored in told.pop("widths", {}).items()}
    tied = OUTPUT not in {one.name for one in header.tensors(whole)}
    params = _with_map({"type": kind, **PLAIN, **told}, widths, tied)
    rows = dict(np.load(imatrix / "imatrix.npz")) if imatrix else {}
    # not the step, which refuses files that llama.cpp left in floats
    write(Outline(at, source), root / "made.gguf", params, rows)
    choice.quantize(whole, root / "expected.gguf", params, rows)
    return (root / "made.gguf").read_bytes() == (root / "expected.gguf").read_bytes()


def types(root: Path, name: str) -> list[str]:
    """Types of files for which llama.cpp would choose other types of the whole file's tensors."""
    from phipipe.backends.llamacpp import choice
    from phipipe.backends.llamacpp.rows import Outline

    source = root / "sources" / name
    kind = own(source)
    weighed = dict(np.load(vectors(root, name) / "imatrix.npz"))
    outlined = Outline(root / "outlines" / name / kind, source)
    wrong = []
    for wanted in QUANTIZED:
        for rows in [weighed] if TYPES[wanted].needs_imatrix else [weighed, {}]:
            params = {"type": wanted, **PLAIN}
            (_, found) = choice.chosen(outlined, params, rows, root)
            expected = foretold(root / "whole" / name / f"{kind}.gguf", params, rows)
            if [(one.name, one.type) for one in found] != expected:
                wrong.append(f"{wanted}{', weighed' if rows else ''}")
    return wrong


def foretold(whole: Path, params: dict[str, Any], rows: dict[str, Any]) -> list[tuple[str, str]]:
    """Each tensor and its type, as llama.cpp tells them when it only looks at a file."""
    import ctypes

    import llama_cpp
    from llama_cpp import _logger

    from phipipe.backends.llamacpp import choice

    said: list[bytes] = []
    usual = llama_cpp.llama_model_quantize_default_params
    listen = llama_cpp.llama_log_callback(lambda level, text, data: said.append(text))

    def looking() -> Any:
        params = usual()
        params.dry_run = True
        return params

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    with patch.object(llama_cpp, "llama_model_quantize_default_params", looking):
        choice.quantize(whole, whole.parent / "none.gguf", params, rows)
    llama_cpp.llama_log_set(_logger.llama_log_callback, ctypes.c_void_p(0))
    lines = LINE.findall(b"".join(said).decode())
    return [(name, (changed or kind).upper()) for name, kind, changed in lines]


def main(root: Path, toolchain: str) -> None:
    if toolchain == "torch":
        answer(root / "torch.json", {"made": lambda: with_torch(root)})
        return
    checks: dict[str, Any] = {"floats": lambda: {"wrong": floats(root)}}
    checks["options"] = lambda: {"wrong": options(root)}
    for name in ("tiny", *MADE):
        kinds = QUANTIZED if name == "small" else SOME
        checks[name] = lambda name=name, kinds=kinds: {"wrong": quantized(root, name, kinds)}
    for name in DIVERSE:
        checks[f"types of {name}"] = lambda name=name: {"wrong": types(root, name)}
    answer(root / "llamacpp.json", checks)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
