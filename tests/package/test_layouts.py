"""Layouts: every file that an app's own code asks for is there, and says what the app reads."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing import app_packages, hostile_packages
from testing.kitchen import Kitchen

from phipipe import backends
from phipipe.errors import StepFailed, TargetError
from phipipe.evaluate import papers
from phipipe.package import gate_apps, layouts, package
from phipipe.package.export import Source, write
from phipipe.package.layout import Built
from phipipe.package.layouts import ai_dev_gallery, ai_edge_gallery, foundry_local, ovms

OF_BACKEND = {  # app → a backend that it opens
    "ai-dev-gallery": "onnxruntime",
    "ai-edge-gallery": "litert",
    "docker": "llamacpp",
    "foundry-local": "onnxruntime",
    "litert-lm": "litert",
    "llama-server": "llamacpp",
    "lm-studio": "llamacpp",
    "mlx-server": "mlx",
    "ollama": "llamacpp",
    "ovms": "openvino",
}
ASKED = {  # app → what its own code looks for, as the module's docstring says
    "ai-dev-gallery": {"phi-small/genai_config.json", "phi-small/model.onnx"},
    "ai-edge-gallery": {"model.litertlm", "model_allowlist_test.json"},
    "docker": {"model.gguf", "LICENSE"},
    "foundry-local": {"genai_config.json", "inference_model.json", "model.onnx"},
    "litert-lm": {"model.litertlm"},
    "llama-server": {"model.gguf"},
    "lm-studio": {"small.gguf"},
    "mlx-server": {"config.json", "model.safetensors", "tokenizer.json"},
    "ollama": {"Modelfile", "model.gguf"},
    "ovms": {
        "graph.pbtxt",
        "config.json",
        "openvino_model.xml",
        "openvino_model.bin",
        "openvino_tokenizer.xml",
        "openvino_detokenizer.xml",
    },
}


def opened(folder: Path) -> Source:
    """The package in ``folder``, for an export."""
    return Source.of(folder, package.open_(folder))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages by backend, which no test may change."""
    root = tmp_path_factory.mktemp("packages")
    return {name: app_packages.written(root / name, name) for name in app_packages.MORE}


def exported(folder: Path, app: str, target: Path) -> Path:
    written = write(opened(folder), app, target)
    assert written.folder == target
    return target


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_is_the_list_of_apps() -> None:
    assert set(layouts.names()) == set(OF_BACKEND)


@pytest.mark.parametrize("app", OF_BACKEND)
def test_a_layout_says_where_its_facts_are_from(app: str) -> None:
    layout = layouts.load(app)
    assert set(layout.backends) <= set(backends.names())
    assert set(layout.inside) <= {*papers.APPS, "Modelfile"}
    module = importlib.import_module(f"phipipe.package.layouts.{app.replace('-', '_')}")
    assert "What its code asks for (" in str(module.__doc__)


@pytest.mark.parametrize("app", OF_BACKEND)
def test_the_app_finds_every_file_that_it_asks_for(
    app: str, made: dict[str, Path], tmp_path: Path
) -> None:
    target = exported(made[OF_BACKEND[app]], app, tmp_path / "out")
    found = tree(target)
    assert found >= ASKED[app]
    assert any(name.endswith("LICENSE") for name in found)
    strange = {"manifest.json", "SHA256SUMS", "recipe.yaml", "README.md", "reference/tokens.npy"}
    assert not {Path(name).name for name in found} & {Path(name).name for name in strange}
    own = {p.name: p.read_bytes() for p in made[OF_BACKEND[app]].iterdir() if p.is_file()}
    same = [p for p in target.rglob("*") if p.is_file() and p.name in own and p.name != "Modelfile"]
    assert same
    assert all(p.read_bytes() == own[p.name] for p in same)


@pytest.mark.parametrize("app", OF_BACKEND)
def test_packages_of_other_backends_are_refused_with_what_would_do(app: str) -> None:
    layout = layouts.load(app)
    for backend in backends.names():
        objection = layout.objection(Built(backend=backend, api="cpu", options={}))
        assert (objection is None) == (backend in layout.backends)
        if objection:
            assert f"`{backend}`" in objection
            assert all(f"`backend: {name}`" in layout.remedy for name in layout.backends)


def test_an_unknown_app_is_named_with_what_it_may_have_meant() -> None:
    with pytest.raises(TargetError, match="did you mean `ollama`") as caught:
        layouts.load("olama")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("app", "built", "reason"),
    [
        ("litert-lm", Built(backend="litert", api="cpu", options={"format": "tflite"}), "bundles"),
        ("ai-edge-gallery", Built(backend="litert", api="gpu", options={}), "`gpu`"),
        ("ai-dev-gallery", Built(backend="onnxruntime", api="webgpu", options={}), "`webgpu`"),
        ("foundry-local", Built(backend="onnxruntime", api="cpu", options={}, sees=True), "text"),
        ("mlx-server", Built(backend="mlx", api="metal", options={}, sees=True), "text"),
        ("ovms", Built(backend="openvino", api="odd", options={}), "`odd`"),
    ],
)
def test_an_app_refuses_what_it_cannot_open(app: str, built: Built, reason: str) -> None:
    assert reason in str(layouts.load(app).objection(built))


