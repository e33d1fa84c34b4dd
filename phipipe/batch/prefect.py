"""A batch as a flow of Prefect 3: what its server starts on time, shows live, and can cancel.

The flow starts ``phipipe batch`` as a process of its own, so that it can be ended like any other:
what is finished is stored, and the next run goes on from there. Of one schedule one run is on its
way at most: a run that is due while the one before has not ended is cancelled by the server, as a
timer of systemd would skip it. A queue would only make the machine do again what the next run does
anyway.

Only imported where Prefect is installed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
from prefect import __version__ as prefect_version
from prefect import flow, get_client, get_run_logger, serve
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, State
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment as here
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed
from prefect.types.entrypoint import EntrypointType

from phipipe import words
from phipipe.batch import report as batch_report
from phipipe.errors import RecipeError, SourceError, ToolchainError
from phipipe.execution import event_words
from phipipe.metrics import Metric
from phipipe.steps import Json

FLOW = "phipipe-batch"
# for a batch to end its steps; less than the 30 s after which Prefect kills a cancelled run's
# process
GRACE_S = 20.0
START = (
    "prefect server start, then PREFECT_API_URL=http://127.0.0.1:4200/api phipipe schedule "
    "serve ..."
)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A batch and when it runs: ``words`` are those after ``phipipe``; ``folder`` is where it
    starts."""

    name: str
    cron: str
    timezone: str
    words: Sequence[str]
    folder: Path


# --- the flow


@flow(
    name=FLOW, description="Builds many recipes as one, and compares with what was accepted before."
)
def batch(words: list[str], folder: str) -> State[Any]:
    """Run ``phipipe WORDS`` in ``folder``; a line in the log for every event, a table for what
    became of the builds."""
    if not Path(folder).is_dir():
        return Failed(
            message=f"exit code {RecipeError.exit_code}: no folder `{folder}` on this machine"
        )
    logger, last_error = get_run_logger(), ""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as answer,
        _started(words, folder, answer) as process,
    ):
        assert process.stderr is not None  # a pipe
        for line in process.stderr:
            level, text = log_entry(line)
            last_error = text if level == logging.ERROR else last_error
            logger.log(level, text)
        code = process.wait()
        answer.seek(0)
        summary = _summary(answer.read())
    if summary:
        create_table_artifact(table(summary), key=key(here.name), description=counted(summary))
    if code:
        return Failed(
            message=f"exit code {code}: {trouble(summary) or last_error or 'without a word'}"
        )
    return Completed(message=counted(summary))


@contextlib.contextmanager
def _started(words: Sequence[str], folder: str, answer: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """``phipipe WORDS`` as a process, that ends when the block does: Prefect cancels by raising in
    it."""
    command = [sys.executable, "-m", "phipipe", *words, "--log-format", "json", "--json"]
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=answer,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    ) as process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Have ``process`` end itself, or kill it."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def log_entry(line: str) -> tuple[int, str]:
    """A line that the batch wrote to stderr, as the level and the text of one in Prefect's log."""
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "event" not in event:
        return logging.WARNING, line.rstrip()  # another program's
    failed = event["event"] in ("error", "step_failed") or event.get("ok") is False
    return logging.ERROR if failed else logging.INFO, event_words.words(event)


def _summary(text: str) -> dict[str, Json] | None:
    """What ``phipipe batch --json`` printed; None where it had nothing to say."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    # Without builds it has failed before any.
    return document if isinstance(document, dict) and "builds" in document else None


def counted(summary: Mapping[str, Json] | None) -> str:
    """How many builds came to what."""
    if summary is None:
        return "done"
    states = ", ".join(f"{n} {state}" for state, n in summary["states"].items() if n)
    return f"{words.counted(len(summary['builds']), 'build')}: {states}"


def trouble(summary: Mapping[str, Json] | None) -> str:
    """How many builds came to what, and why those failed that did."""
    if summary is None:
        return ""
    errors = [
        f"{build['name']}: {build['error']['message']}"
        for build in summary["builds"]
        if build["error"]
    ]
    return "\n".join([counted(summary), *errors])


def table(summary: Mapping[str, Json]) -> list[dict[str, Json]]:
    """A row for each build of a ``batch.json``."""
    return [
        {
            "build": build["name"],
            "state": build["state"],
            "seconds": build["seconds"],
            "version": build["version"],
            **{metric.heading: _shown(metric, build["metrics"]) for metric in batch_report.SHOWN},
            "error": build["error"] and build["error"]["message"],
        }
        for build in summary["builds"]
    ]


def _shown(metric: Metric, values: Mapping[str, float]) -> float | None:
    return values[metric.name] * metric.factor if metric.name in values else None


def key(name: str | None) -> str:
    """Under which the tables of one schedule lie: Prefect takes small letters, digits and
    dashes."""
    return "-".join(("phipipe", *re.findall("[a-z0-9]+", (name or "batch").lower())))


# --- the server


def reach(pool: str | None = None) -> str:
    """The address of Prefect's API, after asking it whether it is one that we can talk to, and has
    that work pool.

    Raises:
        SourceError: no server is named, or none answers there.
        ToolchainError: it is of another version.
        RecipeError: it has no such pool.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise SourceError("no Prefect server is named", hint=START)
    place = re.sub(r"//[^/@]*@", "//", url)  # the rest may be a secret
    with get_client(sync_client=True) as client:
        try:
            client.hello()
            version = str(client.api_version())
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise SourceError(
                f"no Prefect server answers at `{place}`: {reason}", hint=START
            ) from None
        if version.partition(".")[0] != prefect_version.partition(".")[0]:
            message = (
                f"the server at `{place}` is Prefect {version}, here is "
                f"{prefect_version}: the first number must agree"
            )
            raise ToolchainError(
                message, hint=f"pip install 'prefect=={version}', or start a server of this version"
            )
        if pool is not None:
            try:
                client.read_work_pool(pool)
            except ObjectNotFound:
                hint = f"prefect work-pool create {pool} --type process"
                raise RecipeError(
                    f"the server at `{place}` has no work pool `{pool}`", hint=hint
                ) from None
    return place


def _deployment(timed: Timed, pool: str | None) -> Any:
    return batch.to_deployment(
        timed.name,
        schedule=Cron(timed.cron, timezone=timed.timezone),
        parameters={"words": list(timed.words), "folder": str(timed.folder)},
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        entrypoint_type=EntrypointType.MODULE_PATH,
        **({"work_pool_name": pool} if pool else {}),
    )


def deploy(timed: Timed, pool: str) -> None:
    """Leave ``timed`` to whatever worker asks for work of ``pool``.

    Raises:
        SourceError: the server takes it not.
    """
    try:
        _deployment(timed, pool).apply()
    except (httpx.HTTPError, RuntimeError) as error:
        raise SourceError(
            f"the Prefect server did not take `{timed.name}`: {error}", hint=START
        ) from None


def watch(timed: Timed) -> None:
    """Run ``timed`` in this process's care, until somebody ends it; the schedule is paused then."""
    serve(_deployment(timed, None), print_starting_message=False)
