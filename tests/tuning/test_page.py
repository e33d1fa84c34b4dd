"""The page of a choice of widths as text: what it says, that it loads nothing, and that nothing
breaks out of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import choices, shapes
from testing.pages import Page

from phipipe.models import linears
from phipipe.recipe.source import Source
from phipipe.tuning import page, plot, strip
from phipipe.tuning.aims import Aim
from phipipe.tuning.results import AS_IT_STANDS, Check, Tuned

MOST_BYTES = 120_000
COMMAND = "phipipe tune mine.yaml --bits 4.5"


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    (build,) = choices.builds()
    return choices.tuned(tmp_path_factory.mktemp("onnx"), build)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Of 32 layers, in types of the runtime's own."""
    (build,) = choices.builds("backend=llamacpp", "quantize={}", "name=gguf")
    folder = tmp_path_factory.mktemp("gguf")
    return choices.tuned(folder, build, Aim(by_gates=True), shapes.phi3(), answers=None)


def read(*tuned: Tuned, command: str = COMMAND) -> Page:
    return Page(page.render(tuned, command))


def test_the_page_loads_nothing_and_links_only_within_itself(onnx: Tuned, gguf: Tuned) -> None:
    made = read(onnx, gguf)
    loads = [
        (tag, found[name])
        for tag, found in made.tags
        for name in found
        if name in ("src", "href", "srcset", "action")
    ]
    ids = [found["id"] for _, found in made.tags if "id" in found]
    assert {tag for tag, _ in loads} == {"a"}
    assert all(str(link)[0] == "#" and str(link)[1:] in ids for _, link in loads)
    assert len(ids) == len(set(ids))
    assert {found.get("popovertarget", ids[0]) for _, found in made.tags} <= set(ids)
    assert not {tag for tag, _ in made.tags} & {"link", "iframe", "img", "object", "base"}
    policy = next(found for tag, found in made.tags if tag == "meta" and "http-equiv" in found)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(r"https?://|@import|url\(", made.seen)
    assert made.scripts == []


def test_the_page_is_small(onnx: Tuned, gguf: Tuned) -> None:
    assert len(page.render([onnx, gguf], COMMAND).encode()) <= MOST_BYTES


def test_what_was_chosen_comes_first_in_words(onnx: Tuned) -> None:
    seen = " ".join(read(onnx).seen.split())
    assert COMMAND in seen
    assert "tiny-phi3 for CPU (x86-64), onnxruntime. Wanted: the closest file that is no" in seen
    today = next(one for one in onnx.trials if one.what == AS_IT_STANDS)
    ratio = onnx.best.kld / today.kld
    assert "3 files were built." in seen
    assert "a mean KL divergence of 0.0300 nats. The chosen file is 0.98 % smaller" in seen
    assert f"with {ratio:.2g} times the divergence" in seen
    assert "± 0.0010" in seen or "± 0.001" in seen  # on the recipe's own text
    assert "75.0 %of 4 answers which the original ends by itself" in seen  # two cells
    assert "answered 4 prompts, in at most 64 tokens each. Lines of prompts" in seen


@pytest.mark.parametrize(
    ("aim", "limit", "words"),
    [
        (Aim(size_bytes=2**30), 2**30, "Wanted: the closest file of at most 1.00 GiB."),
        (Aim(bits=4.5), 2**20, "at most 4.5 bits for a weight, which are 1.00 MiB."),
        (Aim(by_gates=True), None, "the recipe’s gates: kld_mean ≤ 0.1, top1 ≥ 0.8."),
    ],
)
def test_the_aim_stands_in_words(onnx: Tuned, aim: Aim, limit: int | None, words: str) -> None:
    assert words in read(replace(onnx, aim=aim, limit_bytes=limit)).seen


def test_where_the_recipe_as_it_stands_is_best_no_map_is_shown(onnx: Tuned) -> None:
    best = next(one for one in onnx.trials if one.what == AS_IT_STANDS)
    made = read(replace(onnx, best=best))
    assert "No file that fits is closer than the recipe as it stands" in made.seen
    assert "Width of each matrix" not in made.seen


def test_without_the_recipe_as_it_stands_nothing_is_compared(onnx: Tuned) -> None:
    alone = replace(onnx, trials=onnx.trials[1:], checks=[], aim=Aim(size_bytes=1))
    seen = read(alone).seen
    assert "nothing to compare with" in seen
    assert "Noise checks" not in seen


def test_every_matrix_has_a_cell_with_its_width_in_words(gguf: Tuned) -> None:
    assert gguf.best.choice is not None
    made = read(gguf)
    titles = [found["title"] for tag, found in made.tags if tag == "td" and "title" in found]
    assert len(titles) == 32 * 4
    for name, option in gguf.best.choice.items():
        layer, last = linears.layer_of(name), name.rpartition(".")[2].removesuffix("_proj")
        if layer is not None:
            assert f"{last}, layer {layer}: {option.stored}" in titles
    assert f"embedding {gguf.best.choice['embed_tokens'].stored}" in made.seen
    assert f"head {gguf.best.choice['lm_head'].stored}" in made.seen
    for shown in {option.stored for option in gguf.best.choice.values()}:
        assert f"{shown} {choices.stores_of(gguf.build).types[str(shown)]:.2f}" in made.seen


