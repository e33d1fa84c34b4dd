"""Runs in the olive toolchain: ``python olive_driver.py FOLDER`` leaves FOLDER/facts.json, and what
the steps made.

Afterwards in the onnxruntime toolchain: ``python olive_driver.py FOLDER onnx`` leaves
FOLDER/onnx.json, about ONNX models of the same. Both under the worker's own restrictions (no
pickles, no network).
"""

from __future__ import annotations

import contextlib
import json
import os
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
from transformers import AutoModelForCausalLM

from phipipe.algorithms import olive_checkpoint
from phipipe.backends import onnxruntime as backend
from phipipe.models import weight_files
from phipipe.processes import prohibitions

with contextlib.suppress(ModuleNotFoundError):  # ONNX Runtime's toolchain has no Olive
    from phipipe.algorithms import olive_run
with contextlib.suppress(ModuleNotFoundError):  # Olive's toolchain has no onnxruntime-genai
    from testing import onnx_facts

    from phipipe.backends.onnxruntime import convert as onnx_convert
    from phipipe.backends.onnxruntime import quantize as onnx_quantize
    from phipipe.backends.onnxruntime import rounding as onnx_rounding

ROTATIONS: dict[str, dict[str, Any]] = {
    "quarot": {"method": "quarot"},
    "random": {"method": "quarot", "mode": "random"},
    "spinquant": {"method": "spinquant", "activation_bits": 8},
}
ROUNDINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "asymmetric": {"symmetric": False},
    "128": {"group_size": 128},
    "head": {"mixed": "head"},
    "down": {"mixed": "down"},
    "layers": {"mixed": "layers"},
}
PLAIN = {"bits": 4, "group_size": 32, "symmetric": True, "mixed": "none", "damp": 0.01}
EVENTS: list[str] = []  # connections that were tried, processes that were started


def rotate(root: Path, name: str, source: Path = TINY, **params: Any) -> Path:
    out = root / name
    out.mkdir(parents=True)
    inputs = {"source": source, "calibration": root / "calibration"}
    olive_run.rotate(inputs, out, {"mode": "hadamard", "seed": 0} | params)
    return out


def gptq(root: Path, name: str, source: Path = TINY, **params: Any) -> Path:
    out = root / name
    out.mkdir(parents=True)
    olive_run.gptq({"source": source, "calibration": root / "calibration"}, out, PLAIN | params)
    return out


def weights(folder: Path) -> dict[str, Any]:
    return {
        name: tensor
        for path in weight_files.shards(folder)
        for name, tensor in load_file(path).items()
    }


def levels(packed: Any, width: int) -> Any:
    """The integers [n, width] of what is stored, from the layout's description alone: 4 bits, low
    half first, or 8."""
    wide = (
        packed
        if packed.shape[1] == width
        else torch.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
    )
    return wide[:, :width].int()


def bits(folder: Path) -> dict[str, int]:
    """Rounded linear → bits, from the sizes of what is stored and of the source."""
    own, made = weights(TINY), weights(folder)
    found = (name.removesuffix(".qweight") for name in made if name.endswith(".qweight"))
    return {
        name: 8 * made[f"{name}.qweight"].shape[1] // own[f"{name}.weight"].shape[1]
        for name in found
    }


def logits(folder: Path, change: Callable[[str, Any], Any]) -> Any:
    """Logits [positions, vocabulary] of the checkpoint ``folder`` with each of its linears replaced
    by ``change``."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(change(name, module.weight))
        ids = torch.from_numpy(tokens("evaluation.txt", 4, 128).astype(np.int64))
        return model(ids).logits.flatten(0, 1).numpy()


def dense(folder: Path) -> Callable[[str, Any], Any]:
    """What each rounded linear of ``folder`` stands for."""
    stored, widths = weights(folder), bits(folder)

    def change(name: str, weight: Any) -> Any:
        scales = stored[f"{name}.scales"]
        zeros: Any = 2 ** (widths[name] - 1)
        if f"{name}.qzeros" in stored:
            packed = stored[f"{name}.qzeros"]
            zeros = torch.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)[
                :, : scales.shape[1], None
            ]
        grouped = (
            levels(stored[f"{name}.qweight"], weight.shape[1]).reshape(*scales.shape, -1) - zeros
        )
        return (grouped * scales[..., None]).reshape(weight.shape)

    return change


def nearest(size: int, symmetric: bool = True) -> Callable[[str, Any], Any]:
    """Olive's own round-to-nearest at 4 bits."""
    from olive.common.quant.utils import WeightQuantizer

    quantizer = WeightQuantizer(bits=4, symmetric=symmetric, group_size=size)
    return lambda name, weight: quantizer.fake_quantize(weight)


