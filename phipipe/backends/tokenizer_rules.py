"""Rules about tokenizers: the steps that a backend's own has no place for."""

from __future__ import annotations

from phipipe import backends
from phipipe.backends.rules import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        id="M27",
        level="error",
        when=lambda r, o, c: (
            bool(c.normal_form)
            and not backends.load(r.backend).normalizes
            and "tokenizer" not in r.evaluate.accept
        ),
        message="the tokenizer brings texts into the form {checkpoint.normal_form} first, and "
        "`{recipe.backend}` does not: letters whose accents are characters of their own become "
        "other tokens",
        hint="if your texts are in that form, as nearly all are: `evaluate: {{accept: "
        "[tokenizer]}}`, which the card then says",
    ),
    Rule(
        id="M28",
        level="error",
        when=lambda r, o, c: (
            c.cuts_digits
            and not backends.load(r.backend).cuts_digits
            and "tokenizer" not in r.evaluate.accept
        ),
        message="the tokenizer cuts digits off first, and `{recipe.backend}` does not: several "
        "spaces or line breaks before a number become other tokens",
        hint="if this does not matter for your texts: `evaluate: {{accept: [tokenizer]}}`, which "
        "the card then says",
    ),
)
