"""Files beside an adapter take the place of the base's: they pass the same checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from testing import adapters as small
from testing import hostile_checkpoints as hostile
from testing import small_gguf

from phipipe.errors import SourceError
from phipipe.hub import take
from phipipe.models import adapter_files, adapters, checkpoints
from phipipe.recipe.source import Source


@pytest.fixture
def base(tmp_path: Path) -> Path:
    hostile.base(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("name", [*adapter_files.TOKENIZER, *adapter_files.TEMPLATES])
@pytest.mark.parametrize("content", ["pointer", "folder", "unfinished"])
def test_a_file_beside_an_adapter_that_is_none_is_refused_there(
    base: Path, name: str, content: str
) -> None:
    folder = small.write(base.parent / "one", small.settings(), small.shapes())
    (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    if content == "folder":
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
    elif content == "pointer":
        (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    else:
        (folder / name).write_bytes(b"{}")
        (folder / f"{name}.part").write_bytes(b"")
    with pytest.raises(SourceError) as caught:
        adapters.merged(checkpoints.read(base), folder)
    assert str(folder / name) in caught.value.message


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_a_vocabulary_beside_an_adapter_that_is_none_is_refused(base: Path, name: str) -> None:
    folder = small.write(base.parent / "one", small.settings(), small.shapes())
    (folder / name).write_bytes(bytes(100))
    with pytest.raises(SourceError, match=name.partition(".")[0]):
        adapters.merged(checkpoints.read(base), folder)


def test_an_adapter_fits_the_model_in_a_gguf(tmp_path: Path) -> None:
    """The tokenizer and the config that a plan looks at come from the file."""
    path = small_gguf.write(tmp_path / "m.gguf")
    shapes = {
        name: shape for name, shape in small.shapes("self_attn.o_proj").items() if "rs.0" in name
    }
    folder = small.write(
        tmp_path / "one", small.settings("self_attn.o_proj", layers_to_transform=[0]), shapes
    )
    source = Source.model_validate({"base": {"path": str(path)}, "adapter": {"path": str(folder)}})
    found = take.original(source, tmp_path)
    assert [step.name for step in found.before] == ["stored", "base", "adapter"]
    assert found.step.runs == "models/merge_adapter"
    assert (found.checkpoint.folder / "tokenizer.json").is_file()