def rotation(root: Path) -> dict[str, Any]:
    joined = tied(root / "tied")
    ids = tokens("evaluation.txt", 1, 200)[0].tolist()
    facts: dict[str, Any] = {}
    for label, source in (("plain", TINY), ("tied", joined)):
        before, expected, own = digest(source), oracle.logits(source, ids), weights(source)
        for name, params in (
            ROTATIONS.items() if label == "plain" else [("quarot", ROTATIONS["quarot"])]
        ):
            made = rotate(root, f"{label}-{name}", source, **params)
            turned = weights(made)
            files = {p.name: p.read_bytes() for p in source.iterdir()}
            config, theirs = (
                json.loads((f / "config.json").read_text("utf-8")) for f in (made, source)
            )
            facts[f"{label} {name}"] = {
                "kld": oracle.kld(expected, oracle.logits(made, ids)),
                "equal": [k for k, t in own.items() if t.dim() == 2 and turned[k].equal(t.float())],
                "new": sorted(set(turned) - set(own)),
                "config": sorted(k for k in config if config[k] != theirs.get(k)),
                "changed": sorted(
                    p.name for p in made.iterdir() if p.read_bytes() != files.get(p.name)
                ),
                "missing": sorted(files.keys() - {p.name for p in made.iterdir()}),
                "unchanged": digest(source) == before,
            }
    first, other = weights(root / "plain-quarot"), weights(root / "plain-spinquant")
    facts["learned"] = max(float((first[k] - other[k]).abs().max()) for k in first)
    return facts


def rounding(root: Path) -> dict[str, Any]:
    expected = logits(TINY, lambda name, weight: weight)
    facts: dict[str, Any] = {"kld": {}, "nearest": {}, "bits": {}}
    for name, params in ROUNDINGS.items():
        made = gptq(root, f"gptq-{name}", **params)
        facts["kld"][name] = oracle.kld(expected, logits(TINY, dense(made)))
        facts["bits"][name] = bits(made)
    for name, size, symmetric in (
        ("plain", 32, True),
        ("asymmetric", 32, False),
        ("128", 128, True),
    ):
        facts["nearest"][name] = oracle.kld(expected, logits(TINY, nearest(size, symmetric)))
    turned = root / "plain-quarot"
    made = gptq(root, "gptq-rotated", turned)
    facts["rotated"] = oracle.kld(expected, logits(turned, dense(made)))
    tied = gptq(root, "gptq-tied", root / "tied")
    packed = {
        name: str(tensor.dtype)
        for name, tensor in weights(tied).items()
        if name.startswith(("lm_head", "model.e"))
    }
    files = {
        p.name: p.read_bytes() == (TINY / p.name).read_bytes()
        for p in (root / "gptq-plain").iterdir()
    }
    return facts | {
        "tied": packed,
        "changed": sorted(name for name, same in files.items() if not same),
    }


def outliers(root: Path) -> dict[str, float]:
    """A model with weights that stand out, computing the same: a channel of each value head, and
    what reads it."""
    folder = root / "outliers"
    shutil.copytree(TINY, folder)
    tensors = weights(TINY)
    for i in range(5):
        qkv, o = (f"model.layers.{i}.self_attn.{name}_proj.weight" for name in ("qkv", "o"))
        joined, reading = tensors[qkv].float(), tensors[o].float()
        for head in range(2):
            joined[256 + 128 + 64 * head + 7] /= 32
        for head in range(4):
            reading[:, 64 * head + 7] *= 32
        tensors |= {qkv: joined, o: reading}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    turned = rotate(root, "outliers-rotated", folder, method="quarot")
    expected = logits(TINY, lambda name, weight: weight)
    return {
        "same": oracle.kld(expected, logits(folder, lambda name, weight: weight)),
        "as it is": oracle.kld(expected, logits(folder, nearest(32))),
        "rotated": oracle.kld(expected, logits(turned, nearest(32))),
    }


def reproducible(root: Path) -> dict[str, bool]:
    again = root / "again"
    shutil.copytree(root / "calibration", again / "calibration")
    pairs = {
        name: (root / f"plain-{name}", rotate(again, name, **params))
        for name, params in ROTATIONS.items()
    }
    pairs["gptq"] = (root / "gptq-down", gptq(again, "gptq", **ROUNDINGS["down"]))
    return {name: digest(a) == digest(b) for name, (a, b) in pairs.items()}


