"""LiteRT-LM's command line: one `.litertlm` bundle.

What its code asks for (the package litert-lm 0.18, `litert-lm run --help`): a path to the bundle,
in which tokenizer, chat template and stop tokens lie. It leaves a cache beside the bundle where
nothing is said, and a package must not hold one: `--cache no` there.
"""

from __future__ import annotations

from phipipe.package.layout import Built, Facts, Layout, Use, only

BUNDLE = "model.litertlm"
RUN = f'litert-lm run ./{BUNDLE} --prompt "Tell me a short story about a fox."'


def _use(facts: Facts) -> Use:
    return Use(commands=("pip install litert-lm", f"{RUN} --cache no"))


def _after(facts: Facts) -> Use:
    return Use(commands=("pip install litert-lm", RUN))


def refuses(built: Built) -> str | None:
    """Bare models have no bundle."""
    if built.options.get("format", "litertlm") != "litertlm":
        return "opens bundles alone, and this is a bare `.tflite`"
    return None


LAYOUT = Layout(
    title="LiteRT-LM",
    about="Google's command line for on-device models: Linux, macOS, Windows, Raspberry Pi.",
    backends={"litert": "`quantize.format: litertlm`"},
    use=_use,
    after=_after,
    refuses=refuses,
    takes=only(BUNDLE),
    needs=(BUNDLE,),
    leaves=("*.xnnpack_cache",),
)
