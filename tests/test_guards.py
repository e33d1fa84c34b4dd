"""Rules about the code itself: imports point down, the parent stays light, nothing private
leaks."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from testing.places import ROOT, TESTS

import phipipe
from phipipe import backends

PACKAGE = Path(phipipe.__file__).parent
HEAVY = {
    "torch",
    "transformers",
    "onnxruntime",
    "onnxruntime_genai",
    "onnx",
    "onnx_ir",
    "numpy",
    "safetensors",
}
HEAVY |= {
    "openvino",
    "nncf",
    "optimum",
    "mlx",
    "mlx_lm",
    "llama_cpp",
    "gguf",
    "auto_round",
    "olive",
    "plotly",
}
HEAVY |= {"tokenizers", "sentencepiece", "huggingface_hub", "prefect"}
HEAVY |= {
    "litert_torch",
    "ai_edge_litert",
    "ai_edge_quantizer",
    "litert_lm_builder",
    "litert_lm",
    "tensorflow",
}

# A module may import from its own layer or from one below it.
LAYERS = (
    {
        "errors",
        "file_names",
        "hardware",
        "interrupts",
        "metrics",
        "progress",
        "steps",
        "words",
        "pages",
        "sockets",
        "streams",
        "visible",
        "children",
    },
    {
        "json_files",
        "launcher",
        "prohibitions",
        "aside",
        "chat_screen",
        "several",
        "output",
        "output_lists",
    },
    {"code_keys", "config_check", "remarks", "weights"},
    {
        "gate_genai",
        "gate_reference",
        "peek_gguf",
        "peek_litert",
        "peek_modelfile",
        "peek_onnx",
        "peek_openvino",
    },
    {"user_paths", "worker"},
    {"document", "keys", "settings", "transfer_failures", "changed", "room", "published"},
    {"exchange"},
    {"transfer"},
    {"overlay"},
    {"variants"},
    {"collect", "refusals", "limited_child", "template_files"},
    {"claims", "store_folder", "downloads", "records"},
    {"exports", "pins", "quarantine", "trees"},
    {"collection", "verification"},
    {"limited"},
    {"chat_templates"},
    {"recipe", "family"},
    {"foreign", "layouts", "tokenizer_files"},
    {"models"},
    {"device", "fit", "store", "schema"},
    {"hub_client"},
    {"hub_cache", "toolchain_contents", "uv_settings"},
    {"hub_parts", "toolchain_installation"},
    {"hub_view"},
    {
        "backends",
        "outside",
        "rules",
        "group_rules",
        "onnx_graph",
        "onnx_links",
        "onnx_quantize",
        "mapped",
        "first_layers",
        "text_files",
        "vision",
        "vision_tower",
        "vision_siglip",
        "vision_lora",
        "onnx_vision",
        "openvino_vision",
        "onnx_session",
        "olive_passes",
        "olive_checkpoint",
        "llama_gguf",
        "llama_imatrix",
        "llama_modelfile",
        "litert_file",
        "litert_session",
        "llama_session",
        "openvino_compress",
        "openvino_eyes",
        "openvino_clip",
        "openvino_siglip",
        "openvino_graph",
        "openvino_session",
        "torch_checkpoint",
        "layerwise",
        "transformers_tokenizer",
        "static_graph",
        "static_session",
        "static_weights",
        "qnn_calibration",
        "qnn_pipeline",
        "qnn_graph",
    },
    {"bucket"},
    {"blobs", "turns"},
    {"remote", "pin", "remote_store", "venue"},
    {
        "hub",
        "evaluate",
        "vision_scoring",
        "measure",
        "package",
        "card",
        "manifest",
        "manifest_schema",
        "description",
        "markdown",
        "reports",
        "sanity",
        "original",
        "gates",
        "gate",
        "leaks",
        "toolchain",
        "lock",
        "chat",
        "report",
        "remedies",
        "picks",
        "board",
        "board_entry",
        "board_file",
        "board_columns",
        "board_html",
        "board_text",
        "reference",
    },
    {"scoring", "tracing", "event_words"},
    {"past_runs"},
    {"targets"},
    {"plan"},
    {"plans", "starter", "checked"},
    {"watch", "endings", "cluster_dask", "cluster_resources"},
    {"process", "cluster_placement"},
    {"results", "servers", "tools"},
    {"why"},
    {"executor", "chat_process"},
    {"nodes"},
    {"installs", "todo", "deliveries", "manner"},
    {"cluster_worker"},
    {"cluster_scheduler"},
    {"cluster"},
    {"schedule"},
    {"preflight"},
    {"checks", "explain"},
    {
        "show",
        "events",
        "again",
        "package_original",
        "catalogue",
        "comparison",
        "support",
        "selection",
        "timetable",
        "hooks",
    },
    {"schemas", "listing_text", "answers"},
    {"batch", "accept", "batch_folder"},
    {"batch_report", "batch_pages", "junit"},
    {"console", "uncaught"},
    {"flow"},
    {"upkeep", "nightly", "listings"},
    {"cli"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "assets" not in p.parts)


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def runtime_imports(tree: ast.AST) -> set[str]:
    """phipipe modules that ``tree`` imports when it is run (not the ones under TYPE_CHECKING)."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "phipipe"
        ):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        found |= runtime_imports(node)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = layer_of(path)
    if own in {"__init__", "__main__", "toolchains"}:
        return
    assert own in RANK, f"{own} has no layer yet"
    above = {
        n
        for n in runtime_imports(ast.parse(path.read_text("utf-8")))
        if RANK.get(n, -1) > RANK[own]
    }
    assert not above


