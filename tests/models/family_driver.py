"""Runs in a backend's toolchains: ``python family_driver.py ROOT BACKEND convert|measure
TOOLCHAIN``.

ROOT/BACKEND.jobs.json lists what the planner made of each member: its window ("short" or "long"),
the steps up to the unquantized conversion, and the folder to convert. Artifacts go to
ROOT/artifacts; ``measure`` leaves ROOT/BACKEND.measure-TOOLCHAIN.json, by job: mean KL divergence
from transformers; how much less likely than the likeliest, in nats, each token of a greedy answer
is by the runtime's own logits without a cache; equal token ids, of a text as it is and with its
accents composed; or the error.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from testing import oracle

from phipipe import backends, steps
from phipipe.errors import PhipipeError
from phipipe.evaluate.sanity import PARITY_TEXT


def convert(root: Path, job: dict[str, Any], toolchain: str) -> None:
    """Run the job's steps, unless a job with the same ones has; up to the first of another
    toolchain than this one."""
    made = dict.fromkeys(("source", "unmended"), root / job["source"])
    for step in job["steps"]:
        out = root / "artifacts" / step["folder"]
        made[step["name"]] = out
        if out.is_dir():
            continue
        if step["toolchain"] not in (None, toolchain):
            return
        part = out.with_name(out.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        inputs = {name: made[needed] for name, needed in step["needs"].items()}
        steps.resolve(step["runs"])(inputs, part, step["params"])
        part.rename(out)


def measure(root: Path, job: dict[str, Any], backend: Any) -> dict[str, Any]:
    """How the job's artifact compares with transformers on its window."""
    folder = (root / job["source"]).parent
    told = json.loads((folder / "told.json").read_text())
    expected = np.load(folder / f"{job['window']}.npy")
    artifact = root / "artifacts" / job["steps"][-1]["folder"]
    ids = told["ids"][: len(expected)]
    runtime = backend.open(artifact)
    facts: dict[str, Any] = {"kld": oracle.kld(expected, runtime.logits(ids))}
    answer = list(runtime.generate(ids, told["answers"]))
    rows = runtime.logits([*ids, *answer])[len(ids) - 1 : -1]
    facts["gaps"] = [float(row.max() - row[token]) for row, token in zip(rows, answer, strict=True)]
    facts["answers"] = told["answers"]
    runtime.close()
    tokenizer = backend.tokenizer(artifact)
    parity = told["parity"][Path(job["source"]).name]
    facts["tokenizer"] = tokenizer.encode(PARITY_TEXT) == parity
    composed = unicodedata.normalize("NFC", PARITY_TEXT)
    facts["composed"] = tokenizer.encode(composed) == parity
    return facts


def main(root: Path, name: str, action: str, toolchain: str) -> None:
    facts: dict[str, Any] = {}
    for job in json.loads((root / f"{name}.jobs.json").read_text()):
        try:
            if action == "convert":
                convert(root, job, toolchain)
            else:
                facts[job["name"]] = measure(root, job, backends.load(name))
        except PhipipeError as error:
            facts[job["name"]] = {"error": error.message}
        except Exception:  # noqa: BLE001 (the test that asks for this job shows it; the others still run)
            facts[job["name"]] = {"error": traceback.format_exc()}
    (root / f"{name}.{action}-{toolchain}.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
