"""Runs in the torch toolchain: ``python learn_driver.py FOLDER`` leaves FOLDER/facts.json about
learned weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from testing.broken_layers import said_of_nan
from testing.drive import answer
from testing.family_checkpoints import MEMBERS, make
from testing.variants import TINY, tied, tokens
from transformers import AutoModelForCausalLM

from phipipe import hardware
from phipipe.algorithms import gptq, lattice, learn, reached, rounding, signround
from phipipe.algorithms.codecs import codec as learned_codec
from phipipe.algorithms.lattice import Lattice
from phipipe.algorithms.rounding import Grid
from phipipe.backends.widths import Width
from phipipe.models import linears
from phipipe.models.layerwise import Hook, Layerwise, hooked

WINDOW = 128


def widths() -> dict[str, list[int]]:
    """4 bits in the layers, 8 outside."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    named = (linears.linear_of(name) for name, _ in model.named_parameters())
    return {name: [4 if "layers" in name else 8, 32] for name in named if name}


def learned(root: Path, method: str, name: str, *, text: bool = True, **params: Any) -> Path:
    """The folder with weights learned by ``method``."""
    out = root / name
    out.mkdir(exist_ok=True)
    inputs = {"source": TINY, **({"calibration": root} if text else {})}
    learn.learn(inputs, out, {"learn": method, "widths": widths(), **params})
    return out


def divergence(folder: Path, others: Mapping[str, torch.Tensor] | None = None) -> float:
    """The mean KL divergence of the weights in ``folder``, with ``others`` in the place of some,
    from the original."""
    stored, found = Lattice(folder), []
    windows = torch.from_numpy(tokens("evaluation.txt", 8, WINDOW).astype(np.int64))
    for rounded in (False, True):
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
        with torch.inference_mode():
            for key, weight in model.named_parameters():
                name = linears.linear_of(key)
                if rounded and name in stored:
                    given = (others or {}).get(name)
                    weight.copy_(torch.from_numpy(stored[name].dense()) if given is None else given)
            found.append(torch.log_softmax(model(input_ids=windows).logits.double(), -1))
    original, rounded_ = found
    return float((original.exp() * (original - rounded_)).sum(-1).mean())


def cut_short(root: Path) -> dict[str, Any]:
    """A run that is broken off after two layers, and one that goes on."""
    write, written = lattice.write, 0

    def breaking(*given: Any) -> None:
        nonlocal written
        written += 1
        if written > 2:
            raise KeyboardInterrupt
        write(*given)

    lattice.write = breaking
    try:
        learned(root, "gptq", "again")
    except KeyboardInterrupt:
        pass
    finally:
        lattice.write = write
    left = sorted(path.name for path in (root / "again").iterdir())
    learned(root, "gptq", "again")
    return {"left": left, "digest": Lattice(root / "again").digest}


def by_signs(root: Path) -> dict[str, Any]:
    """SignRound: what the lattice's scales cost of it, and where the rest comes from."""
    matrix_of, theirs = signround._matrix, {}

    def noted(name: str, module: torch.nn.Module, grid: Grid) -> lattice.Matrix:
        theirs[name] = module.weight.detach().clone()
        return matrix_of(name, module, grid)

    signround._matrix = noted
    try:
        out = learned(root, "signround", "signround", iterations=20)
    finally:
        signround._matrix = matrix_of
    ours, searched = Lattice(out), Lattice(root / "search")
    moved = [
        float((torch.from_numpy(ours[name].dense()) - weight).norm() / weight.norm())
        for name, weight in theirs.items()
    ]
    return {
        "divergence": {"auto-round": divergence(out, theirs), "lattice": divergence(out)},
        "moved": max(moved),
        "learned": sorted(theirs),
        "as searched": [
            np.array_equal(ours[name].dense(), searched[name].dense())
            for name in (linears.HEAD, linears.EMBEDDING)
        ],
        "index": json.loads((out / lattice.INDEX).read_text("utf-8"))["learn"],
        "files": sorted(path.name for path in out.iterdir()),
    }


def resumed_signs(root: Path) -> dict[str, Any]:
    """A run with a matrix at 8 bits and one in other groups that is broken off when auto-round is
    done, one that goes on, and one in one go."""
    mixed = widths()
    mixed["layers.1.mlp.down_proj"], mixed["layers.2.mlp.down_proj"] = [8, 32], [4, 64]
    asked: dict[str, Any] = {"widths": mixed, "iterations": 2}
    learner, learns = learn._Learner.run, signround.learn

    def breaks(*_: Any) -> None:
        raise KeyboardInterrupt

    learn._Learner.run = breaks  # type: ignore[method-assign]
    try:
        learned(root, "signround", "signs", **asked)
    except KeyboardInterrupt:
        pass
    finally:
        learn._Learner.run = learner  # type: ignore[method-assign]
    signround.learn = breaks
    try:
        out = Lattice(learned(root, "signround", "signs", **asked))
    finally:
        signround.learn = learns
    return {
        "digest": out.digest,
        "whole": Lattice(learned(root, "signround", "signs-whole", **asked)).digest,
        "widths": {name: out.width(name) for name in mixed},
        "asked": mixed,
    }