def test_the_same_bits_have_the_same_shade_on_the_whole_page(onnx: Tuned, gguf: Tuned) -> None:
    scale = strip.scale([onnx, gguf])
    shown = [strip.strip(one, scale) for one in (onnx, gguf)]
    cells = [cell for one in shown if one for cell in one.legend]
    assert len({(cell.bits, cell.shade) for cell in cells}) == len({cell.shade for cell in cells})
    assert sorted({cell.shade for cell in cells}) == list(range(len(scale)))
    order = sorted(cells, key=lambda cell: cell.shade)
    assert [float(cell.bits) for cell in order] == sorted(float(cell.bits) for cell in cells)


@pytest.mark.parametrize("count", range(1, 20))
def test_shades_darken_and_their_figures_can_be_read(count: int) -> None:
    """In print and to all eyes the order is that of lightness."""
    shades = strip.shades(count)
    lights = [light(shade.ground) for shade in shades]
    assert all(left > right for left, right in pairwise(lights))
    assert all(contrast(light(shade.ground), light(shade.ink)) >= 4.5 for shade in shades)
    if count <= 9:  # as many as llama.cpp has types to choose from
        assert all(contrast(left, right) > 1.2 for left, right in pairwise(lights))


def light(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    low, high = sorted((one, other))
    return (high + 0.05) / (low + 0.05)


def test_the_page_can_be_read_without_eyes(onnx: Tuned, gguf: Tuned) -> None:
    made = read(onnx, gguf)
    tags = [tag for tag, _ in made.tags]
    assert tags.count("h1") == 1
    assert tags.count("table") == tags.count("caption")
    said = [found["aria-label"] or "" for _, found in made.tags if found.get("class") == "plot"]
    assert ["as it stands: " in text and "chosen: " in text for text in said] == [True, True]
    points = [found for tag, found in made.tags if tag == "a"]
    assert len(points) == 6
    assert all("nats" in (found["aria-label"] or "") for found in points)
    rows = [found for tag, found in made.tags if tag == "th" and found.get("scope") == "row"]
    assert len(rows) >= 2 * (4 + 3 + 4)


def test_the_limit_is_a_line(onnx: Tuned, gguf: Tuned) -> None:
    size, gate = plot.plot(onnx).limit, plot.plot(gguf).limit
    assert size is not None
    assert (size.along, size.text.split()[0]) == ("x", "limit:")
    assert gate == plot.Limit(along="y", at=gate.at if gate else 0, text="gate: 0.100 nats")
    assert plot.plot(replace(onnx, limit_bytes=2**50)).limit is None


NASTY = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--<b>\u2028&lt;\" ' {{ 7*7 }}"
)
ACTING = "\x1b]0;x\x07\x9b\u202e\u2066"


def hostile(tuned: Tuned, text: str) -> Tuned:
    """``text`` wherever a user, a model or a tool may write some."""
    source = Source.model_construct(path=f"models/{text}")
    recipe = tuned.build.recipe.model_copy(update={"source": source, "name": text})
    device = tuned.final.plan.device.model_copy(update={"title": text})
    plan = replace(tuned.final.plan, device=device)
    return replace(
        tuned,
        build=replace(tuned.build, name=text, recipe=recipe),
        checks=[Check(name=text, predicted=0.0, measured=1.0)],
        trials=[replace(one, what=text) if one is not tuned.best else one for one in tuned.trials],
        final=replace(tuned.final, plan=plan),
    )


def skeleton(made: Page) -> list[tuple[str, list[str]]]:
    """All elements with the names of their attributes."""
    return [(tag, sorted(found)) for tag, found in made.tags]


def test_nothing_breaks_out_of_the_page(onnx: Tuned, gguf: Tuned) -> None:
    text = ACTING + NASTY
    made = read(hostile(onnx, text), hostile(gguf, text), command=text)
    plain = read(hostile(onnx, "x"), hostile(gguf, "x"), command="x")
    assert skeleton(made) == skeleton(plain)
    assert made.scripts == []
    assert made.seen.count("alert(1)") >= 2 * 5
    written = made.seen + "".join(str(found) for _, found in made.tags)
    assert not set(ACTING) - set("]0;x") & set(written)
    assert "49" not in made.seen.split("{{ 7*7 }}")[0][-5:]


@settings(max_examples=25)
@given(st.text(st.characters(exclude_categories=[]), min_size=1, max_size=40))
def test_any_name_is_text(onnx: Tuned, text: str) -> None:
    made = read(hostile(onnx, f"a{text}a"), command=text)
    assert skeleton(made) == skeleton(read(hostile(onnx, "aba"), command="b"))


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(1, 1e13), st.floats(0, 1e6), st.none() | st.floats(0, 1e6)),
        min_size=1,
        max_size=6,
    ),
    st.none() | st.integers(1, 2**45),
)
def test_any_figures_make_a_plot_whose_places_lie_inside(
    onnx: Tuned, made: Sequence[tuple[float, float, float | None]], limit: int | None
) -> None:
    best = onnx.best
    trials = [
        replace(
            best,
            predicted_kld=expected,
            metrics={**best.metrics, "size_gib": size / 2**30, "kld_mean": kld},
        )
        for size, kld, expected in made
    ]
    text = page.render([replace(onnx, trials=trials, best=trials[0], limit_bytes=limit)], COMMAND)
    places = re.findall(r"(?:left|bottom|height):(-?[\d.e+-]+|nan|inf)%", text)
    assert all(0 <= float(place) <= 100 for place in places)
    points = re.findall(r'points="([^"]*)"', text)[0].split()
    assert all(0 <= float(part) <= 100 for point in points for part in point.split(","))
    assert text.count('id="file-1-') == len(trials)
