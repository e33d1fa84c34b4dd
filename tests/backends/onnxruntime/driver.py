"""Runs in the onnxruntime toolchain: ``python driver.py FOLDER`` leaves
FOLDER/facts.json.

One process for all checks of test_onnxruntime.py, since importing torch and transformers takes most
of the time.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnxruntime_genai.models import builder
from safetensors.torch import load_file, save_file
from testing import onnx_facts, oracle
from testing.drive import answer, message
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models

from phipipe.backends import fixups
from phipipe.backends import onnxruntime as backend
from phipipe.backends.onnxruntime import convert as conversion
from phipipe.backends.onnxruntime import graph, layout, rounding, schemes, session
from phipipe.backends.onnxruntime import quantize as quantization
from phipipe.backends.onnxruntime.verify import verify
from phipipe.models import checkpoints, mapped

# Recipe options, and the same in the bare builder's words. Block 16 where zero points need an even
# number of blocks.
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "default": ("int4", {}, []),
    "default-asymmetric": ("int4", {"symmetric": False}, ["is_symmetric=false"]),
    "rtn": ("int4", {"algorithm": "rtn"}, ["algo_config=rtn"]),
    "k_quant": (
        "int4",
        {"algorithm": "k_quant", "block_size": 16},
        ["algo_config=k_quant", "block_size=16"],
    ),
    "head": ("int4", {"mixed": "head"}, ["matmul_mixed_precision=last_matmul:int8"]),
    "layers": (
        "int4",
        {"mixed": "layers"},
        ["matmul_mixed_precision=last_matmul:int8,mixed_layers:int8"],
    ),
    "k_quant-layers": (
        "int4",
        {"algorithm": "k_quant", "block_size": 16, "mixed": "layers"},
        ["algo_config=k_quant_mixed", "block_size=16"],
    ),
    "block-64-level-0": (
        "int4",
        {"block_size": 64, "accuracy_level": 0},
        ["block_size=64", "accuracy_level=0"],
    ),
    "exclude": (
        "int4",
        {"exclude": ["*/layers.1/mlp/down_proj/*"]},
        ["nodes_to_exclude=/model/layers.1/mlp/down_proj/MatMul"],
    ),
    "embeddings": ("int4", {"embeddings": "quantized"}, ["op_types_to_quantize=MatMul/Gather"]),
    "int8": ("int8", {}, []),
    "int8-asymmetric": ("int8", {"symmetric": False}, ["is_symmetric=false"]),
    "int8-rtn": ("int8", {"algorithm": "rtn"}, ["algo_config=rtn"]),
}
NEAR = 0.01  # nats: between two tokens that are almost equally likely, rounding decides
TIED_CASES = (
    "default",
    "rtn",
    "k_quant",
    "k_quant-layers",
    "exclude",
    "int8",
    "layers",
    "default-asymmetric",
)


def checkpoint(folder: Path, **changes: Any) -> Path:
    """A random Phi-3 in the hub's layout: 3 layers, so that "layers" raises the first and the last
    only."""
    config: dict[str, Any] = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 256,
        "original_max_position_embeddings": 256,
        "sliding_window": None,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "bfloat16",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attention_dropout": 0.0,
    } | changes
    folder.mkdir(parents=True)
    save_file(_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))
    texts = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 2},
        "tokenizer_config.json": {
            "tokenizer_class": "GPT2Tokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "</s>",
            "chat_template": "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] "
            "}}<|end|>{% endfor %}",
        },
    }
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, indent=2))
    return folder


def _weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden, inner, heads = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_attention_heads"],
    )
    joined = (heads + 2 * config["num_key_value_heads"]) * (hidden // heads)

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=random) * 0.08).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        tensors[f"{layer}.self_attn.qkv_proj.weight"] = matrix(joined, hidden)
        tensors[f"{layer}.self_attn.o_proj.weight"] = matrix(hidden, hidden)
        tensors[f"{layer}.mlp.gate_up_proj.weight"] = matrix(2 * inner, hidden)
        tensors[f"{layer}.mlp.down_proj.weight"] = matrix(hidden, inner)
        tensors[f"{layer}.input_layernorm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        tensors[f"{layer}.post_attention_layernorm.weight"] = torch.ones(
            hidden, dtype=torch.bfloat16
        )
    tensors["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    return tensors


def _tokenizer(size: int) -> Tokenizer:
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 3, trainer)
    return tokenizer


def convert(source: Path, out: Path, patch: dict[str, Any] | None = None, **where: Any) -> Path:
    out.mkdir(parents=True)
    conversion.convert({"source": source}, out, {"config_patch": patch or {}, **where})
    return out


def quantize(
    model: Path, out: Path, precision: str = "int4", source: Path | None = None, **options: Any
) -> Path:
    out.mkdir(parents=True)
    inputs = {"model": model} | ({"source": source} if source else {})
    params = onnx_facts.asked(model, precision, **{"accuracy_level": 4, **options})
    quantization.quantize(inputs, out, params)
    return out


def bare(
    source: Path, out: Path, precision: str, extra: Sequence[str], provider: str = "cpu"
) -> Path:
    where = (None, str(source), str(out), precision, provider, str(out.with_suffix(".cache")))
    builder.create_model(
        *where, **builder.parse_extra_options(*where, ["windowed_kv_cache=false", *extra])
    )
    return out


def contents(folder: Path) -> dict[str, Any]:
    """Initializers by value, nodes by what they are and read, other files by bytes."""
    model = onnx.load(str(folder / layout.MODEL))
    facts: dict[str, Any] = {
        t.name: (t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes())
        for t in model.graph.initializer
    }
    for node in model.graph.node:
        attributes = sorted((a.name, str(helper.get_attribute_value(a))) for a in node.attribute)
        facts[f"node {node.name}"] = (node.op_type, list(node.input), list(node.output), attributes)
    files = (p for p in folder.iterdir() if not p.name.startswith(layout.MODEL))
    return facts | {f"file {p.name}": p.read_bytes() for p in files}


def differences(ours: Path, theirs: Path) -> list[str]:
    a, b = contents(ours), contents(theirs)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def tokens(count: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(7).integers(4, 500, count)]


def run(folder: Path, prompt: Sequence[int], limit: int = 6) -> dict[str, Any]:
    """Logits of ``prompt``, greedy generation, and whether each of its tokens is the likeliest or
    as good as that."""
    runtime = backend.open(folder)
    logits = runtime.logits(prompt)
    made = list(runtime.generate(prompt, limit))
    rows = runtime.logits([*prompt, *made])[len(prompt) - 1 : -1]
    gaps = [float(row.max() - row[token]) for row, token in zip(rows, made, strict=True)]
    runtime.close()
    return {"logits": logits, "same": max(gaps, default=0.0) < NEAR, "count": len(made)}


def tampered(good: Path, out: Path, change: Callable[[Any], None]) -> list[str]:
    """What ``verify`` says of a copy of ``good`` (4 bits, all defaults) with its graph changed."""
    out.mkdir()
    model = graph.load(good)
    wanted = graph.linears(graph.load(good.parent / "fp32"))
    change(model)
    graph.save(model, out)
    (out / layout.DATA).write_bytes((good / layout.DATA).read_bytes())
    asked = schemes.schemes_of(wanted, backend.Options(accuracy_level=4), 4)
    return message(lambda: verify(out, wanted, asked, None))


def _set(name: str, value: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        node = next(
            n for n in model.graph.node if n.name == "/model/layers.1/mlp/down_proj/MatMul_Q4"
        )
        next(a for a in node.attribute if a.name == name).i = value

    return change


def _swap(one: str, other: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        nodes = {n.name: n for n in model.graph.node}
        a, b = nodes[f"{one}/MatMul_Q4"], nodes[f"{other}/MatMul_Q4"]
        a.input[1], b.input[1] = b.input[1], a.input[1]

    return change


def _drop_scales(model: Any) -> None:
    kept = [t for t in model.graph.initializer if t.name != "lm_head.MatMul.weight_scales"]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)


def equality(root: Path, plain: Path, tied: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"equal": {}, "equal_tied": {}, "bits": {}}
    for key, source, names in (("equal", plain, tuple(CASES)), ("equal_tied", tied, TIED_CASES)):
        model = root / source.name / "fp32"
        for name in names:
            precision, options, extra = CASES[name]
            ours = quantize(model, root / source.name / name, precision, **options)
            theirs = bare(source, root / source.name / f"{name}.bare", precision, extra)
            facts[key][name] = differences(ours, theirs)
            facts["bits"][f"{source.name} {name}"] = onnx_facts.describe(ours)
    return facts


def fidelity(root: Path, plain: Path, tied: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    ids = tokens(48)
    for source in (plain, tied):
        expected = oracle.logits(source, ids)
        made = {
            name: run(root / source.name / name, ids)
            for name in ("fp32", "default", "int8", "layers")
        }
        facts[source.name] = {
            "largest_difference": float(np.abs(made["fp32"]["logits"] - expected).max()),
            "kld": {name: oracle.kld(expected, one["logits"]) for name, one in made.items()},
            "chains": {name: one["same"] and one["count"] > 0 for name, one in made.items()},
            "dtype": str(made["fp32"]["logits"].dtype),
        }
    return facts


def threads(model: Path) -> dict[str, Any]:
    """What ``model`` answers with onnxruntime-genai's own number of threads, and with others."""
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    prompts = [tokens(count) for count in (5, 48)]
    opened = {name: session.Session(model, threads=n) for name, n in (("own", 0), ("1", 1))}
    opened |= {"2": session.Session(model, threads=2), "wide": backend.FACE.to_answer(model)}
    answers = {}
    for name, runtime in opened.items():
        answers[name] = [list(runtime.generate(prompt, 32)) for prompt in prompts]
        runtime.close()
    after = {path.name: path.read_bytes() for path in model.iterdir()}
    return {"answers": answers, "same_files": before == after}


