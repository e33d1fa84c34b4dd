"""A run as OpenTelemetry spans: one for the run, below it one for each step that was not cached.

On where ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``) is set;
everything else, too, is as OpenTelemetry's own variables say: headers, timeouts,
``OTEL_SERVICE_NAME``. Attributes are named as in ``events``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from phipipe import __version__
from phipipe.errors import ToolchainError
from phipipe.execution.event_words import Event

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SWITCHES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
UNLESS = "OTEL_SDK_DISABLED"  # OpenTelemetry's own
SERVICE = "phipipe"
EXPORT_TIMEOUT_S = 10.0

Sink = Callable[[Event], None]


class Spans:
    """Takes events and makes spans of them."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("phipipe", __version__)
        self._run: Any = None
        self._steps: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        kind, step = event["event"], str(event.get("step"))
        if kind == "run_started":
            about = {"phipipe.run": event["run"], "phipipe.builds": list(event["builds"])}
            self._run = self._tracer.start_span(f"phipipe {event['command']}", attributes=about)
        elif kind == "step_started":
            self._steps[step] = self._start(step, {"phipipe.why": event["why"]})
        elif kind in ("step_finished", "step_failed") and step in self._steps:
            self._end(self._steps.pop(step), event)
        elif kind == "run_finished":
            for span in self._steps.values():  # ended with the run
                span.end()
            self._end(self._run, event)

    def _start(self, name: str, attributes: Event) -> Any:
        from opentelemetry.trace import set_span_in_context

        return self._tracer.start_span(name, set_span_in_context(self._run), attributes=attributes)

    def _end(self, span: Any, event: Event) -> None:
        from opentelemetry.trace import Status, StatusCode

        left_out = ("event", "time", "run", "step")
        simple = str, int, float  # what an attribute may be
        attributes = {
            f"phipipe.{n}": v
            for n, v in event.items()
            if n not in left_out and isinstance(v, simple)
        }
        span.set_attributes(attributes)
        if event.get("exit_code"):
            message = event.get("message", f"exit code {event['exit_code']}")
            span.set_status(Status(StatusCode.ERROR, str(message)))
        span.end()


@contextlib.contextmanager
def spans(
    note: Callable[[str], None], environ: Mapping[str, str] = os.environ
) -> Iterator[list[Sink]]:
    """The sink that the environment asks for, if any; at the end what it holds is sent.

    ``note`` is told where spans could not be delivered: a run does not fail for that.

    Raises:
        ToolchainError: spans are asked for, and OpenTelemetry is not installed.
    """
    if not any(environ.get(name) for name in SWITCHES) or environ.get(UNLESS, "").lower() == "true":
        yield []
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        asked = next(name for name in SWITCHES if environ.get(name))
        hint = f"pip install 'phipipe[otel]', or unset {asked}"
        raise ToolchainError(
            f"{asked} asks for spans, and OpenTelemetry is not installed", hint=hint
        ) from None
    resource = Resource.create({SERVICE_NAME: environ.get("OTEL_SERVICE_NAME") or SERVICE})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    with _complaints() as complaints:
        try:
            yield [Spans(provider)]
        finally:
            provider.force_flush(int(EXPORT_TIMEOUT_S * 1000))
            provider.shutdown()
    if complaints:
        note("spans could not be delivered to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names")


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """What OpenTelemetry logs, which would otherwise stand between our lines."""
    complaints: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complaints.append(record.getMessage())

    logger, handler = logging.getLogger("opentelemetry"), Collector(logging.WARNING)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield complaints
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