@pytest.mark.parametrize("app", ["litert-lm", "ai-edge-gallery", "ollama", "ovms"])
def test_a_package_without_the_file_is_refused(
    app: str, made: dict[str, Path], tmp_path: Path
) -> None:
    gone = layouts.load(app).needs[-1]
    folder = hostile_packages.laid_out(made[OF_BACKEND[app]], tmp_path / "other", OF_BACKEND[app])
    (folder / gone).unlink()
    hostile_packages.sealed(folder)
    with pytest.raises(TargetError, match=re.escape(f"needs `{gone}`")):
        opened(folder).layout(app)


# -- what is made


def test_ollama_gets_the_licence_once(made: dict[str, Path], tmp_path: Path) -> None:
    text = (exported(made["llamacpp"], "ollama", tmp_path / "out") / "Modelfile").read_text("utf-8")
    assert text.startswith(app_packages.MODELFILE.decode())
    assert text.count('LICENSE """MIT License\n"""\n') == 1


def test_foundry_local_gets_the_prompt_of_the_models_own_template(
    made: dict[str, Path], tmp_path: Path
) -> None:
    target = exported(made["onnxruntime"], "foundry-local", tmp_path / "out")
    assert json.loads((target / "inference_model.json").read_text("utf-8")) == {
        "Name": "small:1",
        "PromptTemplate": {
            "assistant": "{Content}",
            "prompt": "<|user|>\n{Content}<|end|>\n<|assistant|>\n",
        },
    }


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}", "<s>{Content}"),
        ("{{ raise_exception('no') }}", None),
        ("{{ messages[0]['content'] | upper }}", None),
        ("{{ strftime_now('%Y') }}{{ messages[0]['content'] }}", None),
    ],
)
def test_foundry_local_gets_no_prompt_where_there_is_no_text_around_a_content(
    template: str, prompt: str | None, made: dict[str, Path], tmp_path: Path
) -> None:
    folder = hostile_packages.laid_out(made["onnxruntime"], tmp_path / "own", "onnxruntime")
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<s>"}))
    target = exported(hostile_packages.sealed(folder), "foundry-local", tmp_path / "out")
    index = json.loads((target / "inference_model.json").read_text("utf-8"))
    assert (index["PromptTemplate"] or {}).get("prompt") == prompt


def test_the_gallery_on_android_lists_the_bundle(made: dict[str, Path], tmp_path: Path) -> None:
    target = exported(made["litert"], "ai-edge-gallery", tmp_path / "out")
    listed = json.loads((target / ai_edge_gallery.LIST).read_text("utf-8"))
    (model,) = listed["models"]
    required = {"name", "modelId", "modelFile", "commitHash", "description", "sizeInBytes"}
    assert set(model) >= required | {"taskTypes", "minDeviceMemoryInGb", "defaultConfig"}
    assert model["sizeInBytes"] == (target / model["modelFile"]).stat().st_size
    assert model["localModelFilePathOverride"] == "/data/local/tmp/small.litertlm"
    commands = " ".join(write(opened(made["litert"]), "ai-edge-gallery", target).use.commands)
    assert f"adb push {model['modelFile']} {model['localModelFilePathOverride']}" in commands


@pytest.mark.parametrize(
    ("api", "device"), [("cpu", "CPU"), ("intel-gpu", "GPU"), ("intel-npu", "NPU")]
)
def test_the_model_server_gets_the_device_and_what_its_npu_compiles_in(
    api: str, device: str, tmp_path: Path
) -> None:
    lengths = {"prompt_length": 512, "response_length": 128}
    recipe = {"quantize": lengths if api == "intel-npu" else {}}
    folder = app_packages.written(tmp_path / "own", "openvino", api=api, recipe=recipe)
    graph = (exported(folder, "ovms", tmp_path / "out") / "graph.pbtxt").read_text("utf-8")
    assert f'device: "{device}"' in graph
    wanted = """plugin_config: '{"MAX_PROMPT_LEN": 512, "MIN_RESPONSE_LEN": 128}'"""
    assert (wanted in graph) is (api == "intel-npu")
    assert not list(gate_apps.problems(tmp_path / "out" / "graph.pbtxt", {}))


