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

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from phipipe import backends, progress, reference, text_files, transformers_tokenizer
from phipipe.backends.base import Backend, Runtime
from phipipe.errors import GateFailed, SourceError, StepFailed
from phipipe.reference import log_softmax, score
from phipipe.report import counted
from phipipe.steps import Inputs, Params

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int32]

# Asked of every model, greedily; rendered with the source's own chat template.
PROMPTS = ("Tell me a short story about a fox.", "Where is the key?", "What is 2 plus 3?")
CONTINUATION_TOKENS = 96
DECODED = 32  # tokens that an emulated artifact decodes one by one
# The embedded model on Qualcomm's emulator: 2.4e-4 at 8 bits, 1.2e-3 at 4. A cache that goes wrong
# is nats off.
DECODE_KLD = 1.0
DECODE_KLD_MEAN: Mapping[str, float] = {"int8": 0.01, "int4": 0.1}

# A packaged tokenizer must give the source tokenizer's ids on this: accents, scripts, code, spaces,
# digits.
PARITY_TEXT = """Once, in Köln, a fox said: "It's 7:45 – we're late!"  Two  spaces.
Καλημέρα, добрый день, こんにちは, 你好, مرحبا, नमस्ते 🙂👩‍🚀 e\u0301 ﬁ
def area(r: float) -> float:\n\treturn 3.14159 * r**2  # m²
{"key": [1, 22, 333], "ok": true}  <b>&amp;</b> 1000000 0.001 1e-9
"""


