"""Writes quantized checkpoints, widens them, and compares each weight with the value it stands for.
Runs in the toolchain ``torch``: DRIVER FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from testing import quantized_checkpoints as made
from testing.drive import answer

from phipipe.models import checkpoints, widen

OUT = Path(sys.argv[1])


def check(kind: str) -> dict[str, object]:
    exact = made.write(OUT / kind, kind)
    seen = checkpoints.read(OUT / kind)
    out = OUT / f"{kind}-wide"
    out.mkdir()
    widen.widen({"stored": OUT / kind}, out, {})
    wide, found = load_file(out / "model.safetensors"), checkpoints.read(out)
    differing = [
        name
        for name in exact
        if wide[name].dtype != exact[name].dtype or not torch.equal(wide[name], exact[name])
    ]
    return {
        "names": sorted(wide) == sorted(exact),
        "differing": differing,
        "as planned": (seen.parameters, seen.weight_bytes)
        == (found.parameters, found.weight_bytes),
        "quantized": found.quantized,
    }


answer(OUT / "facts.json", {kind: lambda kind=kind: check(kind) for kind in made.KINDS})