def errors(*, positive: bool = False) -> dict[str, float]:
    """What a matrix's output is off by, rounded in three ways, its inputs driven unevenly."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=random)
    mixing = torch.randn(256, 256, generator=random) * torch.logspace(-1, 1, 256)
    given = torch.randn(1024, 256, generator=random) @ mixing
    squares = given.square().mean(0)
    grid = Grid(bits=4, group_size=32, positive=positive)
    plain = rounding.plain_scales(weight, grid)
    searched = rounding.searched_scales(weight, squares, grid)
    codes = {
        "round": (rounding.nearest(weight, plain, grid), plain),
        "search": (rounding.nearest(weight, searched, grid), searched),
        "gptq": (gptq.carried(weight, searched, grid, gptq.driven(given)), searched),
    }

    def off(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
        dense = torch.from_numpy(rounding.matrix(*pair, grid).dense())
        return float((given @ (dense - weight).T).square().mean())

    return {name: off(pair) for name, pair in codes.items()}


def above_0(root: Path) -> dict[str, Any]:
    """Weights without a scale below 0, 8 bits in whole rows."""
    asked = {name: [bits, 32 if bits == 4 else 256] for name, (bits, _) in widths().items()}
    found: dict[str, Any] = {"errors": errors(positive=True), "divergence": {}, "least": []}
    for method in ("round", "search", "gptq"):
        text = method != "round"
        out = learned(root, method, f"above-{method}", text=text, widths=asked, positive=True)
        stored = Lattice(out)
        found["divergence"][method] = divergence(out)
        found["least"] += [float(stored[name].scales.min()) for name in stored.names]
        found["widths"] = {name: list(stored.width(name)) for name in asked}
    random = np.random.default_rng(9).normal(size=(8, 64)).astype(np.float32)
    for method in ("round", "search"):
        params = {"learn": method, "group_size": 32, "positive": True}
        codec = learned_codec(params)
        rows = codec(random, Width(bits=8, group_size=-1), np.ones(64, np.float32))
        found[f"{method} rows"] = float(np.abs(rows - random).max())
    return found | {"asked": asked}


def moved() -> list[float]:
    """How far the outputs on distorted inputs are from the original's, before and after."""
    random = torch.Generator().manual_seed(1)
    weight, theirs = torch.randn(16, 32, generator=random), torch.randn(512, 32, generator=random)
    ours = theirs @ (torch.eye(32) + 0.1 * torch.randn(32, 32, generator=random))
    known = gptq.driven(ours, 1e-4)
    by_inputs = gptq.shift_of_any(known, theirs.T @ ours)(weight, 0)
    by_outputs = gptq.shift_of_one(known, (theirs @ weight.T).T @ ours, weight)
    all_ = (weight, weight + by_inputs, weight + by_outputs(weight, 0))
    return [float((ours @ w.T - theirs @ weight.T).square().mean()) for w in all_]


def products() -> dict[str, float]:
    """How far more columns than are taken together are from what fp64 makes of them, as a share of
    the largest number: the sum of x·xᵀ, and some sums divided by it, times it again."""
    random = torch.Generator().manual_seed(2)
    inputs, sums = (torch.randn(n, 1100, generator=random) for n in (2500, 3))
    known, exact = gptq.driven(inputs, 1e-2), inputs.double().T @ inputs.double()
    damped = exact + 1e-2 * exact.diagonal().mean() * torch.eye(1100)
    pairs = {
        "products": (known.products, exact),
        "divided": (known.divide(sums.clone()).double() @ damped, sums),
    }
    return {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


def sides(root: Path) -> dict[str, bool]:
    """Matrix of a model with biases → whether what is kept of the original at it is what it is
    given, or W times it."""
    member = next(m for m in MEMBERS if m.name == "Phi-2")
    make(member, root / "biased")
    model = Layerwise(root / "biased")
    with torch.inference_mode():
        texts = model.enter_together([[3, 4, 5, 6]] * 3)
        passes = model.enter([[3, 4, 5, 6]] * 3)
        weights, given = model.weights(0), {}
        for key, tensor in weights.items():
            tensor += 0.1 if key.endswith("bias") else 0

        def note(key: str) -> Hook:
            def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                given[key] = inputs[0].flatten(0, -2)

            return hook

        with hooked(model.linears(0), note):
            model.through(0, weights, texts)
        kept = reached.original_sides(model, 0, weights, passes)
        found = {}
        for key, inputs in given.items():
            rows, columns = weights[key].shape
            expected = inputs if rows >= columns else inputs @ weights[key].T
            found[key] = torch.allclose(torch.cat(kept[key]), expected, atol=1e-5)
    return found


def scales() -> bool:
    """Whether torch finds the lattice's scales that numpy finds: any floats, ties among them."""
    random = np.random.default_rng(0)
    bits = random.integers(-(2**31), 2**31, 200_000).astype(np.int32)
    bits[::2] &= -(1 << 16)  # half-way between two scales, or on one
    values = bits.view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.float32([0, -0.0, 65024, 65279])])
    ours = rounding.on_lattice(torch.from_numpy(values)).numpy()
    return np.array_equal(ours, lattice.to_scales(values).astype(np.float32))