def providers(root: Path, plain: Path) -> dict[str, Any]:
    """GPUs: what is built equals the bare builder's, and the very file gives the source's logits on
    this CPU."""
    facts: dict[str, Any] = {}
    ids = tokens(48)
    expected = oracle.logits(plain, ids)
    for api, provider in backend.PROVIDERS.items():
        for precision in backend.PRECISIONS[api] if api != "cpu" else ():
            name = f"{api} {precision}"
            kind = "fp32" if precision == "fp32" else "fp16"
            model = root / "gpu" / f"{provider}-{kind}"
            if not model.exists():
                convert(plain, model, provider=provider, io_dtype=kind)
            if precision in backend.BITS:
                level = 4 if api in backend.INT8_ACTIVATIONS else 0
                model = quantize(model, root / "gpu" / name, precision, accuracy_level=level)
            theirs = bare(plain, root / "gpu" / f"{name}.bare", precision, [], provider)
            made = run(model, ids)
            facts[name] = {
                "differences": differences(model, theirs),
                "kld": oracle.kld(expected, made["logits"]),
                "chain": made["same"] and made["count"] > 0,
                "dtype": str(made["logits"].dtype),
                "linears": onnx_facts.describe(model)["linears"],
            }
    wrong = root / "gpu" / "cuda-fp16"
    facts["for another"] = message(lambda: conversion.check(wrong, "dml", "fp16", None))
    facts["of another width"] = message(lambda: conversion.check(wrong, "cuda", "fp32", None))
    return facts


