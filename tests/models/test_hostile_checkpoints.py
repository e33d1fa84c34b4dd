"""A checkpoint is checked before it is believed; what does not belong together is said, by name."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import hostile_checkpoints as hostile
from testing.hostile_checkpoints import CONFIG, INDEX, WEIGHTS, Mutation
from testing.plans import planned as from_recipe

from phipipe.errors import SourceError, TargetError
from phipipe.files import json_files
from phipipe.models import checkpoints, config_bounds, family, layouts, remarks
from phipipe.planning.plan import Plan

# Each backend with a device and a precision that it has there.
BUILDS = {
    "onnxruntime": "cpu-x86_64",
    "llamacpp": "cpu-x86_64",
    "openvino": "cpu-x86_64",
    "mlx": "apple-silicon",
    "torch": "cpu-x86_64",
    "litert": "cpu-x86_64",
    "qnn": "snapdragon-x-npu",
}


PRECISIONS = {"torch": "fp16"}  # the small model is too narrow for its groups


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkpoint of a few kilobytes."""
    hostile.base(tmp_path / "small")
    return tmp_path / "small"


def edit(folder: Path, file: str = "config.json", **changes: object) -> None:
    path = folder / file
    told = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(
        json.dumps({key: value for key, value in told.items() if value is not hostile.GONE}),
        "utf-8",
    )


def save(
    folder: Path, shapes: Mapping[str, list[int]], file: str = WEIGHTS, fill: bytes = b"\0"
) -> None:
    head = hostile.header(shapes)
    raw = json.dumps(head).encode()
    end = max(entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__")
    (folder / file).write_bytes(struct.pack("<Q", len(raw)) + raw + fill * end)


def single(folder: Path) -> dict[str, list[int]]:
    """The shapes of ``folder``, from here on without an index."""
    (folder / INDEX).unlink(missing_ok=True)
    return hostile.shapes()


def refused(folder: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        checkpoints.read(folder)
    assert caught.value.exit_code == 8
    return caught.value


def planned(folder: Path, backend: str = "torch") -> Plan:
    sets = [
        f"source={{path: {folder.as_posix()}}}",
        f"backend={backend}",
        f"device={BUILDS[backend]}",
    ]
    sets += [
        f"precision={PRECISIONS.get(backend, 'int8')}",
        "quantize={}",
        "calibrate.text={builtin: stories}",
        "evaluate.gates={}",
    ]
    sets += ["evaluate.text={builtin: stories}", "evaluate.tokens=256", "evaluate.window=64"]
    return from_recipe(*sets)


def spoil(folder: Path, mutation: Mutation) -> None:
    for file, content in mutation.files.items():
        if content is None:
            (folder / file).unlink(missing_ok=True)
        else:
            (folder / file).write_bytes(content)


def test_the_small_checkpoint_is_fit(small: Path) -> None:
    assert checkpoints.read(small).remarks == ()
    assert planned(small).warnings == ()


@pytest.mark.full
def test_a_thousand_spoiled_checkpoints_are_refused_in_a_sentence_or_plan(small: Path) -> None:
    """What is not refused is fit to be planned with; nothing ends as a bug, nothing reaches a
    terminal raw."""
    good, counted, odd = hostile.files(), 0, []
    for mutation in islice(hostile.mutations(), 0, None, 3):  # all of them: `benchmarks/attack.py`
        spoil(small, mutation)
        try:
            checkpoints.read(small)
        except SourceError as error:
            if not error.message.isprintable() or len(error.message) > 600 + len(str(small)):
                odd.append((mutation.name, error.message))
        except Exception as error:  # noqa: BLE001 (each is told)
            odd.append((mutation.name, repr(error)))
        counted += 1
        for file in mutation.files:
            (small / file).unlink(missing_ok=True)
            if file in good:
                (small / file).write_bytes(good[file])
    assert not odd
    assert counted > 1000


@pytest.mark.parametrize("backend", BUILDS)
@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "x", "factor": 2}},
        {"rope_scaling": {"rope_type": "longrope"}},
        {"embd_layer": "default"},
        {"img_processor": {"name": ["x"]}},
        {"vision_lora": {"r": None}},
        {"architectures": ["Phi4MMForCausalLM"], "model_type": "phi4mm"},
        {
            "architectures": ["Phi3VForCausalLM"],
            "model_type": "phi3_v",
            "embd_layer": {"image_embd_layer": 3},
        },
        {"architectures": ["Nothing"], "model_type": "nothing", "sliding_window": 0},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": None}, "rope_scaling": None},
        {"torch_dtype": None, "dtype": None, "layer_types": None, "eos_token_id": None},
    ],
    ids=str,
)
def test_what_an_odd_config_leads_to_is_never_a_bug(
    small: Path, backend: str, changes: dict[str, Any]
) -> None:
    edit(small, **changes)
    with contextlib.suppress(SourceError, TargetError):
        planned(small, backend)


