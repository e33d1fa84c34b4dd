"""Addresses: one spelling each, and a sentence for what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe.errors import RecipeError
from phipipe.recipe import addresses
from phipipe.recipe.addresses import BucketAddress, HubAddress, RegistryAddress

GOOD = (
    ("hf://me/phi", HubAddress("me/phi")),
    ("hf://me/Phi-3.5_mini@v1", HubAddress("me/Phi-3.5_mini", "v1")),
    ("hf://me/phi@refs/pr/1", HubAddress("me/phi", "refs/pr/1")),
    ("oci://127.0.0.1:5000/phi:1", RegistryAddress("127.0.0.1:5000", "phi", "1")),
    ("oci://[::1]:5000/phi:1", RegistryAddress("[::1]:5000", "phi", "1")),
    ("oci://Ghcr.io/team/a__b/c-d:v1.0", RegistryAddress("ghcr.io", "team/a__b/c-d", "v1.0")),
    ("s3://models/phi/int4", BucketAddress("models", "phi/int4")),
    ("s3://models/phi/", BucketAddress("models", "phi")),
)
BAD = (
    ("", "no address"),
    ("me/phi", "no address"),
    ("https://huggingface.co/me/phi", "no address"),
    ("hf://phi", "no OWNER/NAME"),
    ("hf://me/phi/more", "no OWNER/NAME"),
    ("hf://me/..", "no OWNER/NAME"),
    ("hf://me/phi@", "no branch"),
    ("hf://me/phi@a b", "no branch"),
    ("hf://me/phi@../../x", "no branch"),
    ("oci://phi:1", "no tag"),
    ("oci://host/phi", "has no tag"),
    ("oci://host/Phi:1", "lower-case"),
    ("oci://host/a/../b:1", "lower-case"),
    ("oci://user:secret@host/phi:1", "no host"),
    ("oci://host:99999/phi:1", "no host"),
    ("oci://host/phi:a/b", "is no tag"),
    ("s3://bucket", "no prefix"),
    ("s3://bucket/", "no prefix"),
    ("s3://bucket/../x", "no path of plain names"),
    ("s3://Bucket/x", "no name of a bucket"),
    ("s3://bucket/a//b", "no path of plain names"),
)


@pytest.mark.parametrize(("text", "address"), GOOD)
def test_an_address_is_read_and_written_alike(text: str, address: addresses.Address) -> None:
    assert addresses.parse(text) == address
    assert addresses.parse(str(address)) == address


@pytest.mark.parametrize(("text", "words"), BAD)
def test_what_is_no_address_is_told(text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        addresses.parse(text)
    assert words in caught.value.message
    assert str(caught.value.hint).startswith("give ")


@given(
    st.text(max_size=60).flatmap(
        lambda t: st.sampled_from([t, f"hf://{t}", f"oci://{t}", f"s3://{t}"])
    )
)
def test_any_text_is_an_address_or_is_refused_in_printable_words(text: str) -> None:
    try:
        found = addresses.parse(text)
    except RecipeError as error:
        assert error.message.isprintable()  # noqa: PT017
        return
    assert addresses.parse(str(found)) == found
    assert ".." not in str(found).split("/")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:5000", "127.0.0.1", "[::1]:5000"])
def test_this_machine_needs_no_tls(host: str) -> None:
    found = addresses.parse(f"oci://{host}/phi:1")
    assert isinstance(found, RegistryAddress)
    assert found.is_local


def test_two_builds_with_one_address_clash() -> None:
    both = ["a", "b"]
    assert addresses.clash(["hf://me/phi"], both) == "hf://me/phi"
    assert addresses.clash(["hf://me/{name}", "oci://h/phi:{digest}"], both) is None
    assert addresses.clash(["hf://me/phi"], ["a"]) is None
    assert str(addresses.named("oci://h/{name}:{digest}", "a", "f" * 64)) == f"oci://h/a:{'f' * 16}"