def settings(root: Path) -> dict[str, list[str]]:
    """What is said of parameters that a pass does not take, and of a pass that leaves nothing."""
    from olive.passes import Pass

    class Silent(Pass):
        @classmethod
        def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
            return {}

        def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
            return model

    globals()["Silent"] = Silent
    olive_run.PASSES = {**olive_run.PASSES, "Silent": __name__}
    model = olive_run.open_model(TINY)
    asked = {"bits": 4, "group_size": 32, "sym": True}
    tries: dict[str, tuple[str, dict[str, Any]]] = {
        "typo": ("Gptq", {"bits": 4, "grup_size": 32}),
        "unknown": ("QuaRot", {"temperature": 1}),
        "text": ("Gptq", asked | {"bits": "4"}),
        "type": ("Gptq", asked | {"sym": "nearly"}),
        "value": ("QuaRot", {"rotate_mode": "hadamrd"}),
        "refused": ("Gptq", asked | {"desc_act": True}),
        "silent": ("Silent", {}),
    }

    def said(name: str) -> list[str]:
        kind, asked = tries[name]
        return message(lambda: olive_run.run_pass(kind, model, root / f"never-{name}", asked))

    return {name: said(name) for name in tries}


def failures(root: Path) -> dict[str, list[str]]:
    """What the checks say of checkpoints that are not what was asked for."""
    layer = "model.layers.2.mlp.down_proj"

    def tampered(name: str, made: str, change: Callable[[dict[str, Any]], Any]) -> list[str]:
        folder = root / f"bad-{name}"
        shutil.copytree(root / made, folder)
        tensors = weights(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if made == "plain-quarot":
            return message(lambda: olive_checkpoint.verify_rotated(TINY, folder))
        return message(lambda: olive_checkpoint.verify_packed(TINY, folder, PLAIN, {}))

    own = weights(TINY)
    embedding = "model.embed_tokens.weight"
    plain, turned = "gptq-plain", "plain-quarot"
    return {
        "untouched": tampered("none", plain, lambda t: None),
        "untouched rotation": tampered("no", turned, lambda t: None),
        "missing": tampered("missing", plain, lambda t: t.pop(f"{layer}.qweight")),
        "shape": tampered(
            "shape",
            plain,
            lambda t: t.update({f"{layer}.scales": t[f"{layer}.scales"][:2].clone()}),
        ),
        "sign": tampered(
            "sign", plain, lambda t: t.update({f"{layer}.scales": -t[f"{layer}.scales"]})
        ),
        "norm": tampered(
            "norm", plain, lambda t: t.update({"model.norm.weight": t["model.norm.weight"] * 2})
        ),
        "more": tampered("more", plain, lambda t: t.update({f"{layer}.qzeros": torch.zeros(1)})),
        "bits": message(
            lambda: olive_checkpoint.verify_packed(TINY, root / plain, PLAIN | {"bits": 8}, {})
        ),
        "layers": message(
            lambda: olive_checkpoint.verify_packed(TINY, root / "gptq-down", PLAIN, {"lm_head": 8})
        ),
        "not rotated": tampered(
            "same", turned, lambda t: t.update({f"{layer}.weight": own[f"{layer}.weight"].float()})
        ),
        "not fused": tampered(
            "fused",
            turned,
            lambda t: t.update({"model.norm.weight": own["model.norm.weight"].float()}),
        ),
        "distorted": tampered("long", turned, lambda t: t.update({embedding: t[embedding] * 1.01})),
        "lost": tampered("lost", turned, lambda t: t.pop(f"{layer}.weight")),
    }


def outside(root: Path) -> dict[str, Any]:
    from olive.telemetry import Telemetry

    return {
        "events": EVENTS,
        "telemetry": str(Telemetry._instance),
        "scratch": [p.name for p in root.glob(".*")],
    }


def models(root: Path) -> dict[str, Any]:
    """ONNX models on several providers: their integers are those of the checkpoint, and they
    compute well."""
    facts: dict[str, Any] = {"kld": {}, "levels": {}, "scales": {}, "linears": {}}
    windows = tokens("evaluation.txt", 4, 128)
    expected = np.concatenate([oracle.logits(TINY, window.tolist()) for window in windows])
    for api in ("cpu", "cuda", "webgpu", "directml"):
        width = {"provider": backend.PROVIDERS[api], "io_dtype": "fp32" if api == "cpu" else "fp16"}
        converted = root / "onnx" / api / "converted"
        converted.mkdir(parents=True)
        onnx_convert.convert({"source": TINY}, converted, {"config_patch": {}, **width})
        for name in ("default", *ROUNDINGS) if api == "cpu" else ("down", "asymmetric"):
            out = root / "onnx" / api / name
            quantize(root, converted, out, name)
            case = f"{api} {name}"
            session = backend.open(out)
            facts["kld"][case] = oracle.kld(
                expected, np.concatenate([session.logits(w.tolist()) for w in windows])
            )
            session.close()
            facts["linears"][case] = onnx_facts.describe(out)["linears"]
            if name != "default":
                facts["levels"][case], facts["scales"][case] = compared(out, root / f"gptq-{name}")
    return facts


def quantize(
    root: Path, converted: Path, out: Path, name: str, rounded: Path | None = None
) -> None:
    out.mkdir(parents=True)
    options: dict[str, Any] = {} if name == "default" else {"algorithm": "gptq"}
    asked = PLAIN | ROUNDINGS.get(name, {})
    options |= {
        "block_size": asked["group_size"],
        "symmetric": asked["symmetric"],
    }
    inputs = {"model": converted, "rounded": rounded or root / f"gptq-{name}"}
    onnx_quantize.quantize(inputs, out, {"bits": 4, "accuracy_level": 0, **options})


def compared(folder: Path, made: Path) -> tuple[list[str], float]:
    """Nodes whose integers or zero points are not the checkpoint's, and by how much scales differ,
    relatively."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx")).graph
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    own, wrong, worst = weights(made), [], 0.0
    where = {"q_proj": ("qkv", 0, 256), "k_proj": ("qkv", 256, 384), "v_proj": ("qkv", 384, 512)}
    where |= {"gate_proj": ("gate_up", 0, 768), "up_proj": ("gate_up", 768, 1536)}
    for node in (n for n in graph.node if n.op_type == "MatMulNBits"):
        parts = node.name.replace("/MatMul_Q4", "").replace("/MatMul_Q8", "").strip("/").split("/")
        joined, start, stop = where.get(parts[-1], (parts[-1].removesuffix("_proj"), 0, None))
        linear = (
            ".".join([*parts[:-1], f"{joined}_proj"]).replace(".attn.", ".self_attn.")
            if parts[1:]
            else parts[0]
        )
        stored = [own[f"{linear}.{part}"].numpy()[start:stop] for part in ("qweight", "scales")]
        if f"{linear}.qzeros" in own:
            stored.append(own[f"{linear}.qzeros"].numpy()[start:stop])
        found = [
            tensors[name].reshape(one.shape)
            for name, one in zip(node.input[1:], stored, strict=True)
        ]
        if any(not np.array_equal(found[i], stored[i]) for i in range(len(found)) if i != 1):
            wrong.append(node.name)
        worst = max(worst, float(np.max(np.abs(found[1] - stored[1]) / stored[1])))
    return wrong, worst


def mistakes(root: Path) -> dict[str, list[str]]:
    """Rounded weights that are not those of the graph."""
    bad, converted = root / "bad-swapped", root / "onnx" / "cpu" / "converted"
    shutil.copytree(root / "gptq-plain", bad)
    tensors = weights(bad)
    for part in ("qweight", "scales"):
        one, two = (f"model.layers.{i}.mlp.down_proj.{part}" for i in (1, 2))
        tensors[one], tensors[two] = tensors[two].clone(), tensors[one].clone()
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    facts = {"swapped": message(lambda: quantize(root, converted, root / "never-1", "plain", bad))}
    facts["groups"] = message(
        lambda: quantize(root, converted, root / "never-2", "plain", root / "gptq-128")
    )
    facts["another"] = message(
        lambda: quantize(root, converted, root / "never-3", "plain", root / "gptq-rotated")
    )
    del tensors["lm_head.qweight"]
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    facts["missing"] = message(lambda: quantize(root, converted, root / "never-4", "plain", bad))
    return facts


def slices(root: Path) -> list[str]:
    """Looking at a few columns at a time changes nothing."""
    whole, onnx_rounding.SLICE = onnx_rounding.SLICE, 5000
    out = root / "onnx" / "sliced"
    quantize(root, root / "onnx" / "cpu" / "converted", out, "down")
    onnx_rounding.SLICE = whole
    pairs = [(p, root / "onnx" / "cpu" / "down" / p.name) for p in out.iterdir()]
    return [p.name for p, other in pairs if p.read_bytes() != other.read_bytes()]


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event in (
        "socket.connect",
        "socket.getaddrinfo",
        "subprocess.Popen",
        "os.fork",
        "os.posix_spawn",
    ):
        EVENTS.append(f"{event} {arguments[1:]}")


def main(root: Path, onnx: bool) -> None:
    checks: dict[str, Callable[[Path], Any]] = {
        "models": models,
        "mistakes": mistakes,
        "slices": slices,
    }
    if not onnx:
        sys.addaudithook(listen)
        (root / "calibration").mkdir()
        np.save(root / "calibration" / "tokens.npy", tokens("calibration.txt", 16, 128))
        steps = (rotation, rounding, outliers, reproducible, settings, failures, outside)
        checks = {step.__name__: step for step in steps}
    sys.addaudithook(prohibitions.refuse)
    path = root / ("onnx.json" if onnx else "facts.json")
    answer(path, {name: partial(check, root) for name, check in checks.items()})


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.meta_path.insert(0, prohibitions.NoTorchLoad())
    torch.set_num_threads(
        1
    )  # matrices are small: on a busy machine threads mostly wait for each other
    main(Path(sys.argv[1]), "onnx" in sys.argv[2:])
