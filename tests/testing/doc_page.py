"""A reader of a page, who does what it says; and the page's anchors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from phipipe.hub import take
from testing import doc_blocks
from testing.places import RECIPES, ROOT


@dataclass(frozen=True)
class Reader:
    """Somebody with phipipe installed, in a folder that holds the shipped recipes, offline.

    Pages find the embedded model's folder in ``$MODEL`` and a text in ``$TEXT``. They share a
    cache, so that a build that several of them do is done once.
    """

    folder: Path
    toolchains: Path
    cache: Path

    def follows(self, page: Path) -> None:
        """Do what ``page`` says, from its first block to its last.

        Raises:
            AssertionError: a command failed; the message holds the block's place and its output.
        """
        home = self.folder / "reader"
        home.mkdir()
        shutil.copytree(RECIPES, home / "recipes")
        shutil.copytree(ROOT / "schemas", home / "schemas")
        done = subprocess.run(
            ["bash", "-c", doc_blocks.script(page)],
            cwd=home,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=1800,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        output = f"{done.stdout[-4000:]}\n--- stderr\n{done.stderr[-4000:]}"
        assert done.returncode == 0, f"exit code {done.returncode}\n{output}"

    def _environment(self) -> dict[str, str]:
        assets = take.BUILTIN_MODELS["tiny-phi3"]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PHIPIPE_", "HF_"))}
        return kept | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PHIPIPE_CACHE": str(self.cache),
            "PHIPIPE_TOOLCHAINS": str(self.toolchains),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "HF_HUB_OFFLINE": "1",
            "MODEL": str(assets),
            "TEXT": str(assets.parent / "stories" / "evaluation.txt"),
        }


def anchors(page: Path) -> set[str]:
    """What `#…` can name on ``page``: its headings, as MkDocs and GitHub both write them, and ids
    that are written out."""
    text = page.read_text("utf-8")
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.+?)\s*$", doc_blocks.without_blocks(text), re.MULTILINE):
        own = re.search(r"\{[^}]*#([\w-]+)[^}]*\}$", title)
        slug = own[1] if own else slug_of(title)
        while slug in found:
            head, _, count = slug.rpartition("_")
            slug = f"{head}_{int(count) + 1}" if head and count.isdigit() else f"{slug}_1"
        found.add(slug)
    return found | set(re.findall(r'id="([^"]+)"', text))


def slug_of(title: str) -> str:
    """A heading's anchor as Python-Markdown makes it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
    kept = re.sub(r"[^\w\s-]", "", plain).strip().lower()
    return re.sub(r"[-\s]+", "-", kept)
