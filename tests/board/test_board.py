"""The fidelity board: its order and front, its file, its text."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import small_package
from testing.boards import HOST, MAC, entry, nineteen
from testing.pages import Page

from phipipe.board import board, file, html
from phipipe.board import entry as board_entry
from phipipe.board import text as board_text
from phipipe.board.columns import COLUMNS
from phipipe.board.entry import Entry
from phipipe.errors import SourceError
from phipipe.evaluate.reports import Metrics, Run, Speed
from phipipe.package.description import Description


def test_the_smallest_comes_first_of_equals_the_closest_and_failures_last() -> None:
    entries = [
        board_entry.failed("z", "torch", "fp16", "no"),
        entry("large", 8, 1e-8),
        entry("far", 4, 1e-2),
        entry("near", 4, 1e-3),
        entry("largest", 32, 0),
    ]
    assert [e.name for e in board.ranked(entries)] == ["near", "far", "large", "largest", "z"]


def test_every_board_says_how_it_is_ordered() -> None:
    entries = nineteen()
    assert "Smallest first." in board_text.table(entries).splitlines()
    assert "Smallest first." in board_text.markdown(entries)
    assert "19 builds, the smallest first" in html.render(entries)


def test_equal_names_are_told_apart() -> None:
    assert sorted(
        e.name for e in board.ranked([entry("a"), entry("a", kld=0.1), entry("a", kld=0.2)])
    ) == [
        "a",
        "a (2)",
        "a (3)",
    ]


def test_a_board_survives_its_file() -> None:
    entries = nineteen()
    again = file.load(file.dump(entries))
    assert again == board.ranked(entries)
    assert file.dump(again) == file.dump(reversed(entries))


@st.composite
def drawn_entries(draw: st.DrawFn) -> list[Entry]:
    """Boards of any devices and backends, where some figures were not taken and some builds
    failed."""
    made = []
    for i in range(draw(st.integers(0, 6))):
        device, backend = (
            draw(st.sampled_from(["Mac", "Pi", "", "\x1b[31mNPU\n"])),
            draw(st.sampled_from(["mlx", "new"])),
        )
        if draw(st.integers(0, 3)) == 0:
            made.append(board_entry.failed(f"b{i}", backend, "int4", "no memory", device))
            continue
        figures = {
            "kld_mean": draw(st.sampled_from([0.0, 0.01, 0.5])),
            "size_gib": 1.0 + i % 3,
            "bits_per_weight": 4.5,
        }
        if draw(st.booleans()):
            figures["decode_tokens_per_s"] = draw(st.sampled_from([0.0, 1e-300, 5.0, 1e300]))
        spread = draw(
            st.sampled_from([{}, {"decode_tokens_per_s": [0.0, 9.0]}, {"ttft_s": [9.0, 1.0]}])
        )
        told = {
            "metrics": figures,
            "spread": spread,
            "device": device,
            "backend": backend,
            "stderr": {},
        }
        told |= {
            "on_target": draw(st.sampled_from(["true", "emulated", "false"])),
            "reference": draw(st.booleans()),
        }
        made.append(entry(draw(st.sampled_from(["same", "b|`<\n"])), **told))
    return made


def test_builds_that_differ_in_anything_have_one_order() -> None:
    one, other = entry("same", reference=True), entry("same", reference=False)
    assert board.ranked([one, other]) == board.ranked([other, one])


@settings(max_examples=40)
@given(drawn_entries(), st.randoms(use_true_random=False))
def test_any_board_has_its_answers_in_every_order_and_after_its_file(
    entries: list[Entry], dice: Random
) -> None:
    found = board.answers(entries)
    assert board.answers(dice.sample(entries, len(entries))) == found
    assert board.answers(file.load(file.dump(entries))) == found
    assert all(line.isprintable() for line in board_text.advice(entries))
    assert [
        line for line in board_text.markdown(entries).splitlines() if line.startswith("# ")
    ] == ["# Fidelity board"]
    assert board_text.table(entries)


def changed(**new: Any) -> str:
    raw = json.loads(file.dump([entry()]))
    for name, value in new.items():
        (raw if name in ("type", "format", "entries") else raw["entries"][0])[name] = value
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no board"),
        (changed(type="phipipe-package"), "no board"),
        (changed(format=2), "newer phipipe"),
        (changed(format=True), "no known format"),
        (changed(entries={}), "no known format"),
        (changed(entries=[3]), "`entries.0`"),
        (changed(tokens="many"), "`entries.0.tokens`"),
        (changed(on_target="perhaps"), "`entries.0.on_target`"),
        (changed(unheard=1), "`entries.0.unheard`"),
        (changed(metrics={"kld_mean": math.nan}), "`NaN` is no number"),
        (changed(metrics={"kld_mean": "0.1"}), "`entries.0.metrics.kld_mean`"),
        (changed().replace('"window": 512', '"window": 512, "window": 512'), "stands there twice"),
        (changed(metrics={"kld_mean": 0.1}), "has no `size_gib`"),
        (changed(metrics={"kld_mean": 0.1, "size_gib": 0.0, "bits_per_weight": 4}), "has no size"),
        (changed(metrics={"kld_mean": -0.1, "size_gib": 1.0, "bits_per_weight": 4}), "below zero"),
        (changed(spread={"ttft_s": [1.0]}), "no pair"),
        (changed(sanity={"answers_ended": True}), "sanity"),
        (changed(sanity={"greedy_agreement": "all"}), "`entries.0.sanity"),
    ],
)
def test_what_is_no_board_is_refused(text: str, said: str) -> None:
    with pytest.raises(SourceError, match=re.escape(said)):
        file.load(text)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"source_digest": "d" * 64},
            "source model differs: `one` has phi-3-mini aaaaaaaaaaaa, `two` has phi-3-mini ddd",
        ),
        ({"text_digest": "e" * 64}, "evaluation text differs"),
        ({"tokens": 8192}, "number of tokens differs: `one` has 4096, `two` has 8192"),
        ({"window": 2048}, "window differs"),
        ({"skip": 256}, "skip differs"),
    ],
)
def test_builds_that_do_not_compare_are_refused(other: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        board.check_comparable(
            [entry("one"), board_entry.failed("x", "torch", "int4", "no"), entry("two", **other)]
        )
    assert caught.value.hint


def test_another_machine_is_allowed_and_marked() -> None:
    entries = [entry("a"), entry("b"), entry("c", host=MAC), entry("d", prompt_tokens=512)]
    board.check_comparable(entries)
    assert board.elsewhere(entries) == {"c", "d"}
    marked = [line for line in board_text.table(entries, 200).splitlines() if "†" in line]
    assert [line.split()[1] for line in marked[:2]] == ["c", "d"]
    assert marked[2].startswith("† measured on another machine")
    assert "†" not in board_text.table(entries[:2], 200)


@given(st.integers(20, 220))
def test_the_table_keeps_its_width(width: int) -> None:
    lines = board_text.table(nineteen(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)


def test_a_narrow_table_still_says_what_matters() -> None:
    shown = board_text.table(nineteen(), 100)
    head, *rows = shown.splitlines()
    assert head.split()[:2] == ["build", "backend,"]
    assert all(word in head for word in ("size", "bits/w", "KLD, nats", "top-1 %"))
    assert any(row.startswith("* torch-fp16-7") and "2.00e-7" in row for row in rows)
    assert "! onnxruntime-gptq: onnxruntime int4, failed: `quantize` was ended: [31mmemory" in shown
    assert "KLD" in board_text.table([entry("n" * 70)], 80)
    assert "behind" in board_text.table(nineteen(), 200)


def test_a_board_without_a_success_says_so() -> None:
    entries = [board_entry.failed("x", "torch", "int4", "no memory")]
    assert board.lines(board.answers(entries)) == ["Nothing to ship: no build succeeded."]
    for text in (
        board_text.table(entries),
        board_text.markdown(entries),
        html.render(entries),
    ):
        assert "no memory" in text
    assert file.load(file.dump(entries)) == entries
    assert "Nothing" in html.render([])


def test_which_to_ship_comes_from_the_figures_of_each_device() -> None:
    cpu, *others = board.answers(nineteen())
    assert cpu.where == "CPU (x86-64)"
    assert [(pick.aim, pick.build) for pick in cpu.picks] == [
        ("size", "torch-int4-8"),
        ("fidelity", "llamacpp-int8-10"),  # fp16 is no quantized build
        ("answer speed", "llamacpp-int4-11"),
    ]
    assert cpu.picks[2].equals == (
        "onnxruntime-int4-4",
        "torch-int4-8",
        "onnxruntime-int4-5",
        "llamacpp-int4-12",
    )
    assert [[pick.aim for pick in answer.picks] for answer in others] == [["size", "fidelity"]] * 2
    cautions = {answer.where: " ".join(answer.cautions) for answer in others}
    assert "emulated" in cautions["Intel NPU, intel-npu"]
    assert "not measured on the device" in cautions["Apple silicon, metal"].casefold()


def test_text_markdown_page_and_data_say_the_same_of_every_device() -> None:
    entries = nineteen()
    found = board.answers(entries)
    assert len(found) == 3
    page = " ".join(Page(html.render(entries)).seen.split())
    markdown = board_text.markdown(entries)
    for answer, told in zip(found, json.loads(file.dump(entries))["picks"], strict=True):
        assert f"{answer.where} {answer.picks[0].build}" in page
        assert answer.line in markdown
        assert told["line"] == answer.line
        for pick in answer.picks:
            alone = pick.build == answer.picks[0].build
            assert alone or f"If {pick.aim} matters most {pick.build}: {pick.words}" in page
            assert f"`{pick.build}` ({pick.words})" in markdown
    best, rivals = board.standing(found)
    starred = [row.split("|")[1].strip() for row in markdown.splitlines() if row.endswith("| ★ |")]
    assert sorted(starred) == sorted(best)
    assert all(
        f"| {name} |" in markdown and f"| behind {rival} |" in markdown
        for name, rival in rivals.items()
    )
    assert {
        line.split()[1]
        for line in board_text.table(entries, 160).splitlines()
        if line.startswith("* ")
    } >= best


def test_markdown_holds_whatever_it_is_told() -> None:
    text = board_text.markdown(
        [entry("a|b\n# c"), board_entry.failed("x", "torch", "int4", "| <b>\n\n# heading")]
    )
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 2
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_an_entry_says_what_its_manifest_says() -> None:
    step = {"digest": "t" * 64, "key": "k" * 64, "tools": {"torch": "2.13.0", "idna": "3.20"}}
    manifest = Description.model_validate({
        "name": "tiny", "backend": "torch", "backend_title": "PyTorch",
        "precision": "fp16", "scheme": "float16",
        "api": "cpu", "on_target": "true", "phipipe": "0.1.0", "device": {"title": "CPU"},
        "recipe": {"backend": "torch", "precision": "fp16",
            "evaluate": {"text": {"builtin": "stories"}}},
        "steps": {"text": step},
        "source": {"kind": "hub", "repo": "someone/phi", "digest": "s" * 64, "parameters": 5,
            "architecture": "Phi3ForCausalLM", "context_length": 64},
        "fidelity": {
            "baseline": {"tokens": 64, "window": 32, "skip": 0, "ppl": 2.0, "ppl_stderr": 0.1},
            "metrics": {"kld_mean": 1e-7, "size_gib": 0.1, "bits_per_weight": 16.0},
            "profile": {"by_position": [1e-7], "quantiles": [0.0] * 101},
            "stderr": {}, "sanity": {}, "positions": 62,
        },
        "speed": {"metrics": {"ttft_s": 0.1}, "spread": {"ttft_s": [0.1, 0.2]}, "host": HOST,
            "prompt_tokens": 16},
    })  # fmt: skip
    made = board_entry.from_manifest(manifest)
    assert (made.source, made.text, made.text_digest) == ("someone/phi", "stories", "t" * 64)
    assert made.metrics == {
        "kld_mean": 1e-7,
        "size_gib": 0.1,
        "bits_per_weight": 16.0,
        "ttft_s": 0.1,
    }
    assert (dict(made.tools), dict(made.keys)) == ({"torch": "2.13.0"}, {"text": "k" * 64})
    assert file.load(file.dump([made])) == [made]


KNOB = "8-bit activations and cache"


def running(name: str, knob: str | None, kld_run: float | None, **changed: Any) -> Entry:
    """A build with both divergences, as far as there are any."""
    made = entry(name, **changed)
    figures = {} if kld_run is None else {"kld_run": kld_run}
    return replace(made, knob=knob, metrics={**made.metrics, **figures})


def test_a_row_shows_what_the_file_loses_and_what_its_run_does() -> None:
    every = [
        running("differs", KNOB, 0.03, backend="openvino", precision="int8"),
        running("alike", "", 0.02),
        running("unknown", None, None),
    ]
    column = next(c for c in COLUMNS if c.name == "kld_run")
    assert [column.text(e) for e in every] == ["0.0300", "same", "–"]
    told = replace(every[0], stderr={"kld_run": 0.0004})
    assert column.text(told) == "0.0300"  # as many digits as its error leaves, without it
    assert column.text(replace(told, reference=True)) == "≥ 0.0300"
    assert [column.value(e) for e in every] == [0.03, 0.02, None]
    shown = board_text.table(every, 200)
    assert "KLD run" in shown.splitlines()[0]
    assert f"KLD run of openvino int8: {KNOB}." in shown
    assert f"KLD run of openvino int8: {KNOB}." in board_text.markdown(every)
    assert KNOB in html.render(every)
    assert file.load(file.dump(every)) == board.ranked(every)


def test_a_figure_that_no_build_has_takes_no_room_in_a_terminal() -> None:
    assert "KLD run" not in board_text.table([entry("a"), entry("b")], 200)


def test_a_board_of_an_older_phipipe_knows_no_run() -> None:
    content = json.loads(file.dump([entry("old")]))
    for old in content["entries"]:
        del old["knob"]
    (found,) = file.load(json.dumps(content))
    assert found.knob is None


def test_what_was_measured_on_the_device_takes_the_place_of_the_builds_run() -> None:
    fidelity = {
        **small_package.described()["fidelity"],
        "metrics": {"kld_mean": 0.01, "kld_run": 0.04, "size_gib": 0.5, "bits_per_weight": 4.5},
        "run": {"how": KNOB, "positions": 100},
    }
    manifest = Description.model_validate(small_package.described(fidelity=fidelity))
    built = board_entry.from_manifest(manifest)
    assert (built.knob, built.metrics["kld_run"]) == (KNOB, 0.04)
    told = Metrics(metrics={"kld_mean": 0.011, "kld_run": 0.012}, run=Run(how="other"))
    here = board_entry.measured(manifest, told, Speed(metrics={}))
    assert (here.knob, here.metrics["kld_run"]) == ("other", 0.012)
    alone = Metrics(metrics={"kld_mean": 0.011})
    nothing = board_entry.measured(manifest, alone, Speed(metrics={}))
    assert nothing.knob is None
    assert "kld_run" not in nothing.metrics
