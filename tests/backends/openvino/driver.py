"""Runs in the openvino toolchain: ``python driver.py FOLDER`` leaves FOLDER/facts.json.

One process for all checks of test_openvino.py, since importing torch and optimum takes most of the
time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from testing import oracle
from testing.drive import answer, message

os.environ["NNCF_CI"] = "1"  # the exporter's own runs, too, send no telemetry

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from phipipe.backends import openvino as backend
from phipipe.backends.base import Job
from phipipe.backends.openvino import npu as npu_steps
from phipipe.backends.openvino import stored as stored_weights
from phipipe.backends.openvino.convert import convert as convert_step
from phipipe.backends.openvino.files import MODEL
from phipipe.backends.openvino.pipeline import Pipeline
from phipipe.backends.openvino.quantize import quantize as quantize_step
from phipipe.evaluate.sanity import PARITY_TEXT
from phipipe.hub import take
from phipipe.models import checkpoints
from phipipe.models.checkpoint import Checkpoint

TINY = take.BUILTIN_MODELS["tiny-phi3"]
STORIES = take.ASSETS / "stories"
CALIBRATE, PLAIN = SimpleNamespace(tokens=4096), SimpleNamespace(learn=None)
# Our precision and options, and the same in the exporter's words.
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "int4-symmetric": (
        "int4",
        {"symmetric": True},
        ["--sym", "--group-size", "128", "--ratio", "1.0"],
    ),
    "int4": ("int4", {}, ["--group-size", "128", "--ratio", "1.0"]),
    "int8": ("int8", {}, []),
    "int8-symmetric": ("int8", {"symmetric": True}, ["--sym"]),
}
# Options alone; the build fails by itself where the graph is not what was asked for.
OPTIONS: dict[str, dict[str, Any]] = {
    "row": {"symmetric": True, "group_size": -1},
    "32": {"group_size": 32},
    "ratio": {"ratio": 0.5, "backup": "int8_sym"},
    "hessian": {"ratio": 0.8, "sensitivity": "hessian_input_activation"},
    "none": {"backup": "none"},
    "all": {"all_layers": True},
    "awq-scale": {"awq": True, "scale_estimation": True},
    "learned": {"awq": True, "scale_estimation": True, "gptq": True},
}


class Large(Checkpoint):
    large = True  # type: ignore[assignment]


def tokens(name: str, count: int) -> list[int]:
    text = (STORIES / name).read_text("utf-8")[: 20 * count]
    ids = (
        Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    )
    return list(ids[:count])


def variant(folder: Path, tied: bool, **changes: Any) -> Path:
    """The embedded model with other settings; tied, it loses its LM head."""
    shutil.copytree(TINY, folder)
    weights = load_file(folder / "model.safetensors")
    if tied:
        weights.pop("lm_head.weight")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = (
        json.loads((folder / "config.json").read_text("utf-8"))
        | {"tie_word_embeddings": tied}
        | changes
    )
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def convert(
    source: Path, out: Path, precision: str = "fp16", patch: dict[str, Any] | None = None
) -> Path:
    out.mkdir(parents=True)
    convert_step({"source": source}, out, {"precision": precision, "config_patch": patch or {}})
    return out


def quantize(model: Path, out: Path, root: Path, precision: str = "int4", **options: Any) -> Path:
    """As the planner would: the step's own parameters and needs."""
    recipe: Any = SimpleNamespace(precision=precision, calibrate=CALIBRATE, weights=PLAIN)
    step = backend.steps(
        Job(recipe, backend.Options.model_validate(options), checkpoints.read(TINY), {})
    )[1]
    known = {"convert": model, "calibration": root / "calibration"}
    out.mkdir(parents=True)
    quantize_step({name: known[place] for name, place in step.needs.items()}, out, step.params)
    return out