@pytest.mark.full
def test_what_is_huge_is_refused_before_it_is_looked_at(small: Path) -> None:
    good = hostile.files()
    for mutation in hostile.huge():
        spoil(small, mutation)
        begun = time.process_time()
        refused(small)
        assert time.process_time() - begun < 3, (
            f"{mutation.name}: and not with the square of its length"
        )
        for file in mutation.files:
            (small / file).write_bytes(good[file])


NUMBERS = sorted(
    set(config_bounds.NUMBERS) & (set(CONFIG) | {"num_local_experts", "num_experts_per_tok"})
)


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_of_a_config_has_a_kind_and_bounds(small: Path, key: str) -> None:
    bound = config_bounds.NUMBERS[key]
    wrong: list[object] = [True, "12", {}, [], [[1]], -7, 10**13]
    for value in [*wrong, *([1.5] if bound.whole else [])]:
        edit(small, **{key: value})
        assert f"`{key}`" in refused(small).message


@pytest.mark.parametrize("member", family.MEMBERS, ids=lambda member: member.name)
def test_the_bounds_leave_the_family_room(member: family.Member) -> None:
    for _, key, value in json_files.walk(dict(member.config)):
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and key in config_bounds.NUMBERS
        ):
            bound = config_bounds.NUMBERS[key]
            assert bound.low <= value <= bound.high / 8 or bound.high <= 1 or value == bound.high


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5
    ),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_stands_for_a_setting_is_refused_or_fits(
    small: Path, value: object, data: st.DataObject
) -> None:
    file, good = data.draw(
        st.sampled_from([("config.json", CONFIG), ("generation_config.json", hostile.GENERATION),
                         ("tokenizer_config.json", hostile.SETTINGS)])
    )  # fmt: skip
    where = data.draw(st.sampled_from(list(hostile.leaves(good))))
    (small / file).write_text(json.dumps(hostile.replaced(good, where, value)), "utf-8")
    with contextlib.suppress(SourceError):
        assert checkpoints.read(small).layers == hostile.LAYERS
    (small / file).write_text(json.dumps(good), "utf-8")


def adapter(folder: Path) -> None:
    save(
        folder,
        {"base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight": [4, 32]},
        "adapter_model.safetensors",
    )
    told = {"base_model_name_or_path": "microsoft/Phi-3-mini-4k-instruct", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(told))


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    for name in ("config.json", WEIGHTS, INDEX):
        (folder / name).unlink()


def unmerged(folder: Path) -> None:
    shapes = single(folder)
    name = "model.layers.0.self_attn.o_proj"
    shape = shapes.pop(f"{name}.weight")
    save(
        folder,
        {**shapes, f"{name}.base_layer.weight": shape, f"{name}.lora_A.default.weight": [4, 32]},
    )


