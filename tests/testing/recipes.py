"""Recipe files."""

from __future__ import annotations

from pathlib import Path


def write(
    folder: Path,
    name: str,
    more: str = "",
    source: str = "{builtin: tiny-phi3}",
    evaluate: str = "",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    text = f"name: {name}\nsource: {source}\ndevice: cpu-x86_64\nprecision: int4\n"
    path.write_text(text + (f"evaluate: {evaluate}\n" if evaluate else "") + more, "utf-8")
    return path