def bare(out: Path, precision: str, extra: Sequence[str]) -> Path:
    command = [
        sys.executable,
        "-m",
        "optimum.commands.optimum_cli",
        "export",
        "openvino",
        "--model",
        str(TINY),
    ]
    command += [
        "--task",
        "text-generation-with-past",
        "--weight-format",
        precision,
        *extra,
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def constants(folder: Path) -> list[Any]:
    """Type, shape and bytes of every constant."""
    nodes = [
        n for n in stored_weights.read(folder).get_ordered_ops() if n.get_type_name() == "Constant"
    ]
    return sorted(
        (
            n.get_element_type().get_type_name(),
            tuple(n.get_output_shape(0)),
            np.asarray(n.get_data()).tobytes(),
        )
        for n in nodes
    )


def settings(folder: Path) -> str:
    """What the graph's file says of how it was made and is to be run."""
    text = (folder / MODEL).read_text("utf-8")
    return text[text.rindex("<rt_info>") :]


def compared(folder: Path, expected: Any, ids: Sequence[int]) -> dict[str, Any]:
    """Divergence from ``expected``; and whether generation follows the logits, and calls leave no
    state."""
    runtime = backend.open(folder)
    logits = runtime.logits(ids)
    made, chain = list(runtime.generate(ids[:20], 8)), list(ids[:20])
    for _ in made:
        chain.append(int(runtime.logits(chain)[-1].argmax()))
    facts = {
        "kld": oracle.kld(expected, logits),
        "top1": float((expected.argmax(-1) == logits.argmax(-1)).mean()),
        "chain": made == chain[20:] and len(made) == 8,
        "again": bool(np.array_equal(logits, runtime.logits(ids))),
        "dtype": str(logits.dtype),
    }
    runtime.close()
    return facts


def equality(root: Path) -> dict[str, Any]:
    facts = {}
    for name, (precision, options, extra) in CASES.items():
        ours = quantize(root / "fp16", root / name, root, precision, **options)
        theirs = bare(root / f"{name}.bare", precision, extra)
        facts[name] = [constants(ours) == constants(theirs), settings(ours) == settings(theirs)]
    return facts


def fidelity(root: Path) -> dict[str, Any]:
    for name, options in OPTIONS.items():
        quantize(root / "fp16", root / name, root, **options)
    ids = tokens("evaluation.txt", 512)
    expected = oracle.logits(TINY, ids)
    return {
        name: compared(root / name, expected, ids) for name in ("fp32", "fp16", *CASES, *OPTIONS)
    }


def variants(root: Path) -> dict[str, Any]:
    """Tied embeddings, rotary factors that change within the prompt, a sliding window that really
    cuts."""
    rope = {"type": "longrope", "short_factor": [1 + i / 50 for i in range(24)]}
    rope["long_factor"] = [1 + i / 2 for i in range(24)]
    long = {
        "rope_scaling": rope,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 64,
    }
    sources = {
        "tied": variant(root / "sources" / "tied", True),
        "longrope": variant(root / "sources" / "longrope", True, **long),
        "window": variant(root / "sources" / "window", False, sliding_window=63),
    }
    facts: dict[str, Any] = {}
    for name, source in sources.items():
        model = convert(source, root / "variants" / name)
        for count in (48, 200):
            ids = tokens("evaluation.txt", count)
            facts[f"{name} {count}"] = compared(model, oracle.logits(source, ids), ids)
        for case, options in {
            "int4": {},
            "ratio": {"ratio": 0.5},
            "all": {"all_layers": True},
        }.items():
            quantize(model, root / "variants" / f"{name}-{case}", root, **options)
    weights = stored_weights.weights(stored_weights.read(root / "variants" / "tied-int4"))
    facts["tied kinds"] = [weights[0].kind, weights[-1].kind]
    return facts


def failures(root: Path) -> dict[str, Any]:
    """What ``verify`` says where the graph is not what was asked for."""
    before = stored_weights.weights(stored_weights.read(root / "fp16"))
    after = stored_weights.weights(stored_weights.read(root / "int4"))
    asked = {"bits": 4, **backend.Options().model_dump()}

    def check(found: list[Any] = after, **changes: Any) -> list[str]:
        return message(lambda: stored_weights.verify(before, found, asked | changes))

    one = after[5]
    made: dict[str, Any] = {
        "untouched": check(),
        "symmetric": check(symmetric=True),
        "group": check(group_size=64),
        "backup": check(backup="int8_sym"),
        "all": check(all_layers=True),
        "share": check(ratio=0.5),
        "bits": check(bits=8),
        "float": check([replace(one, kind="f16", group=0) if w is one else w for w in after]),
        "zero": check([replace(one, zero_point=False) if w is one else w for w in after]),
        "lost": check([w for w in after if w is not one]),
    }
    quantized = lambda: stored_weights.verify_unquantized(after, "f16")  # noqa: E731
    return made | {"name": one.name, "quantized": message(quantized)}


def reproducible(root: Path) -> dict[str, bool]:
    """Builds in other folders, with another patch and other counters, are the same to the byte."""
    again = convert(TINY, root / "elsewhere" / "again" / "m", patch={"use_cache": True})
    pairs = {"convert": (root / "fp16", again)}
    for name in ("int4", "learned"):
        made = quantize(again, root / "elsewhere" / name, root, **OPTIONS.get(name, {}))
        pairs[name] = (root / name, made)
    ignored = {"config.json"}  # the patched copy's own
    return {
        name: all(
            p.read_bytes() == (b / p.name).read_bytes()
            for p in a.iterdir()
            if p.name not in ignored
        )
        and {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}
        for name, (a, b) in pairs.items()
    }


def direct(root: Path) -> dict[str, bool]:
    """Whether converting and rounding at once, as for large models, leaves what the two steps
    leave."""
    tied, mixed = root / "sources" / "tied", root / "stored" / "whole-mixed.checkpoint"
    cases: dict[str, tuple[Path, Path, str, dict[str, Any]]] = {
        "int8": (TINY, root / "int8", "int8", {}),
        "none": (TINY, root / "none", "int4", OPTIONS["none"]),
        "tied": (tied, root / "variants" / "tied-ratio", "int4", {"ratio": 0.5}),
        "all": (tied, root / "variants" / "tied-all", "int4", {"all_layers": True}),
        "mixed": (mixed, root / "int4", "int4", {}),
    }
    facts = {}
    for name, (source, expected, precision, options) in cases.items():
        recipe: Any = SimpleNamespace(precision=precision, calibrate=CALIBRATE, weights=PLAIN)
        large: Any = Large(**vars(checkpoints.read(source)))
        (step,) = backend.steps(Job(recipe, backend.Options.model_validate(options), large, {}))
        out = root / "direct" / name
        out.mkdir(parents=True)
        quantize_step({"source": source}, out, step.params)
        files = {path.name for path in expected.iterdir()} | {path.name for path in out.iterdir()}
        facts[name] = all((expected / f).read_bytes() == (out / f).read_bytes() for f in files)
    return facts


def sizes(root: Path) -> dict[str, list[int]]:
    """Planned and actual bytes of the weights."""
    facts = {}
    cases = {name: (precision, options) for name, (precision, options, _) in CASES.items()}
    cases |= {name: ("int4", options) for name, options in OPTIONS.items()} | {
        "fp16": ("fp16", {}),
        "fp32": ("fp32", {}),
    }
    for name, (precision, options) in cases.items():
        recipe: Any = SimpleNamespace(precision=precision, calibrate=CALIBRATE, weights=PLAIN)
        (*_, step) = backend.steps(
            Job(recipe, backend.Options.model_validate(options), checkpoints.read(TINY), {})
        )
        facts[name] = [
            step.output_bytes,
            (root / name / MODEL).with_suffix(".bin").stat().st_size,
        ]
    return facts


def stored(root: Path) -> dict[str, bool]:
    """Whether the dtype that a checkpoint is stored in leaves a trace: all values are bf16's to
    begin with."""
    tied = variant(root / "stored" / "tied", True)
    originals = {
        "whole": (TINY, root / "fp16"),
        "tied": (tied, convert(tied, root / "stored" / "tied-bf16")),
    }
    changes: dict[str, Callable[[str, torch.Tensor], torch.Tensor]] = {
        "fp16": lambda name, tensor: tensor.half(),
        "mixed": lambda name, tensor: tensor.float() if "norm" in name else tensor,
    }
    facts = {}
    for which, (source, expected) in originals.items():
        for name, change in changes.items():
            folder = root / "stored" / f"{which}-{name}.checkpoint"
            shutil.copytree(source, folder)
            weights = load_file(folder / "model.safetensors")
            made = {key: change(key, tensor).contiguous() for key, tensor in weights.items()}
            save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
            actual = convert(folder, root / "stored" / f"{which}-{name}")
            files = {path.name for path in expected.iterdir()} | {
                path.name for path in actual.iterdir()
            }
            facts[f"{which} {name}"] = all(
                (expected / f).read_bytes() == (actual / f).read_bytes() for f in files
            )
    return facts


def privacy(root: Path) -> dict[str, Any]:
    """Files that name a folder of this machine, and whether telemetry was loaded."""
    said = [
        str(root).encode(),
        str(TINY).encode(),
        str(Path.home()).encode() + b"/",
        sys.prefix.encode(),
    ]
    files = [
        p
        for name in ("fp16", "int4", "learned")
        for p in (root / name).iterdir()
        if p.suffix != ".bin"
    ]
    named = [p.name for p in files if any(word in p.read_bytes() for word in said)]
    return {"named": named, "telemetry": sys.modules.get("openvino_telemetry") is not None}


def tokenizer(root: Path) -> dict[str, Any]:
    theirs = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ours = backend.tokenizer(root / "int4")
    return {
        "ids": [ours.encode(PARITY_TEXT), theirs.encode(PARITY_TEXT, add_special_tokens=False).ids],
        "text": ours.decode(ours.encode("the fox")),
        "chat": ours.render([{"role": "user", "content": "hi"}]),
    }


def npu(root: Path) -> dict[str, Any]:
    facts = {}
    for name in ("int4-symmetric", "row"):
        out = root / f"npu-{name}"
        out.mkdir()
        npu_steps.verify_npu(
            {"artifact": root / name}, out, {"prompt_length": 1024, "response_length": 128}
        )
        facts[name] = json.loads((out / "npu.json").read_text("utf-8"))
    generate = Pipeline.generate
    Pipeline.generate = lambda *rest: iter([1, 2])
    out = root / "npu-wrong"
    out.mkdir()
    lengths = {"prompt_length": 1024, "response_length": 128}
    facts["wrong"] = message(lambda: npu_steps.verify_npu({"artifact": root / "row"}, out, lengths))
    Pipeline.generate = generate
    plain = Pipeline(root / "row", "CPU", {})
    prompt = tokens("evaluation.txt", 24)
    facts["streamed"] = list(plain.generate(prompt, 16))
    facts["again"] = list(plain.generate(prompt, 4))
    facts["likeliest"] = npu_steps.furthest(root / "row", prompt, facts["streamed"])
    facts["logits"] = message(lambda: plain.logits(prompt))
    return facts


def main(root: Path) -> None:
    (root / "calibration").mkdir(parents=True)
    windows = np.array(tokens("calibration.txt", 8 * 256), np.int32).reshape(8, 256)
    np.save(root / "calibration" / "tokens.npy", windows)
    convert(TINY, root / "fp16")
    convert(TINY, root / "fp32", "fp32")
    checks = (
        equality,
        fidelity,
        variants,
        failures,
        reproducible,
        sizes,
        stored,
        direct,
        privacy,
        tokenizer,
        npu,
    )
    answer(root / "facts.json", {check.__name__: partial(check, root) for check in checks})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
