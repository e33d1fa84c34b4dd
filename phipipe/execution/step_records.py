"""What decides a step's result, as the record that its key is made of, and what is noted beside
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from phipipe.errors import StoreError
from phipipe.evaluate.speed import host
from phipipe.execution.results import Result, Results, Waiting
from phipipe.execution.tools import Tools
from phipipe.steps import Json, Step
from phipipe.store import digests as outside_digests
from phipipe.store import keys, letting_go
from phipipe.store.shared import SharedStore
from phipipe.store.store import Store


@dataclass(frozen=True, kw_only=True)
class StepRecords:
    """Makes records of steps that are done with ``tools``; earlier ones are in ``store``, or
    ``shared``."""

    store: Store
    tools: Tools
    shared: SharedStore | None

    def of(self, step: Step, inputs: dict[str, str], before: Results) -> dict[str, Json]:
        """The record of ``step``; ``inputs`` are digests, ``before`` feeds its provenance.

        Raises:
            SourceError: a file outside the store is missing or cannot be read.
        """
        digests = {
            name: outside_digests.digest(source, self.store.root)
            for name, source in step.outside.items()
        }
        params = dict(step.params)
        for source in step.outside.values():
            params["files"] = list(source.files)
        if step.provenance:
            params["steps"] = {
                name: _provenance(self._record_of(r), r) for name, r in before.items()
            }
        record: dict[str, Json] = {
            "format": keys.FORMAT,
            "runs": step.runs,
            "version": step.version,
            "params": params,
            "inputs": inputs | digests,
            "tools": dict(self.tools.get(step.toolchain).packages) if step.toolchain else {},
        }
        if step.measurement:
            record["host"] = host() if step.host is None else dict(step.host)
        return record

    def _record_of(self, result: Result) -> Mapping[str, Json]:
        """The record of ``result``, which may be on another machine."""
        try:
            return self.store.record(result.key)
        except StoreError:
            record = self.shared.record(result.key) if self.shared else None
            if record is None:
                raise
            return record


def about(waiting: Waiting, usage: Mapping[str, Json]) -> dict[str, Json]:
    """The record to store: of what keys do not count, whose step it was, what it took, and what is
    to become of it."""
    step = waiting.step
    keep = {} if step.keep == "result" else {letting_go.KEEP: step.keep}
    about = {"step": step.name, "recipe": step.recipe, "usage": dict(usage), **keep}
    return {**waiting.record, **about}


def _provenance(record: Mapping[str, Json], result: Result) -> dict[str, Json]:
    names = ("runs", "version", "params", "inputs", "tools", "digest")
    files = [
        {name: output[name] for name in ("path", "size", "sha256")} for output in record["outputs"]
    ]  # no times
    ran = {"toolchain": result.step.toolchain} if result.step.toolchain else {}
    return {name: record[name] for name in names} | {"outputs": files, "key": result.key} | ran
