"""The small files of a checkpoint that an adapter was merged into: its config, its tokenizer, its
licences."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from phipipe.models import adapter_files, checkpoints, views
from phipipe.models.checkpoint import Checkpoint


def of(merged: Checkpoint, adapter: Path, cache: Path) -> Checkpoint:
    """``merged`` in a folder of its own where a plan can look at its small files: the base's, if
    ``adapter`` changes none of them, else one in the ``cache``.

    Raises:
        StoreError: the cache cannot be written.
    """
    base = merged.folder
    config = json.loads((base / "config.json").read_text("utf-8"))
    keys = ("vocab_size", "tie_word_embeddings")
    same = all(merged.config.get(key) == config.get(key) for key in keys)
    if same and not adapter_files.tokenizer_files(adapter):
        return merged
    folder = views.kept(
        cache / "hub" / "merged", base.name, lambda out: write(base, adapter, merged, out)
    )
    return replace(merged, folder=folder)


def write(base: Path, adapter: Path, merged: Checkpoint, out: Path) -> None:
    """Write them into ``out``: ``base``'s files beside its weights, but the tokenizer of
    ``adapter`` if it has one, and the config of ``merged``."""
    theirs = adapter_files.tokenizer_files(adapter)
    left = {*(adapter_files.TOKENIZER if adapter_files.has_tokenizer(adapter) else ())}
    left |= {*(adapter_files.TEMPLATES if theirs else ())}
    for name in checkpoints.loose_files(base):
        if name not in left:
            shutil.copyfile(base / name, out / name)
    for name in theirs:
        shutil.copyfile(adapter / name, out / name)
    _add_licences(adapter, out)
    config = json.loads((base / "config.json").read_text("utf-8"))
    for key in ("vocab_size", "tie_word_embeddings"):
        if merged.config.get(key) != config.get(key):
            config[key] = merged.config[key]
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _add_licences(adapter: Path, out: Path) -> None:
    """The adapter's licence beside the base's: both hold."""
    for name in adapter_files.files(adapter):
        if name.startswith(("LICENSE", "NOTICE")):
            twin = out / name
            if twin.is_file() and twin.read_bytes() == (adapter / name).read_bytes():
                continue
            kind, _, rest = name.partition(".")
            target = f"{kind}-adapter{'.' if rest else ''}{rest}" if twin.exists() else name
            shutil.copyfile(adapter / name, out / target)
