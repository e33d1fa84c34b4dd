"""What registries and hubs say is a stranger's word: it is understood, or refused."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from phipipe.errors import SourceError
from phipipe.files import file_names
from phipipe.package.manifest import TYPE
from phipipe.publishing import modelpack, sealed

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
DIGEST = st.just("sha256:" + "a" * 64) | st.text(max_size=80)
PATH = st.sampled_from(["a", "b/c", "../x", "/etc/x", "A", "con", "a\\b", "x" * 400]) | st.text()
LAYER = st.fixed_dictionaries(
    {
        "digest": DIGEST | ANY,
        "size": st.integers(-2, 2**63) | ANY,
        "annotations": st.fixed_dictionaries({modelpack.FILE: PATH | ANY}) | ANY,
    }
)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_none(raw: bytes) -> None:
    assert isinstance(modelpack.parsed(raw), dict)
    assert sealed.described(raw) is None


@given(st.dictionaries(st.sampled_from(["type", "digest", "files", "format"]), ANY))
def test_any_object_is_a_packages_manifest_or_none(found: dict[str, object]) -> None:
    raw = json.dumps({**found, "type": TYPE}).encode()
    told = sealed.described(raw)
    assert told is None or told["digest"] == found["digest"]
    pairs = sealed.entries_of({**found, "files": [found]})
    assert all(isinstance(a, str) and isinstance(b, str) for a, b in pairs)


@given(st.lists(LAYER | ANY, max_size=4) | ANY)
def test_layers_are_files_that_a_package_may_have_or_refused(layers: object) -> None:
    try:
        files = list(modelpack.layers({"layers": layers}))
    except SourceError as error:
        assert error.message.isprintable()  # noqa: PT017
        return
    for file in files:
        assert not file_names.unsafe(file.name)
        assert file.size >= 0
        assert modelpack.is_digest(f"sha256:{file.digest}")