def stale_single(folder: Path) -> None:
    shapes, places = hostile.shapes(), {}
    for place, name in enumerate(shapes):
        places[name] = f"model-{place % 2 + 1:05}-of-00002.safetensors"
    for file in set(places.values()):
        save(folder, {name: shapes[name] for name, place in places.items() if place == file}, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def without_index(folder: Path) -> None:
    stale_single(folder)
    for name in (INDEX, WEIGHTS):
        (folder / name).unlink()


def split_names(folder: Path) -> None:
    shapes = single(folder)
    for layer in range(hostile.LAYERS):
        shapes.pop(f"model.layers.{layer}.self_attn.qkv_proj.weight")
        shapes |= {f"model.layers.{layer}.self_attn.{x}_proj.weight": [16, 32] for x in "qkv"}
    save(folder, shapes)


def other_file(folder: Path, name: str, content: bytes = b"x") -> None:
    for weights in (WEIGHTS, INDEX):
        (folder / weights).unlink()
    (folder / name).write_bytes(content)


def instead(folder: Path, name: str) -> Path:
    """The place of a file that is no longer there."""
    (folder / name).unlink()
    return folder / name


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:9e\nsize 4972489328\n"
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
UNFIT: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "an adapter alone": (
        adapter_alone,
        ["LoRA adapter of `microsoft/Phi-3-mini-4k-instruct`"],
        "source: {base: {repo: ",
    ),
    "an adapter beside": (
        adapter,
        [WEIGHTS, "adapter_model.safetensors"],
        "source: {base: ",
    ),
    "an adapter unmerged": (unmerged, ["lora_A", "base_layer"], "merge_and_unload"),
    "two models": (
        stale_single,
        ["two models", WEIGHTS, "model-00001-of-00002.safetensors"],
        "older",
    ),
    "shards without index": (
        without_index,
        ["model-00001-of-00002.safetensors", INDEX],
        "copy or download",
    ),
    "another name": (
        lambda f: (f / WEIGHTS).rename(f / "w.safetensors") and (f / INDEX).unlink(),
        [WEIGHTS],
        "rename",
    ),
    "more layers": (
        lambda f: edit(f, num_hidden_layers=3, layer_types=None),
        ["layer 2 are missing"],
        "",
    ),
    "fewer layers": (
        lambda f: edit(f, num_hidden_layers=1, layer_types=None),
        ["`model.layers.1."],
        "",
    ),
    "biases": (
        lambda f: save(f, {**single(f), "model.layers.0.self_attn.o_proj.bias": [32]}),
        ["`model.layers.0.self_attn.o_proj.bias` belongs to no part of Phi3ForCausalLM"],
        "no such biases",
    ),
    "another layout": (split_names, ["q_proj", "qkv_proj"], "Llama's layout"),
    "another width": (
        lambda f: edit(f, intermediate_size=64),
        ["gate_up_proj", "96 × 32", "128 × 32"],
        "",
    ),
    "another vocabulary": (
        lambda f: edit(f, vocab_size=64),
        ["embed_tokens", "40 × 32", "64 × 32"],
        "",
    ),
    "no head": (
        lambda f: save(f, {n: s for n, s in single(f).items() if n != layouts.HEAD}),
        ["no head"],
        "tie_word",
    ),
    "a pointer": (
        lambda f: (f / WEIGHTS).write_bytes(POINTER),
        ["git-lfs pointer"],
        "git lfs pull",
    ),
    "another pointer": (
        lambda f: (f / "config.json").write_bytes(POINTER),
        ["git-lfs pointer"],
        "git lfs pull",
    ),
    "a third pointer": (
        lambda f: (f / "tokenizer.model").write_bytes(POINTER),
        ["tokenizer.model"],
        "git lfs pull",
    ),
    "GGUF": (
        lambda f: other_file(f, "model-q4.gguf", b"GGUF"),
        ["GGUF", "model-q4.gguf"],
        "llama.cpp",
    ),
    "bitsandbytes": (
        lambda f: edit(f, quantization_config=BNB),
        ["bitsandbytes, 4 bits"],
        "original in 16 bits",
    ),
    "GPTQ": (
        lambda f: edit(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        ["GPTQ, 4 bits"],
        "16 bits",
    ),
    "MLX": (
        lambda f: edit(f, quantization={"group_size": 64, "bits": 4}),
        ["MLX, 4 bits"],
        "16 bits",
    ),
    "no class": (
        lambda f: edit(f, architectures=None, model_type="x"),
        ["architectures"],
        "Phi3ForCausalLM",
    ),
    "two classes": (
        lambda f: edit(f, model_type="llama"),
        ["`model_type` `phi3`, not `llama`"],
        "",
    ),
    "no language model": (
        lambda f: edit(f, architectures=["Phi3ForSequenceClassification"]),
        ["another head"],
        "",
    ),
    "factors": (
        lambda f: edit(
            f, rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}
        ),
        ["1 factors", "4 rotary pairs"],
        "",
    ),
    "widths": (
        lambda f: edit(f, head_dim=None, hidden_size=33),
        ["multiple of `num_attention_heads`"],
        "",
    ),
    "groups": (lambda f: edit(f, num_key_value_heads=3), ["multiple of `num_key_value_heads`"], ""),
    "a terminal's title": (
        lambda f: edit(f, architectures=["\x1b]0;X\x07"]),
        ["architectures"],
        "",
    ),
    "an index of another file": (
        lambda f: (f / INDEX).write_text(
            json.dumps({"weight_map": {**dict.fromkeys(hostile.shapes(), WEIGHTS), "x": WEIGHTS}})
        ),
        ["`x` lies in", "does not have it"],
        "",
    ),
    "an index that forgets": (
        lambda f: (f / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": WEIGHTS}})),
        ["does not name `model.embed_tokens.weight`"],
        "",
    ),
    "an adapter's pickle": (
        lambda f: (f / "adapter_model.bin").write_bytes(b"x"),
        ["adapter_model.bin"],
        "source: {base: ",
    ),
    "an adapter of another name": (
        lambda f: save(f, {"layers.0.self_attn.q_proj.lora_a": [4, 32]}, "adapters.safetensors"),
        ["adapters.safetensors", "lora_a", "LoRA adapter beside it"],
        "merge it",
    ),
    "an unfinished download": (
        lambda f: (f / f"{WEIGHTS}.aria2").write_bytes(b"x"),
        [f"{WEIGHTS}.aria2", "not downloaded to its end"],
        "let the download finish",
    ),
    "a folder for a file": (
        lambda f: instead(f, "tokenizer.json").mkdir(),
        ["tokenizer.json` is a folder"],
        "file",
    ),
    "a folder for weights": (
        lambda f: instead(f, WEIGHTS).mkdir(),
        [f"{WEIGHTS}` is a folder"],
        "file",
    ),
    "a link to nothing": (
        lambda f: instead(f, WEIGHTS).symlink_to("blobs/9e"),
        ["a link to nothing"],
        "links lead to",
    ),
    "a link in a circle": (
        lambda f: instead(f, "config.json").symlink_to("config.json"),
        ["config.json"],
        "links",
    ),
    "an empty file": (
        lambda f: (f / "tokenizer.model").write_bytes(b""),
        ["tokenizer.model` is empty"],
        "copy it",
    ),
    "an empty config": (
        lambda f: (f / "config.json").write_bytes(b" "),
        ["config.json", "is empty"],
        "correct it",
    ),
    "a byte-order mark": (
        lambda f: (f / "config.json").write_bytes(
            b"\xef\xbb\xbf" + (f / "config.json").read_bytes()
        ),
        ["config.json", "begins with a byte-order mark"],
        "without one",
    ),
    "no vocabulary": (
        lambda f: edit(f, "tokenizer.json", model=hostile.GONE),
        ["tokenizer.json", "no vocab"],
        "place",
    ),
    "no words": (
        lambda f: edit(f, "tokenizer.json", model={"type": "BPE"}),
        ["tokenizer.json", "no vocab"],
        "place",
    ),
    "padding beyond": (
        lambda f: edit(f, pad_token_id=40),
        ["`pad_token_id` is 40", "end at 39"],
        "correct it",
    ),
    "two types of scaling": (
        lambda f: edit(f, rope_scaling={"type": "linear", "rope_type": "default", "factor": 2.0}),
        ["`default` and `linear`"],
        "correct it",
    ),
    "two bases": (
        lambda f: edit(f, rope_scaling={**CONFIG["rope_scaling"], "rope_theta": 5e5}),
        ["rope_scaling.rope_theta", "500000", "10000"],
        "correct it",
    ),
    "scaling by layers": (
        lambda f: edit(f, rope_parameters={"full_attention": {"rope_type": "default"}}),
        ["rope_parameters.full_attention"],
        "correct it",
    ),
    "a leftover of quantization": (
        lambda f: edit(f, quantization_config={**BNB, "load_in_4bit": False}),
        ["quantization_config", "bitsandbytes"],
        "remove the key",
    ),
    **{
        f"wrapped in {prefix}": (
            lambda f, prefix=prefix: save(
                f, {f"{prefix}.{name}": shape for name, shape in single(f).items()}
            ),
            [f"`{prefix}.model.embed_tokens.weight`"],
            "wrapper",
        )
        for prefix in ("module", "_orig_mod", "model", "base_model.model", "language_model")
    },
    **{
        f"a head of its own: {name}": (
            lambda f, name=name: save(f, {**single(f), name: [32]}),
            [f"`{name}` belongs to no part"],
            "head was trained",
        )
        for name in ("v_head.summary.weight", "medusa_head.0.0.linear.weight", "eagle.fc.weight")
    },
}


@pytest.mark.parametrize("case", UNFIT)
def test_files_that_do_not_belong_together_are_refused_by_name(small: Path, case: str) -> None:
    change, words, hint = UNFIT[case]
    change(small)
    error = refused(small)
    assert not [word for word in words if word not in error.message], error.message
    assert error.hint, "what to do next"
    assert hint in error.hint
    for backend in BUILDS:
        with pytest.raises(SourceError) as told:
            planned(small, backend)
        assert error.message in told.value.message, "the same on every backend"


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        [],
        "x",
        3,
        {},
        {"a": 3},
        {"a": None},
        {"a": "../w.safetensors"},
        {"a": "/etc/passwd"},
        {"a": ""},
        {"\x1b[2J": WEIGHTS},
    ],
)
def test_an_index_is_a_table_of_tensors_and_files_in_the_folder(
    small: Path, weight_map: object
) -> None:
    (small / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert INDEX in refused(small).message
    assert INDEX in checkpoints.files(small), (
        "which is no reason to fail where only names are asked for"
    )


def stale_shards(folder: Path) -> None:
    stale_single(folder)
    (folder / INDEX).unlink()


NOTED: dict[str, tuple[Callable[[Path], object], str, list[str]]] = {
    "shards of an earlier save": (
        stale_shards,
        "W01",
        [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)],
    ),
    "another layout": (
        lambda f: save(f, {"x": [8]}, "consolidated.safetensors"),
        "W01",
        ["consolidated.safetensors"],
    ),
    "code": (lambda f: (f / "train.py").write_text("raise SystemExit"), "W02", ["train.py"]),
    "a pickle": (
        lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
        "W03",
        ["pytorch_model.bin"],
    ),
    "no class": (lambda f: edit(f, architectures=None), "W06", ["Phi3ForCausalLM"]),
    "ends beyond": (
        lambda f: edit(f, "generation_config.json", eos_token_id=[2, 3, 32007]),
        "W07",
        ["32007", "generation"],
    ),
}


