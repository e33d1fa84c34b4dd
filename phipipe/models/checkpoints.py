"""What a checkpoint is: read from its ``config.json``, its safetensors headers and the names of its
files alone.

Nothing here loads a weight or runs code. What could run code later (pickles, ``auto_map``, custom
operator libraries) is refused here, before any toolchain sees the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import (
    code_keys,
    config_check,
    family,
    foreign,
    layouts,
    remarks,
    tokenizer_files,
    weights,
)
from phipipe.models.layouts import Sizes
from phipipe.models.remarks import Remark
from phipipe.models.weights import Choice, Tensor

# What a toolchain may see of a checkpoint. Everything else (code, pickles, pictures) stays outside.
ALLOWED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "LICENSE*",
    "NOTICE*",
)
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")

# What a model has besides text, by the keys of its config: Phi-3.5-vision's, Phi-4-multimodal's,
# transformers' own.
PARTS: Mapping[str, tuple[str, ...]] = {
    "vision": (
        "vision_config",
        "img_processor",
        "image_embd_layer",
        "vision_lora",
        "mm_vision_tower",
    ),
    "audio": ("audio_config", "audio_processor", "audio_embd_layer", "speech_lora"),
}

LARGE_PARAMETERS = 10**9
# What trainers leave beside the weights: no pickle of these holds a model.
_TRAINING = re.compile(
    r"(training_args|optimizer|scheduler|scaler|sampler|rng_state|random_states)\w*\.(bin|pth?|pkl)"
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's shape. Lengths are in tokens; ``parameters`` and ``weight_bytes`` come from
    the headers.

    ``rope_scaling`` is LongRoPE in the one spelling that every converter reads ("type": "longrope",
    "short_factor", "long_factor" …), whatever the config's; None without LongRoPE. ``tokenizer``
    says which of its files llama.cpp's converter can read: "sentencepiece" (``tokenizer.model``),
    "gpt2" (byte-level BPE) or "other".
    """

    folder: Path
    config: Mapping[str, Any]
    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context_length: int
    original_context_length: int
    sliding_window: int | None
    tied: bool
    longrope: bool
    rope_scaling: Mapping[str, Any] | None
    rope_theta: float
    partial_rotary_factor: float
    experts: int  # 0 in a dense model
    active_experts: int
    parts: tuple[str, ...]  # besides text: "vision", "audio"
    tokenizer: str
    resaved: bool  # transformers 5's own layout, which other converters misread
    parameters: int
    weight_bytes: int
    cut: bool = False  # its first layers alone, for a proof
    remarks: tuple[Remark, ...] = ()

    @property
    def large(self) -> bool:
        """Whether an unquantized copy is too much to make and score for its own sake."""
        return self.parameters > LARGE_PARAMETERS and not self.cut

    @property
    def active_parameters(self) -> int:
        """Parameters that a token passes through: of the experts, only those that are chosen for
        it."""
        idle = max(self.experts - self.active_experts, 0)
        return self.parameters - idle * self.layers * 3 * self.hidden_size * self.intermediate_size

    @property
    def input_widths(self) -> dict[str, int]:
        """Input widths of the decoder layers' linears, by what makes them."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "heads times head size": self.heads * self.head_size,
        }

    def is_divided_by(self, group_size: int) -> bool:
        """Whether groups of so many weights divide the rows of every linear."""
        return not any(width % group_size for width in self.input_widths.values())

    @property
    def scaling(self) -> str:
        """The kind of rotary scaling that the config asks for, as it is spelled there; "default" is
        none."""
        rope = self.config.get("rope_scaling") or self.config.get("rope_parameters") or {}
        return str(rope.get("rope_type") or rope.get("type") or "default")

    @property
    def besides(self) -> str:
        """``parts`` for people."""
        return " and ".join(f"{part} parts" for part in self.parts) or "parts"

    @property
    def cuts(self) -> bool:
        """Whether the sliding window is shorter than the context; LongRoPE models carry one that
        never cuts."""
        return self.sliding_window is not None and 0 < self.sliding_window < self.context_length


def files(folder: Path) -> list[str]:
    """Names of the files of ``folder`` that a toolchain may see, sorted; sub-folders and weights of
    others never do."""
    found = {p.name for pattern in ALLOWED for p in folder.glob(pattern) if p.is_file()}
    try:
        ignored = weights.choose(folder).ignored
    except SourceError:  # no model: `read` says why
        ignored = ()
    return sorted(found - set(ignored))


def loose_files(folder: Path) -> list[str]:
    """Of ``files``, those beside the weights and their index."""
    return [name for name in files(folder) if not name.endswith((".safetensors", ".index.json"))]


def end_ids(told: Any) -> list[int]:
    """Ids of the tokens that end a text, of what a config tells as `eos_token_id`: one, several or
    none."""
    if told is None:
        return []
    return list(told) if isinstance(told, list) else [told]


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files that make up the model.

    Raises:
        SourceError: see ``weights.choose``.
    """
    return list(weights.choose(folder).files)


