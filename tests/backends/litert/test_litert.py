"""LiteRT: options and rules, fidelity, what is stored, LiteRT-LM's own view of the bundle, known
traps."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from testing.checkpoints import LONGROPE, source, tie
from testing.drive import drive, facts_of, section
from testing.shapes import phi3
from testing.shell import Shell

from phipipe.backends import fixups, litert, rules
from phipipe.backends.base import Job
from phipipe.hub import take
from phipipe.models.checkpoint import Checkpoint
from phipipe.package import package

DRIVER = Path(__file__).parent / "driver.py"

TEMPLATES = {
    "phi": "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' "
    "}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "bos": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor "
    "%}[assistant]",
    "strict": "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') "
    "}}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]",
    "count": "{{ messages | length }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] "
    "}}{% endfor %}",
}


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver found out in the toolchain's Python, against logits of transformers."""
    root = tmp_path_factory.mktemp("litert")
    source(root / "source")
    source(root / "longrope", **LONGROPE)
    source(root / "sliding", sliding_window=128)
    tie(source(root / "tied", tie_word_embeddings=True))
    (root / "templates.json").write_text(json.dumps(TEMPLATES), "utf-8")
    text = take.ASSETS / "stories" / "evaluation.txt"
    drive(
        python_of("torch"),
        "-m",
        "testing.reference",
        root,
        text,
        "400",
        "source",
        "longrope",
        "sliding",
        "tied",
    )
    return facts_of(python_of("litert"), DRIVER, root)


def recipe(precision: str = "int4", window: int = 512, prompt: int = 128) -> Any:
    measure = SimpleNamespace(prompt_tokens=prompt, new_tokens=64)
    return SimpleNamespace(
        precision=precision,
        backend="litert",
        weights=SimpleNamespace(learn=None, group_size=32),
        evaluate=SimpleNamespace(window=window),
        measure=measure,
    )


def checkpoint(**changes: Any) -> Checkpoint:
    return phi3(**{"parameters": 10_000_000, **changes})


def advice(
    precision: str, shape: Any = None, window: int = 512, prompt: int = 128, **options: Any
) -> list[Any]:
    found = rules.check(
        Job(recipe(precision, window, prompt), litert.Options(**options), shape or checkpoint()),
        litert.RULES,
    )
    return [(entry.rule, entry.level) for entry in found]


