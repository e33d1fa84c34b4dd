"""What a choice of widths came to, as a page: one file that opens without a network and has no
scripts.

Everything that a user, a model or a tool wrote is text, which the template escapes. The page's own
security policy forbids it to load anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from phipipe.board import colours, origin
from phipipe.evaluate.reports import Baseline
from phipipe.files import pages
from phipipe.metrics import METRICS
from phipipe.package import figures
from phipipe.planning.tuning import SELECTION_TOKENS
from phipipe.tuning import plot, strip
from phipipe.tuning.plot import shown_size
from phipipe.tuning.results import AS_IT_STANDS, Check, Trial, Tuned
from phipipe.visible import in_template
from phipipe.words import counted, shortened

ABOUT = {
    AS_IT_STANDS: "the recipe’s own widths",
    "smallest": "the narrowest choice for each matrix",
    "chosen": "the best choice by what was known",
}


def render(tuned: Sequence[Tuned], command: str) -> str:
    """The page's text: what ``command`` chose for each of ``tuned``."""
    scale = strip.scale(tuned)
    names = [one.build.name for one in tuned]
    title = f"Widths of {names[0]}" if len(names) == 1 else f"Widths of {len(names)} builds"
    environment = pages.environment(in_template, is_html=True)
    return environment.get_template("tuning/page.html.j2").render(
        series=list(colours.SERIES.items()),
        shades=strip.shades(len(scale)),
        short=shortened,
        title=title,
        made=origin.words(),
        command=command,
        builds=[_build(one, scale) for one in tuned],
        terms=_TERMS,
    )


_TERMS = {
    "kld_mean": (METRICS["kld_mean"].title, METRICS["kld_mean"].meaning),
    "bits": (
        "Bits for a weight",
        "What a weight takes in the file, its share of its group’s scale with it. 4 bits in "
        "groups of 32 take 4.5 where a scale has 16 bits, and 5 where it has 32.",
    ),
    "width": (
        "Width",
        "How a matrix is stored: integers of so many bits with one scale for each group, floats, "
        "or a type of the runtime’s own, such as Q4_K.",
    ),
    "choose": (
        "Text to choose by",
        f"{SELECTION_TOKENS:,} tokens of the calibration text that nothing is learned from. The "
        "recipe’s own evaluation text has no part in the choice, so its figures are honest.",
    ),
    "predicted": (
        "Predicted",
        "What an error in each matrix costs is measured once, and what each width gets wrong is "
        "computed by the backend’s own rounding. Their product, summed over all matrices and "
        "corrected by files that were built before, predicts a file that does not exist yet.",
    ),
    "noise": (
        "Noise check",
        "Random errors are put into one matrix of the original. What this costs is predicted, and "
        "measured. Both are close where the prediction can be trusted.",
    ),
    "stderr": (
        "Standard error (±)",
        "How far a figure would move on another text of the same kind. Positions are taken as "
        "independent: read it as a lower bound.",
    ),
}


def _build(tuned: Tuned, scale: Sequence[float]) -> dict[str, object]:
    """One build as the template takes it."""
    recipe, plan, best = tuned.build.recipe, tuned.final.plan, tuned.best
    return {
        "name": tuned.build.name,
        "about": f"{recipe.source.title} for {plan.device.title}, {recipe.backend}",
        "colour": colours.of_backend(recipe.backend),
        "aim": _aim(tuned),
        "what": best.what,
        "figures": list(_key_figures(best)),
        "sentences": list(_sentences(tuned)),
        "final": figures.fidelity_table(
            tuned.metrics, baseline=tuned.final.load("baseline", Baseline), answers=tuned.answers
        ),
        "asked": _asked(tuned),
        "plot": plot.plot(tuned),
        "strip": strip.strip(tuned, scale),
        "files": [_file(trial, best) for trial in tuned.trials],
        "checks": [_check(check) for check in tuned.checks],
    }


