"""What is odd in a checkpoint and yet no reason to refuse it: a plan repeats it as warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Kind:
    """``message`` is a format string over ``names``; ``why`` explains the rule for people."""

    message: str
    hint: str | None = None
    why: str


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One thing that was found; ``rule`` is its id in ``KINDS``."""

    rule: str
    message: str
    hint: str | None


KINDS: Mapping[str, Kind] = {
    "W01": Kind(
        message="{names} beside the model: no part of it, so left out",
        hint="delete what is not needed any more",
        why="A folder may hold weights of an earlier save, or the same weights in another "
        "layout. Counted as "
        "parameters, they would halve the bits per weight; read by a converter, they would be a "
        "second model.",
    ),
    "W02": Kind(
        message="{names} beside the weights: code that nothing points to, and that is not taken",
        why="phipipe never runs code that came with weights. Where no `auto_map` names it, no "
        "tool would either.",
    ),
    "W03": Kind(
        message="{names} beside the weights: pickles, which are not read; the safetensors files "
        "are the model",
        hint="if the pickles are newer, save the model again with safetensors",
        why="Loading a pickle can run code. A fine-tune that was saved as one over the "
        "safetensors of its base model "
        "would go unnoticed.",
    ),
    "W04": Kind(
        message="the padding token {names} lies beyond the model's table of tokens; it is "
        "harmless while nothing pads",
        hint="set `pad_token` to a token that the model has, such as its end-of-text token",
        why="A token was added to the tokenizer, and the embedding was not made longer. Whoever "
        "feeds it reads beyond "
        "the table.",
    ),
    "W05": Kind(
        message="`config.json` ties the head to the embedding, and {names} is stored as well; "
        "whether they are the "
        "same is known when the weights are here",
        hint='if the source step refuses them: `"tie_word_embeddings": false`',
        why="A tied head is the embedding. Tools differ in which of two they take; if they "
        "differ, so do the models.",
    ),
    "W06": Kind(
        message="`config.json` has no `architectures`; its `model_type` stands for {names}",
        why="Converters choose a class by `architectures`; for models whose type has one class "
        "alone it is filled in.",
    ),
    "W07": Kind(
        message="end-of-text tokens beyond the model's table: {names}; no text ever ends there",
        hint="set `eos_token_id` to what the tokenizer ends texts with",
        why="The id is that of another model's tokenizer, often what transformers fills in "
        "where nothing is said. "
        "The model cannot write such a token, so only other stop tokens, or the length, end an "
        "answer.",
    ),
    "W08": Kind(
        message="`config.json` has {names} beside another value in `rope_parameters`, which is "
        "the one that counts",
        hint="remove the one that is not meant",
        why="transformers 5 reads `rope_parameters`, older releases the key beside it. The same "
        "weights are then two "
        "models; what is built is what transformers 5 makes of them.",
    ),
    "W21": Kind(
        message="{names} ends an answer by the tokenizer, the chat template or `config.json`, and "
        "`generation_config.json` does not say so; the staged copy does",
        hint="nothing needs to be done; adding it to `eos_token_id` in `generation_config.json` "
        "would mend the checkpoint itself",
        why="Every tool takes the tokens that end an answer from another place. A token that only "
        "one of them knows lets answers run on to the limit in all others.",
    ),
    "W22": Kind(
        message="the chat template {names} tells today's date; what holds text in its place "
        "(Ollama's Modelfile, LiteRT's bundle) does without",
        hint="a template that takes the date from its caller says the same everywhere",
        why="The day of the build is no constant. A Modelfile with such a template is written "
        "without it, and a LiteRT bundle gets what the template says where it can learn no date.",
    ),
    "W40": Kind(
        message="the weights are quantized ({names}): they are widened to 16 bits, and the "
        "baseline of every figure is the widened model",
        hint="start from the original in 16 bits, if there is one",
        why="A code times its scale, rounded once to 16 bits, is the weight that most runtimes of "
        "the format compute with; those of GGUF and MLX keep a few more bits of it. The difference "
        "to the model before it was quantized is lost, and no figure shows it.",
    ),
    "W41": Kind(
        message="runtimes of {names} round what passes through the model, too; the widened model "
        "does not",
        why="Some formats store weights in 8 bits and have activations rounded while the model "
        "runs. phipipe takes the weights alone, so its baseline is a little better than such a "
        "runtime.",
    ),
    "W30": Kind(
        message="the adapter says that it was trained on {names}; it is merged into another base, "
        "as the recipe says",
        hint="if that is not the same model, take the adapter's own base",
        why="An adapter is a difference from one set of weights. Its shapes fit every model of the "
        "same size, also one that it was not trained on, and then the sum is neither of the two.",
    ),
    "W31": Kind(
        message="tokenizer and chat template are those that came with the adapter {names}, not the "
        "base's",
        why="Training may add tokens or use another chat template, and whoever saves the adapter "
        "saves the tokenizer beside it. The merged model answers best to the text that it was "
        "trained on.",
    ),
    "W20": Kind(
        message="transformers builds this tokenizer anew from a class that does not fit "
        "`tokenizer.json` ({names}); the staged copy names one that takes the file as it is",
        hint='nothing needs to be done; `"tokenizer_class": "PreTrainedTokenizerFast"` in '
        "`tokenizer_config.json` would mend the checkpoint itself",
        why="transformers 5 takes vocabulary and merges from `tokenizer.json`, and how text is "
        "cut from the class that `tokenizer_config.json` names. Where that is the class of another "
        "tokenizer, spaces get lost, or accents change; every build and the baseline would share "
        "the fault. `tokenizer.json` is what the model was trained with.",
    ),
}


def of(rule: str, *names: str) -> Remark:
    """The remark of the kind ``rule`` about ``names``."""
    kind = KINDS[rule]
    shown = [f"`{name}`" for name in names[:3]]
    words = ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1]
    if len(names) > len(shown):
        words = f"{', '.join(shown)} and {len(names) - len(shown)} more"
    return Remark(rule=rule, message=kind.message.format(names=words), hint=kind.hint)
