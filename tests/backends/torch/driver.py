"""Runs in the torch toolchain: ``python driver.py FOLDER`` leaves FOLDER/facts.json.

One process for all checks of test_torch.py, under the worker's own restrictions (no pickles, no
network).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from testing import oracle
from testing.drive import answer, message
from testing.variants import TINY, digest, tied, tokens
from transformers import PhiConfig, PhiForCausalLM

from phipipe.backends import torch as backend
from phipipe.backends.torch.quantize import quantize as quantize_step
from phipipe.backends.torch.verify import verify
from phipipe.models.weight_files import INDEX
from phipipe.processes import prohibitions

STARTED: list[str] = []  # processes that were started meanwhile
CASES: dict[str, dict[str, Any]] = {
    "int4": {},
    "int4-32": {"group_size": 32},
    "int4-row": {"group_size": -1},
    "int4-asymmetric": {"symmetric": False},
    "int8": {"bits": 8},
    "int8-row": {"bits": 8, "group_size": -1},
    "signround": {"algorithm": "signround", "iterations": 20},
}


def quantize(root: Path, name: str, source: Path = TINY, **options: Any) -> Path:
    out = root / name
    out.mkdir(parents=True)
    params = {"bits": 4, "algorithm": "rtn", "group_size": 128, "symmetric": True} | options
    inputs = {"source": source}
    if params["algorithm"] == "signround":
        inputs["calibration"] = root / "calibration"
    quantize_step(inputs, out, params)
    return out


def run(folder: Path, windows: Any) -> dict[str, Any]:
    """Logits of all windows, and whether greedy generation is the chain of their argmaxes."""
    runtime = backend.open(folder)
    logits = np.concatenate([runtime.logits(window.tolist()) for window in windows])
    chain = windows[0][:16].tolist()
    made = list(runtime.generate(chain, 6))
    for _ in made:
        chain.append(int(runtime.logits(chain)[-1].argmax()))
    runtime.close()
    return {"logits": logits, "chain": chain[16:] == made and bool(made)}


def unpacked(folder: Path, name: str, bits: int) -> Any:
    """A packed weight in fp64, from the format's description alone: symmetric, zero point in the
    middle."""
    tensors = load_file(folder / "model.safetensors")
    words = tensors[f"{name}.qweight"].numpy().view(np.uint32)
    per_word = 32 // bits
    levels = np.stack([words >> (bits * i) & (2**bits - 1) for i in range(per_word)], 1)
    levels = levels.reshape(-1, words.shape[1]).astype(np.float64) - 2 ** (bits - 1)
    scales = tensors[f"{name}.scales"].numpy().astype(np.float64)
    return (levels * np.repeat(scales, len(levels) // len(scales), 0)).T, scales


def fidelity(root: Path) -> dict[str, Any]:
    windows = tokens("evaluation.txt", 4, 128)
    expected = np.concatenate([oracle.logits(TINY, window.tolist()) for window in windows])
    facts: dict[str, Any] = {"kld": {}, "chain": {}, "dtype": {}}
    for name, options in CASES.items():
        made = run(quantize(root, name, **options), windows)
        facts["kld"][name] = oracle.kld(expected, made["logits"])
        facts["chain"][name] = made["chain"]
        facts["dtype"][name] = str(made["logits"].dtype)
    return facts


def files(root: Path) -> dict[str, Any]:
    """What lies in the folder: the source's own files, a config with one more key, weights as
    described."""
    made = root / "int4"
    theirs, ours = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in (TINY, made))
    config = json.loads(ours["config.json"])
    settings = config.pop("quantization_config")
    weights = load_file(TINY / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    errors = {}
    for case, bits in (("int4", 4), ("int8", 8)):
        weight, scales = unpacked(root / case, name, bits)
        worst = np.abs(weight - weights[f"{name}.weight"].double().numpy()) / np.repeat(
            np.abs(scales).T, 128, 1
        )
        errors[case] = float(worst.max())
    return {
        "names": sorted(ours),
        "changed": sorted(n for n in ours if ours[n] != theirs.get(n)),
        "config": config == json.loads(theirs["config.json"]),
        "settings": settings,
        "errors": errors,
        "absolute": [
            n for n in ours if str(root).encode() in ours[n] or str(TINY).encode() in ours[n]
        ],
    }


def reproducible(root: Path) -> dict[str, bool]:
    """A second run, from a copy elsewhere, into a folder of another name."""
    copy = root / "elsewhere" / "model"
    shutil.copytree(TINY, copy)
    (root / "again").mkdir()
    shutil.copytree(root / "calibration", root / "again" / "calibration")
    names = ("int4", "int8", "int4-asymmetric", "signround")
    return {
        n: digest(quantize(root / "again", n, copy, **CASES[n])) == digest(root / n) for n in names
    }


def sources(root: Path) -> dict[str, Any]:
    """Layouts that the embedded model does not have: tied, in shards, LongRoPE; and Phi-2, with
    biases."""
    facts: dict[str, Any] = {}
    for name, make in (("tied", tied), ("phi2", _phi2)):
        source = make(root / "sources" / name)
        before = digest(source)
        ids = [int(t) for t in np.random.default_rng(7).integers(4, 500, 48)]
        made = quantize(root, f"{name}-int8", source, bits=8, group_size=32)
        facts[name] = {
            "kld": oracle.kld(oracle.logits(source, ids), run(made, np.asarray([ids]))["logits"]),
            "names": sorted(p.name for p in made.iterdir()),
            "unchanged": digest(source) == before,
        }
    index = json.loads((root / "tied-int8" / INDEX).read_text("utf-8"))
    found = {k: p.name for p in (root / "tied-int8").glob("*.safetensors") for k in load_file(p)}
    return facts | {"index": index["weight_map"] == found}


def _phi2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=2304,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = PhiForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


def failures(root: Path) -> dict[str, list[str]]:
    """What ``verify`` says of results that are not what was asked for."""
    params = {"bits": 4, "algorithm": "rtn", "group_size": 128, "symmetric": True}
    layer = "model.layers.2.mlp.down_proj"

    def tampered(name: str, change: Callable[[dict[str, Any]], None]) -> list[str]:
        folder = root / f"bad-{name}"
        shutil.copytree(root / "int4", folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return message(lambda: verify(TINY, folder, params))

    def without_scales(tensors: dict[str, Any]) -> None:
        del tensors[f"{layer}.scales"]

    def other_zero(tensors: dict[str, Any]) -> None:
        tensors[f"{layer}.qzeros"][0, 0] = 0

    return {
        "untouched": tampered("none", lambda tensors: None),
        "missing": tampered("missing", without_scales),
        "shape": tampered(
            "shape", lambda t: t.update({f"{layer}.scales": t[f"{layer}.scales"][:2].clone()})
        ),
        "zeros": tampered("zeros", other_zero),
        "head": tampered(
            "head", lambda t: t.update({"lm_head.weight": t["lm_head.weight"].half()})
        ),
        "norm": tampered(
            "norm", lambda t: t.update({"model.norm.weight": t["model.norm.weight"] * 2})
        ),
        "more": tampered("more", lambda t: t.update({"lm_head.qweight": torch.zeros(1)})),
        "bits": message(lambda: verify(TINY, root / "int8", params)),
        "groups": message(lambda: verify(TINY, root / "int4-32", params)),
    }


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.spawn"):
        STARTED.append(f"{event} {arguments[:2]}")


def main(root: Path) -> None:
    import auto_round  # noqa: F401 (py-cpuinfo asks `file` and `uname` about this machine when it is imported)

    sys.addaudithook(prohibitions.refuse)
    sys.addaudithook(listen)
    (root / "calibration").mkdir()
    np.save(root / "calibration" / "tokens.npy", tokens("calibration.txt", 16, 64))
    checks: dict[str, Callable[[Path], Any]] = {
        "fidelity": fidelity,
        "files": files,
        "reproducible": reproducible,
        "sources": sources,
        "failures": failures,
        "processes": lambda root: {
            "started": STARTED,
            "scratch": [p.name for p in root.glob(".*")],
        },
    }
    answer(root / "facts.json", {name: partial(check, root) for name, check in checks.items()})


if __name__ == "__main__":
    sys.meta_path.insert(0, prohibitions.NoTorchLoad())
    main(Path(sys.argv[1]))
