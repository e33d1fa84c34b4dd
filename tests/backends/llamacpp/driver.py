"""Runs in the torch toolchain's Python and in llama.cpp's: makes GGUFs with phipipe's steps, and
looks at them.

    python driver.py FOLDER torch|llamacpp

Writes ``FOLDER/<toolchain>.json``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from testing import gguf_steps
from testing.gguf_steps import convert, outline, upstream

from phipipe.backends import llamacpp
from phipipe.backends.llamacpp import modelfile, stored
from phipipe.backends.llamacpp.header import tensors
from phipipe.errors import PhipipeError
from phipipe.hub import take

SOURCE = take.BUILTIN_MODELS["tiny-phi3"]
LONGROPE = {
    "max_position_embeddings": 8192,
    "original_max_position_embeddings": 512,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1 + i / 64 for i in range(32)],
        "long_factor": [2 + i / 8 for i in range(32)],
    },
}


def clean(folder: Path) -> Path:
    """The source's files without what the repository adds (the hub step leaves the same out)."""
    from phipipe.models import checkpoints

    folder.mkdir(parents=True)
    for name in checkpoints.files(SOURCE):
        shutil.copyfile(SOURCE / name, folder / name)
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outlined(source: Path, out: Path, kind: str, patch: dict[str, Any] | None = None) -> Path:
    return outline(source, out, kind, name="tiny-phi3", config_patch=patch or {})