def window(root: Path) -> dict[str, Any]:
    """A Phi-3-4k in small: prompts shorter and longer than its window, after fix-up F1."""
    source = checkpoint(root / "sources" / "window", sliding_window=63)
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    recipe: Any = SimpleNamespace(backend="onnxruntime")
    patch = fixups.needed(recipe, checkpoints.read(source))["F1"]["patch"]
    model = convert(source, root / "window" / "fp32", patch)
    facts: dict[str, Any] = {
        "source_unchanged": before == {p.name: p.read_bytes() for p in source.iterdir()}
    }
    for name, folder in (("fp32", model), ("int4", quantize(model, root / "window" / "int4"))):
        for count in (20, 150):
            made = run(folder, tokens(count))
            difference = float(np.abs(made["logits"] - oracle.logits(source, tokens(count))).max())
            facts[f"{name} {count}"] = {"largest_difference": difference, "chain": made["same"]}
    return facts


def failures(root: Path) -> dict[str, Any]:
    good = root / "plain" / "default"
    changes = {
        "bits": _set("bits", 8),
        "accuracy_level": _set("accuracy_level", 1),
        "block_size": _set("block_size", 64),
        "K": _set("K", 319),
        "swapped": _swap("/lm_head", "/model/layers.0/mlp/up_proj"),
        "twins": _swap("/model/layers.0/mlp/gate_proj", "/model/layers.0/mlp/up_proj"),
        "dropped": _drop_scales,
    }
    facts: dict[str, Any] = {
        name: tampered(good, root / f"bad-{name}", change) for name, change in changes.items()
    }
    facts["untouched"] = tampered(good, root / "bad-none", lambda model: None)
    pattern = "/model/layers.1/mlp/down_prj/MatMul"
    facts["exclude"] = message(
        lambda: quantize(root / "plain" / "fp32", root / "bad-exclude", exclude=[pattern])
    )
    return facts


def reproducible(root: Path, plain: Path) -> dict[str, bool]:
    """Two builds in folders of different names, the second from a staged copy, are the same to the
    byte."""
    again = convert(plain, root / "elsewhere" / "again" / "m", {"use_cache": True})
    first = root / "plain"
    pairs = {"convert": (first / "fp32", again)}
    for name in ("default", "int8"):
        precision, options, _ = CASES[name]
        pairs[name] = (
            first / name,
            quantize(again, root / "elsewhere" / name, precision, **options),
        )
    return {
        name: {p.name: p.read_bytes() for p in a.iterdir()}
        == {p.name: p.read_bytes() for p in b.iterdir()}
        for name, (a, b) in pairs.items()
    }


def slices(root: Path) -> dict[str, list[str]]:
    """Quantizing in slices of a few columns (or rows of the embedding) changes nothing."""
    whole, rounding.SLICE = rounding.SLICE, 5000
    made = {}
    for name in ("default", "k_quant-layers", "int8-rtn", "embeddings"):
        precision, options, _ = CASES[name]
        ours = quantize(root / "plain" / "fp32", root / "slices" / name, precision, **options)
        made[name] = differences(ours, root / "plain" / name)
    rounding.SLICE = whole
    return made