@pytest.mark.parametrize(
    ("template", "home"),
    [
        (app_packages.TEMPLATE, "phi-small"),
        ("<|start_header_id|>", "llama-small"),
        ("[INST]", "mistral-small"),
        ("<|im_start|>", "qwen-small"),
        ("<start_of_turn>", "gemma-small"),
        ("<|im_start|><|im_sep|>", None),
        ("plain", None),
    ],
)
def test_the_gallery_on_windows_is_told_the_family_by_the_folders_name(
    template: str, home: str | None, made: dict[str, Path], tmp_path: Path
) -> None:
    folder = hostile_packages.laid_out(made["onnxruntime"], tmp_path / "own", "onnxruntime")
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    source = opened(hostile_packages.sealed(folder))
    target = tmp_path / "out"
    if home is None:
        with pytest.raises(TargetError, match="no prompt template like this model's"):
            write(source, "ai-dev-gallery", target)
        return
    # pytest's folders are called after the test, and this one has no family in its name
    assert not any(word in str(target).lower() for word in ai_dev_gallery.ORDER)
    write(source, "ai-dev-gallery", target)
    assert [path.name for path in target.iterdir()] == [home]


def test_a_path_that_the_gallery_takes_for_another_family_is_refused(
    made: dict[str, Path], tmp_path: Path
) -> None:
    folder = hostile_packages.laid_out(made["onnxruntime"], tmp_path / "own", "onnxruntime")
    (folder / "chat_template.jinja").write_text("<|im_start|>", "utf-8")
    source = opened(hostile_packages.sealed(folder))
    with pytest.raises(TargetError, match="would take it for a phi model"):
        write(source, "ai-dev-gallery", tmp_path / "phipipe" / "out")
    assert not (tmp_path / "phipipe").exists()


def test_names_of_licences_are_quoted_where_a_shell_reads_them(
    made: dict[str, Path], tmp_path: Path
) -> None:
    folder = hostile_packages.laid_out(made["llamacpp"], tmp_path / "own", "llamacpp")
    (folder / "LICENSE $(touch x)").write_text("odd")
    source = opened(hostile_packages.sealed(folder))
    (package_it, _) = write(source, "docker", tmp_path / "out").use.commands
    assert """--license "$PWD"/'LICENSE $(touch x)'""" in package_it


# -- what packages hold themselves


def cooked(root: Path, *apps: str) -> Path:
    kitchen = Kitchen(root)
    if apps:
        kitchen.params["apps"] = {name: layouts.load(name).version for name in apps}
        kitchen.params["recipe"]["package"] = {"for": list(apps)}
    return kitchen.cook()


def test_a_package_for_an_app_holds_what_the_app_wants_and_is_verified(tmp_path: Path) -> None:
    plain, ready = cooked(tmp_path / "plain"), cooked(tmp_path / "ready", "foundry-local")
    assert tree(ready) - tree(plain) == {"inference_model.json"}
    assert package.verify(ready) == []
    assert papers.is_paper(Path("inference_model.json"))  # it has the size that it has without
    target = exported(ready, "foundry-local", tmp_path / "out")
    made = (target / "inference_model.json").read_bytes()
    assert made == (ready / "inference_model.json").read_bytes()
    assert "for:\n  - foundry-local" in (ready / "recipe.yaml").read_text("utf-8")


def test_the_card_says_how_to_use_the_package_in_each_app_that_opens_it(tmp_path: Path) -> None:
    text = (cooked(tmp_path / "kitchen") / "README.md").read_text("utf-8")
    assert re.findall(r"^### Use it in (.*)$", text, re.MULTILINE) == [
        "AI Dev Gallery",
        "Foundry Local",
    ]
    assert 'name = "quickstart:1"' in text
    assert 'local.register_model(".", name, task)' in text


def test_an_app_that_cannot_open_the_package_stops_it(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="Ollama opens packages of `llamacpp`"):
        cooked(tmp_path / "kitchen", "ollama")


def graph(*options: str) -> bytes:
    inside = "".join(f"      {one}\n" for one in ('models_path: "./"', *options))
    return (ovms.HEAD + inside + ovms.TAIL).encode()


def index(**changed: Any) -> bytes:
    whole = {"Name": "small:1", "PromptTemplate": None, **changed}
    return json.dumps(whole).encode()