def script(source: Path, root: Path, ours: Path) -> list[str] | None:
    """Names of fields and tensors in which ``ours`` differs from what llama.cpp's own script
    writes, if its source archive can be had."""
    from gguf import GGUFReader

    archives = sorted((root / "sdist").glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        return None
    subprocess.run(["tar", "-xzf", str(archives[0]), "-C", str(root / "sdist")], check=True)
    (path,) = (root / "sdist").glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")
    target = root / "upstream.gguf"
    command = [
        sys.executable,
        str(path),
        str(source),
        "--outtype",
        "bf16",
        "--outfile",
        str(target),
    ]
    command += ["--model-name", "tiny-phi3"]
    environment = {
        "PYTHONPATH": str(path.parent / "gguf-py"),
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
    }
    subprocess.run(command, check=True, env=environment, capture_output=True)
    theirs, made = GGUFReader(target), GGUFReader(ours)
    fields = [{n: f.contents() for n, f in one.fields.items()} for one in (theirs, made)]
    weights = [
        {t.name: (t.tensor_type, t.data.tobytes()) for t in one.tensors} for one in (theirs, made)
    ]
    return sorted(
        name
        for old, new in (fields, weights)
        for name in {*old, *new}
        if old.get(name) != new.get(name)
    )


def with_torch(root: Path) -> dict[str, Any]:
    import numpy as np
    from transformers import AutoTokenizer

    from phipipe.backends.llamacpp.imatrix import imatrix

    source = clean(root / "source")
    facts: dict[str, Any] = {}
    for kind in ("BF16", "F16", "F32"):
        outlined(source, root / "outlines" / kind.lower(), kind)
    again = outlined(source, root / "a-folder-with-another-name", "BF16")
    first = root / "outlines" / "bf16"
    facts["same_bytes"] = {one.name for one in again.iterdir()} == {
        one.name for one in first.iterdir() if one.read_bytes() == (again / one.name).read_bytes()
    }
    whole = upstream(source, root / "whole.gguf", "BF16", name="tiny-phi3")
    facts["upstream"] = script(source, root, whole)
    alone = clean(root / "alone")  # as transformers 5 saves a tokenizer
    for name in ("tokenizer.model", "added_tokens.json"):
        (alone / name).unlink(missing_ok=True)
    outlined(alone, root / "outlines" / "pieces", "BF16")
    facts["modelfile"] = (again / "Modelfile").read_text("utf-8")
    outlined(source, root / "outlines" / "longrope", "F32", LONGROPE)
    tokenizer = AutoTokenizer.from_pretrained(source)
    text = (take.ASSETS / "stories" / "calibration.txt").read_text("utf-8")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:4096]
    (root / "calibration").mkdir()
    np.save(root / "calibration" / "tokens.npy", np.asarray(ids, np.int32).reshape(8, 512))
    (root / "imatrix").mkdir()
    imatrix({"source": source, "calibration": root / "calibration"}, root / "imatrix", {})
    vectors = dict(np.load(root / "imatrix" / "imatrix.npz"))
    wanted = {t.name: t.shape[0] for t in stored.linears(tensors(whole))}
    facts["imatrix_fits"] = {n: len(v) for n, v in vectors.items()} == wanted
    text = "It was late. <|user|>\nWhere is the key?<|end|>\n<|assistant|>\n"
    np.save(
        root / "longrope.npy",
        reference(source, LONGROPE, tokenizer(text, add_special_tokens=False)["input_ids"]),
    )
    facts["ids"] = {"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
    swapped = shutil.copytree(source, root / "swapped")
    (swapped / "config.json").write_text(
        json.dumps(
            json.loads((source / "config.json").read_text())
            | {"architectures": ["UnheardOfForCausalLM"]}
        )
    )
    facts["unknown"] = refusal(lambda: outlined(swapped, root / "unknown", "BF16"))
    facts["odd_template"] = modelfile.frames(lambda messages: "only " + messages[0]["content"])
    return facts


def reference(source: Path, changes: dict[str, Any], ids: list[int]) -> Any:
    """float32 [positions, vocabulary]: what transformers makes of the source with some of its
    config changed."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(source, source.parent / "reference")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), "utf-8")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def refusal(call: Any) -> str | None:
    try:
        call()
    except PhipipeError as error:
        return error.message
    return None


def quantize(root: Path, name: str, kind: str, imatrix: Path | None = None, **options: Any) -> Path:
    inputs = {"imatrix": imatrix} if imatrix else {}
    at = (root / "outlines" / "bf16", root / "source", root / name)
    return gguf_steps.quantize(*at, kind, inputs, **options)


def kinds(out: Path) -> dict[str, str]:
    return {t.name: t.type for t in tensors(out / "model.gguf") if len(t.shape) > 1}


def with_llamacpp(root: Path) -> dict[str, Any]:
    import numpy as np

    facts: dict[str, Any] = {"types": {}, "sizes": {}, "floats": {}}
    for name, source, kind in (
        ("bf16", "source", "BF16"),
        ("f16", "source", "F16"),
        ("f32", "source", "F32"),
        ("pieces", "alone", "BF16"),
        ("longrope", "source", "F32"),
    ):
        out = convert(root / "outlines" / name, root / source, root / name, kind)
        facts["floats"][name] = sorted({t.type for t in tensors(out / "model.gguf") if t.shape[1:]})
    facts["whole"] = digest(root / "bf16" / "model.gguf") == digest(root / "whole.gguf")
    for kind in (
        "Q8_0",
        "Q6_K",
        "Q5_K_M",
        "Q5_0",
        "Q4_K_M",
        "Q4_0",
        "Q4_1",
        "IQ4_NL",
        "IQ4_XS",
        "Q3_K_M",
        "IQ3_S",
        "Q2_K",
    ):
        out = quantize(root, f"plain-{kind}", kind)
        facts["types"][kind] = kinds(out)["blk.2.attn_output.weight"]
        facts["sizes"][kind] = (out / "model.gguf").stat().st_size
    for kind in ("IQ3_XXS", "IQ2_M", "IQ2_XXS", "IQ1_S", "Q2_K_S"):
        facts["types"][kind] = kinds(quantize(root, f"weighed-{kind}", kind, root / "imatrix"))[
            "blk.2.ffn_up.weight"
        ]
    facts["refused"] = refusal(lambda: quantize(root, "bare", "IQ2_XXS"))
    weighed = quantize(root, "weighed", "Q4_K_M", root / "imatrix")
    facts["imatrix_matters"] = digest(weighed / "model.gguf") != digest(
        root / "plain-Q4_K_M" / "model.gguf"
    )
    special = quantize(
        root,
        "special",
        "Q4_0",
        tensors=[["ffn_down", "Q8_0"]],
        output_type="Q6_K",
        embedding_type="Q5_0",
    )
    facts["special"] = kinds(special)
    facts["pure"] = sorted(
        {t for n, t in kinds(quantize(root, "pure", "Q4_K_M", pure=True)).items() if "blk" in n}
    )
    facts["no_such"] = refusal(
        lambda: quantize(root, "no-such", "Q4_0", tensors=[["ffn_dwn", "Q8_0"]])
    )
    short = root / "short-imatrix"
    short.mkdir()
    vectors = dict(np.load(root / "imatrix" / "imatrix.npz"))
    vectors.pop("blk.3.ffn_down.weight")
    np.savez(short / "imatrix.npz", **vectors)
    facts["short"] = refusal(lambda: quantize(root, "short", "Q4_K_M", short))
    told = json.loads((root / "torch.json").read_text())["ids"]
    vocabulary = llamacpp.tokenizer(root / "bf16")
    facts["ids_equal"] = vocabulary.encode(told["text"]) == told["ids"]
    stories = (take.ASSETS / "stories" / "evaluation.txt").read_text("utf-8")[:50_000]
    lone = llamacpp.tokenizer(root / "pieces")
    facts["pieces_equal"] = all(
        lone.encode(text) == vocabulary.encode(text) for text in (told["text"], stories)
    )
    facts["rendered"] = vocabulary.render([{"role": "user", "content": "Hi"}])
    runtime = llamacpp.open(root / "bf16")
    whole = runtime.logits(told["ids"])
    facts["causal"] = float(np.abs(runtime.logits(told["ids"][:5]) - whole[:5]).max())
    answer = list(runtime.generate(told["ids"], 8))
    facts["greedy"] = answer[0] == int(whole[-1].argmax())
    facts["batches"] = runtime.logits((told["ids"] * 60)[:700]).shape
    runtime.close()
    facts.update(longrope(root, told["ids"]))
    return facts


def longrope(root: Path, ids: list[int]) -> dict[str, Any]:
    """F3: a short prompt takes the short factors and the attention factor, as in transformers."""
    import numpy as np

    runtime = llamacpp.open(root / "longrope")
    expected = np.load(root / "longrope.npy")
    difference = float(np.abs(runtime.logits(ids) - expected).max())
    beyond = runtime.logits((ids * 60)[:600]).shape[
        0
    ]  # with the long factors: a context of another size
    again = float(np.abs(runtime.logits(ids) - expected).max())
    refused = refusal(lambda: runtime.logits(ids * 1000))
    return {
        "short_factors": difference,
        "beyond": beyond,
        "short_again": again,
        "refused_length": refused,
    }


if __name__ == "__main__":
    folder, toolchain = Path(sys.argv[1]), sys.argv[2]
    found = with_torch(folder) if toolchain == "torch" else with_llamacpp(folder)
    (folder / f"{toolchain}.json").write_text(json.dumps(found, indent=1))
