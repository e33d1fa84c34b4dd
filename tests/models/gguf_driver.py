"""GGUF files that phipipe's own llama.cpp backend writes, read as sources again.

    python gguf_driver.py FOLDER make|run|read

``make`` and ``read`` run in the toolchain ``torch``, ``run`` in llama.cpp's, between them. The last
writes ``FOLDER/facts.json``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from phipipe.hub.take import BUILTIN_MODELS
from phipipe.models import checkpoints, family, gguf_checkpoints

ROOT = Path(sys.argv[1])
MEMBERS = ("Phi-3.5-mini", "Llama-3.2-1B", "Qwen3-0.6B")
TRAINED = ("Q8_0", "Q4_0", "Q4_K_M")  # of the embedded model, whose predictions are no noise
COUNT = 400  # tokens, beyond the original contexts of 256
TEXTS = (
    "Hello world, I am here",
    "  two spaces\n\nlines\tand tabs 12345 don't",
    "naïve café – 你好 🙂",
    "def f(x):\n    return x ** 2",
)


def tokens(vocabulary: int) -> list[int]:
    return [int(n) for n in np.random.default_rng(0).integers(3, vocabulary - 60, COUNT)]


def files() -> list[Path]:
    return sorted(ROOT.glob("gguf/*/*.gguf"))


def make() -> None:
    from testing import family_checkpoints, neighbour_checkpoints

    for member in family.MEMBERS:
        if member.name in MEMBERS:
            mine = member.name in family_checkpoints.SIZES
            source = ROOT / "source" / member.name
            (family_checkpoints if mine else neighbour_checkpoints).make(member, source)
            outline(source, "F16")
    tiny = ROOT / "source" / "tiny"
    tiny.mkdir()
    for name in checkpoints.files(BUILTIN_MODELS["tiny-phi3"]):
        shutil.copyfile(BUILTIN_MODELS["tiny-phi3"] / name, tiny / name)
    outline(tiny, "BF16")


def outline(source: Path, kind: str) -> None:
    from testing import gguf_steps

    gguf_steps.outline(source, ROOT / "outlines" / f"{source.name}-{kind}", kind, name=source.name)


def keep(out: Path) -> None:
    """The GGUF alone, under the name of its folder."""
    target = ROOT / "gguf" / out.name
    target.mkdir(parents=True)
    shutil.copyfile(out / "model.gguf", target / f"{out.name}.gguf")


def run() -> None:
    from testing import gguf_steps

    from phipipe.backends.llamacpp.session import Session

    for at in sorted((ROOT / "outlines").iterdir()):
        name, _, kind = at.name.rpartition("-")
        keep(gguf_steps.convert(at, ROOT / "source" / name, ROOT / "made" / at.name, kind))
    tiny = (ROOT / "outlines" / "tiny-BF16", ROOT / "source" / "tiny")
    for kind in TRAINED:
        keep(gguf_steps.quantize(*tiny, ROOT / "made" / f"tiny-{kind}", kind))
    for path in files():
        vocabulary = gguf_checkpoints.read(path).vocab_size
        session = Session(path)
        np.save(path.with_suffix(".npy"), session.logits(tokens(vocabulary)))
        session.close()


def divergence(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    p, q = (x - np.logaddexp.reduce(x, 1, keepdims=True) for x in (one, other))
    return float((np.exp(p) * (p - q)).sum(1).mean())


def look(path: Path) -> dict[str, Any]:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from phipipe.models import tensors
    from phipipe.models.unpack_gguf import unpack

    out = ROOT / "read" / path.stem
    out.mkdir(parents=True)
    (path.parent / path.with_suffix(".npy").name).replace(ROOT / f"{path.stem}.npy")
    planned = gguf_checkpoints.read(path)
    unpack({"stored": path.parent}, out, {})
    found = checkpoints.read(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([tokens(found.vocab_size)])).logits[0].double().numpy()
    source = ROOT / "source" / path.stem.rpartition("-")[0]
    theirs = Tokenizer.from_file(str(source / "tokenizer.json"))
    mine = Tokenizer.from_file(str(out / "tokenizer.json"))
    chat = [{"role": "user", "content": "Hi there"}]
    rendered = [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False
        )
        for folder in (source, out)
    ]
    stored = dict(tensors.tensors(source / "model.safetensors"))
    wide = dict(tensors.tensors(out / "model.safetensors"))
    return {
        "kld": divergence(np.load(ROOT / f"{path.stem}.npy").astype(np.float64), logits),
        "as planned": (planned.parameters, planned.weight_bytes, planned.architecture)
        == (found.parameters, found.weight_bytes, found.architecture),
        "differing": [
            name
            for name, weight in stored.items()
            if not torch.equal(weight.to(wide[name].dtype), wide[name])
        ],
        "ids": [theirs.encode(t).ids == mine.encode(t).ids for t in TEXTS],
        "template": rendered[0] == rendered[1],
        "title": planned.quantized,
        "remarks": [remark.rule for remark in planned.remarks],
        "eos": found.config["eos_token_id"],
    }


def read() -> None:
    from testing.drive import answer

    answer(ROOT / "facts.json", {path.stem: lambda path=path: look(path) for path in files()})


{"make": make, "run": run, "read": read}[sys.argv[2]]()
