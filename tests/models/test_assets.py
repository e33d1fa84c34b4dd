"""The embedded model and its text: what is committed is what the scripts make, and it is a hub-like
Phi-3."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import textwrap
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from phipipe.assets import stories, tokenizer, train

MODEL = Path(train.__file__).with_name("tiny-phi3")
TEXTS = stories.GRAMMAR.parent
MARKUP = re.compile(r"<\|\w+\|>\n?")


def _json(name: str) -> Any:
    return json.loads((MODEL / name).read_text("utf-8"))


def _safetensors_header() -> dict[str, Any]:
    with (MODEL / "model.safetensors").open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    return header


# ---- the text ----


@pytest.mark.parametrize("split", ["calibration", "evaluation"])
def test_the_text_files_are_what_the_grammar_makes(split: stories.Split) -> None:
    assert (TEXTS / f"{split}.txt").read_text("utf-8") == stories.file_text(split)


def test_no_evaluation_or_calibration_document_is_trained_on() -> None:
    held_out = {d.strip() for s in ("calibration", "evaluation") for d in _file_documents(s)}
    trained = {d.strip() for d in islice(stories.documents("train"), 5000)}
    assert len(held_out) > 400
    assert not held_out & trained


def test_calibration_and_evaluation_share_no_document() -> None:
    assert not set(_file_documents("calibration")) & set(_file_documents("evaluation"))


def test_a_story_keeps_its_split_whatever_is_asked_about_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    split_of = stories.split_of

    def spy(story: str) -> stories.Split:
        made.append(story)
        return split_of(story)

    monkeypatch.setattr(stories, "split_of", spy)
    document = next(stories.documents("evaluation"))
    assert made[-1] in document
    assert split_of(made[-1]) == "evaluation"
    assert all(split_of(story) != "evaluation" for story in made[:-1])


def test_every_split_repeats_nothing() -> None:
    for split in ("train", "calibration", "evaluation"):
        some = list(islice(stories.documents(split), 300))
        assert len(set(some)) == len(some)


def test_nothing_of_the_notation_is_left_in_a_document() -> None:
    text = MARKUP.sub("", "".join(islice(stories.documents("train"), 3000)))
    assert not re.findall(r"[{}|_@]| => |\\n|  ", text)


def test_articles_fit_the_words_after_them() -> None:
    text = "".join(islice(stories.documents("train"), 3000))
    assert not re.findall(r"\b[Aa] (?!one )[aeio]\w+|\b[Aa]n (?!hour)[^aeiouAEIOU\s]\w*", text)


@pytest.mark.parametrize(
    ("value", "word"),
    [(0, "zero"), (13, "thirteen"), (42, "forty-two"), (108, "one hundred and eight")],
)
def test_number_words(value: int, word: str) -> None:
    assert stories.number_word(value) == word


def _file_documents(split: str) -> list[str]:
    return (TEXTS / f"{split}.txt").read_text("utf-8").split(stories.SEPARATOR)[:-1]


# ---- the checkpoint ----


def test_the_weights_fit_into_12_megabytes() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 12_000_000


def test_the_config_has_the_layout_of_the_hubs_phi3_not_of_transformers_5() -> None:
    config = _json("config.json")
    assert config == dict(train.CONFIG)
    assert config["rope_theta"] == 10000.0
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == "bfloat16"
    assert config["architectures"] == ["Phi3ForCausalLM"]
    assert not {"rope_parameters", "dtype", "auto_map", "layer_types"} & set(config)


def test_no_two_sizes_coincide_so_that_a_swapped_axis_shows() -> None:
    config = _json("config.json")
    qkv = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * 64
    sizes = [
        config["vocab_size"],
        2 * config["intermediate_size"],
        qkv,
        config["intermediate_size"],
        config["hidden_size"],
    ]
    assert len(set(sizes)) == len(sizes)
    assert config["vocab_size"] != config["max_position_embeddings"]
    assert config["vocab_size"] <= 4096
    assert all(size % 64 == 0 for size in sizes)


def test_the_weights_have_phi3s_names_and_shapes_in_bfloat16() -> None:
    header = _safetensors_header()
    assert header.pop("__metadata__") == {"format": "pt"}
    layers = {
        "self_attn.qkv_proj.weight": [512, 256],
        "self_attn.o_proj.weight": [256, 256],
        "mlp.gate_up_proj.weight": [1536, 256],
        "mlp.down_proj.weight": [256, 768],
        "input_layernorm.weight": [256],
        "post_attention_layernorm.weight": [256],
    }
    expected = {
        f"model.layers.{i}.{name}": shape for i in range(5) for name, shape in layers.items()
    }
    expected |= {
        "model.embed_tokens.weight": [2304, 256],
        "lm_head.weight": [2304, 256],
        "model.norm.weight": [256],
    }
    assert {name: tensor["shape"] for name, tensor in header.items()} == expected
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}


def test_generation_ends_at_either_end_token() -> None:
    added = _json("added_tokens.json")
    assert _json("generation_config.json")["eos_token_id"] == [
        added["<|endoftext|>"],
        added["<|end|>"],
    ]


def test_phi3s_own_tokens_follow_the_pieces_in_phi3s_order() -> None:
    added = _json("added_tokens.json")
    assert list(added) == list(tokenizer.ADDED)
    assert list(added.values()) == list(range(tokenizer.PIECES, tokenizer.PIECES + 11))
    assert len(_json("tokenizer.json")["model"]["vocab"]) == tokenizer.PIECES


def test_the_tokenizer_files_are_what_the_script_writes() -> None:
    committed = _json("tokenizer.json")
    assert _json("tokenizer_config.json") == tokenizer.tokenizer_config()
    made = tokenizer.tokenizer_json(list(committed["model"]["vocab"]))
    assert json.loads(json.dumps(made)) == committed


def test_the_checkpoint_names_no_folder_of_the_machine_it_was_made_on() -> None:
    for path in [*MODEL.iterdir(), *TEXTS.iterdir()]:
        data = (
            path.read_bytes()
            if path.suffix != ".safetensors"
            else json.dumps(_safetensors_header()).encode()
        )
        assert not re.search(rb"/(?:home|root|tmp|work|opt)/", data), path.name


# ---- with torch and transformers ----


def _run(python: Path, script: str, *arguments: str) -> Any:
    """Run a script in the Python that has torch and transformers; it prints one JSON value last."""
    root = Path(train.__file__).parents[2]
    command = [str(python), "-c", textwrap.dedent(script), str(MODEL), *arguments]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_card_states_the_perplexity_that_is_measured(python_of: Callable[[str], Path]) -> None:
    stated = re.search(r"\*\*([\d.]+)\*\* per token", (MODEL / "README.md").read_text("utf-8"))
    measured = _run(
        python_of("onnxruntime"),
        "import sys, pathlib; from phipipe.assets import train; "
        "print(train.perplexity(pathlib.Path(sys.argv[1]))[0])",
    )
    assert stated is not None
    assert measured == pytest.approx(float(stated[1]), rel=0.01)
    assert measured < 10


def test_both_tokenizers_give_the_same_ids_and_the_text_back(
    tmp_path: Path, python_of: Callable[[str], Path]
) -> None:
    prose = MARKUP.sub("", (TEXTS / "evaluation.txt").read_text("utf-8")).split("\n\n")
    texts = [
        *prose,
        "The quick brown fox jumps over the lazy dog. 1234567890 0.5e-3, 100%!",
        "def area(r: float) -> float:\n    return 3.14 * r**2  # m\n\n\tif x != y: pass\r\n",
        "Zoë, Søren, Łukasz: «¿Qué?» – Köln, naïve, e\u0301 ﬁ",
        "Καλημέρα, добрый день, こんにちは, 你好, مرحبا, नमस्ते",
        "🙂👩‍🚀🇪🇺 ½ ∑ ☃",
        "  two  spaces,   three   ",
        " ",
        "\n\n\n",
    ]
    (tmp_path / "texts.json").write_text(json.dumps(texts), "utf-8")
    script = """
        import json, pathlib, sys
        import sentencepiece
        from transformers import AutoTokenizer
        model, texts = sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text("utf-8"))
        piece = sentencepiece.SentencePieceProcessor(model_file=model + "/tokenizer.model")
        auto = AutoTokenizer.from_pretrained(model)
        ids = [auto(text, add_special_tokens=False)["input_ids"] for text in texts]
        print(json.dumps([[piece.encode(t) == i, auto.decode(i) == t] for t, i in zip(texts, ids)]))
    """
    verdicts = _run(python_of("onnxruntime"), script, str(tmp_path / "texts.json"))
    assert [
        text for text, verdict in zip(texts, verdicts, strict=True) if verdict != [True, True]
    ] == []


def test_the_chat_template_renders_as_phi3s_does(python_of: Callable[[str], Path]) -> None:
    script = """
        import json, sys
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
        turns = (("system", "Be kind."), ("user", "Hello!"), ("assistant", "Hi."))
        chat = [{"role": role, "content": content} for role, content in turns]
        ask = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
        done = tokenizer.apply_chat_template(chat, tokenize=False)
        first = [tokenizer(text)["input_ids"][:1] for text in (ask, "Hello!")]
        print(json.dumps([ask, done, *first]))
    """
    ask, done, first, hello = _run(python_of("onnxruntime"), script)
    start = "<|system|>\nBe kind.<|end|>\n<|user|>\nHello!<|end|>\n<|assistant|>\n"
    assert ask == start
    assert done == start + "Hi.<|end|>\n<|endoftext|>"
    assert first == [tokenizer.ADDED_IDS["<|system|>"]]
    assert hello != [1]  # as in Phi-3, no beginning-of-text token is added


def test_a_user_turn_is_answered_and_the_answer_ends(python_of: Callable[[str], Path]) -> None:
    script = """
        import json, sys
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
        answers = []
        prompts = (
            "Tell me a short story about a fox.",
            "What is two plus three?",
            "Where does a bear live?",
        )
        for prompt in prompts:
            chat = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            whole = model.generate(ids, max_new_tokens=200, do_sample=False)
            output = whole[0, ids.shape[1]:].tolist()
            answers.append([output[-1], tokenizer.decode(output, skip_special_tokens=True)])
        print(json.dumps(answers))
    """
    answers = _run(python_of("onnxruntime"), script)
    assert [last for last, _ in answers] == [tokenizer.END] * 3
    story, _, home = (text for _, text in answers)
    assert "fox" in story
    assert "cave" in home
