"""Rules about the code itself: imports point down, the parent stays light, nothing private
leaks."""

from __future__ import annotations

import ast
import graphlib
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
}
HEAVY |= {"tokenizers", "sentencepiece", "huggingface_hub", "prefect"}
HEAVY |= {
    "litert_torch",
    "ai_edge_litert",
    "ai_edge_quantizer",
    "litert_lm_builder",
    "litert_lm",
    "ml_dtypes",
    "tensorflow",
}

# Rooms, from the ground up: a room may import from those in rows below its own.
ROWS = (
    ("errors", "progress", "visible", "hardware", "words", "suggestions", "metric"),
    ("metrics", "steps", "failures", "files"),
    ("settings",),
    ("processes", "store"),
    ("output", "toolchains", "sandbox"),
    ("recipe",),
    ("models",),
    ("vision", "algorithms", "hub"),
    ("backends",),
    ("backends/<name>",),
    ("evaluate",),
    ("package",),
    ("planning",),
    ("signing",),
    ("execution",),
    ("chat", "board", "publishing"),
    ("batch", "cluster", "tuning", "profiling", "serving"),
    ("diff",),
    ("api",),
    ("cli",),
    ("maintain", "flow", "__main__"),
)
FLOOR = {room: number for number, row in enumerate(ROWS) for room in row}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "assets" not in p.parts)


def name_of(path: Path) -> str:
    """``phipipe/store/keys.py`` → ``phipipe.store.keys``; a room's ``__init__`` is the room."""
    parts = ("phipipe", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of a module by its name; ground files are rooms of their own."""
    parts = module.split(".")[1:]
    if len(parts) > 1 and parts[0] == "backends" and (PACKAGE / "backends" / parts[1]).is_dir():
        return "backends/" + parts[1]
    return parts[0] if parts else "phipipe"


def floor_of(room: str) -> int:
    return FLOOR["backends/<name>" if room.startswith("backends/") else room]


def imports_of(tree: ast.AST, known: set[str]) -> set[str]:
    """phipipe modules that ``tree`` imports when it is run (not the ones under TYPE_CHECKING)."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "phipipe":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in known else str(node.module))
        names |= imports_of(node, known)
    return names - {"phipipe"}


KNOWN = {name_of(path) for path in modules()}
IMPORTS = {name_of(p): imports_of(ast.parse(p.read_text("utf-8")), KNOWN) for p in modules()}


def test_every_module_has_a_room() -> None:
    rooms = {room_of(module) for module in KNOWN} - {"phipipe"}
    assert {room for room in rooms if not room.startswith("backends/")} <= set(FLOOR)
    assert sum(1 for path in modules() if path.parent == PACKAGE) <= 14


@pytest.mark.parametrize("module", sorted(KNOWN - {"phipipe"}))
def test_imports_point_down(module: str) -> None:
    own = room_of(module)
    others = {other for other in IMPORTS[module] if room_of(other) != own}
    assert not {other for other in others if floor_of(room_of(other)) >= floor_of(own)}


def test_no_circle_inside_a_room() -> None:
    """What is imported at a module's top is ordered inside a room, too."""
    tops = {name_of(p): imports_of(top_of(p), KNOWN) for p in modules()}
    graph = {module: {o for o in others if o != module} for module, others in tops.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def top_of(path: Path) -> ast.Module:
    """The module's statements without the bodies of its functions."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = []
    return tree


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
    assert not imported("import phipipe.hub.take") & {
        *HEAVY,
        "filelock",
        "yaml",
        "platformdirs",
        "click",
    }


@pytest.mark.parametrize("recipe", ["quickstart", "phi35-cpu-int4"])
def test_a_valid_recipe_needs_little(recipe: str) -> None:
    """`validate` is asked after every change of a recipe: nothing that reads checkpoints, runs
    something or tells of mistakes, and no backend but the recipe's own."""
    words = ["phipipe", "validate", f"recipes/{recipe}.yaml"]
    code = f"import sys; sys.argv = {words!r}\nfrom phipipe.cli import main\n"
    there = loaded(f"{code}try: main()\nexcept SystemExit: pass")
    others = {f"phipipe.backends.{name}" for name in backends.names()}
    assert there & others == {"phipipe.backends.onnxruntime"}
    assert not there & {"phipipe.models.checkpoint", "phipipe.models.checkpoints"}
    assert not there & {"phipipe.store", "phipipe.execution", "phipipe.output", "phipipe.settings"}
    assert not there & {"rich", "jinja2", "psutil", "subprocess", "concurrent.futures", "logging"}


def imported(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``code``."""
    return {name.split(".")[0] for name in loaded(code)}


def loaded(code: str) -> set[str]:
    """Modules in a fresh interpreter after ``code``."""
    probe = f"{code}\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
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


# --- budgets: what a reader can take in at once

LONGER: frozenset[str] = frozenset()  # files that may be; five at most
FILE_LINES, FUNCTION_LINES, NESTING = 300, 40, 3
IMPORTS_INSIDE = 8.0  # for each 1,000 lines, in functions: what is heavy or optional
ANY_SHARE = 0.06  # of signatures: borders to third parties
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)
TREES = {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
FUNCTIONS = [
    (path, node)
    for path, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def nesting(node: ast.AST, depth: int = 0) -> int:
    """How deep blocks stand in each other; an `elif` stands where its `if` does."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child, depth + (isinstance(child, BLOCKS) and not is_elif)))
    return deepest


def test_files_stay_small() -> None:
    assert len(LONGER) <= 5
    long = {name_of(path): lines_of(path) for path in TREES if lines_of(path) > FILE_LINES}
    assert not {name: lines for name, lines in long.items() if name not in LONGER}


def test_functions_stay_small_and_flat() -> None:
    """Their complexity is ruff's to check."""
    long = [
        f"{name_of(path)}:{node.name}"
        for path, node in FUNCTIONS
        if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES
    ]
    deep = [f"{name_of(path)}:{node.name}" for path, node in FUNCTIONS if nesting(node) > NESTING]
    assert (long, deep) == ([], [])


def test_few_imports_stand_inside_functions() -> None:
    inside = [
        node
        for _, function in FUNCTIONS
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert 1000 * len(inside) / sum(map(lines_of, TREES)) <= IMPORTS_INSIDE


def test_few_signatures_hold_any() -> None:
    signatures = [
        ast.unparse(node.args) + ast.unparse(node.returns or ast.Tuple([])) for _, node in FUNCTIONS
    ]
    assert sum("Any" in text for text in signatures) / len(signatures) <= ANY_SHARE


def test_nothing_is_assigned_inside_arguments() -> None:
    inside = [
        f"{name_of(path)}:{value.lineno}"
        for path, tree in TREES.items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for value in (*call.args, *(keyword.value for keyword in call.keywords))
        if isinstance(value, ast.NamedExpr)
    ]
    assert not inside


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
        "Package",
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


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda p: p.stem)
def test_commands_print_through_their_messages_alone(path: Path) -> None:
    """There strangers' text becomes visible, and there it is made fit for the stream's encoding."""
    if path.stem in {"messages", "answers", "streams"}:
        return
    text = path.read_text("utf-8")
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
