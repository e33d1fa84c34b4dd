"""Runs in the litert toolchain: ``python driver.py FOLDER`` leaves FOLDER/facts.json.

One process for all checks of test_litert.py. FOLDER holds what the torch toolchain made (see the
test's fixture).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import litert_lm
import numpy as np
from testing import oracle
from testing.drive import answer, message

from phipipe import steps
from phipipe.backends import fixups
from phipipe.backends import litert as backend
from phipipe.backends.base import Job
from phipipe.backends.litert import stored as weights
from phipipe.backends.litert.bundle import affixes_of
from phipipe.backends.litert.bundled import bundled
from phipipe.backends.litert.convert import check_lengths, convert
from phipipe.backends.litert.layout import BUNDLE, MODEL
from phipipe.evaluate.sanity import PARITY_TEXT
from phipipe.hub.take import BUILTIN_MODELS
from phipipe.models import checkpoints
from phipipe.sandbox import chat_templates

TINY = BUILTIN_MODELS["tiny-phi3"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("int8", {}),
    "int8-floats": ("int8", {"scheme": "weight_only"}),
    "int4": ("int4", {"group_size": -1}),
    "int4-floats": ("int4", {"scheme": "weight_only"}),
    "int4-32": ("int4", {}),
    "int4-128": ("int4", {"group_size": 128}),
}
CHAT = [{"role": "user", "content": "Tell me a short story about a fox."}]


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def planned(source: Path, precision: str, **options: Any) -> list[Any]:
    """The steps as the planner has them: fix-ups and the steps' own parameters."""
    recipe: Any = SimpleNamespace(
        precision=precision, backend="litert", weights=SimpleNamespace(learn=None)
    )
    checkpoint = checkpoints.read(source)
    patch = {
        k: v for fix in fixups.needed(recipe, checkpoint).values() for k, v in fix["patch"].items()
    }
    return backend.steps(Job(recipe, backend.Options.model_validate(options), checkpoint, patch))


def converted(source: Path, out: Path, **options: Any) -> Path:
    convert({"source": source}, made(out), planned(source, "fp32", **options)[0].params)
    return out


def finished(source: Path, model: Path, root: Path, precision: str, **options: Any) -> Path:
    """Every step after the conversion."""
    for step in planned(source, precision, **options)[1:]:
        out = made(root / step.name)
        steps.resolve(step.runs)({"model": model}, out, step.params)
        model = out
    return model


def measured(folder: Path, expected: Any, ids: list[int], prompt: int = 150) -> dict[str, Any]:
    """``prompt`` is longer than the prefill signature, and no multiple of it."""
    runtime = backend.open(folder)
    logits = runtime.logits(ids)
    facts = {
        "kld": oracle.kld(expected, logits),
        "again": bool(np.array_equal(logits, runtime.logits(ids))),
        "causal": bool(np.array_equal(runtime.logits(ids[:9]), logits[:9])),
        "dtype": str(logits.dtype),
        "shape": list(logits.shape),
        "generated": list(runtime.generate(ids[:prompt], 8)),
    }
    chain = list(ids[:prompt])
    for _ in facts["generated"]:
        chain.append(int(runtime.logits(chain)[-1].argmax()))
    facts["chain"] = chain[prompt:]
    runtime.close()
    return facts


def fidelity(root: Path) -> dict[str, Any]:
    source = root / "source"
    ids, expected = json.loads((root / "ids.json").read_text()), np.load(root / "source.npy")
    model = converted(source, root / "convert")
    facts = {"fp32": measured(model, expected, ids)}
    for name, (precision, options) in CASES.items():
        folder = finished(source, model, root / name, precision, format="tflite", **options)
        facts[name] = measured(folder, expected, ids)
        facts[name]["bytes"] = (folder / MODEL).stat().st_size
    return facts


def variants(root: Path) -> dict[str, Any]:
    """Tied embeddings; LongRoPE; Phi-3's sliding window; a cache that the last part of a prompt
    does not fit."""
    ids, facts = json.loads((root / "ids.json").read_text()), {}
    for name, options in (("tied", {}), ("longrope", {}), ("sliding", {})):
        step = planned(root / name, "fp32", **options)[0]
        facts[name] = {
            "context": step.params["context_length"],
            "patch": step.params["config_patch"],
        }
        model = converted(root / name, root / f"variant-{name}", **options)
        size = facts[name]["context"]
        facts[name] |= measured(model, np.load(root / f"{name}.npy")[:size], ids[:size], prompt=20)
    tight = converted(root / "source", root / "variant-tight", context_length=64, prefill_length=40)
    facts["tight"] = measured(tight, np.load(root / "source.npy")[:64], ids[:64], prompt=50)
    runtime = backend.open(tight)
    facts["tight"]["full"] = len(list(runtime.generate(ids[:60], 50)))
    facts["tight"]["beyond"] = message(lambda: runtime.logits(ids[:65]))
    return facts


