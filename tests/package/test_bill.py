"""The bill of materials: valid CycloneDX, the same bytes for the same build, and a gate for
strangers' ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.kitchen import ARTIFACT_FILES, SPEED, Kitchen, digest_of, step

from phipipe.errors import SourceError
from phipipe.package import bill, gate_bill, licences, package
from phipipe.package.description import Description

COMMIT = "2fe192450127e6a83f7441aef6e3ca586c338b77"
HUB = {"kind": "model", "repo": "microsoft/Phi-3.5-mini-instruct", "revision": COMMIT}


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path / "kitchen")


def bill_of(folder: Path) -> dict[str, Any]:
    text = (folder / bill.NAME).read_text("utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found: dict[str, Any] = json.loads(text)
    return found


def properties(part: dict[str, Any]) -> dict[str, str]:
    return {one["name"].removeprefix("phipipe:"): one["value"] for one in part["properties"]}


def from_the_hub(kitchen: Kitchen) -> None:
    kitchen.params["source"] |= {
        "kind": "hub",
        "repo": HUB["repo"],
        "revision": COMMIT,
        "license": "llama3.2",
    }
    kitchen.params["steps"]["source"] = step("hub/fetch", tools=False, **HUB)
    kitchen.params["recipe"]["source"] = {"repo": HUB["repo"], "revision": COMMIT}
    data = {"kind": "dataset", "repo": "Salesforce/wikitext", "revision": "b" * 40}
    kitchen.params["steps"]["text"] = step("hub/fetch", tools=False, **data)


def adapted(kitchen: Kitchen) -> None:
    kitchen.params["source"] |= {
        "kind": "adapter",
        "name": "an adapter",
        "base": {"kind": "hub", "repo": HUB["repo"], "revision": COMMIT},
        "adapter": {"kind": "path", "name": "my-lora"},
    }


def without_licence(kitchen: Kitchen) -> None:
    (kitchen.source / "LICENSE").unlink()


def other_tools(kitchen: Kitchen) -> None:
    tools = {"torch": "2.13.0+cpu", "Odd_Name.x": "1!2.0", "numpy": "2.4.6"}
    kitchen.params["steps"]["convert"] |= {"tools": tools, "toolchain": "torch"}
    for name in ("quantize", "evaluate"):
        kitchen.params["steps"][name]["toolchain"] = "onnxruntime"


@pytest.mark.parametrize(
    "vary",
    [lambda kitchen: None, from_the_hub, adapted, without_licence, other_tools],
    ids=["plain", "hub", "adapter", "no licence", "tools"],
)
def test_it_is_valid_by_the_standard(kitchen: Kitchen, vary: Callable[[Kitchen], None]) -> None:
    vary(kitchen)
    folder = kitchen.cook()
    assert bill_of(folder)["specVersion"] == "1.6"
    assert package.verify(folder) == []


def test_it_names_every_file_that_a_runtime_needs_by_its_hash(kitchen: Kitchen) -> None:
    folder = kitchen.cook()
    named = {
        one["name"]: one["hashes"][0]["content"]
        for one in bill_of(folder)["metadata"]["component"]["components"]
    }
    listed = {one.path: one.sha256 for one in package.read_manifest(folder).files}
    assert named == {name: listed[name] for name in ARTIFACT_FILES}


def test_the_model_card_says_what_was_measured_and_how_surely(kitchen: Kitchen) -> None:
    card = bill_of(kitchen.cook())["metadata"]["component"]["modelCard"]
    figures = {one["type"]: one for one in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert {"kld_mean", "top1", "ppl_ratio"} <= set(figures)
    assert float(figures["kld_mean"]["value"]) == 0.01234
    low, high = (
        float(figures["kld_mean"]["confidenceInterval"][key])
        for key in ("lowerBound", "upperBound")
    )
    assert (high - low) / 2 == pytest.approx(1.96 * 0.00041, rel=1e-4)
    assert card["modelParameters"]["modelArchitecture"] == "Phi3ForCausalLM"
    assert card["modelParameters"]["datasets"] == [{"ref": "data:text/made"}]
    assert properties(card)["quantization"] == "MatMulNBits, 4 bits"
    assert properties(card)["precision"] == "int4"


def test_a_model_of_the_hub_is_the_ancestor_by_its_package_url(kitchen: Kitchen) -> None:
    from_the_hub(kitchen)
    found = bill_of(kitchen.cook())
    (ancestor,) = found["metadata"]["component"]["pedigree"]["ancestors"]
    assert ancestor["purl"] == f"pkg:huggingface/microsoft/Phi-3.5-mini-instruct@{COMMIT}"
    (text,) = found["components"]
    assert (text["group"], text["name"], text["version"]) == ("Salesforce", "wikitext", "b" * 40)
    assert text["hashes"] == [{"alg": "SHA-256", "content": digest_of("fetch")}]


def test_base_and_adapter_are_both_ancestors(kitchen: Kitchen) -> None:
    adapted(kitchen)
    ancestors = bill_of(kitchen.cook())["metadata"]["component"]["pedigree"]["ancestors"]
    assert [one["name"] for one in ancestors] == ["Phi-3.5-mini-instruct", "my-lora"]
    assert "purl" not in ancestors[1]


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (None, {"id": "MIT"}),
        ("apache-2.0", {"id": "Apache-2.0"}),
        ("llama3.2", {"name": "llama3.2"}),
        ("other", {"name": "see LICENSE"}),
    ],
)
def test_licences_have_their_identifier_or_their_name(
    kitchen: Kitchen, stated: str | None, said: dict[str, str]
) -> None:
    if stated:
        kitchen.params["source"]["license"] = stated
    (found,) = bill_of(kitchen.cook())["metadata"]["component"]["licenses"]
    assert found == {"license": said}


def test_no_licence_is_invented(kitchen: Kitchen) -> None:
    without_licence(kitchen)
    assert "licenses" not in bill_of(kitchen.cook())["metadata"]["component"]


def test_every_identifier_is_one_of_the_list() -> None:
    named = [{"license": {"id": spdx}} for spdx in licences.SPDX.values()]
    text = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "metadata": {"component": {"type": "file", "name": "x", "licenses": named}},
    }
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(text)) is None


def test_tools_stand_once_with_the_toolchains_that_had_them(kitchen: Kitchen) -> None:
    other_tools(kitchen)
    (formula,) = bill_of(kitchen.cook())["formulation"]
    tools = {one["purl"]: properties(one)["toolchains"] for one in formula["components"]}
    assert tools["pkg:pypi/torch@2.13.0%2Bcpu"] == "torch"
    assert tools["pkg:pypi/odd-name-x@1%212.0"] == "torch"
    assert tools["pkg:pypi/numpy@2.4.6"] == "onnxruntime torch"


def test_speed_is_not_in_it_and_the_rest_decides_its_number(kitchen: Kitchen) -> None:
    first = (kitchen.cook() / bill.NAME).read_bytes()
    kitchen.speed = {**SPEED, "metrics": {**SPEED["metrics"], "decode_tokens_per_s": 1.5}}
    second = (kitchen.cook("faster") / bill.NAME).read_bytes()
    kitchen.metrics["metrics"]["kld_mean"] = 0.0123
    third = bill_of(kitchen.cook("further"))
    assert first == second
    assert third["serialNumber"] != json.loads(first)["serialNumber"]
    assert not re.search(rb"timestamp|20\d\d-\d\d-\d\dT", first)


# --- the gate


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads((folder / bill.NAME).read_text("utf-8"))
    change(content)
    (folder / bill.NAME).write_text(json.dumps(content), "utf-8")
    return folder / bill.NAME


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b.update(specVersion="1.7"), "is no bill of materials by CycloneDX 1.6"),
        (lambda b: b.update(annotations=[]), "never writes (`annotations`)"),
        (
            lambda b: b["components"][0].update(externalReferences=[]),
            "has `externalReferences`",
        ),
        (
            lambda b: b["components"][0]["data"][0].update(contents={"url": "http://x"}),
            "has `url` in `components.data.contents`",
        ),
        (lambda b: b["formulation"][0].update(workflows=[]), "has `workflows`"),
        (lambda b: b.update(version=1e30), "is too large a number"),
        (lambda b: b["components"][0].update(name="\x1b[2J"), "holds characters"),
    ],
)
def test_a_strangers_bill_asks_for_nothing(
    kitchen: Kitchen, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    (phrase,) = list(gate_bill.problems(changed(kitchen.cook(), change)))
    assert said in phrase


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*gate_bill.TOP, *gate_bill.REFUSED, "x"]), inner)
        ),
        max_leaves=10,
    )
)
@settings(max_examples=200, deadline=None)
def test_no_json_whatever_makes_the_gate_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "some.cdx.json"
    path.write_text(json.dumps(value), "utf-8")
    try:
        phrases = list(gate_bill.problems(path))
    except SourceError:
        assert not isinstance(value, dict) or "\\ud" in json.dumps(value)
    else:
        assert phrases  # none of them says what format it is of


def test_it_says_the_same_of_a_manifest_that_was_read_back(kitchen: Kitchen) -> None:
    folder = kitchen.cook()
    made = package.read_manifest(folder)
    described = Description.model_validate(made.as_json())
    files = [one for one in made.files if one.path in ARTIFACT_FILES]
    assert bill.text(described, files) == (folder / bill.NAME).read_text("utf-8")
