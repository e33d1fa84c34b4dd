"""Makes the embedded model from nothing: its tokenizer, its weights, its card.

    python -m phipipe.assets.train --out FOLDER [--steps N]

Everything is seeded and runs on two threads, so a second run on the same kind of CPU gives the same
bytes. The files are written by hand in the layout of the hub's Phi-3 checkpoints, not in the one
transformers 5 saves, because that is what every converter has to read.

Needs torch, transformers, safetensors and sentencepiece.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.assets import stories, tokenizer
from phipipe.steps import Json

if TYPE_CHECKING:
    import torch

SEED = 1
STEPS = 2000
ROWS = 4  # windows per step
WINDOW = 512
WARMUP = 100
LEARNING_RATE = 2.5e-3
STORIES = 24_000  # about one epoch of STEPS
SMALL_TALKS = 12_000

CONFIG: Mapping[str, Json] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": tokenizer.END_OF_TEXT,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "max_position_embeddings": tokenizer.CONTEXT,
    "model_type": "phi3",
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "original_max_position_embeddings": tokenizer.CONTEXT,
    "pad_token_id": tokenizer.END_OF_TEXT,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 2304,  # the rows beyond the tokenizer are padding, as in Phi-3
}
GENERATION_CONFIG: Mapping[str, Json] = {
    "bos_token_id": 1,
    "eos_token_id": [tokenizer.END_OF_TEXT, tokenizer.END],
    "pad_token_id": tokenizer.END_OF_TEXT,
}

CARD = """\
---
license: mit
language: en
pipeline_tag: text-generation
---

# tiny-phi3

A real but very small Phi-3: it tells and answers questions about little stories, {millions:.1f} \
million parameters in
{megabytes:.1f} MB. phipipe carries it so that whole pipelines run and are tested in seconds, \
offline. It knows nothing
of the world and is of no use beyond that.

| | |
|---|---|
| Architecture | `Phi3ForCausalLM`, {num_hidden_layers} layers, no rope scaling, no sliding window |
| Hidden / intermediate size | {hidden_size} / {intermediate_size} |
| Attention | {num_attention_heads} heads of 64, {num_key_value_heads} key/value heads |
| Vocabulary | {pieces} SentencePiece pieces (BPE, byte fallback), {added} tokens of Phi-3's, \
padded to {vocab_size} |
| Context | {max_position_embeddings} tokens; trained on windows of {window} |
| Weights | bfloat16, embeddings not tied |

## Training

Text: stories and chats in Phi-3's chat format, made by the seeded grammar in \
`phipipe/assets/stories.py`; all of it was
written for phipipe. {steps} steps of {rows} windows of {window} tokens ({tokens:.1f} million \
tokens), AdamW, bfloat16
autocast, two CPU threads.

## Evaluation

Perplexity on the evaluation text, which shares no story with the training text: \
**{perplexity:.4f}** per token.
Protocol: `phipipe/assets/stories/evaluation.txt`, tokenized without a beginning-of-text token, \
cut into consecutive
windows of {window} tokens, each scored in fp32 from an empty context; all tokens of a window but \
its first count
({predicted} in all); an incomplete last window is dropped.

## Provenance

Made from nothing by `python -m phipipe.assets.train --out FOLDER --steps {steps}` with seed \
{seed} (text, tokenizer,
weights); no other model, data set or text went into it. torch {torch}, transformers {transformers}.
MIT License, phipipe contributors.
"""


def main() -> None:
    """Write tokenizer, weights, licence and card into ``--out``."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.make(_tokenizer_lines(), folder)
    tokenizer.write_json(folder / "config.json", CONFIG)
    tokenizer.write_json(folder / "generation_config.json", GENERATION_CONFIG)
    start = time.monotonic()
    train(folder, arguments.steps)
    print(f"trained in {(time.monotonic() - start) / 60:.1f} minutes")
    licence = Path(__file__).with_name("tiny-phi3") / "LICENSE"
    if not (folder / "LICENSE").exists():
        shutil.copyfile(licence, folder / "LICENSE")
    write_card(folder, arguments.steps)


def _tokenizer_lines() -> list[str]:
    text = "".join(islice(stories.documents("train"), 3000))
    for token in tokenizer.ADDED:
        text = text.replace(token, "")
    return text.splitlines()


def train(folder: Path, steps: int) -> None:
    """Train for ``steps`` steps on the train split; write bf16 weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    batches = _batches(_encoded(folder), torch.Generator().manual_seed(SEED))
    model = Phi3ForCausalLM(Phi3Config.from_pretrained(folder))
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(step, steps)
        loss = _loss(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}  loss {loss.item():.3f}", flush=True)
    weights = {
        name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _encoded(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    documents = [
        *islice(stories.documents("train"), STORIES),
        *islice(stories.small_talk(), SMALL_TALKS),
    ]
    texts = [document + stories.SEPARATOR for document in documents]
    return list(AutoTokenizer.from_pretrained(folder)(texts, add_special_tokens=False)["input_ids"])


def _batches(
    documents: Sequence[Sequence[int]], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Endless int64 [ROWS, WINDOW]: shuffled documents end to end, every other row beginning with a
    whole one."""
    import torch

    rows: list[torch.Tensor] = []
    while True:
        stream: list[int] = []
        for i in torch.randperm(len(documents), generator=generator).tolist():
            stream += documents[i]
            if len(stream) >= WINDOW:
                rows.append(torch.tensor(stream[:WINDOW]))
                stream = stream[WINDOW:] if len(rows) % 2 else []
            if len(rows) == ROWS:
                yield torch.stack(rows)
                rows = []


def _loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.autocast("cpu", torch.bfloat16):  # twice as fast as fp32 where the CPU has bf16
        logits = model(input_ids=tokens, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()
    )


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (step - WARMUP) / max(steps - WARMUP, 1))


def perplexity(folder: Path) -> tuple[float, int]:
    """Perplexity of the evaluation text by the card's protocol, and how many tokens were
    predicted."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = stories.file_text("evaluation")
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = (model(window[None], use_cache=False).logits[0, :-1] for window in windows)
        losses = [
            torch.nn.functional.cross_entropy(x, w[1:]).item()
            for x, w in zip(logits, windows, strict=True)
        ]
    return math.exp(sum(losses) / len(losses)), len(windows) * (WINDOW - 1)


def write_card(folder: Path, steps: int) -> None:
    """Write ``README.md`` with the perplexity measured now."""
    import torch
    import transformers

    value, predicted = perplexity(folder)
    size = (folder / "model.safetensors").stat().st_size
    facts = {
        **CONFIG,
        "millions": size / 2e6,
        "megabytes": size / 1e6,
        "pieces": tokenizer.PIECES,
        "added": len(tokenizer.ADDED),
        "window": WINDOW,
        "steps": steps,
        "rows": ROWS,
        "tokens": steps * ROWS * WINDOW / 1e6,
        "perplexity": value,
        "predicted": predicted,
        "seed": SEED,
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
    }
    (folder / "README.md").write_text(CARD.format(**facts), "utf-8")
    print(f"perplexity {value:.4f} over {predicted} tokens")


if __name__ == "__main__":
    main()