def listing(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(own: bytes) -> bytes:
        whole = json.loads(own)
        change(whole["models"][0])
        return json.dumps(whole).encode()

    return changed


HOSTILE: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("openvino", ovms.GRAPH, lambda own: b""),
    ("openvino", ovms.GRAPH, lambda own: own.replace(b'"./"', b'"/etc"')),
    ("openvino", ovms.GRAPH, lambda own: own.replace(b"HttpLLM", b"Python")),
    ("openvino", ovms.GRAPH, lambda own: own + own),
    ("openvino", ovms.GRAPH, lambda own: graph('draft_models_path: "./"')),
    ("openvino", ovms.GRAPH, lambda own: graph('device: "HETERO:GPU"')),
    ("openvino", ovms.GRAPH, lambda own: graph("""plugin_config: '{"CACHE_DIR": 1}'""")),
    ("openvino", ovms.GRAPH, lambda own: graph("""plugin_config: '{"MAX_PROMPT_LEN": -1}'""")),
    ("openvino", ovms.GRAPH, lambda own: graph("""plugin_config: '{{]}'""")),
    ("openvino", ovms.GRAPH, lambda own: graph('device: "CPU"', 'device: "GPU"')),
    ("openvino", ovms.GRAPH, lambda own: own + b"# " + b"x" * 2**17),
    ("onnxruntime", foundry_local.INDEX, lambda own: index(Url="https://evil.example")),
    ("onnxruntime", foundry_local.INDEX, lambda own: index(Name="../up:1")),
    ("onnxruntime", foundry_local.INDEX, lambda own: index(PromptTemplate="x")),
    ("onnxruntime", foundry_local.INDEX, lambda own: index(PromptTemplate={"prompt": "{Content}"})),
    (
        "onnxruntime",
        foundry_local.INDEX,
        lambda own: index(PromptTemplate={"prompt": "no content", "assistant": "{Content}"}),
    ),
    ("onnxruntime", foundry_local.INDEX, lambda own: b"[]"),
    ("litert", ai_edge_gallery.LIST, listing(lambda m: m.update(url="https://evil.example"))),
    ("litert", ai_edge_gallery.LIST, listing(lambda m: m.update(modelFile="../other"))),
    ("litert", ai_edge_gallery.LIST, listing(lambda m: m.update(sizeInBytes=1))),
    ("litert", ai_edge_gallery.LIST, listing(lambda m: m.update(taskTypes=["llm_agent_chat"]))),
    ("litert", ai_edge_gallery.LIST, listing(lambda m: m.update(commitHash="main"))),
    ("litert", ai_edge_gallery.LIST, listing(lambda m: m["defaultConfig"].update(topK=0))),
    (
        "litert",
        ai_edge_gallery.LIST,
        listing(lambda m: m.update(localModelFilePathOverride="/data/data/other/file")),
    ),
    ("litert", ai_edge_gallery.LIST, lambda own: b'{"models": []}'),
]
OF_FILE = {
    ovms.GRAPH: "ovms",
    foundry_local.INDEX: "foundry-local",
    ai_edge_gallery.LIST: "ai-edge-gallery",
}


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_file_for_an_app_that_phipipe_never_writes_is_refused(
    number: int, made: dict[str, Path], tmp_path: Path
) -> None:
    backend, name, change = HOSTILE[number]
    own = (exported(made[backend], OF_FILE[name], tmp_path / "out") / name).read_bytes()
    folder = hostile_packages.laid_out(made[backend], tmp_path / "own", backend)
    (folder / name).write_bytes(own)
    assert package.verify(hostile_packages.sealed(folder)) == []
    (folder / name).write_bytes(change(own))
    found = package.verify(hostile_packages.sealed(folder))
    assert [finding.path for finding in found][:1] == [name]


@pytest.mark.parametrize(("file", "app"), OF_FILE.items())
def test_a_file_for_an_app_lies_only_in_packages_that_the_app_opens(
    file: str, app: str, made: dict[str, Path], tmp_path: Path
) -> None:
    own = (exported(made[OF_BACKEND[app]], app, tmp_path / "out") / file).read_bytes()
    folder = hostile_packages.laid_out(made["mlx"], tmp_path / "own", "mlx")
    (folder / file).write_bytes(own)
    (found,) = package.verify(hostile_packages.sealed(folder))
    assert "no file that `mlx` packages have" in found.message


@given(line=st.text(max_size=40), place=st.integers(0, 40))
def test_a_line_more_in_a_graph_is_refused(line: str, place: int, tmp_path: Path) -> None:
    whole = graph('device: "CPU"').decode().splitlines()
    whole.insert(place, line)
    (tmp_path / ovms.GRAPH).write_text("\n".join(whole) + "\n", "utf-8", newline="\n")
    try:
        found = list(gate_apps.problems(tmp_path / ovms.GRAPH, {}))
    except UnicodeError:
        return
    assert found


@given(value=st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_no_value_in_a_list_of_models_is_a_surprise(value: Any, tmp_path: Path) -> None:
    for whole in ({"models": value}, {"models": [value]}, {"models": [{"modelFile": value}]}):
        (tmp_path / ai_edge_gallery.LIST).write_text(json.dumps(whole), "utf-8")
        assert list(gate_apps.problems(tmp_path / ai_edge_gallery.LIST, {}))