def read(folder: Path, sizes: Mapping[str, int] | None = None) -> Checkpoint:
    """Read and vet the checkpoint in ``folder``.

    ``sizes`` has the whole sizes in bytes of weight files of which ``folder`` holds the header
    alone.

    Raises:
        SourceError: it is no checkpoint, is incomplete, corrupt or quantized, its files do not
            belong together, or it wants code to be run.
    """
    if not folder.is_dir():
        raise SourceError(
            f"no checkpoint at `{folder}`: there is no such folder", hint="check `source.path`"
        )
    _refuse_no_files(folder)
    path = folder / "config.json"
    if not path.is_file():
        weights.choose(folder)  # which knows what other kinds of folders there are
        raise SourceError(f"`{folder}` is no checkpoint: it has no `config.json`")
    config = config_check.read(path)
    found = [*_refuse_code(folder, config)]
    foreign.refuse(path, config)
    choice = weights.choose(folder)
    _refuse_pointers(folder)
    config_check.check_model(path, config)
    config, named = _with_architecture(path, config)
    tensors = weights.read(folder, choice, sizes)
    layouts.check_index(folder, config["architectures"][0], choice, tensors)
    counts = sum(t.elements for t in tensors.values()), sum(t.size_bytes for t in tensors.values())
    checkpoint = _checkpoint(folder, config, _tokenizer(folder), *counts)
    found += [
        *named,
        *_endless(folder, config),
        *_twice(config),
        *_beside(folder, choice),
        *_check_head(checkpoint, tensors, here=sizes is None),
    ]
    layouts.check(folder, checkpoint.architecture, sizes_of(checkpoint, tensors), tensors)
    found += tokenizer_files.check(folder, checkpoint.vocab_size)
    if not checkpoint.tokenizer and family.is_native(checkpoint.architecture):
        raise SourceError(
            f"`{folder}` has no tokenizer", hint=f"add one of: {', '.join(TOKENIZERS)}"
        )
    return replace(checkpoint, remarks=tuple(found))


def _with_architecture(path: Path, config: dict[str, Any]) -> tuple[dict[str, Any], list[Remark]]:
    """``config`` with the class that its type stands for, where it names none."""
    of_type = {layout.model_type: name for name, layout in reversed(list(layouts.LAYOUTS.items()))}
    kind = config["model_type"]
    if config.get("architectures") is None:
        if kind not in of_type:
            raise SourceError(
                f"`{path}` does not say which class of model it is of (`architectures`)",
                hint='such as `"architectures": ["Phi3ForCausalLM"]`',
            )
        return config | {"architectures": [of_type[kind]]}, [remarks.of("W06", of_type[kind])]
    layout = layouts.LAYOUTS.get(config["architectures"][0])
    if layout and kind != layout.model_type:
        raise SourceError(
            f"`{path}` contradicts itself: {config['architectures'][0]} has the `model_type` "
            f"`{layout.model_type}`, "
            f"not `{kind}`",
            hint="take the file from where the weights come from",
        )
    return config, []


def _refuse_no_files(folder: Path) -> None:
    """Refuse what has the name of a model's file and is none: it would count as missing, and people
    see it there."""
    for path in sorted(folder.iterdir()):
        if not any(fnmatchcase(path.name, pattern) for pattern in ALLOWED[:-2]) or path.is_file():
            continue
        what, hint = "no plain file", "put the file itself there"
        if path.is_dir():
            what = "a folder, not a file"
        elif path.is_symlink():
            what, hint = (
                "a link to nothing",
                "download the model again, or copy it with what its links lead to",
            )
        raise SourceError(f"`{path.parent / json_files.shown(path.name)}` is {what}", hint=hint)