def baseline(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: tokenize the text with the source's tokenizer, score it with the source model in fp32.

    ``inputs``: source, text. ``params``: tokens, window, skip. Writes ``tokens.npy`` int32
    [windows, window], ``logprobs.npy`` float32 [windows, window, vocabulary] and ``baseline.json``.

    Raises:
        SourceError: the text has fewer tokens than one window.
    """
    import numpy as np

    tokens = _tokens(inputs["source"], text_files.read(_only_file(inputs["text"])), params)
    model = _original(inputs["source"])
    np.save(out / "tokens.npy", tokens)
    logprobs: Floats | None = None
    nll: list[Floats] = []
    for i, (window, logits) in enumerate(zip(tokens, model.logits(tokens.tolist()), strict=True)):
        scores = log_softmax(_finite(logits, len(window)))
        if logprobs is None:
            shape = (len(tokens), *scores.shape)
            logprobs = np.lib.format.open_memmap(out / "logprobs.npy", "w+", np.float32, shape)
        logprobs[i] = scores
        nll.append(-scores[np.arange(len(window) - 1), window[1:]][params["skip"] :])
        progress.report(i + 1, len(tokens), "windows")
    assert isinstance(logprobs, np.memmap)
    logprobs.flush()
    mean, error = _mean_and_error(np.concatenate(nll))
    report = {
        "tokens": int(tokens.size),
        "window": int(params["window"]),
        "skip": int(params["skip"]),
        "ppl": math.exp(mean),
        "ppl_stderr": math.exp(mean) * error,
        **_reference(inputs["source"], model),
    }
    _write(out / "baseline.json", report)


def _original(source: Path) -> _Original:
    """The model that everything is compared with; only one that comes quantized is loaded as a
    whole."""
    from phipipe.layerwise import Layerwise

    quantized = "quantization_config" in _read(source / "config.json")
    return _Whole(backends.load("torch").open(source)) if quantized else Layerwise(source)


class _Original(Protocol):
    """``layerwise.Layerwise``, or what does the same with the whole model in memory."""

    def logits(self, windows: Sequence[Sequence[int]]) -> Iterator[Floats]: ...

    def generate(self, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]: ...


class _Whole:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def logits(self, windows: Sequence[Sequence[int]]) -> Iterator[Floats]:
        return (self._runtime.logits(window) for window in windows)

    def generate(self, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
        return [list(self._runtime.generate(prompt, limit)) for prompt in prompts]


def calibration(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the tokens that data-aware quantization learns from, the same for every backend.

    ``inputs``: source, text. ``params``: tokens, window. Writes ``tokens.npy`` int32 [windows,
    window].

    Raises:
        SourceError: the text has too few tokens.
    """
    import numpy as np

    text = text_files.read(_only_file(inputs["text"]))
    np.save(out / "tokens.npy", _tokens(inputs["source"], text, params, "calibration"))


def compare(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: score an artifact on the baseline's tokens and compare.

    ``inputs``: artifact; baseline, or the reference data of a package. ``params``: backend,
    parameters (of the source model), and api, the unit to run on (default "cpu"). Writes
    ``metrics.json`` and ``positions.npz`` (float32 [windows, window - 1 - skip]: kld, nll,
    nll_baseline).

    Raises:
        StepFailed: the artifact yields NaN or another vocabulary.
    """
    import numpy as np

    backend = backends.load(params["backend"])
    tokens = np.load(inputs["baseline"] / "tokens.npy")
    scores = reference.scores_of(inputs["baseline"])
    skip = _read(inputs["baseline"] / "baseline.json")["skip"]
    runtime = backend.open(inputs["artifact"], params.get("api", "cpu"))
    rows = []
    for i, window in enumerate(tokens):
        logits = _finite(runtime.logits(window.tolist()), len(window))
        rows.append({name: values[skip:] for name, values in scores(i, logits, window).items()})
        progress.report(i + 1, len(tokens), "windows")
    positions = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    sanity = _sanity(backend, runtime, inputs)
    runtime.close()
    np.savez(out / "positions.npz", **{n: positions[n] for n in ("kld", "nll", "nll_baseline")})  # type: ignore[arg-type]
    metrics, errors = summarise(positions)
    metrics |= size(inputs.get("shipped", inputs["artifact"]), int(params["parameters"]))
    counted = {"positions": positions["kld"].size, "profile": profile(positions["kld"])}
    _write(out / "metrics.json", {"metrics": metrics, "stderr": errors, **counted, **sanity})


def summarise(positions: dict[str, Floats]) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics by the names of ``metrics.METRICS``, and standard errors of those that are means."""
    import numpy as np

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

    Args:
        kld: float32 [windows, positions].

    Returns:
        ``by_position``: mean over windows and over each of at most 32 equal stretches of the
            window, from
        its start; ``quantiles``: the 0, 1, … 100 % quantiles over all positions. In nats.
    """
    import numpy as np

    stretches = np.array_split(kld.astype(np.float64).mean(0), min(32, kld.shape[1]))
    return {
        "by_position": [float(part.mean()) for part in stretches],
        "quantiles": [float(q) for q in np.quantile(kld, np.linspace(0, 1, 101))],
    }


def size(artifact: Path, parameters: int) -> dict[str, float]:
    """``size_gib`` of all files but a package's reference data, ``bits_per_weight`` of those with
    weights or graph."""
    beside = artifact / reference.FOLDER
    everything = {
        p: p.stat().st_size for p in artifact.rglob("*") if p.is_file() and p.parent != beside
    }
    text = {".json", ".jinja", ".txt", ".md", ".model", ""}
    weights = sum(n for p, n in everything.items() if p.suffix not in text)
    return {
        "size_gib": sum(everything.values()) / 2**30,
        "bits_per_weight": 8 * weights / parameters,
    }


def check_parity(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): an unquantized conversion must agree with the baseline, or nothing is built on
    it.

    ``inputs``: metrics. ``params``: kld_mean, the highest mean KL divergence that counts as equal;
    layers, where only the model's first ones were compared.

    Raises:
        StepFailed: it does not, or its tokenizer gives other ids for some text.
    """
    report = _read(inputs["metrics"] / "metrics.json")
    if not report["sanity"]["tokenizer_equal"]:
        raise StepFailed(
            "the packaged tokenizer gives other token ids than the original's on a text in "
            "several scripts and code",
            hint="if the checkpoint has several tokenizer files (tokenizer.json, "
            "tokenizer.model), they disagree: "
            "take them again from the original repository",
        )
    measured = report["metrics"]["kld_mean"]
    if not measured <= params["kld_mean"]:
        raise StepFailed(
            f"the conversion itself changed the model: mean KL divergence {measured:.2e} from "
            f"the original before any "
            f"quantization, where at most {params['kld_mean']:.0e} is rounding",
            hint="the converter or the checkpoint (position encoding, say) is at fault, not the "
            "recipe",
        )
    part = {"layers": params["layers"]} if "layers" in params else {}
    _write(out / "parity.json", {"kld_mean": measured, "limit": params["kld_mean"], **part})


def check_gates(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): the recipe's gates. Nothing is packaged unless every one is passed.

    ``inputs``: metrics, speed; vision of a model that sees. ``params``: gates {metric: {min, max}}.
    A metric that was not measured fails.

    Raises:
        GateFailed: names every gate that failed, its limit and the value.
    """
    report = _read(inputs["metrics"] / "metrics.json")
    metrics = report["metrics"] | _read(inputs["speed"] / "speed.json")["metrics"]
    metrics |= _read(inputs["vision"] / "vision.json")["metrics"] if "vision" in inputs else {}
    verdicts, failures = [], []
    for name, limits in sorted(params["gates"].items()):
        value = metrics.get(name)
        passed = value is not None and _within(value, limits)
        verdicts.append({"metric": name, "value": value, **limits, "passed": passed})
        if not passed:
            wanted = " and ".join(f"{k} {v:g}" for k, v in limits.items())
            shown = "was not measured" if value is None else f"is {value:.4g}"
            failures.append(f"`{name}` {shown}, the recipe wants {wanted}")
    if failures:
        raise GateFailed(
            "gate failed: " + "; ".join(failures),
            hint="nothing was packaged; change `evaluate.gates`, or quantize less: more bits, "
            "smaller groups",
        )
    _write(out / "gates.json", verdicts)


def _within(value: float, limits: Mapping[str, float]) -> bool:
    return limits.get("min", -math.inf) <= value <= limits.get("max", math.inf)


def _tokens(source: Path, text: str, params: Params, purpose: str = "evaluation") -> Ints:
    import numpy as np

    ids = transformers_tokenizer.of_source(source).encode(text)
    window, wanted = int(params["window"]), int(params["tokens"])
    count = min(wanted, len(ids)) // window
    if len(ids) < wanted or not count:
        raise SourceError(
            f"the {purpose} text has {counted(len(ids), 'token')}, the recipe asks for {wanted}",
            hint=f"lower `{purpose[:-3]}e.tokens` or give a longer text",
        )
    return np.asarray(ids[: count * window], np.int32).reshape(count, window)


def _reference(source: Path, model: _Original) -> dict[str, Any]:
    """What a runtime and its packaged tokenizer must reproduce: ids, rendered chats, greedy
    answers."""
    tokenizer = transformers_tokenizer.of_source(source)
    chats: list[dict[str, Any]] = []
    for prompt in PROMPTS if tokenizer.facts["chat_template"] else ():
        text = tokenizer.render([{"role": "user", "content": prompt}])
        chats.append({"prompt": prompt, "rendered": text, "ids": tokenizer.encode(text)})
    answers = model.generate([chat["ids"] for chat in chats], CONTINUATION_TOKENS)
    for chat, answer in zip(chats, answers, strict=True):
        chat |= {"answer": answer, "text": tokenizer.decode(answer)}
    return {"parity_ids": tokenizer.encode(PARITY_TEXT), "chats": chats}


def _sanity(backend: Backend[Any], runtime: Runtime, inputs: Inputs) -> dict[str, Any]:
    """What a table of averages hides: answers that never end, loops, a tokenizer that differs."""
    expected = _read(inputs["baseline"] / "baseline.json")
    tokenizer = backend.tokenizer(inputs["artifact"])
    answers = [
        list(runtime.generate(chat["ids"], CONTINUATION_TOKENS)) for chat in expected["chats"]
    ]
    same = [
        _common_prefix(answer, chat["answer"])
        for answer, chat in zip(answers, expected["chats"], strict=True)
    ]
    longest = [max(1, len(chat["answer"])) for chat in expected["chats"]]
    rendered = [
        tokenizer.render([{"role": "user", "content": chat["prompt"]}]) == chat["rendered"]
        for chat in expected["chats"]
    ]
    return {
        "sanity": {
            "tokenizer_equal": tokenizer.encode(PARITY_TEXT) == expected["parity_ids"]
            and all(
                tokenizer.encode(chat["rendered"]) == chat["ids"] for chat in expected["chats"]
            ),
            "chat_template_equal": all(rendered),
            "greedy_agreement": sum(same) / sum(longest) if longest else None,
            "answers_ended": [len(answer) < CONTINUATION_TOKENS for answer in answers],
            "repetition": max((_repetition(answer) for answer in answers), default=0.0),
        },
        "answers": [
            {"prompt": chat["prompt"], "text": tokenizer.decode(answer)}
            for answer, chat in zip(answers, expected["chats"], strict=True)
        ],
    }


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _repetition(ids: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that occurred before in the same answer: 0 is none, near 1 is a loop."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _finite(logits: Floats, rows: int) -> Floats:
    import numpy as np

    if logits.shape[0] != rows or not np.isfinite(logits).all():
        raise StepFailed(
            "the model's logits are not finite numbers for every position: the artifact is broken"
        )
    return np.ascontiguousarray(logits, np.float32)


def _mean_and_error(values: npt.NDArray[Any]) -> tuple[float, float]:
    import numpy as np

    return float(np.mean(values, dtype=np.float64)), float(
        np.std(values, ddof=1, dtype=np.float64) / math.sqrt(len(values))
    )


def _only_file(folder: Path) -> Path:
    return next(p for p in folder.iterdir() if p.is_file())


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", "utf-8")


def check_decode(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: an artifact that reads a prompt at once and then token by token predicts as the
    original does.

    ``inputs``: artifact, baseline. ``params``: backend, precision, prompt_length, and decoded, how
    many one by one. Writes ``emulation.json``.

    Raises:
        StepFailed: mean KL divergence of the positions decoded one by one is above
            ``DECODE_KLD_MEAN``, or of very few positions above ``DECODE_KLD``.
    """
    import numpy as np

    prompt, decoded = int(params["prompt_length"]), int(params.get("decoded", DECODED))
    tokens = np.load(inputs["baseline"] / "tokens.npy", allow_pickle=False)[0][: prompt + decoded]
    logp = np.load(inputs["baseline"] / "logprobs.npy", mmap_mode="r", allow_pickle=False)[0][
        : len(tokens)
    ]
    if len(tokens) < prompt + decoded:
        raise StepFailed(
            f"`evaluate.window` is too short to decode {decoded} tokens after a prompt of {prompt}"
        )
    runtime: Any = backends.load(params["backend"]).open(inputs["artifact"])
    logits = runtime.decode(tokens.tolist(), prompt)
    runtime.close()
    divergence = score(logp, logits, tokens)["kld"]
    found = {
        "prompt_kld_mean": float(divergence[:prompt].mean()),
        "decode_kld_mean": float(divergence[prompt:].mean()),
    }
    report = {"pipeline": runtime.pipeline, "prompt_tokens": prompt, "tokens": decoded, **found}
    (out / "emulation.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    limit = (
        DECODE_KLD_MEAN[params["precision"]] if decoded == DECODED else DECODE_KLD
    )  # of few tokens, one may stand out
    if not found["decode_kld_mean"] <= limit:
        raise StepFailed(
            f"decoding token by token, mean KL divergence is {found['decode_kld_mean']:.2e}"
        )
