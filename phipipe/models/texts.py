"""Texts to evaluate on and to learn from: UTF-8, or the column ``text`` of a Parquet file, as data
sets have it."""

from __future__ import annotations

from pathlib import Path

from phipipe.errors import SourceError

SMALLEST_BYTES = 16
COLUMN = "text"
MAGIC = b"PAR1"  # at both ends of a Parquet file


def is_table(path: Path) -> bool:
    """Whether ``path`` is to be read as Parquet, by its name."""
    return path.suffix == ".parquet"


def check(path: Path, name: str, hint: str | None = None) -> None:
    """Refuse a text that nothing can be measured on, as far as that shows without a toolchain;
    ``name`` is what the user calls it.

    Raises:
        SourceError: it is (nearly) empty, not UTF-8, or no Parquet file though called one.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}", hint=hint) from None
    if is_table(path):
        if len(raw) < 2 * len(MAGIC) or raw[:4] != MAGIC or raw[-4:] != MAGIC:
            raise SourceError(f"{name} is no Parquet file, or is cut short", hint=hint)
        return
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{name} is not UTF-8 (byte {error.start})", hint=hint) from None
    if len(text) < SMALLEST_BYTES:
        words = (
            f"is too short: at least {SMALLEST_BYTES} characters are needed"
            if text.strip()
            else "is empty"
        )
        raise SourceError(f"{name} {words}", hint=hint)


def read(path: Path) -> str:
    """The text in ``path``; rows of a table one after another, each of which ends its line.

    Called in the toolchain that tokenizes: it has pyarrow.

    Raises:
        SourceError: a table cannot be read, or has no column ``text`` of strings.
    """
    if not is_table(path):
        return path.read_text("utf-8")
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
        names = table.schema_arrow.names
        if COLUMN not in names:
            raise SourceError(
                f"`{path.name}` has no column `{COLUMN}`; its columns: {', '.join(names)}"
            )
        rows = table.read(columns=[COLUMN]).column(COLUMN).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise SourceError(f"`{path.name}` cannot be read as Parquet: {error}") from None
    if not all(isinstance(row, str) for row in rows):
        raise SourceError(f"the column `{COLUMN}` of `{path.name}` holds other things than text")
    return "".join(row if row.endswith("\n") else f"{row}\n" for row in rows)
