"""The step that learns weights on the lattice, for all runtimes alike: light, for plans."""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.models import linears
from phipipe.models.checkpoint import Checkpoint
from phipipe.models.layerwise_memory import RUNTIME_BYTES
from phipipe.recipe.learned import ITERATIONS, Learning, Weights
from phipipe.steps import Json, Step

INDEX = "lattice.json"  # in the folder of learned weights
NEEDS_TEXT = ("search", "gptq", "signround")


def done(asked: Learning, bits: Mapping[str, int]) -> Learning:
    """What learning as ``asked`` comes to for matrices of so many ``bits`` (matrix → bits): auto-
    round learns those of the layers at 4 bits alone, and all others are rounded as with
    "search"."""
    fours = any(n == 4 and linears.layer_of(name) is not None for name, n in bits.items())
    return "search" if asked == "signround" and not fours else asked


def words(learn: Learning | None, *, distilled: bool | None = None) -> str:
    """What a build's scheme says of weights that were learned so; ``distilled``: whether their
    scales were trained, None where nobody asked, False where none of the trained ones were
    better."""
    if learn is None:
        return ""
    if learn == "round" and distilled is None:
        return ", rounded once for all runtimes"
    training = {None: "", True: ", distilled", False: ", distilled without a gain"}[distilled]
    return f", learned once for all runtimes ({learn}{training})"


def step(
    recipe: Weights,
    widths: Mapping[str, tuple[int, int]],
    checkpoint: Checkpoint,
    tokens: int,
    *,
    positive: bool = False,
) -> Step:
    """``weights``: the matrices named in ``widths`` (bits, group size) of the checkpoint, rounded
    as ``done`` says of the recipe's ``learn`` on so many ``tokens``; ``positive``: no scale is
    below 0."""
    assert recipe.learn is not None
    learn = done(recipe.learn, {name: bits for name, (bits, _) in widths.items()})
    params: dict[str, Json] = {"learn": learn, "widths": {n: list(w) for n, w in widths.items()}}
    if positive:
        params["positive"] = True
    if learn == "signround":
        params["iterations"] = recipe.iterations or ITERATIONS
    needs = {"source": "source", **({"calibration": "calibration"} if learn in NEEDS_TEXT else {})}
    shapes = linears.shapes(checkpoint)
    bits = sum(
        rows * columns * (width + 16 / size)
        for name, (width, size) in widths.items()
        for rows, columns in (shapes[name],)
    )
    return Step(
        name="weights",
        runs="algorithms/learn",
        version=2,
        needs=needs,
        params=params,
        layers=None if learn == "signround" else "source",  # which takes long before it begins
        toolchain="torch",
        resumes=True,
        output_bytes=int(bits / 8),
        memory_bytes=_memory_bytes(learn, checkpoint, tokens),
    )


def _memory_bytes(learn: str, checkpoint: Checkpoint, tokens: int) -> int:
    """Estimate: a layer in fp32, what is rounded of it, and the next layer; the activations of all
    tokens in a layer, with "gptq" those of the original beside them and four squares of the longest
    inputs; and the head. (Phi-3.5-mini's shape, 12,288 tokens, without the next layer: 3.98 GiB of
    anonymous memory measured.) With "signround" the whole model in fp32, and a layer's activations
    for a batch."""
    inner, hidden = checkpoint.intermediate_size, checkpoint.hidden_size
    layer = 4 * (3 * inner * hidden + 4 * hidden * hidden)
    states = 4 * tokens * (3 * inner + 3 * hidden)
    if learn == "gptq":
        states += 4 * tokens * 5 * hidden + 4 * 4 * max(inner, hidden) ** 2
    table = 4 * checkpoint.vocab_size * hidden
    whole = 4 * checkpoint.parameters + 2**30 if learn == "signround" else 0
    return RUNTIME_BYTES + 3 * layer + max(states, 2 * table) + whole
