"""Runs as OpenTelemetry spans: what they say, and that a collector gets them."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from testing.plans import plan, recorded, step

from phipipe.cli.listeners import Silent
from phipipe.errors import ToolchainError
from phipipe.execution import events, past_runs, tracing


def made(cache: Path, fail: bool = False) -> dict[str, Span]:
    """The spans of a run of two steps, made of its events."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    sink = tracing.Spans(provider)
    for event in recorded(cache, plan("a", step("x"), step("y", "x", fail=fail))):
        sink(event)
    return {span.name: span for span in exporter.get_finished_spans()}


def test_steps_lie_below_their_run(own_cache: Path) -> None:
    found = made(own_cache)
    assert set(found) == {"phipipe run", "x", "y"}
    root = found["phipipe run"]
    assert root.parent is None
    assert {found[name].parent.span_id for name in "xy"} == {root.context.span_id}
    assert found["x"].attributes["phipipe.bytes"] > 0
    assert found["x"].attributes["phipipe.cached"] is False
    assert root.attributes["phipipe.exit_code"] == 0
    assert all(span.status.is_unset for span in found.values())


def test_what_was_cached_is_no_span(own_cache: Path) -> None:
    made(own_cache)
    assert set(made(own_cache)) == {"phipipe run"}


def test_a_failure_is_an_error(own_cache: Path) -> None:
    found = made(own_cache, fail=True)
    assert not found["y"].status.is_ok
    assert found["y"].status.description == "y cannot"
    assert found["phipipe run"].attributes["phipipe.exit_code"] == 5


class Collector(http.server.BaseHTTPRequestHandler):
    got: ClassVar[list[ExportTraceServiceRequest]] = []
    answer = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.got.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(self.answer)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Collector.got.clear()
    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    yield url
    server.shutdown()
    server.server_close()


class Noting(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, line: str) -> None:
        self.said.append(line)


def test_a_collector_gets_the_spans(collector: str, own_cache: Path) -> None:
    recorded(own_cache, plan("a", step("x")))
    (request,) = Collector.got
    (resource,) = request.resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}[
        "service.name"
    ] == tracing.SERVICE
    assert {span.name for scope in resource.scope_spans for span in scope.spans} == {
        "phipipe run",
        "x",
    }


def test_a_collector_that_refuses_fails_no_run(
    collector: str,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Collector, "answer", 403)
    listener = Noting()
    with events.recorded(own_cache, "run", ["a"], listener):
        pass
    assert past_runs.find(own_cache, "latest").state == "ok"
    assert len(listener.said) == 1
    assert "could not be delivered" in listener.said[0]
    assert capsys.readouterr().err == ""


def test_nothing_is_sent_unasked(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    with tracing.spans(print, {}) as sinks:
        assert sinks == []
    with tracing.spans(
        print, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}
    ) as none:
        assert none == []


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with (
        pytest.raises(ToolchainError, match="OpenTelemetry") as error,
        tracing.spans(print, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}),
    ):
        pass
    assert "phipipe[otel]" in str(error.value.hint)