@pytest.mark.parametrize("name", backends.names())
def test_backends_import_light(name: str) -> None:
    assert not imported(f"from phipipe import backends; backends.load({name!r})") & HEAVY


@pytest.mark.parametrize(
    "words",
    [["--help"], ["validate", "recipes/quickstart.yaml"], ["plan", "recipes/quickstart.yaml"]],
)
def test_the_parent_never_imports_a_toolchain(words: list[str]) -> None:
    code = f"import sys; sys.argv = ['phipipe', *{words!r}]\nfrom phipipe.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass"
    assert not imported(code) & HEAVY


def test_what_toolchains_import_needs_little() -> None:
    """Not every toolchain has what the parent has."""
    assert not imported("import phipipe.hub") & {
        *HEAVY,
        "filelock",
        "yaml",
        "platformdirs",
        "click",
    }


def imported(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``code``."""
    probe = (
        f"{code}\nimport json, sys; print('\\n' + json.dumps(sorted({{m.split('.')[0] for m "
        f"in sys.modules}})))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(json.loads(answer.stdout.splitlines()[-1]))


def test_no_file_names_a_registry_or_a_path_of_some_machine() -> None:
    hosts = "|".join(
        (
            "py" + "pi[.]org",
            "python" + "hosted[.]org",
            "npm" + "js[.]org",
            "/ro" + "ot/",
            "/wo" + "rk/",
        )
    )
    listed = subprocess.run(
        ["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    names = [name for name in listed.split("\0") if name]
    assert "uv.lock" not in names
    texts = {n: (ROOT / n).read_bytes() for n in names if (ROOT / n).is_file()}
    assert not [name for name, text in texts.items() if re.search(hosts.encode(), text)]


def test_functions_and_files_stay_small() -> None:
    """Budgets are guides; this is the point where a reader would give up."""
    long_files = {
        p.name: n for p in modules() if (n := len(p.read_text("utf-8").splitlines())) > 480
    }
    assert not long_files
    long_functions = [
        f"{path.name}:{node.name}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > 60
    ]
    assert not long_functions


OPENING = {
    "open",
    "fdopen",
    "read_text",
    "write_text",
    "TextIOWrapper",
    "NamedTemporaryFile",
    "TemporaryFile",
}
STARTING = {"run", "Popen", "check_output", "check_call", "call"}


def nameless(call: ast.Call) -> str | None:
    """The function of ``call`` if it opens text in whatever encoding the system has; that differs
    between systems."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg for keyword in call.keywords}
    words = {str(value.value) for value in ast.walk(call) if isinstance(value, ast.Constant)}
    if name in STARTING and named & {"text", "universal_newlines"} and "encoding" not in named:
        return name
    if name == "TextIOWrapper" and len(call.args) > 1:
        return None
    if name not in OPENING or "encoding" in named or words & {"utf-8", "ascii"}:
        return None
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    modes = {word for word in words if set(word) <= set("rwxab+t") and word}
    if name in ("NamedTemporaryFile", "TemporaryFile"):
        return name if any("b" not in mode for mode in modes) else None  # binary by default
    if name in ("open", "fdopen") and (
        (owner == "os" and name == "open") or any("b" in mode for mode in modes)
    ):
        return None
    runtimes = {
        "archive",
        "backend",
        "face",
        "Image",
        "Images",
        "genai.Images",
        "torch",
        "backends.load('torch')",
    }
    opens_a_model = owner in runtimes or owner.startswith("backends.load")
    return None if name == "open" and opens_a_model else name


@pytest.mark.parametrize(
    "path", [*modules(), *sorted((ROOT / "benchmarks").glob("*.py"))], ids=lambda p: p.name
)
def test_every_text_is_opened_in_a_named_encoding(path: Path) -> None:
    calls = [
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    ]
    assert not [f"{found} in line {call.lineno}" for call in calls if (found := nameless(call))]


def test_the_guard_of_encodings_knows_them() -> None:
    bad = [
        "open(p)",
        "p.open('w')",
        "p.read_text()",
        "p.write_text(t)",
        "subprocess.run(c, text=True)",
        "os.fdopen(1)",
    ]
    bad += ["tempfile.NamedTemporaryFile('w')", "p.open()", "io.TextIOWrapper(b)"]
    good = [
        "p.open('rb')",
        "open(p, 'r+b')",
        "p.read_text('utf-8')",
        "subprocess.run(c, text=True, encoding='utf-8')",
    ]
    good += [
        "tempfile.TemporaryFile()",
        "os.open(p, 0)",
        "p.write_text(t, encoding='utf-8')",
        "backend.open(folder)",
    ]
    calls = {text: ast.parse(text, mode="eval").body for text in (*bad, *good)}
    assert [
        text for text, call in calls.items() if isinstance(call, ast.Call) and nameless(call)
    ] == bad


@pytest.mark.parametrize("name", ["cli", "nightly", "upkeep"])
def test_commands_print_through_the_console_alone(name: str) -> None:
    """There strangers' text becomes visible, and there it is made fit for the stream's encoding."""
    text = (PACKAGE / f"{name}.py").read_text("utf-8")
    assert not re.search(
        r"click\.(s?echo|secho)\(|(?<![\w.])print\(|sys\.std(out|err)\.write", text
    )


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda p: p.name)
def test_no_test_imports_another_test(path: Path) -> None:
    """What files share lies in ``testing``, fixtures in ``testing.fixtures``."""
    text = path.read_text("utf-8")  # programs in strings import, too
    imported = re.findall(
        r"^\s*(?:from|import) +((?:test_\w+|conftest)\b|\w+_driver\b)", text, re.M
    )
    assert imported == []