def threads(root: Path) -> list[float]:
    """The divergence of what one thread learns, and of what two learn."""
    found, before, cores = [], torch.get_num_threads(), hardware.whole_cores
    for count in (1, 2):
        hardware.whole_cores = lambda count=count: count  # type: ignore[misc]
        found.append(divergence(learned(root, "gptq", f"threads-{count}")))
    hardware.whole_cores = cores
    torch.set_num_threads(before)
    return found


def tied_tables(root: Path) -> dict[str, float]:
    """Method → how far the embedding of a model whose head it is too ends from the original's, as a
    share of it."""
    source = tied(root / "tied")
    names = [name for name in widths() if name != linears.HEAD]
    asked = {name: [8 if name == linears.EMBEDDING else 4, 32] for name in names}
    table, found = Layerwise(source).table(head=False), {}
    for method in ("search", "gptq"):
        out = root / f"tied-{method}"
        out.mkdir()
        inputs = {"source": source, "calibration": root}
        learn.learn(inputs, out, {"learn": method, "widths": asked})
        ours = torch.from_numpy(Lattice(out)[linears.EMBEDDING].dense())
        found[method] = float((ours - table).norm() / table.norm())
    return found


def codecs(root: Path) -> dict[str, list[bool]]:
    """Method → of each matrix, whether the codec gives some of its rows the values that the step
    stored."""
    asked: list[tuple[Any, Any, Grid, Any]] = []
    searched = rounding.searched

    def noted(weight: torch.Tensor, importance: torch.Tensor, grid: Grid) -> lattice.Matrix:
        made = searched(weight, importance, grid)
        asked.append((weight.clone().numpy(), importance.numpy(), grid, made.dense()))
        return made

    rounding.searched = noted
    try:
        learned(root, "search", "noted")
    finally:
        rounding.searched = searched
    nothing, found = np.zeros(0, np.float32), {}
    for method, stored in {"search": None, "round": Lattice(root / "round")}.items():
        codec = learned_codec({"learn": method, "group_size": 32})
        told = asked
        if stored:
            told = [
                (w, nothing, Grid(bits=b, group_size=32), stored[n].dense()) for n, b, w in all_()
            ]
        found[method] = [
            np.array_equal(codec(w[1::7], Width(bits=g.bits), drive), dense[1::7])
            for w, drive, g, dense in told
        ]
    weight = asked[0][0]
    evenly = learned_codec({"learn": "search", "group_size": 32})
    width, ones = Width(bits=4, group_size=64), np.ones(weight.shape[1], np.float32)
    found["evenly"] = [np.array_equal(evenly(weight, width, 0 * ones), evenly(weight, width, ones))]
    found["floats"] = [np.array_equal(evenly(weight, Width(bits=16), ones), weight)]
    return found


def all_() -> list[tuple[str, Any, Any]]:
    """Name, bits and weight of each matrix."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    named = {linears.linear_of(name): weight for name, weight in model.named_parameters()}
    return [(n, b, named[n].detach().numpy()) for n, (b, _) in widths().items()]


def checks(root: Path) -> dict[str, Callable[[], object]]:
    methods = ("round", "search", "gptq")
    np.save(root / "tokens.npy", tokens("calibration.txt", 32, WINDOW))
    made = {name: learned(root, name, name, text=name != "round") for name in methods}
    return {
        "divergence": lambda: {name: divergence(folder) for name, folder in made.items()},
        "digest": lambda: Lattice(made["gptq"]).digest,
        "widths": lambda: {name: Lattice(made["gptq"]).width(name) for name in widths()},
        "asked": widths,
        "errors": errors,
        "moved": moved,
        "products": products,
        "sides": lambda: sides(root),
        "scales": scales,
        "threads": lambda: threads(root),
        "tied": lambda: tied_tables(root),
        "above 0": lambda: above_0(root),
        "nan": lambda: said_of_nan(lambda: learned(root, "gptq", "nan")),
        "second": lambda: Lattice(learned(root, "gptq", "second")).digest,
        "cut": lambda: cut_short(root),
        "codecs": lambda: codecs(root),
        "signround": lambda: by_signs(root),
        "resumed": lambda: resumed_signs(root),
    }


if __name__ == "__main__":
    answer(Path(sys.argv[1]) / "facts.json", checks(Path(sys.argv[1])))
