"""How variants of a matrix, and overrides of the command line, are laid on a recipe's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phipipe.document import near, shorten
from phipipe.errors import RecipeError

VARIANT_KEYS = (
    "name", "device", "unit", "backend", "precision", "context", "quantize", "calibrate", "evaluate", "measure",
    "package",
)  # fmt: skip
BACKEND = "onnxruntime"  # where a recipe names none


def put(data: dict[str, Any], where: tuple[str, ...], value: Any, text: str) -> None:
    """Lay ``value`` on ``data`` at ``where``; ``text`` is how the user said so."""
    inner = data
    for key in where[:-1]:
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {text}: `{shorten(key)}` is not a mapping of keys")
    inner[where[-1]] = value


def wanted(only: Sequence[str], known: Sequence[str], recipe: str) -> set[str]:
    """Names of the builds that ``only`` asks for; the recipe's own name may be left out."""
    short = {name.removeprefix(f"{recipe}-"): name for name in known}
    for name in only:
        if name not in known and name not in short:
            guess = near(name, [*short, *known])
            raise RecipeError(f"--only {name}: no such variant{guess}", hint=f"variants: {', '.join(known)}")
    return {short.get(name, name) for name in only}


def lay(base: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, Any]:
    """``variant`` laid on ``base``; another backend's ``quantize`` is not inherited."""
    over = {key: value for key, value in variant.items() if key in VARIANT_KEYS and key != "name"}
    other = over.get("backend", base.get("backend", BACKEND)) != base.get("backend", BACKEND)
    return _merge({key: value for key, value in base.items() if not (other and key == "quantize")}, over)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Maps within maps are merged; ``text`` is a choice of one, so it is replaced."""
    made = dict(base)
    for key, value in over.items():
        old = made.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and key != "text":
            made[key] = _merge(old, value)
        else:
            made[key] = value
    return made
