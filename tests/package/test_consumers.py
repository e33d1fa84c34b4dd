"""The apps' own programs open packages and exports, and answer what `phipipe chat` answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from testing import consumers
from testing.shell import Shell

PROMPT = "Where is the key?"
TOKENS = 32
RECIPE = """
name: apps
source: {builtin: tiny-phi3}
device: cpu-x86_64
precision: int4
weights: none
evaluate: {text: {builtin: stories}, tokens: 512, window: 128}
measure: {prompt_tokens: 16, new_tokens: 8, repetitions: 1}
matrix:
  - {name: onnxruntime, package: {for: [foundry-local]}}
  - {name: llamacpp, backend: llamacpp, package: {for: [ollama]}}
  - {name: openvino, backend: openvino, package: {for: [ovms]}}
  - {name: mlx, backend: mlx, device: apple-silicon}
  - {name: litert, backend: litert, device: android-phone, precision: int8,
     package: {for: [ai-edge-gallery]}}
"""
FOUNDRY = """
from foundry_local_sdk import MessageItem, Request, RequestOptions, SearchOptions
search = SearchOptions(max_output_tokens={tokens}, do_sample=False)
session.set_options(RequestOptions(search=search))
answer = session.process_request(Request().add_item(MessageItem.user({prompt!r})))
print("ANSWER", "".join(item.get_simple_text() for item in answer))
"""
OPENVINO = """
import sys, openvino_genai
pipeline = openvino_genai.LLMPipeline(".", "CPU")
pipeline.start_chat()
print("ANSWER", pipeline.generate(sys.argv[1], max_new_tokens=int(sys.argv[2]), do_sample=False))
"""
# Names, numbers and kinds of fields as the server's own definitions have them: its
# llm_calculator.proto, mediapipe's calculator.proto and sync_set_input_stream_handler.proto.
GRAPH = """
import sys
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, text_format
F = descriptor_pb2.FieldDescriptorProto
file = descriptor_pb2.FileDescriptorProto(
    name="graph.proto", package="mediapipe", syntax="proto2",
    dependency=["google/protobuf/any.proto"])
def message(name, *fields):
    made = file.message_type.add(name=name)
    for name, number, kind, many in fields:
        field = made.field.add(name=name, number=number)
        field.label = F.LABEL_REPEATED if many else F.LABEL_OPTIONAL
        if isinstance(kind, str):
            field.type, field.type_name = F.TYPE_MESSAGE, kind
        else:
            field.type = kind
    return made
message("InputStreamInfo", ("tag_index", 1, F.TYPE_STRING, 0), ("back_edge", 2, F.TYPE_BOOL, 0))
message("MediaPipeOptions").extension_range.add(start=20000, end=2**29)
message("InputStreamHandlerConfig", ("input_stream_handler", 1, F.TYPE_STRING, 0),
        ("options", 3, ".mediapipe.MediaPipeOptions", 0))
message("Node", ("name", 1, F.TYPE_STRING, 0), ("calculator", 2, F.TYPE_STRING, 0),
        ("input_stream", 3, F.TYPE_STRING, 1), ("output_stream", 4, F.TYPE_STRING, 1),
        ("input_side_packet", 5, F.TYPE_STRING, 1), ("node_options", 8, ".google.protobuf.Any", 1),
        ("input_stream_handler", 11, ".mediapipe.InputStreamHandlerConfig", 0),
        ("input_stream_info", 13, ".mediapipe.InputStreamInfo", 1))
message("CalculatorGraphConfig", ("node", 1, ".mediapipe.Node", 1),
        ("input_stream", 10, F.TYPE_STRING, 1), ("output_stream", 15, F.TYPE_STRING, 1))
message("LLMCalculatorOptions", ("models_path", 1, F.TYPE_STRING, 0),
        ("device", 6, F.TYPE_STRING, 0), ("plugin_config", 7, F.TYPE_STRING, 0),
        ("enable_prefix_caching", 10, F.TYPE_BOOL, 0))
