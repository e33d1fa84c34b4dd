"""A real package behind the server, asked with OpenAI's own client."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from testing.places import QUICKSTART
from testing.served_package import STORY, TOKENS, Served
from testing.shell import Shell

from phipipe.hub import take

DEVICES = {
    "onnxruntime": ("cpu-x86_64", "int4"),
    "llamacpp": ("cpu-x86_64", "int4"),
    "openvino": ("cpu-x86_64", "int8"),
    "mlx": ("apple-silicon", "int4"),
    "litert": ("android-phone", "int8"),
    "torch": ("cpu-x86_64", "int8"),
}
DAILY = ("onnxruntime", "llamacpp")
FEW = ("evaluate.tokens=512", "measure={prompt_tokens: 32, new_tokens: 8, repetitions: 1}")
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}
SHOWS = "{% if tools %}{{ '<|system|>\\n' + (tools | tojson) + '<|end|>\\n' }}{% endif %}"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> Shell:
    return Shell(tmp_path_factory.mktemp("serving"), toolchains)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with a template that shows tools."""
    folder = tmp_path_factory.mktemp("source") / "model"
    shutil.copytree(take.BUILTIN_MODELS["tiny-phi3"], folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["chat_template"] = SHOWS + settings["chat_template"]
    path.write_text(json.dumps(settings), "utf-8")
    return folder


@pytest.fixture(
    scope="module",
    params=[
        one if one in DAILY else pytest.param(one, marks=pytest.mark.nightly) for one in DEVICES
    ],
)
def package(request: pytest.FixtureRequest, shell: Shell, source: Path) -> Path:
    """A package of the embedded model for each backend."""
    backend = request.param
    device, precision = DEVICES[backend]
    changes = (f"name={backend}", f"source={{path: {source}}}", f"backend={backend}",
               f"device={device}", f"precision={precision}", "quantize={}", *FEW)  # fmt: skip
    sets = [word for change in changes for word in ("--set", change)]
    shell("run", QUICKSTART, *sets)
    return shell.folder / "packages" / backend


@pytest.fixture(scope="module")
def served(shell: Shell, package: Path) -> Iterator[Served]:
    server = Served(shell, package)
    yield server
    if server.process.poll() is None:
        server.process.terminate()
        server.process.communicate(timeout=60)


def only(backend: str) -> Callable[[Any], Any]:
    """Tests of what no runtime has a part in."""
    return pytest.mark.parametrize("package", [backend], indirect=True, scope="module")


def test_the_answer_is_the_one_of_chat_whole_and_streamed_with_exact_counts(
    shell: Shell, served: Served, package: Path
) -> None:
    words = ("chat", package, "--prompt", STORY, "--tokens", str(TOKENS))
    printed = shell(*words).stdout.removesuffix("\n")
    whole = served.chat()
    assert whole.choices[0].message.content == printed
    assert whole.usage.completion_tokens <= TOKENS
    stream = list(served.chat(stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == printed
    assert len([piece for piece in pieces if piece]) > 5
    assert stream[-1].usage == whole.usage
    assert stream[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_eight_clients_at_once_get_what_one_alone_gets(served: Served) -> None:
    alone = served.chat().choices[0].message.content
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: served.chat().choices[0].message.content, range(8)))
    assert said == [alone] * 8


def test_stop_strings_seeds_and_long_prompts(served: Served) -> None:
    whole = served.chat().choices[0].message.content
    word = whole.split()[4]
    stopped = served.chat(stop=[word]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole.partition(word)[0], "stop")
    drawn = [
        served.chat(temperature=1.0, top_p=0.95, seed=seed).choices[0].message.content
        for seed in (5, 5, 6)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(openai.BadRequestError) as caught:
        served.chat("word " * 3000)
    assert caught.value.code == "context_length_exceeded"
    assert served.chat().choices[0].message.content == whole


def test_tools_are_shown_by_the_packages_own_template(served: Served) -> None:
    plain = served.chat(max_tokens=4).usage.prompt_tokens
    assert served.chat(max_tokens=4, tools=[TOOL]).usage.prompt_tokens > plain + 20
    assert served.chat(max_tokens=4, tools=[TOOL], tool_choice="none").usage.prompt_tokens == plain
    call = {"name": "look_up", "arguments": '{"word": "fox"}'}
    messages = [
        {"role": "user", "content": STORY},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "1", "content": "an animal"},
        {"role": "user", "content": "Go on."},
    ]
    assert served.chat(messages=messages, tools=[TOOL]).choices[0].finish_reason


@only("onnxruntime")
def test_what_is_wrong_reaches_the_client_as_its_own_errors(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["onnxruntime"]
    with pytest.raises(openai.NotFoundError) as missing:
        served.chat(model="gpt-4")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        served.chat(response_format={"type": "json_object"})
    assert caught.value.param == "response_format"
    text = served.client.completions.create(model="onnxruntime", prompt="Once", max_tokens=5)
    assert text.usage is not None
    assert text.usage.completion_tokens == 5


@only("onnxruntime")
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_model_that_is_killed_is_started_again_once(shell: Shell, package: Path) -> None:
    server = Served(shell, package)
    (model,) = psutil.Process(server.process.pid).children()
    model.suspend()  # or it may have answered before it is killed
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.chat)
        while not asked.running():
            time.sleep(0.01)
        time.sleep(1)  # for the question to be on its way; a model that is gone gives the same
        model.kill()
        with pytest.raises(openai.APIError, match="the model's process has ended"):
            asked.result()
    assert server.chat().choices[0].message.content
    assert server.end(signal.SIGTERM) == 0


@only("onnxruntime")
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_well_in_the_middle_of_an_answer(
    shell: Shell, package: Path, how: int
) -> None:
    server = Served(shell, package)
    stream = iter(server.chat(stream=True, max_tokens=1500))
    next(stream)
    start = time.monotonic()
    assert server.end(how) == 0
    assert time.monotonic() - start < 30


@only("onnxruntime")
def test_a_token_is_asked_for(shell: Shell, package: Path) -> None:
    token = "a-token-of-some-length"
    words = [sys.executable, "-m", "phipipe", "serve", str(package), "--port", "0"]
    server = subprocess.Popen(
        [*words, "--token-env", "SOME_KEY", "--context", "300"],
        stdout=subprocess.PIPE,
        env={**shell._env, "SOME_KEY": token},
        text=True,
        encoding="utf-8",
    )
    try:
        assert server.stdout is not None
        said = "".join(iter(server.stdout.readline, "stop     Ctrl-C\n"))
        assert "context 300 tokens" in said
        assert token not in said
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", said)
        assert found
        client = openai.OpenAI(base_url=found[0], api_key=token)
        assert client.models.list().data
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=found[0], api_key="x" * 20, max_retries=0).models.list()
        for child in psutil.Process(server.pid).children(recursive=True):
            if psutil.POSIX:
                assert "SOME_KEY" not in child.environ()
    finally:
        server.terminate()
        server.communicate(timeout=60)


@only("onnxruntime")
def test_python_serves_in_a_block(
    shell: Shell, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import phipipe

    before = set(psutil.Process().children(recursive=True))
    for name in ("PHIPIPE_CACHE", "PHIPIPE_TOOLCHAINS"):
        monkeypatch.setenv(name, shell._env[name])
    with phipipe.Package.open(package).serve() as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="none")
        answer = client.chat.completions.create(
            model=server.model, messages=[{"role": "user", "content": STORY}], max_tokens=5
        )
        assert answer.choices[0].message.content
        assert server.context == 2048
    assert set(psutil.Process().children(recursive=True)) <= before
    assert os.environ["PHIPIPE_CACHE"]
