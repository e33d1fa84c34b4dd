"""Fidelity: how far an artifact's predictions lie from the original model's, on the same tokens.

The baseline is the downloaded model in PyTorch, fp32. Its tokenizer makes the tokens; they are cut
into windows, each scored from an empty context; every position but a window's last predicts a known
token. With ``skip``, a window's first positions are read but not scored: with half a window, and a
text whose last window is full, the perplexity is that of llama.cpp's own tool (``llama-perplexity
-c WINDOW``). Every runtime gets the same windows through ``Runtime.logits``, so numbers compare
across runtimes.

Per position, with P the baseline's and Q the artifact's distribution over the vocabulary (natural
logarithms, no temperature):

- KL divergence  sum_v P(v) (ln P(v) - ln Q(v))        (Kullback & Leibler 1951)
- negative log-likelihood of the true next token; perplexity = exp(mean)
- top-1 agreement: argmax P == argmax Q
- Δp = Q(true token) - P(true token)

Standard errors are the sample standard deviation over positions / sqrt(positions): neighbouring
positions are not independent, so read them as lower bounds.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phipipe import backends, progress
from phipipe.backends.base import Runtime
from phipipe.errors import SourceError, StepFailed
from phipipe.evaluate import chosen, original, reference, reports, sanity
from phipipe.evaluate.chosen import Chosen
from phipipe.evaluate.papers import is_paper
from phipipe.evaluate.reference import log_softmax
from phipipe.evaluate.reports import Baseline, Metrics
from phipipe.evaluate.run_reports import AsRun
from phipipe.models import texts, tokenizer
from phipipe.recipe.tokens import LEAST_TOKENS
from phipipe.steps import Inputs, Params
from phipipe.words import counted

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


ORIGINAL, BUILD = "original", "build"
_REMEDIES = {
    ORIGINAL: "the checkpoint itself is broken: try it with transformers, and save or download it "
    "again",
    BUILD: "take more bits or another backend; `phipipe runs logs latest` shows the tools' words",
}


def baseline(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: tokenize the text with the source's tokenizer, score it with the source model in fp32.

    ``inputs``: source, text. ``params``: tokens, window, skip. Writes ``tokens.npy`` int32
    [windows, window], ``logprobs.npy`` float32 [windows, window, vocabulary] and ``baseline.json``.
    With ``first``, so many tokens of the text are passed over; with ``at_most``, a text may have
    fewer than ``tokens``; with ``answers`` false, the model is asked for none.

    Raises:
        SourceError: the text has fewer tokens than one window.
    """
    tokens = _tokens(inputs["source"], texts.read(_only_file(inputs["text"])), params)
    np.save(out / "tokens.npy", tokens)
    model = original.load(inputs["source"])
    logprobs: Floats | None = None
    nll: list[Floats] = []
    for i, (window, logits) in enumerate(zip(tokens, model.logits(tokens.tolist()), strict=True)):
        scores = log_softmax(_finite(logits, len(window), ORIGINAL))
        if logprobs is None:
            shape = (len(tokens), *scores.shape)
            logprobs = np.lib.format.open_memmap(out / "logprobs.npy", "w+", np.float32, shape)
        logprobs[i] = scores
        nll.append(-scores[np.arange(len(window) - 1), window[1:]][params["skip"] :])
        progress.scored(len(window))
        progress.report(i + 1, len(tokens), "windows")
    assert isinstance(logprobs, np.memmap)
    logprobs.flush()
    mean, error = _mean_and_error(np.concatenate(nll))
    asked = bool(params.get("answers", True))
    parity_ids, chats, readings = sanity.expected(inputs["source"], model, asked=asked)
    report = Baseline(
        tokens=int(tokens.size),
        **{key: int(params[key]) for key in ("window", "skip")},
        ppl=math.exp(mean),
        ppl_stderr=math.exp(mean) * error,
        parity_ids=parity_ids,
        chats=chats,
        readings=readings,
    )
    reports.write(out, report)