def _aim(tuned: Tuned) -> str:
    """What was asked for, in words."""
    aim = tuned.aim
    if aim.by_gates:
        gates = ", ".join(
            f"{name} {sign} {limit:g}"
            for name, gate in tuned.build.recipe.evaluate.gates.items()
            for sign, limit in (("≥", gate.min), ("≤", gate.max))
            if limit is not None
        )
        return f"the smallest file that passes the recipe’s gates: {gates}"
    limit = "any size" if tuned.limit_bytes is None else shown_size(tuned.limit_bytes)
    if aim.bits is not None:
        return f"the closest file of at most {aim.bits:g} bits for a weight, which are {limit}"
    if aim.as_today:
        return f"the closest file that is no larger than the recipe’s own today, {limit}"
    return f"the closest file of at most {limit}"


def _key_figures(best: Trial) -> Iterator[tuple[str, str]]:
    yield "size", shown_size(best.size_bytes)
    for name in ("bits_per_weight", "kld_mean", "top1"):
        if name in best.metrics:
            yield METRICS[name].column, figures.shown(METRICS[name], best.metrics[name])[0]


def _sentences(tuned: Tuned) -> Iterator[str]:
    """What was chosen, beside its prediction and the recipe as it stands."""
    best = tuned.best
    built = counted(len(tuned.trials), "file")
    yield f"{built[0].upper()}{built[1:]} {'was' if len(tuned.trials) == 1 else 'were'} built."
    today = next((trial for trial in tuned.trials if trial.what == AS_IT_STANDS), None)
    if today is best:
        yield "No file that fits is closer than the recipe as it stands, which keeps its options."
    elif today is not None:
        yield _beside(best, today)
    else:
        yield "The recipe as it stands was not built, so there is nothing to compare with."


def _beside(best: Trial, today: Trial) -> str:
    less = 1 - best.size_bytes / today.size_bytes
    size = "as large"
    if abs(less) >= 0.005:
        size = f"{figures.number(100 * abs(less), 2)} % {'smaller' if less > 0 else 'larger'}"
    told = (
        f"The recipe as it stands makes {shown_size(today.size_bytes)} with a mean KL divergence "
        f"of {figures.number(today.kld)} nats. The chosen file is {size}"
    )
    if today.kld <= 0:
        return f"{told}."
    return f"{told}, with {figures.number(best.kld / today.kld, 2)} times the divergence."


def _asked(tuned: Tuned) -> str:
    """Who was asked what; empty where nobody was."""
    answers = tuned.answers
    if answers is None:
        return ""
    told = (
        f"The original and the chosen file answered {counted(answers.prompts, 'prompt')}, in at "
        f"most {counted(answers.new_tokens, 'token')} each."
    )
    failed = sorted({line for lines in answers.failed.values() for line in lines})
    if failed:
        told += f" Lines of prompts that count against it: {', '.join(map(str, failed))}."
    return told


def _file(trial: Trial, best: Trial) -> dict[str, object]:
    shown = {
        name: " ".join(figures.shown(METRICS[name], trial.metrics[name], trial.stderr.get(name)))
        for name in ("bits_per_weight", "kld_mean", "top1")
        if name in trial.metrics
    }
    expected = trial.predicted_kld
    return {
        "what": trial.what,
        "about": f"refused: {trial.refusal}" if trial.refusal else ABOUT.get(trial.what, ""),
        "size": shown_size(trial.size_bytes),
        "bits": shown.get("bits_per_weight", "–").removesuffix(" bits"),
        "predicted": "–" if expected is None else figures.number(expected),
        "measured": shown.get("kld_mean", "–").removesuffix(" nats").partition(" ± "),
        "top1": shown.get("top1", "–").partition(" ± ")[0].removesuffix(" %") + " %",
        "best": trial is best,
    }


def _check(check: Check) -> dict[str, str]:
    ratio = check.measured / check.predicted if check.predicted > 0 else None
    return {
        "name": check.name,
        "predicted": figures.number(check.predicted),
        "measured": figures.number(check.measured),
        "ratio": "–" if ratio is None else figures.number(ratio),
    }