@pytest.mark.parametrize("case", NOTED)
def test_what_lies_beside_the_model_is_left_out_and_said(small: Path, case: str) -> None:
    before = planned(small)
    change, rule, names = NOTED[case]
    change(small)
    after = planned(small)
    assert [advice.rule for advice in after.warnings] == [rule]
    assert all(name in after.warnings[0].message for name in names)
    assert not set(names) & set(checkpoints.files(small)), "nor is it copied"
    assert after.checkpoint.parameters == before.checkpoint.parameters, "nor counted"


def test_what_is_ordinary_is_not_remarked(small: Path) -> None:
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "scaler.pt",
    ):
        (small / name).write_bytes(b"x")
    (small / "LICENSES").mkdir()
    (small / "checkpoint-500").mkdir()
    edit(small, rope_scaling={**CONFIG["rope_scaling"], "type": "su", "rope_type": "longrope"})
    weights = instead(small, WEIGHTS)
    hostile.base(small.parent / "blobs")
    weights.symlink_to(small.parent / "blobs" / WEIGHTS)
    assert planned(small).warnings == planned(small.parent / "blobs").warnings


def test_of_two_rotary_bases_every_backend_gets_the_one_that_the_reference_reads(
    small: Path,
) -> None:
    edit(small, rope_scaling=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    for backend in ("torch", "openvino"):
        found = planned(small, backend)
        assert "rope_theta: 10000" in next(a.message for a in found.warnings if a.rule == "W08")
        assert found.checkpoint.rope_theta == 5e5, "which a fix-up hands on to other converters"


def test_a_padding_token_beyond_the_table_is_a_warning_and_any_other_a_refusal(small: Path) -> None:
    added = {str(i): {"content": token} for i, token in enumerate([*hostile.ADDED])} | {
        "40": {"content": "<pad>"}
    }
    edit(small, "tokenizer_config.json", added_tokens_decoder=added, pad_token="<pad>")
    assert [found.rule for found in checkpoints.read(small).remarks] == ["W04"]
    assert [advice.rule for advice in planned(small).warnings] == ["W04"]
    with pytest.raises(TargetError, match="L15"):
        planned(small, "llamacpp")
    edit(small, "tokenizer_config.json", pad_token="</s>")
    assert "vocabulary ends at 39" in refused(small).message


def test_a_tied_head_that_is_stored_must_be_the_embedding(small: Path) -> None:
    edit(small, tie_word_embeddings=True)
    assert checkpoints.read(small).tied, "both are zeros"
    path = small / WEIGHTS
    whole = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    whole[start + hostile.header()[layouts.HEAD]["data_offsets"][1] - 1] = 1
    path.write_bytes(whole)
    assert "head of their own that differs" in refused(small).message
    headers = checkpoints.read(small, {WEIGHTS: len(whole)})
    assert [found.rule for found in headers.remarks] == ["W05"], (
        "from headers alone, nobody can know"
    )


def test_a_class_that_the_type_stands_for_is_filled_in_for_converters(small: Path) -> None:
    edit(small, architectures=hostile.GONE)
    made = planned(small)
    assert made.checkpoint.architecture == "Phi3ForCausalLM"
    assert made.fixups["F9"]["patch"] == {"architectures": ["Phi3ForCausalLM"]}


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn"])
def test_rotary_scalings_that_phi_models_do_not_have_are_refused_alike(
    small: Path, kind: str
) -> None:
    edit(small, rope_scaling={"type": kind, "factor": 2.0})
    for backend in BUILDS:
        with pytest.raises(TargetError, match=rf"`{kind}`.*\[M21\]"):
            planned(small, backend)


@pytest.mark.parametrize(
    "member",
    [m for m in family.MEMBERS if m.config["architectures"][0] in layouts.LAYOUTS],
    ids=lambda member: member.name,
)
def test_the_tables_of_tensors_add_up_to_the_published_sizes(member: family.Member) -> None:
    shape = checkpoints.of_config(member.config)
    sizes = layouts.sizes_of(shape)
    found = layouts.wanted(layouts.LAYOUTS[shape.architecture], sizes)
    lists = [lengths for name, lengths in found.items() if ".lora_" not in name]
    assert (
        sum(lengths[0] * (lengths[1] if lengths[1:] else 1) for lengths in lists)
        == shape.parameters
    )


@pytest.mark.parametrize(
    "spare", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
)
def test_what_old_releases_stored_besides_is_no_matter(small: Path, spare: str) -> None:
    save(small, {**single(small), spare: [4]})
    assert checkpoints.read(small).remarks == ()


def test_every_remark_says_why() -> None:
    for kind in remarks.KINDS.values():
        assert "{names}" in kind.message
        assert len(kind.why) > 40
