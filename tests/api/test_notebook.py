"""The notebook of the docs, run from top to bottom in a kernel; and Python's interface on real
builds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from testing.places import QUICKSTART, ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
SCRIPT = """
import json, sys
import phipipe
from pathlib import Path

results = phipipe.run(sys.argv[1], sets={"evaluate.tokens": 1024})
package = results.package
again = package.evaluate(tokens=512)
measured = package.measure()
measured.write("measured.json")
board = phipipe.Board(package, "measured.json")
answer = package.chat("Tell me a story.", tokens=24, system="Be kind.")
with package.conversation(tokens=24) as talk:
    pieces = []
    said = talk.ask("Tell me a story.", pieces.append), talk.ask("And then?")
told = {
    "steps": [step.name for step in results.steps],
    "kld": [results.figures["kld_mean"], again.figures["kld_mean"]],
    "speed": measured.figures["decode_tokens_per_s"],
    "measured": [entry.measured for entry in board.entries],
    "answers": [answer, *said],
    "pieces": "".join(pieces),
    "notes": talk.notes,
    "findings": package.verify(),
}
Path("told.json").write_text(json.dumps(told), "utf-8")
"""


@pytest.fixture
def kernel_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel whose own files are the test's, and that finds this Python's kernels."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")


def outputs(book: Any, kind: str) -> str:
    """All outputs of this media type, or what was printed."""
    every = [output for cell in book.cells for output in cell.get("outputs", ())]
    if kind == "stream":
        return "".join(output["text"] for output in every if output["output_type"] == "stream")
    return "".join(output.get("data", {}).get(kind, "") for output in every)


@pytest.mark.usefixtures("kernel_environment", "toolchains")
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        book, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    page = outputs(book, "text/html")
    assert "Mean KL divergence" in page or "KL divergence" in page
    assert "will run" in page
    assert "quickstart-int8" in page
    assert len(outputs(book, "stream").split()) > 10
    assert "Traceback" not in json.dumps(book)
    assert (tmp_path / "packages" / "quickstart" / "manifest.json").is_file()


def test_the_notebook_is_committed_without_outputs() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert NOTEBOOK.read_text("utf-8").count("\n") < 400


@pytest.mark.usefixtures("toolchains")
def test_python_builds_evaluates_measures_and_talks_and_prints_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(QUICKSTART)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ,
        timeout=550,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    told = json.loads((tmp_path / "told.json").read_text("utf-8"))
    assert {"convert", "quantize", "evaluate", "package"} <= set(told["steps"])
    assert all(0 < kld < 0.05 for kld in told["kld"])
    assert told["kld"][0] != told["kld"][1]
    assert told["speed"] > 0
    assert told["measured"] == [True]
    assert all(len(answer.split()) > 3 for answer in told["answers"])
    assert told["answers"][1] == told["pieces"].removesuffix("\n")
    assert told["findings"] == []