def _refuse_pointers(folder: Path) -> None:
    """Refuse what git-lfs did not bring: some tools would take the pointer for a file without
    content."""
    for name in files(folder):
        size = (folder / name).stat().st_size
        if not size and name.endswith((".json", ".model")):
            raise SourceError(f"`{folder / name}` is empty", hint="download or copy it again")
        if size < json_files.POINTER_BYTES:
            with (folder / name).open("rb") as stream:
                json_files.refuse_pointer(stream.read(json_files.POINTER_BYTES), folder / name)


def _endless(folder: Path, config: Mapping[str, Any]) -> list[Remark]:
    """Tokens at which a text ends and that the model does not have."""
    found = []
    for name, told in (
        ("generation_config.json", _optional(folder / "generation_config.json")),
        ("config.json", config),
    ):
        beyond = [n for n in end_ids(told.get("eos_token_id")) if n >= config["vocab_size"]]
        found += [f"{number} of {name}" for number in beyond]
    return [remarks.of("W07", *found)] if found else []


def _twice(config: Mapping[str, Any]) -> list[Remark]:
    """Rotary settings of which an older value was left beside `rope_parameters`."""
    new = config.get("rope_parameters") or {}
    names = [
        name
        for name in ("rope_theta", "partial_rotary_factor")
        if new.get(name) and config.get(name)
    ]
    found = [f"{name}: {config[name]:g}" for name in names if config[name] != new[name]]
    return [remarks.of("W08", *found)] if found and not config.get("rope_scaling") else []


def _beside(folder: Path, choice: Choice) -> list[Remark]:
    """What lies beside the model and is not taken."""
    pickles = sorted(
        p.name for pattern in weights.PICKLES for p in folder.glob(pattern) if p.is_file()
    )
    pickles = [name for name in pickles if not _TRAINING.fullmatch(name)]
    found = (("W01", choice.ignored), ("W03", pickles))
    return [remarks.of(rule, *map(json_files.shown, names)) for rule, names in found if names]


def _check_head(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], *, here: bool
) -> list[Remark]:
    """A head that is stored beside the embedding it is tied to; ``here``: the weights are, not
    their headers alone."""
    head, table = tensors.get(layouts.HEAD), tensors.get(layouts.EMBEDDING)
    if not checkpoint.tied or head is None or table is None:
        return []
    if not here:
        return [remarks.of("W05", layouts.HEAD)]
    if not weights.same_bytes(checkpoint.folder, table, head):
        raise SourceError(
            f"`{checkpoint.folder / 'config.json'}` ties the head to the embedding, and the "
            f"weights have a head of "
            f"their own that differs (`{layouts.HEAD}`)",
            hint='set `"tie_word_embeddings": false`; or delete the stored head, if it is left '
            "over",
        )
    return []


def sizes_of(checkpoint: Checkpoint, tensors: Iterable[str] = ()) -> Sizes:
    """What the shapes of the model's tensors follow from."""
    config = checkpoint.config
    ranks = {name: (config.get(f"{name}_lora") or {}).get("r") for name in ("vision", "speech")}
    adapted = checkpoint.architecture == "Phi4MMForCausalLM"
    return Sizes(
        vocab=checkpoint.vocab_size,
        hidden=checkpoint.hidden_size,
        inner=checkpoint.intermediate_size,
        layers=checkpoint.layers,
        spare_layers=config.get("num_nextn_predict_layers") or 0,
        heads=checkpoint.heads,
        kv_heads=checkpoint.kv_heads,
        head=checkpoint.head_size,
        experts=checkpoint.experts,
        tied=checkpoint.tied,
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
        head_bias=checkpoint.model_type == "phi" or bool(config.get("lm_head_bias")),
        norms=bool(config.get("qk_layernorm")),
        ranks=tuple((name, rank) for name, rank in ranks.items() if rank) if adapted else (),
        merged=any(name.endswith(".mlp.experts.gate_up_proj") for name in tensors),
    )


def of_config(config: Mapping[str, Any], tokenizer: str = "other") -> Checkpoint:
    """The shape that ``config`` alone describes, its parameters counted by formula and stored in 16
    bits.

    Raises:
        KeyError: a needed key is missing.
    """
    wide = {**config, "intermediate_size": _inner(config)}
    count = family.parameters(wide)
    return _checkpoint(Path(), config, tokenizer, count, 2 * count)


def _inner(config: Mapping[str, Any]) -> int:
    return int(
        config["ff_intermediate_size" if "ff_intermediate_size" in config else "intermediate_size"]
    )


