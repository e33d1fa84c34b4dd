"""Why a step runs: what differs from the nearest result that the same recipe, or the same model,
has had before.

Every difference is one leaf of the two records, named by its path, with both values. Values are cut
around the place where they part, so that two that differ never look alike.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from phipipe.execution import estimates
from phipipe.execution.estimates import Timings
from phipipe.steps import Json
from phipipe.store import keys
from phipipe.store.store import Store

RECENT = 1000  # of the newest records, one is looked for
SHOWN = 3  # differences
WIDTH, BEFORE = 32, 10  # characters of a value; of them, before the place where two part
SOURCES = frozenset({"source", "original"})  # steps that bring the model
ABSENT = "absent"
_MISSING = object()
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Known:
    """A record of the past: what it may differ in, and what it belongs to."""

    facts: Mapping[str, Json]
    recipe: str
    models: frozenset[str]  # digests of the models that it was made of


@dataclass(frozen=True, kw_only=True)
class History:
    """What the newest records of a store tell: by kind of step, which models each result was
    made of, and how long it took."""

    known: Mapping[tuple[str, ...], Sequence[Known]]
    models: Mapping[str, frozenset[str]]
    timings: Timings

    def models_of(self, step: str, record: Mapping[str, Json]) -> frozenset[str]:
        """Digests of the models that ``record`` is made of."""
        return _models(step, record, self.models)


def history(store: Store) -> History:
    """What ``explain`` needs of the newest records in ``store``."""
    records = list(store.records(newest=RECENT))
    models = _lineage(records)
    known: defaultdict[tuple[str, ...], list[Known]] = defaultdict(list)
    for record in records:
        step = str(record.get("step"))
        past = Known(
            facts=_comparable(record),
            recipe=str(record.get("recipe", "")),
            models=_models(step, record, models),
        )
        known[_kind(step, record)].append(past)
    return History(known=known, models=models, timings=estimates.timings(records))


def explain(past: History, step: str, record: Mapping[str, Json], recipe: str = "") -> str:
    """Why ``record`` has no result yet: what differs from the nearest one of the same recipe or
    model."""
    models, own = past.models_of(step, record), _comparable(record)
    candidates = [
        differences(known.facts, own)
        for known in past.known.get(_kind(step, record), ())
        if (recipe and known.recipe == recipe) or known.models & models or known.facts == own
    ]
    if not candidates:
        return "first time"
    nearest = min(candidates, key=len)
    if not nearest:
        return "its stored result is gone"
    more = f" and {len(nearest) - SHOWN} more" if len(nearest) > SHOWN else ""
    return f"changed: {', '.join(nearest[:SHOWN])}{more}"


def differences(old: Mapping[str, Json], new: Mapping[str, Json]) -> list[str]:
    """What differs between two records, most telling first."""
    changes = ["phipipe's own step"] if old.get("version") != new.get("version") else []
    names = sorted({*old.get("inputs", {}), *new.get("inputs", {})})
    changes += [
        f"input {name}"
        for name in names
        if old.get("inputs", {}).get(name) != new.get("inputs", {}).get(name)
    ]
    for part, prefix in (("params", "params"), ("tools", ""), ("host", "host")):
        for path, before, after in leaves(old.get(part, {}), new.get(part, {}), prefix):
            is_earlier = path == "params.steps"
            changes.append("an earlier step" if is_earlier else f"{path} {shown(before, after)}")
    return changes


def leaves(old: Json, new: Json, path: str = "") -> Iterator[tuple[str, Json, Json]]:
    """(path, old, new) of every leaf in which two values differ; what is on one side only is
    ``ABSENT`` in words."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from leaves(old.get(name, _MISSING), new.get(name, _MISSING), _inside(path, name))
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from leaves(before, after, f"{path}[{i}]")
    elif old is _MISSING or new is _MISSING or keys.canonical(old) != keys.canonical(new):
        yield path, old, new


def shown(old: Json, new: Json) -> str:
    """``32 → 64``: two values that differ, so that one sees how."""
    a, b = _text(old), _text(new)
    if a == b:  # the text "true" and the truth, say
        a, b = _json(old), _json(new)
    at = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    start = max(0, at - BEFORE) if max(len(a), len(b)) > WIDTH else 0
    return " → ".join(_cut(text, start) for text in (a, b))


def known(value: Json) -> Json:
    """One side of a leaf as data: None where there is no such value."""
    return None if value is _MISSING else value


def _cut(text: str, start: int) -> str:
    end = start + WIDTH
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def _text(value: Json) -> str:
    plain = (
        isinstance(value, str)
        and value.isprintable()
        and value.strip() == value
        and value not in ("", ABSENT)
    )
    return str(value) if plain else _json(value)


def _json(value: Json) -> str:
    if value is _MISSING:
        return ABSENT
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if text.isprintable() else json.dumps(value, sort_keys=True)


def _inside(path: str, name: str) -> str:
    if not path:
        return name
    return f"{path}.{name}" if _WORD.fullmatch(name) else f"{path}[{_json(name)}]"


def _comparable(record: Mapping[str, Json]) -> dict[str, Json]:
    """What two records of one kind may differ in; of a package's long provenance only whether it
    differs."""
    names = ("version", "inputs", "params", "tools", "host")
    facts = {name: record[name] for name in names if name in record}
    if "steps" in facts["params"]:
        facts["params"] = {**facts["params"], "steps": keys.key_of(facts["params"]["steps"])}
    return facts


def _kind(step: str, record: Mapping[str, Json]) -> tuple[str, ...]:
    """Records of one kind are worth comparing: the same step, of the same runtime."""
    return step, str(record["runs"]), str(record["params"].get("backend"))


def _lineage(records: Sequence[Mapping[str, Json]]) -> dict[str, frozenset[str]]:
    """Digest of a result → digests of the models that it was made of. Records come newest first,
    mostly."""
    lineage: dict[str, frozenset[str]] = {}
    for _ in range(len(records)):  # at most the longest chain; twice in practice
        before = sum(map(len, lineage.values()))
        for record in reversed(records):
            models = _models(str(record.get("step")), record, lineage)
            digest = str(record.get("digest"))
            lineage[digest] = lineage.get(digest, frozenset()) | models
        if sum(map(len, lineage.values())) == before:
            break
    return lineage


def _models(
    step: str, record: Mapping[str, Json], known: Mapping[str, frozenset[str]]
) -> frozenset[str]:
    inputs: Mapping[str, str] = record["inputs"]
    own = {inputs[name] for name in SOURCES & inputs.keys()}
    if step in SOURCES and record.get("digest"):
        own.add(str(record["digest"]))
    return frozenset(own).union(*(known.get(digest, frozenset()) for digest in inputs.values()))