sync = message("SyncSetInputStreamHandlerOptions",
               ("sync_set", 1, ".mediapipe.SyncSetInputStreamHandlerOptions.SyncSet", 1))
inner = sync.nested_type.add(name="SyncSet")
inner.field.add(name="tag_index", number=1, type=F.TYPE_STRING, label=F.LABEL_REPEATED)
ext = sync.extension.add(name="ext", number=104445500, type=F.TYPE_MESSAGE,
                         label=F.LABEL_OPTIONAL, extendee=".mediapipe.MediaPipeOptions")
ext.type_name = ".mediapipe.SyncSetInputStreamHandlerOptions"
pool = descriptor_pool.DescriptorPool()
pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
pool.Add(file)
kinds = message_factory.GetMessageClassesForFiles(["graph.proto"], pool)
config = kinds["mediapipe.CalculatorGraphConfig"]()
text_format.Parse(open("graph.pbtxt", encoding="utf-8").read(), config, descriptor_pool=pool)
(node,) = config.node
options = kinds["mediapipe.LLMCalculatorOptions"]()
options.ParseFromString(node.node_options[0].value)
print("ANSWER", node.calculator, list(node.input_side_packet), options.models_path, options.device)
"""


@pytest.fixture(scope="module")
def shell(toolchains: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("apps"), toolchains)


@pytest.fixture(scope="module")
def packages(shell: Shell) -> dict[str, Path]:
    """A package of each backend, by its name."""
    recipe = shell.folder / "apps.yaml"
    recipe.write_text(RECIPE, "utf-8")
    shell("run", recipe, timeout=1500)
    return {
        path.name.removeprefix("apps-"): path for path in (shell.folder / "packages").glob("apps-*")
    }


@pytest.fixture(scope="module")
def answers(packages: dict[str, Path], shell: Shell) -> Callable[[str], str]:
    """What `phipipe chat` says."""

    def answer(backend: str) -> str:
        words = ("--prompt", PROMPT, "--tokens", str(TOKENS))
        return str(shell("chat", packages[backend], *words).stdout).strip()

    return answer


def said(command: list[str | Path], folder: Path, **environment: str) -> str:
    """What a program in ``folder`` prints after ANSWER."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.rpartition("ANSWER ")[2].strip()


def use(shell: Shell, package: Path, app: str) -> dict[str, Any]:
    rows = json.loads(shell("apps", package, "--json").stdout)
    (row,) = [row for row in rows if row["app"] == app]
    assert row["fits"], row["why"]
    return dict(row)


def intact(shell: Shell, package: Path) -> bool:
    return "complete and unchanged" in shell("verify", package).stdout


@contextmanager
def serving(command: list[str | Path], folder: Path, **environment: str) -> Iterator[None]:
    """A server in ``folder``, which ends with this block."""
    with (folder.parent / "server.log").open("w+", encoding="utf-8") as log:
        server = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read())
            raise
        finally:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def asked(port: int, more: Mapping[str, Any]) -> str:
    """The server's answer, greedily; waits until it listens."""
    messages = [{"role": "user", "content": PROMPT}]
    body = {"messages": messages, "temperature": 0, "max_tokens": TOKENS, **more}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"]).strip()
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.5)


def test_packages_made_for_apps_are_whole(packages: dict[str, Path], shell: Shell) -> None:
    assert (packages["onnxruntime"] / "inference_model.json").is_file()
    assert (packages["openvino"] / "graph.pbtxt").is_file()
    assert (packages["litert"] / "model_allowlist_test.json").is_file()
    assert "LICENSE" in (packages["llamacpp"] / "Modelfile").read_text("utf-8")
    assert all(intact(shell, package) for package in packages.values())