def _checkpoint(
    folder: Path, config: Mapping[str, Any], tokenizer: str, parameters: int, weight_bytes: int
) -> Checkpoint:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    context = int(config["max_position_embeddings"])
    original = config.get("original_max_position_embeddings") or rope.get(
        "original_max_position_embeddings"
    )
    heads = int(config["num_attention_heads"])
    window = config.get("sliding_window")
    scaling = _longrope(rope)
    return Checkpoint(
        folder=folder,
        config=config,
        architecture=str(config["architectures"][0]),
        model_type=str(config["model_type"]),
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        intermediate_size=_inner(config),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        context_length=context,
        original_context_length=int(original or context),
        sliding_window=None if window is None else int(window),
        tied=bool(config.get("tie_word_embeddings", False)),
        longrope=scaling is not None,
        rope_scaling=scaling,
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        partial_rotary_factor=float(
            rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
        ),
        experts=int(config.get("num_local_experts") or config.get("num_experts") or 0),
        active_experts=int(config.get("num_experts_per_tok") or 0),
        parts=tuple(part for part, names in PARTS.items() if _has(config, names)),
        tokenizer=tokenizer,
        resaved=bool(config.get("rope_parameters")),
        parameters=parameters,
        weight_bytes=weight_bytes,
    )


def respelled(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to replace in ``config`` for tools that know LongRoPE by its present name only; often
    nothing.

    transformers 5 itself refuses "su" (the original context is not handed on), mlx-lm reads "yarn"
    as no scaling.
    """
    rope = config.get("rope_scaling") or {}
    scaling = _longrope(rope)
    return {} if scaling is None or rope.get("type") == "longrope" else {"rope_scaling": scaling}


def _longrope(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """LongRoPE as it is spelled today; "su" and, with its lists of factors, "yarn" are what Phi-3
    called it first."""
    kind = str(rope.get("rope_type") or rope.get("type") or "")
    if kind not in {"longrope", "su", "yarn"} or not {"short_factor", "long_factor"} <= set(rope):
        return None
    known = (
        "short_factor",
        "long_factor",
        "short_mscale",
        "long_mscale",
        "original_max_position_embeddings",
    )
    return {"type": "longrope", **{key: rope[key] for key in known if key in rope}}


def _has(config: Mapping[str, Any], names: Iterable[str]) -> bool:
    return any(
        key in names and value not in (None, {}, []) for _, key, value in json_files.walk(config)
    )


def _tokenizer(folder: Path) -> str:
    """ "" if there is none; see ``Checkpoint.tokenizer``."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return ""
    settings = _optional(folder / "tokenizer_config.json")
    if settings.get("tokenizer_class") == "GPT2Tokenizer":
        return "gpt2"
    return "sentencepiece" if (folder / "tokenizer.model").is_file() else "other"


def _refuse_code(folder: Path, config: Mapping[str, Any]) -> list[Remark]:
    """Refuse what would make a tool run code that came with the weights (promise S2).

    An ``auto_map`` alone is harmless and common (Phi-3.5-mini has one): without the code beside it,
    and with ``trust_remote_code`` off, transformers uses its own class. With the code it points to
    it is refused.
    """
    for name in SETTINGS:
        settings = config if name == "config.json" else _optional(folder / name)
        code_keys.refuse(folder / name, settings)
        for _, key, value in json_files.walk(settings):
            code = _code(folder, value) if key == "auto_map" else []
            if code:
                raise SourceError(
                    f"`{folder / name}` asks to run code that lies beside it (`auto_map`, "
                    f"{', '.join(code[:3])}); "
                    "phipipe never runs a model's code",
                    hint="if transformers has this architecture built in (all dense Phi "
                    "models), delete the *.py files",
                )
    idle = sorted(json_files.shown(p.name) for p in folder.glob("*.py") if p.is_file())
    return [remarks.of("W02", *idle)] if idle else []


def _code(folder: Path, value: object) -> list[str]:
    """Files in ``folder`` that an ``auto_map`` points to: "module.Class";
    "repository--module.Class" is elsewhere."""
    told = [text for text in _texts(value) if "--" not in text]
    found = {text.rpartition(".")[0].lstrip(".").replace(".", "/") + ".py" for text in told}
    return sorted(json_files.shown(name) for name in found if (folder / name).is_file())


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in _texts(part)]


def _optional(path: Path) -> dict[str, Any]:
    """A settings file that need not be there."""
    if not path.is_file():
        return {}
    return (
        config_check.read(path)
        if path.name == "generation_config.json"
        else tokenizer_files.settings(path)
    )