def calibration(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the tokens that data-aware quantization learns from, the same for every backend.

    ``inputs``: source, text. ``params``: tokens, window. Writes ``tokens.npy`` int32 [windows,
    window].

    Raises:
        SourceError: the text has too few tokens.
    """
    text = texts.read(_only_file(inputs["text"]))
    np.save(out / "tokens.npy", _tokens(inputs["source"], text, params, "calibration"))


def compare(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: score an artifact on the baseline's tokens and compare.

    ``inputs``: artifact; baseline, or the reference data of a package. ``params``: backend,
    parameters (of the source model), and api, the unit to run on (default "cpu"); those of
    ``chosen.of``. Writes ``metrics.json`` and ``positions.npz`` (``Chosen.save``, float32 [windows,
    window - 1 - skip]).

    Raises:
        StepFailed: the artifact yields NaN or another vocabulary.
    """
    backend = backends.load(params["backend"])
    tokens = np.load(inputs["baseline"] / "tokens.npy")
    scores = reference.scores_of(inputs["baseline"])
    expected = reports.read(Baseline, inputs["baseline"])
    runtime = backend.to_answer(inputs["artifact"], params.get("api", "cpu"))
    choice = chosen.of(params, *tokens.shape)
    positions = scored(runtime, tokens, scores, expected.skip, choice)
    checks, answers = sanity.check(backend, runtime, inputs["artifact"], expected)
    runtime.close()
    choice.save(out / "positions.npz", positions)
    metrics, errors = summarise(positions)
    metrics |= size(inputs.get("shipped", inputs["artifact"]), int(params["parameters"]))
    report = Metrics(
        metrics=metrics,
        stderr=errors,
        positions=positions["kld"].size,
        profile=profile(positions["kld"]),
        sanity=checks,
        answers=answers,
    )
    told = choice.sampling(positions, tokens.shape[1])
    reports.write(out, report.model_copy(update={"sampling": told}) if told else report)


def compare_run(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: score an artifact as its runtime computes by default.

    ``inputs``: as ``compare``. ``params``: backend, api; tokens, how many are scored at most, the
    first of those that ``compare`` scores; until, of ``chosen.of``; cache, one of the backend's
    ``caches`` (default: its usual one). Writes ``run.json``.

    Raises:
        StepFailed: as ``compare``.
    """
    backend = backends.load(params["backend"])
    assert backend.open_run is not None  # a plan has this step only where there is one
    tokens = np.load(inputs["baseline"] / "tokens.npy")
    choice = chosen.of(params, *tokens.shape).first(
        max(1, int(params["tokens"]) // tokens.shape[1])
    )
    skip = reports.read(Baseline, inputs["baseline"]).skip
    api, cache = params.get("api", "cpu"), params.get("cache", "")
    runtime = backend.open_run(inputs["artifact"], api, cache)
    scores = reference.scores_of(inputs["baseline"])
    kld = scored(runtime, tokens, scores, skip, choice)["kld"]
    runtime.close()
    mean, error = _mean_and_error(kld.ravel())
    report = AsRun(metrics={"kld_run": mean}, stderr={"kld_run": error}, positions=kld.size)
    reports.write(out, report)


def scored(
    runtime: Runtime, tokens: Ints, scores: reference.Scores, skip: int, choice: Chosen
) -> dict[str, Floats]:
    """What ``scores`` says of every position that counts of the windows that ``choice`` takes of
    ``tokens``, in its order, float32 [windows, window - 1 - skip] each; ``tokens`` are int32
    [windows, window].

    Raises:
        StepFailed: the artifact yields NaN or another vocabulary.
    """
    rows: list[dict[str, Floats]] = []
    for done, i in enumerate(choice.windows, 1):
        logits = _finite(runtime.logits(tokens[i].tolist()), len(tokens[i]), BUILD)
        found = scores(i, logits, tokens[i])
        rows.append({name: values[skip:] for name, values in found.items()})
        progress.scored(len(tokens[i]))
        progress.report(done, len(choice.windows), "windows")
        if choice.is_enough(rows):
            break
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def summarise(positions: dict[str, Floats]) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics by the names of ``metrics.METRICS``, and standard errors of those that are means."""
    flat = {name: values.ravel().astype(np.float64) for name, values in positions.items()}
    kld, kld_error = _mean_and_error(flat["kld"])
    top1, top1_error = _mean_and_error(flat["top1"])
    nll, nll_error = _mean_and_error(flat["nll"])
    change, change_error = _mean_and_error(flat["nll"] - flat["nll_baseline"])
    metrics = {
        "kld_mean": kld,
        "kld_median": float(np.median(flat["kld"])),
        "kld_p99": float(np.quantile(flat["kld"], 0.99)),
        "kld_max": float(flat["kld"].max()),
        "top1": top1,
        "ppl": math.exp(nll),
        "ppl_ratio": math.exp(change),
        "dp_rms": math.sqrt(float((flat["dp"] ** 2).mean())),
    }
    errors = {
        "kld_mean": kld_error,
        "top1": top1_error,
        "ppl": math.exp(nll) * nll_error,
        "ppl_ratio": math.exp(change) * change_error,
    }
    return metrics, errors


def profile(kld: Floats) -> dict[str, list[float]]:
    """Where the divergence lies, small enough to travel with a package.

    ``kld``: float32 [windows, positions]. ``by_position``: mean over windows and over each of at
    most 32 equal stretches of the window, from its start; ``quantiles``: the 0, 1, … 100 %
    quantiles over all positions. In nats.
    """
    stretches = np.array_split(kld.astype(np.float64).mean(0), min(32, kld.shape[1]))
    return {
        "by_position": [float(part.mean()) for part in stretches],
        "quantiles": [float(q) for q in np.quantile(kld, np.linspace(0, 1, 101))],
    }


def size(artifact: Path, parameters: int) -> dict[str, float]:
    """``size_gib`` (2³⁰ bytes) of all files that the runtime needs, ``bits_per_weight`` of those
    with weights or graph, for a model of so many ``parameters``. ``artifact`` may be the package
    that it became: its papers do not count."""
    everything = {
        path: path.stat().st_size
        for path in artifact.rglob("*")
        if path.is_file() and not is_paper(path.relative_to(artifact))
    }
    text = {".json", ".jinja", ".txt", ".md", ".model", ""}
    weights = sum(n for p, n in everything.items() if p.suffix not in text)
    return {
        "size_gib": sum(everything.values()) / 2**30,
        "bits_per_weight": 8 * weights / parameters,
    }


def _tokens(source: Path, text: str, params: Params, purpose: str = "evaluation") -> Ints:
    ids = tokenizer.of_source(source).encode(text)
    window, wanted, first = (int(params.get(key, 0)) for key in ("window", "tokens", "first"))
    if first and len(ids) < first + wanted:
        rest = len(ids) - wanted
        fewer = f"set `calibrate.tokens` to {rest} at most, or " if rest >= LEAST_TOKENS else ""
        raise SourceError(
            f"the calibration text has {counted(len(ids), 'token')}: {first} are learned from, and "
            f"{wanted} more, from which nothing is, judge what was learned",
            hint=f"{fewer}give a text of {first + wanted} tokens or more",
        )
    count = min(wanted, len(ids)) // window
    least, key = (window, "window") if params.get("at_most") else (wanted, "tokens")
    if len(ids) < least or not count:
        instead = "; with `weights: none` nothing is learned" if purpose == "calibration" else ""
        raise SourceError(
            f"the {purpose} text has {counted(len(ids), 'token')}, the recipe asks for {least}",
            hint=f"lower `{purpose[:-3]}e.{key}` or give a longer text{instead}",
        )
    return np.asarray(ids[first : first + count * window], np.int32).reshape(count, window)


def _finite(logits: Floats, rows: int, whose: str) -> Floats:
    """``logits`` of ``rows`` positions, as they are.

    Raises:
        StepFailed: one is no finite number, or a position has none; ``whose`` they are says the
            message.
    """
    if logits.shape[0] != rows or not np.isfinite(logits).all():
        raise StepFailed(
            f"the {whose}'s predictions are not finite numbers at every position",
            hint=_REMEDIES[whose],
        )
    return np.ascontiguousarray(logits, np.float32)


def _mean_and_error(
    values: npt.NDArray[np.float32] | npt.NDArray[np.float64],
) -> tuple[float, float]:
    return float(np.mean(values, dtype=np.float64)), float(
        np.std(values, ddof=1, dtype=np.float64) / math.sqrt(len(values))
    )


def _only_file(folder: Path) -> Path:
    return next(p for p in folder.iterdir() if p.is_file())
