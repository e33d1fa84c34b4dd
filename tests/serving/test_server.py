"""The whole server over a made-up model: what OpenAI's API promises, and what keeps strangers
out."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.served import MODEL, TOKEN, Bytes, Running, Serve, serving

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CHAT = "/v1/chat/completions"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    ended: list[Callable[[], None]] = []
    yield serving(monkeypatch, ended)
    for end in ended:
        end()


def content(document: dict[str, Any]) -> str:
    return str(document["choices"][0]["message"]["content"])


def error(document: dict[str, Any]) -> dict[str, Any]:
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    return dict(document["error"])


def test_a_chat_is_answered_whole_with_exact_counts(serve: Serve) -> None:
    running = serve()
    document = running.chat("say:Grüße 🙂")
    assert document["object"] == "chat.completion"
    assert document["model"] == MODEL
    (choice,) = document["choices"]
    assert choice["message"]["content"] == "Grüße 🙂"
    assert choice["finish_reason"] == "stop"
    prompt = len("<user>say:Grüße 🙂<assistant>".encode())
    answer = len("Grüße 🙂".encode()) + 1
    assert document["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }
    assert re.fullmatch(rf"chat  {prompt} \+ {answer} tokens \(stop\), \d\.\d s", running.notes[0])


def test_a_stream_is_the_same_answer_in_whole_characters(serve: Serve) -> None:
    running = serve()
    events = running.stream("say:Grüße 🙂", stream_options={"include_usage": True})
    *chunks, last = events
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == "Grüße 🙂"
    assert "🙂" in pieces
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert (reasons[-1], {*reasons[:-1]}) == ("stop", {None})
    assert last["choices"] == []
    assert last["usage"] == running.chat("say:Grüße 🙂")["usage"]
    assert all("usage" not in event for event in running.stream("say:x"))


def test_answers_are_cut_at_the_limit_the_usual_one_and_the_context(serve: Serve) -> None:
    running = serve(context=400)
    cut = running.chat("say:abcdef", max_tokens=3)
    assert (content(cut), cut["choices"][0]["finish_reason"]) == ("abc", "length")
    assert cut["usage"]["completion_tokens"] == 3
    at_end = running.chat("say:abc", max_tokens=4)
    assert (content(at_end), at_end["choices"][0]["finish_reason"]) == ("abc", "stop")
    usual = running.chat(f"say:{'x' * 250}")
    assert usual["usage"]["completion_tokens"] == 400 - 271  # what the context leaves
    assert running.chat("say:" + "é" * 5, max_tokens=5)["choices"][0]["finish_reason"] == "length"


def test_a_prompt_without_room_is_refused_as_clients_know_it(serve: Serve) -> None:
    messages = [{"role": "user", "content": "x" * 50}]
    status, document = serve(context=60).post(CHAT, messages=messages)
    told = error(document)
    assert status == 400
    assert (told["code"], told["param"]) == ("context_length_exceeded", "messages")
    assert "67 tokens" in told["message"]
    assert "60" in told["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_an_answer_though_tokens_split_them(serve: Serve, stream: bool) -> None:
    running = serve()

    def said(**more: Any) -> str:
        if not stream:
            return content(running.chat("say:one ENDING two", **more))
        events = running.stream("say:one ENDING two", **more)
        return "".join(e["choices"][0]["delta"].get("content", "") for e in events)

    assert said(stop="ENDING") == "one "
    assert said(stop=["ENDLESS", "two"]) == "one ENDING "
    assert said(stop=["nothing"]) == "one ENDING two"
    assert running.chat("say:one ENDING two", stop="ENDING")["usage"]["completion_tokens"] == 10


def test_tools_are_shown_and_calls_come_back(serve: Serve) -> None:
    running = serve()
    call = 'say:{"name": "look", "arguments": {"at": "sea"}}'
    (choice,) = running.chat(call, tools=[TOOL])["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {
        "name": "look",
        "arguments": '{"at": "sea"}',
    }
    assert b'"look"' in running.runtime.prompts[0]
    events = running.stream(call, tools=[TOOL])
    deltas = [event["choices"][0]["delta"] for event in events]
    (called,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert (called[0]["index"], called[0]["function"]["name"]) == (0, "look")
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert content(running.chat(call, tools=[TOOL], tool_choice="none")).startswith("{")
    assert b'"look", "parameters"' not in running.runtime.prompts[-1]


def test_a_template_that_shows_no_tools_or_refuses_is_a_bad_request(serve: Serve) -> None:
    running = serve(tokenizer=Bytes(shows=False))
    messages = [{"role": "user", "content": "hello"}]
    status, document = running.post(CHAT, messages=messages, tools=[TOOL])
    assert (status, error(document)["param"]) == (400, "tools")
    status, document = running.post(CHAT, messages=[{"role": "user", "content": "refuse me"}])
    assert (status, error(document)["param"]) == (400, "messages")
    assert "it must not be" in error(document)["message"]


def test_a_seed_draws_the_same(serve: Serve) -> None:
    running = serve()
    one, two = (content(running.chat("say:abc", temperature=2, seed=5)) for _ in range(2))
    assert one == two


def test_a_runtime_that_fails_is_the_servers_error_and_the_next_is_answered(serve: Serve) -> None:
    running = serve()
    for more in ({}, {"stream": True}):
        messages = [{"role": "user", "content": "say:fail"}]
        status, raw, _ = running.send(
            "POST", CHAT, json.dumps({"model": MODEL, "messages": messages, **more}).encode()
        )
        told = raw.decode("ascii").rpartition("data: ")[2]
        assert status == (200 if more else 500)
        assert "no such kernel" in error(json.loads(told))["message"]
        assert error(json.loads(told))["type"] == "server_error"
    assert content(running.chat("say:fine")) == "fine"


def test_a_text_is_continued(serve: Serve) -> None:
    running = serve(template=False)
    status, document = running.post("/v1/completions", prompt=["say:more"], max_tokens=3)
    assert (status, document["object"]) == (200, "text_completion")
    assert document["choices"][0]["text"] == "mor"
    assert document["usage"]["prompt_tokens"] == 8
    status, document = running.post(CHAT, messages=[{"role": "user", "content": "hello"}])
    assert (status, error(document)["param"]) == (400, "messages")
    assert "/v1/completions" in document["error"]["message"]
    body = {"model": MODEL, "prompt": "say:more", "stream": True}
    _, raw, _ = running.send("POST", "/v1/completions", json.dumps(body).encode())
    first = json.loads(raw.partition(b"\n")[0].removeprefix(b"data: "))
    assert first["choices"][0]["text"] == "m"


def test_what_is_there_and_what_is_not(serve: Serve) -> None:
    running = serve()
    assert running.send("GET", "/health")[:2] == (200, b'{"status": "ok"}')
    (model,) = json.loads(running.send("GET", "/v1/models")[1])["data"]
    assert (model["id"], model["object"], model["context_length"]) == (MODEL, "model", 1000)
    assert running.send("GET", f"/v1/models/{MODEL}")[0] == 200
    for method, path, status in (
        ("GET", "/v1/models/other", 404),
        ("GET", "/v2", 404),
        ("GET", CHAT, 405),
        ("POST", "/v1/embeddings", 404),
    ):
        found, raw, _ = running.send(method, path, b"{}")
        assert found == status
        error(json.loads(raw))


def test_eight_clients_at_once_get_the_same_answers_as_alone(serve: Serve) -> None:
    running = serve(pause_s=0.001)
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda i: content(running.chat(f"say:answer {i}")), range(24)))
    assert said == [f"answer {i}" for i in range(24)]


def test_beyond_the_line_clients_are_told_when_to_come_again(serve: Serve) -> None:
    running = serve(waiting=1, pause_s=0.05)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "say:" + "x" * 30}]}
    raw = json.dumps(body).encode()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: running.send("POST", CHAT, raw), range(6)))
    statuses = [status for status, _, _ in found]
    assert {200, 503} == set(statuses)
    turned = next(one for one in found if one[0] == 503)
    assert int(turned[2]["retry-after"]) > 0
    assert error(json.loads(turned[1]))["code"] == "busy"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_answer(serve: Serve, stream: bool) -> None:
    running = serve(pause_s=0.02)
    client = http.client.HTTPConnection("127.0.0.1", running.port)
    messages = [{"role": "user", "content": "say:" + "x" * 190}]
    body = json.dumps({"model": MODEL, "messages": messages, "stream": stream})
    client.request("POST", CHAT, body, {"Content-Type": "application/json"})
    while not running.runtime.made:
        time.sleep(0.01)
    assert client.sock is not None
    client.sock.shutdown(socket.SHUT_RDWR)
    client.close()
    assert content(running.chat("say:next")) == "next"
    assert running.runtime.made < 100


def test_who_waits_and_goes_away_is_never_answered(serve: Serve) -> None:
    running = serve(pause_s=0.02)
    first = threading.Thread(target=running.chat, args=("say:" + "x" * 40,))
    first.start()
    while not running.runtime.made:
        time.sleep(0.01)
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "say:never"}]})
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        time.sleep(0.2)
    first.join()
    assert content(running.chat("say:next")) == "next"
    assert not any(b"never" in prompt for prompt in running.runtime.prompts)


def test_the_end_of_the_server_ends_answers_with_a_word(serve: Serve) -> None:
    running = serve(pause_s=0.02)
    found: list[Any] = []
    messages = [{"role": "user", "content": "say:" + "x" * 190}]
    body = json.dumps({"model": MODEL, "messages": messages}).encode()
    asking = threading.Thread(target=lambda: found.append(running.send("POST", CHAT, body)))
    asking.start()
    while not running.runtime.made:
        time.sleep(0.01)
    running.server.close()
    asking.join(10)
    assert found[0][0] == 503
    assert error(json.loads(found[0][1]))["code"] == "ending"
    with pytest.raises(OSError):  # noqa: PT011 (refused, whatever a system calls that)
        running.send("GET", "/health")


# --- who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "", "127.0.0.1.evil.example"]
)
def test_another_name_for_this_machine_is_refused(serve: Serve, host: str) -> None:
    status, raw, _ = serve().send("GET", "/v1/models", headers={"Host": host})
    assert (status, error(json.loads(raw))["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080"])
def test_this_machines_own_names_are_answered(serve: Serve, host: str) -> None:
    assert serve().send("GET", "/v1/models", headers={"Host": host})[0] == 200


def test_a_token_is_asked_for_everywhere_but_at_health(serve: Serve) -> None:
    running = serve(token=TOKEN)
    assert running.send("GET", "/health")[0] == 200
    for header in (None, "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN, "Bearer \xff"):
        given_ = {} if header is None else {"Authorization": header}
        status, raw, headers = running.send("GET", "/v1/models", headers=given_)
        assert (status, error(json.loads(raw))["code"]) == (401, "invalid_api_key")
        assert headers["www-authenticate"] == "Bearer"
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert running.send("GET", "/v1/models", headers=right)[0] == 200


def test_pages_may_ask_only_where_they_are_allowed(serve: Serve) -> None:
    page = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    closed = serve(token=TOKEN)
    assert "access-control-allow-origin" not in closed.send("GET", "/health", headers=page)[2]
    assert closed.send("OPTIONS", CHAT, headers=page)[0] in (401, 405)
    opened = serve(origins=["http://page.example"], token=TOKEN)
    status, _, headers = opened.send("OPTIONS", CHAT, headers=page)
    assert (status, headers["access-control-allow-origin"]) == (200, "http://page.example")
    other = {**page, "Origin": "http://other.example"}
    assert opened.send("OPTIONS", CHAT, headers=other)[0] == 400


def test_a_body_that_a_page_may_send_unasked_is_refused(serve: Serve) -> None:
    status, raw, _ = serve().send("POST", CHAT, b"{}", {"Content-Type": "text/plain"})
    assert status == 415
    error(json.loads(raw))


def test_a_large_body_is_refused_before_it_is_read(serve: Serve) -> None:
    status, raw, _ = serve().send("POST", CHAT, b"x" * (5 * 2**20))
    assert status == 413
    error(json.loads(raw))


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
        max_leaves=6,
    )
)
def test_no_body_at_all_makes_the_server_stumble(body: Any) -> None:
    raw = (
        body if isinstance(body, bytes) else json.dumps({"model": MODEL, "messages": body}).encode()
    )
    status, told, _ = RUNNING[0].send("POST", CHAT, raw)
    assert 400 <= status < 500
    assert error(json.loads(told))["type"] == "invalid_request_error"


RUNNING: list[Running] = []


@pytest.fixture(autouse=True)
def _one_for_all_examples(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.originalname == "test_no_body_at_all_makes_the_server_stumble":
        RUNNING[:] = [request.getfixturevalue("serve")()]
    yield
    RUNNING.clear()