@pytest.mark.parametrize("exported", [False, True])
def test_foundry_local_answers_as_the_package_does(
    exported: bool,
    packages: dict[str, Path],
    answers: Callable[[str], str],
    shell: Shell,
    toolchains: Path,
) -> None:
    folder = packages["onnxruntime"]
    row = use(shell, folder, "foundry-local")
    if exported:
        words = ("--for", "foundry-local", "--to", "out/foundry", "--json")
        (row,) = json.loads(shell("export", folder, *words).stdout)
        folder = shell.folder / row["folder"]
    program = "\n".join(row["commands"]) + FOUNDRY.format(tokens=TOKENS, prompt=PROMPT)
    python = consumers.installed(toolchains, *consumers.FOUNDRY) / "python"
    own = str(shell.folder / f"home-{exported}")
    home = {"HOME": own, "USERPROFILE": own}
    for _ in range(2):  # it is registered already, the second time
        assert said([python, "-c", program], folder, **home) == answers("onnxruntime")
    assert intact(shell, packages["onnxruntime"])


def test_litert_lm_answers_as_the_package_does(
    packages: dict[str, Path], answers: Callable[[str], str], shell: Shell, toolchains: Path
) -> None:
    folder = packages["litert"]
    install, command = use(shell, folder, "litert-lm")["commands"]
    assert install == "pip install litert-lm"
    program, *words = command.replace('"Tell me a short story about a fox."', "PROMPT").split()
    words = [PROMPT if word == "PROMPT" else word for word in words]
    tool = consumers.installed(toolchains, *consumers.LITERT_LM) / program
    home = {"HOME": str(shell.folder), "USERPROFILE": str(shell.folder)}
    greedy = ["--temperature", "0", "--top-k", "1"]
    assert said([tool, *words, *greedy], folder, **home) == answers("litert")
    assert intact(shell, folder)


def test_a_server_of_llama_cpp_answers_as_the_package_does(
    packages: dict[str, Path],
    answers: Callable[[str], str],
    shell: Shell,
    python_of: Callable[[str], Path],
    toolchains: Path,
) -> None:
    (done,) = json.loads(
        shell(
            "export", packages["llamacpp"], "--for", "llama-server", "--to", "out/llama", "--json"
        ).stdout
    )
    folder, port = shell.folder / done["folder"], free_port()
    words = done["commands"][0].split()
    settings = dict(zip(words[1::2], words[2::2], strict=True))
    command = [
        *(python_of("llamacpp"), "-m", "llama_cpp.server", "--model", settings["--model"]),
        *("--n_ctx", settings["--ctx-size"], "--model_alias", settings["--alias"]),
        *("--port", str(port)),
    ]
    web = consumers.site_packages(consumers.installed(toolchains, *consumers.SERVER))
    with serving(command, folder, PYTHONPATH=str(web)):
        assert asked(port, {"model": settings["--alias"]}) == answers("llamacpp")


def test_mlx_server_answers_as_the_package_does(
    packages: dict[str, Path],
    answers: Callable[[str], str],
    shell: Shell,
    python_of: Callable[[str], Path],
) -> None:
    folder, port = packages["mlx"], free_port()
    install, command = use(shell, folder, "mlx-server")["commands"]
    assert install == "pip install mlx-lm"
    program, *words = command.replace("8080", str(port)).split()
    server = [python_of("mlx").parent / program, *words]
    with serving(server, folder, HF_HUB_OFFLINE="1"):
        assert asked(port, {}) == answers("mlx")
    assert intact(shell, folder)


def test_openvino_genai_answers_from_the_layout_of_the_model_server(
    packages: dict[str, Path],
    answers: Callable[[str], str],
    shell: Shell,
    python_of: Callable[[str], Path],
) -> None:
    shell("export", packages["openvino"], "--for", "ovms", "--to", "out/ovms")
    folder, python = shell.folder / "out" / "ovms", python_of("openvino")
    assert said([python, "-c", OPENVINO, PROMPT, str(TOKENS)], folder) == answers("openvino")
    found = said([python, "-c", GRAPH], folder)
    assert found == "HttpLLMCalculator ['LLM_NODE_RESOURCES:llm'] ./ CPU"
    assert (folder / "graph.pbtxt").read_bytes() == (
        packages["openvino"] / "graph.pbtxt"
    ).read_bytes()
