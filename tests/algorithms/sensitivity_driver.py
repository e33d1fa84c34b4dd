"""Runs in the torch toolchain: ``python sensitivity_driver.py FOLDER`` leaves FOLDER/facts.json
about the sensitivity of matrices."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from testing.broken_layers import said_of_nan
from testing.drive import answer
from testing.variants import TINY, digest, tied, tokens
from transformers import AutoModelForCausalLM

from phipipe.algorithms import fisher
from phipipe.algorithms.sensitivity import CHECKS, SENSITIVITY
from phipipe.models import linears

WINDOW, TOKENS = 128, 1024


def measured(root: Path, name: str, source: Path = TINY) -> Path:
    out = root / name
    out.mkdir()
    fisher.measure({"source": source, "calibration": root}, out, {"tokens": TOKENS})
    return out


def shapes(source: Path) -> dict[str, list[int]]:
    """Matrix → rows and columns, the head also where it is the embedding."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    found = {linears.linear_of(name): list(w.shape) for name, w in model.named_parameters()}
    found[linears.HEAD] = found[linears.EMBEDDING]
    return {name: shape for name, shape in found.items() if name}


def stored(folder: Path) -> dict[str, list[int]]:
    with np.load(folder / SENSITIVITY) as arrays:
        names = [name.removesuffix(".rows") for name in arrays if name.endswith(".rows")]
        for name in names:
            rows, columns = arrays[f"{name}.rows"], arrays[f"{name}.columns"]
            assert rows.min() >= 0, name
            assert arrays[f"{name}.squares"].shape == columns.shape, name
            assert np.isclose(rows.sum(), columns.sum(), rtol=1e-3), name
        return {n: [len(arrays[f"{n}.rows"]), len(arrays[f"{n}.columns"])] for n in names}


def by_hand() -> list[float]:
    """The summed F of one matrix, and the mean over many draws of the squared gradient that the
    whole model gives, a token at a time."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    weight = dict(model.named_parameters())["model.layers.3.mlp.down_proj.weight"]
    ids = torch.from_numpy(tokens("calibration.txt", 1, 16).astype(np.int64))
    torch.manual_seed(7)
    total, draws = 0.0, 48
    for _ in range(draws):
        scores = model(input_ids=ids).logits[0].log_softmax(-1)
        drawn = torch.multinomial(scores.detach().exp(), 1)
        for t in range(len(scores)):
            (gradient,) = torch.autograd.grad(-scores[t, drawn[t]], weight, retain_graph=True)
            total += float(gradient.square().sum())
    found = []
    for seed in range(draws):
        torch.manual_seed(seed)
        with torch.no_grad():
            measuring = fisher._Measuring(fisher.Layerwise(TINY), ids.tolist())
            measuring.up()
            measuring.down()
        found.append(float(measuring.arrays()["layers.3.mlp.down_proj.rows"].sum()))
    return [total / draws / ids.numel(), sum(found) / draws]


def unheard(root: Path) -> dict[str, float]:
    """What is summed of matrices that nothing listens to, and of one that is heard."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.zero_()
    folder = root / "deaf"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    with np.load(measured(root, "unheard", folder) / SENSITIVITY) as arrays:
        kinds = ("mlp.gate_up_proj", "mlp.down_proj")
        return {kind: float(arrays[f"layers.2.{kind}.rows"].sum()) for kind in kinds}


def checks(root: Path) -> dict[str, Callable[[], object]]:
    np.save(root / "tokens.npy", tokens("calibration.txt", 16, WINDOW))
    first = measured(root, "first")
    return {
        "about": lambda: json.loads((first / CHECKS).read_text("utf-8")),
        "shapes": lambda: [stored(first), shapes(TINY)],
        "tied": lambda: [stored(measured(root, "of-tied", tied(root / "tied"))), shapes(TINY)],
        "twice": lambda: digest(first) == digest(measured(root, "second")),
        "by_hand": by_hand,
        "unheard": lambda: unheard(root),
        "nan": lambda: said_of_nan(lambda: measured(root, "nan")),
    }


if __name__ == "__main__":
    answer(Path(sys.argv[1]) / "facts.json", checks(Path(sys.argv[1])))
