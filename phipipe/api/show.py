"""What outcomes look like: words for people, rows for machines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from phipipe import backends
from phipipe.algorithms import smooth
from phipipe.errors import PhipipeError
from phipipe.evaluate import run_reports, sampling
from phipipe.evaluate.answer_reports import Answers
from phipipe.evaluate.reports import Baseline, Metrics, Speed, Vision
from phipipe.evaluate.run_reports import AsRun
from phipipe.execution.results import Outcome, Result
from phipipe.output import documents
from phipipe.package import answer_words, figures
from phipipe.planning import hints
from phipipe.planning.plan import Plan
from phipipe.words import counted

CACHE_DIGITS = 4  # of both divergences


def heading(plan: Plan) -> str:
    """``quickstart: tiny-phi3 → int4 for CPU (x86-64), onnxruntime``; before the arrow what was
    learned of the weights."""
    recipe = plan.build.recipe
    learned = f", {smooth.WORDS}" if smooth.asked(recipe) else ""
    return (
        f"{plan.build.name}: {source_words(plan)}{learned} → {recipe.precision} for "
        f"{plan.device.title}, {recipe.backend}"
    )


def source_words(plan: Plan) -> str:
    """What the original is called."""
    return plan.build.recipe.source.title


def warning_lines(plan: Plan) -> list[str]:
    """What is doubtful about a build, line by line."""
    return [line for warning in plan.warnings for line in warning.lines]


def hint_lines(plans: Sequence[Plan]) -> list[str]:
    """What the first of the builds that could do better could do; one line, however many they
    are."""
    found = (hint for plan in plans if (hint := hints.of(plan)))
    return list(islice(found, 1))


def ready(toolchain: str, seconds: float, error: PhipipeError | None) -> str:
    """How an installation ended, in one line."""
    return (
        f"toolchain `{toolchain}` "
        f"{'is ready' if error is None else 'could not be installed'} ({seconds:.1f} s)"
    )


def ending(result: Result) -> str:
    """How a step ended, in one line."""
    if result.cached:
        return f"cached  {result.key[:12]}{'  from the shared store' if result.shared else ''}"
    usage = result.usage
    where = f", on {result.machine}" if result.machine else ""
    return (
        f"done    {result.key[:12]}  {usage.get('seconds', 0):.1f} s{figures.peaks(usage)}{where}"
    )


def describe_outcome(done: Outcome) -> str:
    """The closing words of one build: table, place, next commands. Empty for one that failed before
    it came to a package that was asked for."""
    metrics, speed = done.fidelity, done.load("measure", Speed)
    if (done.error and done.package is None) or not (metrics or speed):
        return ""
    answers = done.load("answers", Answers)
    rows = figures.fidelity_table(
        metrics or Metrics(metrics={}),  # a device that gives no logits
        speed,
        done.load("baseline", Baseline),
        done.load("vision-evaluate", Vision),
        answers,
    )
    lines = [heading(done.plan), figures.plain_table(rows)]
    if metrics and metrics.sampling and metrics.sampling.reason != "asked":
        lines.append(f"\n{sampling.words(metrics.sampling)}")
    lines += [f"\n{line}" for line in answer_words.remarks(answers)] if answers else []
    if speed and done.plan.on_target != "true" and done.plan.device:
        lines.append(
            f"\n{_here(metrics)} are this machine's, not those of {done.plan.device.title}; what "
            f"the file itself loses holds there."
        )
    if (cache := _cache(done)) is not None:
        lines.append("\n" + cache_words(cache))
    if done.all_cached:
        lines.append(f"\neverything was cached, nothing had to be done ({done.seconds:.2f} s)")
    if done.package is not None:
        lines.append(f"\npackage  {done.package}")
        lines.append(f"chat     phipipe chat {done.package}")
        lines.append(f"check    phipipe verify {done.package}")
    return "\n".join(lines)


def _cache(done: Outcome) -> documents.Cache | None:
    """What a quantized cache costs; None where nobody asked, or something failed before."""
    scored, metrics = done.load(run_reports.CACHE_STEP, AsRun), done.fidelity
    if scored is None or metrics is None or "kld_run" not in metrics.metrics:
        return None
    recipe, params = done.plan.build.recipe, done.results[run_reports.CACHE_STEP].step.params
    face, kind = backends.load(recipe.backend), params["cache"]
    group = face.cache_group(done.plan.checkpoint.head_size)
    return documents.Cache(
        kind=kind,
        kept=face.caches[kind] + (f" in groups of {group}" if group else ""),
        is_usual=face.usual_cache(recipe, params.get("api", "cpu")) == kind,
        kld=scored.metrics["kld_run"],
        kld_stderr=scored.stderr["kld_run"],
        usual_kld=metrics.metrics["kld_run"],
        usual_kld_stderr=metrics.stderr["kld_run"],
        positions=scored.positions,
    )


def cache_words(cache: documents.Cache) -> str:
    """What the cache costs, both figures with digits beyond their errors: the same positions went
    through both caches, so their difference is known better than either."""
    kept, usual = (
        f"{figures.number(kld, CACHE_DIGITS)} ± {figures.number(error, 2)} nats"
        for kld, error in (
            (cache.kld, cache.kld_stderr),
            (cache.usual_kld, cache.usual_kld_stderr),
        )
    )
    positions = counted(cache.positions, "position")
    if cache.is_usual:
        return (
            f"A cache of {cache.kind} ({cache.kept}) is the runtime's usual one for this package: "
            f"`kld_run` is {kept} with it, {usual} without asking ({positions})."
        )
    ratio = figures.number(cache.kld / cache.usual_kld) if cache.usual_kld > 0 else ""
    times = f", {ratio} times that" if ratio else ""
    return (
        f"With the usual cache `kld_run` is {usual}; with one of {cache.kind} ({cache.kept}) it is "
        f"{kept}{times} ({positions})."
    )


def _here(metrics: Metrics | None) -> str:
    """What another machine would change, as the start of a sentence."""
    differs = metrics is not None and metrics.run is not None and metrics.run.how
    return "`kld_run`, speed and memory" if differs else "Speed and memory"


def outcome_json(done: Outcome) -> documents.Built:
    """The same for machines."""
    recipe, error = done.plan.build.recipe, done.error
    answers = done.load("answers", Answers)
    metrics, speed = done.fidelity, done.load("measure", Speed)
    return documents.Built(
        name=done.plan.build.name,
        device=done.plan.device.name,
        unit=done.plan.api,
        backend=recipe.backend,
        precision=recipe.precision,
        ok=error is None,
        package=None if done.package is None else str(done.package),
        seconds=round(done.seconds, 3),
        on_target=done.plan.on_target,
        warnings=advice_json(done.plan),
        evaluation=None if metrics is None else metrics.as_json(),
        cache=_cache(done),
        speed=None if speed is None else speed.as_json(),
        generation=None if answers is None else answers.as_json(),
        steps=[_step(name, result) for name, result in done.results.items()],
        error=None if error is None else documents.error_of(error),
    )


def advice_json(plan: Plan) -> list[documents.Warned]:
    """What is doubtful about a build, for machines."""
    return [
        documents.Warned(rule=a.rule, level=a.level, message=a.message, hint=a.hint)
        for a in plan.warnings
    ]


def _step(name: str, result: Result) -> documents.DoneStep:
    seconds, cpu_seconds, rss, anon = (
        result.usage.get(n) for n in ("seconds", "cpu_seconds", "peak_rss_bytes", "peak_anon_bytes")
    )
    return documents.DoneStep(
        name=name,
        key=result.key,
        digest=result.stored.digest,
        cached=result.cached,
        shared=result.shared,
        bytes=result.stored.size_bytes,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_rss_bytes=None if rss is None else int(rss),
        peak_anon_bytes=None if anon is None else int(anon),
        machine=result.machine,
    )
