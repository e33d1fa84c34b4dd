"""The LiteRT-LM bundle: model, tokenizer and chat template in one file."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from litert_lm_builder import litertlm_builder as builder
from litert_lm_builder.runtime.proto import llm_metadata_pb2

from phipipe.backends.litert.bundled import bundled
from phipipe.backends.litert.layout import BUNDLE, MODEL, copy_others, ends
from phipipe.backends.litert.patches import fixed_identity
from phipipe.errors import StepFailed
from phipipe.models import tokenizer as transformers_tokenizer
from phipipe.sandbox import chat_templates
from phipipe.sandbox.limited import Raised
from phipipe.sandbox.tokenizer import LimitedTokenizer
from phipipe.steps import Inputs, Params

Render = Callable[[Sequence[Mapping[str, str]]], str]
MARK = "\N{SNOWMAN}"  # no chat template has one


def bundle(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, any folder with a ``model.tflite``, with a LiteRT-LM bundle in the
    model's place.

    Raises:
        StepFailed: there is no tokenizer that LiteRT-LM can read, or the bundle does not hold the
            model as it is.
    """
    copy_others(inputs["model"], out)
    write_bundle(inputs["model"], out / BUNDLE, params["context_length"])


def write_bundle(folder: Path, target: Path, context_length: int) -> None:
    """The LiteRT-LM bundle of ``folder``'s model, tokenizer and chat template; its bytes depend on
    these alone.

    Raises:
        StepFailed: there is no tokenizer, or the bundle does not hold the model's very bytes.
    """
    digest = _sha256(folder / MODEL)
    writer = builder.LitertLmFileBuilder()
    metadata = target.parent / ".llm_metadata.pb"
    metadata.write_bytes(_llm_metadata(folder, context_length))
    try:
        writer.add_llm_metadata(str(metadata))
        _add_tokenizer(writer, folder)
        writer.add_tflite_model(str(folder / MODEL), builder.TfLiteModelType.PREFILL_DECODE)
        with fixed_identity(uuid.UUID(digest[:32])), target.open("wb") as stream:
            writer.build(stream)
    finally:
        metadata.unlink()
    with bundled(target) as inside:
        if hashlib.sha256(inside).hexdigest() != digest:
            raise StepFailed("the LiteRT-LM bundle does not hold the model that was put in")


def _add_tokenizer(writer: builder.LitertLmFileBuilder, folder: Path) -> None:
    # `tokenizer.model` does not know the tokens added to it
    if (folder / "tokenizer.json").is_file():
        writer.add_hf_tokenizer(str(folder / "tokenizer.json"))
    elif (folder / "tokenizer.model").is_file():
        writer.add_sentencepiece_tokenizer(str(folder / "tokenizer.model"))
    else:
        raise StepFailed(
            "LiteRT-LM needs `tokenizer.json` or `tokenizer.model`, and the checkpoint has neither"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _llm_metadata(folder: Path, context_length: int) -> bytes:
    """Begin and end of text, the chat template and the length of the cache, as LiteRT-LM reads
    them."""
    tokenizer = transformers_tokenizer.of_source(folder)
    metadata = llm_metadata_pb2.LlmMetadata()
    metadata.max_num_tokens = context_length
    metadata.llm_model_type.generic_model.SetInParent()
    for token in ends(folder):
        metadata.stop_tokens.add().token_ids.ids.append(token)
    template, bos = tokenizer.facts["chat_template"], tokenizer.facts["bos_token"] or ""
    if isinstance(template, str):
        affixes = affixes_of(_without_clock(tokenizer, template), bos)
        for role, (before, after) in affixes.items():
            part = getattr(metadata.prompt_templates, role)
            part.prefix, part.suffix = before, after
        if not affixes:
            metadata.jinja_prompt_template = template
    if _begins_with_bos(tokenizer, template):
        metadata.start_token.token_ids.ids.append(tokenizer.facts["bos_token_id"])
    return bytes(metadata.SerializeToString(deterministic=True))


def _without_clock(tokenizer: LimitedTokenizer, template: str) -> Render:
    """How the chat ``template`` renders on any day: the day of the build is no constant, so one
    that tells the date does as where it can learn none."""
    if chat_templates.CLOCK not in template:
        return tokenizer.render
    names = ("bos_token", "eos_token")
    specials = {name: str(text) for name in names if (text := tokenizer.facts.get(name))}
    renderer = chat_templates.Renderer(template, whose="checkpoint", specials=specials, clock=False)
    return renderer.render


def _begins_with_bos(tokenizer: LimitedTokenizer, template: object) -> bool:
    """Whether prompts really begin with the token that the tokenizer declares: LiteRT-LM would put
    it there."""
    begin = tokenizer.facts["bos_token_id"]
    if begin is None:
        return False
    texts = [tokenizer.encode("x", special=True)]
    if isinstance(template, str):
        texts.append(
            tokenizer.encode(tokenizer.render([{"role": "user", "content": "x"}], ask=False))
        )
    return any(ids[:1] == [begin] for ids in texts)


def _asked(render: Render, bos: str, *roles: str) -> str:
    """A chat of ``roles``, each saying ``MARK``, ready for the answer; without the token that
    begins every text."""
    messages = [{"role": role, "content": MARK} for role in roles]
    return render(messages).removeprefix(bos)


def affixes_of(render: Render, bos: str) -> dict[str, tuple[str, str]]:
    """What the chat template puts before and after a message, by LiteRT-LM's names of roles; empty
    if it is not so.

    LiteRT-LM hands templates a list of parts where Phi's expect the text, and fails; with affixes
    it does not. What leads to the answer counts to the user's message: only the order of the pieces
    matters.
    """
    try:
        before, *rest = _asked(render, bos, "user").split(MARK)
        pieces = _asked(render, bos, "user", "assistant", "user").split(MARK)
    except Raised:  # it cannot do without today's date, say
        return {}
    if (
        len(rest) != 1
        or len(pieces) != 4
        or pieces[::3] != [before, rest[0]]
        or pieces[1] != rest[0]
    ):
        return {}
    if not pieces[2].endswith(before):
        return {}
    affixes = {"user": (before, rest[0]), "model": ("", pieces[2].removesuffix(before))}
    try:
        parts = _asked(render, bos, "system", "user").split(MARK)
    except Raised:  # templates refuse roles that they do not know
        return affixes
    if len(parts) == 3 and parts[2] == rest[0] and parts[1].endswith(before):
        affixes["system"] = (parts[0], parts[1].removesuffix(before))
    return affixes