def bundle(root: Path) -> dict[str, Any]:
    """What LiteRT-LM itself, the runtime on phones, makes of the bundle."""
    folder = finished(root / "source", root / "convert", root / "bundled", "int8")
    runtime, tokenizer = backend.open(folder), backend.tokenizer(folder)
    prompt = tokenizer.encode(tokenizer.render(CHAT))
    ours = tokenizer.decode(list(runtime.generate(prompt, 100)))
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    engine = litert_lm.Engine(str(folder / BUNDLE), litert_lm.Backend.CPU(), cache_dir=":nocache")
    with engine.create_conversation(
        sampler_config=litert_lm.SamplerConfig(top_k=1)
    ) as conversation:
        theirs = str(conversation.send_message(CHAT[0]["content"]))
    with bundled(folder / BUNDLE) as view:
        same = bytes(view) == (root / "int8" / "quantize" / MODEL).read_bytes()
    return {
        "same": same,
        "files": sorted(path.name for path in folder.iterdir()),
        "texts": [ours, theirs],
        "ids": [tokenizer.encode(PARITY_TEXT), engine.tokenize(PARITY_TEXT)],
        "ends": [engine.eos_token_ids, engine.bos_token_id],
        "damaged": message(lambda: backend.open(spoiled(folder, root / "damaged"))),
        "empty": message(lambda: backend.open(made(root / "nothing"))),
    }


def spoiled(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    (target / BUNDLE).write_bytes(b"NOTHING!" * 4096)
    return target


def failures(root: Path) -> dict[str, Any]:
    """The check of what was stored, against files that hold something else."""
    stored = {name: weights.read(root / name / "quantize" / MODEL) for name in CASES}
    floats = weights.read(root / "convert" / MODEL)
    asked = {"bits": 4, "group_size": -1, "scheme": "dynamic"}
    odd = [dataclasses.replace(stored["int4"][0], symmetric=False), *stored["int4"][1:]]
    check = weights.verify
    return {
        "count": len(floats),
        "readers": sorted({weight.reader for weight in floats}),
        "fine": message(lambda: check(floats, stored["int4"], asked)),
        "groups": message(lambda: check(floats, stored["int4-32"], asked | {"group_size": 32})),
        "floats": message(lambda: check(floats, floats, asked)),
        "bits": message(lambda: check(floats, stored["int8"], asked)),
        "group": message(lambda: check(floats, stored["int4"], asked | {"group_size": 64})),
        "scheme": message(lambda: check(floats, stored["int4-floats"], asked)),
        "zeros": message(lambda: check(floats, odd, asked)),
        "lost": message(lambda: check(floats, stored["int4"][1:], asked)),
        "converted": message(lambda: weights.verify_floats(stored["int8"])),
        "signatures": message(
            lambda: check_lengths(
                root / "convert" / MODEL, {"prefill_length": 64, "context_length": 2048}
            )
        ),
        "cache": message(
            lambda: check_lengths(
                root / "convert" / MODEL,
                {"prefill_length": 128, "context_length": 1024},
            )
        ),
    }


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def reproducible(root: Path) -> dict[str, Any]:
    source = root / "elsewhere" / "renamed"
    shutil.copytree(root / "source", source)
    model = converted(source, root / "elsewhere" / "convert")
    again = finished(source, model, root / "elsewhere", "int8")
    hidden = (str(root).encode(), str(Path.home()).encode(), sys.prefix.encode())
    kept = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"]
    return {
        "same": [
            digests(model) == digests(root / "convert"),
            digests(again) == digests(root / "bundled" / "bundle"),
        ],
        "named": [
            path.name
            for folder in (model, again)
            for path in folder.iterdir()
            if any(word in path.read_bytes() for word in hidden)
        ],
        "kept": [
            name for name in kept if (again / name).read_bytes() == (source / name).read_bytes()
        ],
    }


def tokenizer(root: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    ours = backend.tokenizer(root / "bundled" / "bundle")
    theirs = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    return {
        "ids": [ours.encode(PARITY_TEXT), theirs.encode(PARITY_TEXT, add_special_tokens=False).ids],
        "text": ours.decode(ours.encode("the fox")),
        "chat": ours.render([{"role": "user", "content": "hi"}]),
    }


def templates(root: Path) -> dict[str, Any]:
    """Affixes of chat templates."""
    specials = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    found: dict[str, Any] = {}
    for name, template in json.loads((root / "templates.json").read_text()).items():
        found[name] = affixes_of(chat_templates.Renderer(template, specials=specials).render, "<s>")
    return found


def main(root: Path) -> None:
    checks = (fidelity, variants, bundle, failures, reproducible, tokenizer, templates)
    answer(root / "facts.json", {check.__name__: partial(check, root) for check in checks})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