def links(root: Path, plain: Path, tied: Path) -> dict[str, Any]:
    """Rounding from the checkpoint's own bytes gives what rounding from a written conversion
    gives."""
    facts: dict[str, Any] = {"made": {}, "gpu": {}, "data_bytes": {}}
    shards = split(plain, root / "sources" / "shards")
    cases = {plain: tuple(CASES), tied: TIED_CASES, shards: ("default",)}
    for source, names in cases.items():
        model = convert(source, root / "links" / source.name, linked=True)
        facts["data_bytes"][source.name] = (model / layout.DATA).stat().st_size
        for name in names:
            precision, options, _ = CASES[name]
            out = root / "links" / f"{source.name}-{name}"
            ours = quantize(model, out, precision, source, **options)
            facts["made"][f"{source.name} {name}"] = differences(
                ours, root / source.name.replace("shards", "plain") / name
            )
    model = convert(plain, root / "links" / "cuda", provider="cuda", io_dtype="fp16", linked=True)
    ours = quantize(model, root / "links" / "cuda int4", "int4", plain, accuracy_level=0)
    facts["gpu"]["cuda int4"] = differences(ours, root / "gpu" / "cuda int4")
    facts["lost"] = message(
        lambda: quantize(model, root / "links" / "lost", "int4", root, accuracy_level=0)
    )
    short = root / "links" / "short"
    short.mkdir()
    (short / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes()[:-1000])
    facts["short"] = message(
        lambda: quantize(model, root / "links" / "cut", "int4", short, accuracy_level=0)
    )
    return facts


def split(source: Path, out: Path) -> Path:
    """The checkpoint ``source`` in two files, as large ones come; the second's data starts at an
    odd place."""
    out.mkdir()
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, chosen in parts.items():
        save_file(
            {name: tensors[name] for name in chosen},
            out / file,
            metadata={"format": "pt", "note": "odd" * len(file)},
        )
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (out / path.name).write_bytes(path.read_bytes())
    return out


def foreign(root: Path, plain: Path) -> dict[str, Any]:
    """What the mapped model says of weights that are not the config's."""
    tensors = load_file(plain / "model.safetensors")
    cases = {
        "missing": {name: t for name, t in tensors.items() if name != "model.norm.weight"},
        "unknown": tensors | {"model.layers.9.mlp.down_proj.weight": torch.zeros(2, 2)},
        "shape": tensors | {"model.norm.weight": torch.zeros(7, dtype=torch.bfloat16)},
        "dtype": tensors | {"model.norm.weight": torch.zeros(128, dtype=torch.int32)},
    }
    facts = {}
    for name, made in cases.items():
        folder = root / "foreign" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_bytes((plain / "config.json").read_bytes())
        save_file(made, folder / "model.safetensors")
        facts[name] = message(mapped.Checkpoint(folder).model)
    return facts


def tokenizer(root: Path, plain: Path) -> dict[str, Any]:
    theirs = Tokenizer.from_file(str(plain / "tokenizer.json"))
    ours = backend.FACE.tokenizer(root / "plain" / "default")
    text = "the quick brown fox"
    return {
        "ids": [ours.encode(text), theirs.encode(text, add_special_tokens=False).ids],
        "text": ours.decode(ours.encode(text)),
        "chat": ours.render([{"role": "user", "content": "hi"}]),
    }


def main(root: Path) -> None:
    rope = {
        "type": "longrope",
        "short_factor": [1.0] * 24,
        "long_factor": [1.0 + i / 2 for i in range(24)],
    }
    plain = checkpoint(root / "sources" / "plain")
    tied = checkpoint(
        root / "sources" / "tied",
        tie_word_embeddings=True,
        num_attention_heads=2,
        num_key_value_heads=1,
        partial_rotary_factor=0.75,
        rope_scaling=rope,
        original_max_position_embeddings=32,
        sliding_window=262144,
    )
    for source in (plain, tied):
        convert(source, root / source.name / "fp32")
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "equality": lambda: equality(root, plain, tied),
        "fidelity": lambda: fidelity(root, plain, tied),
        "threads": lambda: threads(root / plain.name / "default"),
        "providers": lambda: providers(root, plain),
        "window": lambda: window(root),
        "failures": lambda: failures(root),
        "reproducible": lambda: reproducible(root, plain),
        "slices": lambda: slices(root),
        "links": lambda: links(root, plain, tied),
        "foreign": lambda: foreign(root, plain),
        "tokenizer": lambda: tokenizer(root, plain),
    }
    answer(root / "facts.json", checks)


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        main(Path(sys.argv[1]))