@pytest.mark.parametrize(
    "wrong",
    [
        {"scheme": "static"},
        {"group_size": 16},
        {"prefill_length": 0},
        {"context_length": 0},
        {"format": "task"},
        {"bits": 4},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        litert.Options.model_validate(wrong)


@pytest.mark.parametrize(
    ("precision", "options", "rules"),
    [
        ("int4", {}, []),
        ("int8", {"scheme": "weight_only", "format": "tflite"}, []),
        ("int4", {"group_size": 32, "context_length": 4096, "prefill_length": 4096}, []),
        ("fp32", {"prefill_length": 64}, []),
        ("int4", {"context_length": 5000}, ["R02"]),
        ("int4", {"context_length": 1024, "prefill_length": 1025}, ["R03"]),
        ("int4", {"context_length": 511}, ["R04"]),
        ("int8", {"group_size": 32}, ["R07"]),
        ("int4", {"group_size": 32, "scheme": "weight_only"}, ["R07"]),
        ("int4", {"group_size": -1}, ["R09"]),
        ("int4", {"scheme": "weight_only"}, ["R09"]),
        ("int8", {"group_size": -1}, []),
        ("fp32", {"scheme": "weight_only"}, ["R14"]),
        ("fp32", {"group_size": -1}, ["R14"]),
    ],
)
def test_options_that_litert_would_ignore_or_refuse_are_told(
    precision: str, options: dict[str, Any], rules: list[str]
) -> None:
    assert [rule for rule, _ in advice(precision, **options)] == rules


def test_measurements_must_fit_the_cache() -> None:
    assert advice("int4", prompt=1984) == []
    assert advice("int4", prompt=1985) == [("R04", "error")]


def test_models_that_were_never_exported_are_refused() -> None:
    assert advice("int4", checkpoint(model_type="phimoe")) == [("R01", "error")]


def test_layers_that_groups_do_not_divide_are_refused() -> None:
    assert advice("int4", checkpoint(intermediate_size=8224), group_size=64) == [("R08", "error")]
    assert advice("int4", checkpoint(intermediate_size=8224), group_size=32) == []
    assert advice("int4", checkpoint(intermediate_size=8200)) == [("R08", "error")]
    assert advice("int4", checkpoint(intermediate_size=8200), group_size=-1) == [("R09", "warning")]
    (refusal,) = rules.check(
        Job(recipe(), litert.Options(group_size=64), checkpoint(intermediate_size=8224)),
        litert.RULES,
    )
    assert "these work: 32, -1" in refusal.hint


@pytest.mark.parametrize(
    ("precision", "options", "group"),
    [
        ("int4", {}, 32),
        ("int4", {"scheme": "weight_only"}, -1),
        ("int4", {"group_size": -1}, -1),
        ("int4", {"group_size": 128}, 128),
        ("int8", {}, -1),
    ],
)
def test_int4_is_in_groups_of_32_wherever_groups_run(
    precision: str, options: dict[str, Any], group: int
) -> None:
    chosen = litert.Options(**options)
    steps = {
        step.name: step for step in litert.steps(Job(recipe(precision), chosen, checkpoint(), {}))
    }
    assert steps["quantize"].params["group_size"] == group
    assert ("groups of 32" in litert.scheme(Job(recipe(precision), chosen))) == (group == 32)


def test_the_cache_ends_where_the_model_would_differ() -> None:
    """By default without a word; asked for more, with one."""
    longrope = checkpoint(context_length=131072, original_context_length=1024, longrope=True)
    sliding = checkpoint(sliding_window=1023)
    for shape, rule in ((longrope, "R05"), (sliding, "R06")):
        assert advice("int4", shape) == []
        assert advice("int4", shape, context_length=1025) == [(rule, "error")]
        (step, *_) = litert.steps(Job(recipe(), litert.Options(), shape, {}))
        assert step.params["context_length"] == (1024 if shape is longrope else 1023)


def test_a_sliding_window_is_taken_out_of_the_staged_copy() -> None:
    found = fixups.needed(recipe(), checkpoint(sliding_window=2047))
    assert found["F3"]["patch"] == {"sliding_window": None}
    assert fixups.needed(recipe(), checkpoint()) == {}
    listed = {"layer_types": ["sliding_attention"], "use_sliding_window": True}
    qwen2 = dataclasses.replace(checkpoint(sliding_window=2047), model_type="qwen2", config=listed)
    assert fixups.needed(recipe(), qwen2)["F3"]["patch"] == {
        "sliding_window": None,
        "use_sliding_window": False,
        "layer_types": None,
    }


def test_all_precisions_share_one_conversion() -> None:
    def planned(precision: str, **options: Any) -> list[Any]:
        return litert.steps(Job(recipe(precision), litert.Options(**options), checkpoint(), {}))

    assert planned("fp32")[0] == planned("int8")[0] == planned("int4", group_size=32)[0]
    assert planned("fp32")[0].unquantized == "float32"
    assert [step.name for step in planned("int4")] == ["convert", "quantize", "bundle"]
    assert [step.name for step in planned("fp32", format="tflite")] == ["convert"]
    assert planned("int4")[2].needs == {"model": "quantize"}
    assert planned("fp32")[1].needs == {"model": "convert"}


LIMITS = {
    "int8": 1e-3,
    "int8-floats": 1e-4,
    "int4": 1e-2,
    "int4-floats": 1e-2,
    "int4-32": 5e-3,
    "int4-128": 1e-2,
}


@pytest.mark.parametrize(("case", "limit"), [("fp32", 1e-6), *LIMITS.items()])
def test_logits_are_those_of_transformers(facts: dict[str, Any], case: str, limit: float) -> None:
    found = section(facts, "fidelity")[case]
    assert found["kld"] < limit
    assert found["again"]
    assert found["causal"]
    assert found["dtype"] == "float32"
    assert found["shape"] == [400, 2304]


def test_more_bits_are_closer(facts: dict[str, Any]) -> None:
    kld = {name: found["kld"] for name, found in section(facts, "fidelity").items()}
    assert kld["fp32"] < kld["int8-floats"] < kld["int8"] < kld["int4-32"] < kld["int4"]
    size = {
        name: found["bytes"] for name, found in section(facts, "fidelity").items() if name != "fp32"
    }
    assert size["int4"] < 0.6 * size["int8"]
    assert size["int4-32"] < 1.02 * size["int4"]


@pytest.mark.parametrize("case", ["fp32", "int8", "int4-32"])
def test_generation_through_prefill_follows_the_logits(facts: dict[str, Any], case: str) -> None:
    found = section(facts, "fidelity")[case]
    assert len(found["generated"]) == 8
    assert found["generated"] == found["chain"]


@pytest.mark.parametrize(("case", "context"), [("tied", 2048), ("longrope", 512), ("sliding", 128)])
def test_variants_are_exact_up_to_the_cache_they_get(
    facts: dict[str, Any], case: str, context: int
) -> None:
    found = section(facts, "variants")[case]
    assert found["context"] == context
    assert found["kld"] < 1e-6
    assert found["generated"] == found["chain"]


def test_a_full_cache_ends_the_text_and_is_never_overwritten(facts: dict[str, Any]) -> None:
    found = section(facts, "variants")["tight"]
    assert found["kld"] < 1e-6
    assert found["generated"] == found["chain"]
    assert found["full"] <= 5
    assert found["beyond"][0] == "StepFailed"
    assert "65 tokens do not fit the cache of 64" in found["beyond"][1]


def test_litert_lm_itself_answers_as_we_do(facts: dict[str, Any]) -> None:
    found = section(facts, "bundle")
    assert found["same"]
    assert "model.litertlm" in found["files"]
    assert "model.tflite" not in found["files"]
    assert "fox" in found["texts"][0]
    assert found["texts"][0] == found["texts"][1]
    assert found["ids"][0] == found["ids"][1]
    assert found["ends"] == [[[2240], [2247]], None]


def test_a_folder_without_a_model_is_named(facts: dict[str, Any]) -> None:
    found = section(facts, "bundle")
    assert found["damaged"][:2] == ["StepFailed", "`model.litertlm` is not a LiteRT-LM bundle"]
    assert found["empty"][0] == "StepFailed"
    assert "neither `model.tflite` nor" in found["empty"][1]


def test_what_was_stored_is_compared_with_what_was_asked(facts: dict[str, Any]) -> None:
    found = section(facts, "failures")
    assert found["readers"] == ["EMBEDDING_LOOKUP", "FULLY_CONNECTED"]
    assert found["count"] == (1 + 4 * 5 + 1) + (
        1 + 4 * 4 + 1
    )  # decode; prefill ends with the last keys and values
    assert found["fine"][0] == found["groups"][0] == "nothing raised"
    for name, words in (
        ("floats", "stored as FLOAT32 with no scale"),
        ("bits", "stored as INT8"),
        ("group", "groups of 64, and is stored as INT4 with one scale a row"),
        ("scheme", "read by DEQUANTIZE"),
        ("zeros", "zero points"),
        ("lost", "lost or changed"),
        ("converted", "INT8, not FLOAT32"),
        ("signatures", "instead of decode and prefill_64"),
        ("cache", "a cache of 2048 tokens instead of 1024"),
    ):
        assert found[name][0] == "StepFailed", name
        assert words in found[name][1], name


def test_builds_are_reproducible_and_keep_the_tokenizer(facts: dict[str, Any]) -> None:
    found = section(facts, "reproducible")
    assert found["same"] == [True, True]
    assert found["named"] == []
    assert len(found["kept"]) == 4


def test_the_tokenizer_is_the_sources(facts: dict[str, Any]) -> None:
    found = section(facts, "tokenizer")
    assert found["ids"][0] == found["ids"][1]
    assert found["text"] == "the fox"
    assert found["chat"] == "<|user|>\nhi<|end|>\n<|assistant|>\n"


def test_chat_templates_become_affixes_where_they_are_such(facts: dict[str, Any]) -> None:
    """LiteRT-LM gives a template lists of parts, where Phi's want text: it cannot use these as they
    are."""
    found = section(facts, "templates")
    assert found["phi"] == {
        "user": ["<|user|>\n", "<|end|>\n<|assistant|>\n"],
        "model": ["", "<|end|>\n"],
        "system": ["<|system|>\n", "<|end|>\n"],
    }
    assert found["bos"]["user"] == ["[user]", "[assistant]"]
    assert "system" not in found["strict"]
    assert found["count"] == {}


RECIPE = """
name: phone
source: {builtin: tiny-phi3}
device: android-phone
backend: litert
precision: int8
evaluate:
  text: {builtin: stories}
  tokens: 2048
  gates: {kld_mean: {max: 0.005}, top1: {min: 0.95}}
measure: {repetitions: 2}
matrix:
  - {name: bundle}
  - {name: bare, quantize: {format: tflite}}
  - {name: small, precision: int4, weights: none}
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> Shell:
    return Shell(tmp_path_factory.mktemp("litert-packages"), toolchains)


@pytest.fixture(scope="module")
def builds(shell: Shell) -> dict[str, Any]:
    """The command line's own account of three packages for a phone."""
    recipe = shell.folder / "phone.yaml"
    recipe.write_text(RECIPE, "utf-8")
    return {build["name"]: build for build in shell.run(recipe=recipe)}


def test_packages_for_a_phone_come_from_one_conversion(builds: dict[str, Any]) -> None:
    assert set(builds) == {"phone-bundle", "phone-bare", "phone-small"}
    for build in builds.values():
        assert build["ok"]
        assert build["evaluation"]["sanity"]["tokenizer_equal"]
        assert build["evaluation"]["sanity"]["chat_template_equal"]
    converted = {s["digest"] for b in builds.values() for s in b["steps"] if s["name"] == "convert"}
    assert len(converted) == 1
    metrics = {name: build["evaluation"]["metrics"] for name, build in builds.items()}
    assert metrics["phone-bundle"]["kld_mean"] == metrics["phone-bare"]["kld_mean"] < 2e-4
    assert metrics["phone-small"]["size_gib"] < 0.7 * metrics["phone-bundle"]["size_gib"]


@pytest.mark.parametrize("name", ["phone-bundle", "phone-bare", "phone-small"])
def test_the_cards_program_runs_the_package_without_phipipe(
    shell: Shell, builds: dict[str, Any], python_of: Callable[[str], Path], name: str
) -> None:
    folder = shell.folder / "packages" / name
    program = re.search(
        r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL
    )
    assert program
    command = [python_of("litert"), "-I", "-c", program[1], folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(
        r"(?:Once upon a time|There once) (?:there )?was a .*\bfox\b.*\.\n", done.stdout
    )
    assert package.verify(folder) == []


def test_the_chat_shows_the_answer_alone(shell: Shell, builds: dict[str, Any]) -> None:
    """LiteRT's own reports stay out of the terminal."""
    command = [
        "chat",
        shell.folder / "packages" / "phone-bundle",
        "--prompt",
        "Tell me a short story about a fox.",
    ]
    done = shell(*command)
    assert "fox" in done.stdout
    assert "INFO" not in done.stderr
    assert "WARNING" not in done.stderr
