"""Models that see: what of them is a plain language model, and how the rest is arranged.

The language model goes through a backend's steps like any other, so that everything which holds for
text (parity, fidelity, gates) holds here; the backend's own last step puts the eyes beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phipipe.steps import Json

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

PHI3, PHI4 = "Phi3VForCausalLM", "Phi4MMForCausalLM"
PHI4_PICTURE = 200010  # Phi-4-multimodal's token `<|endoftext10|>`, in whose places pictures stand


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family of models that see.

    The faces of backends say which of them build the eyes. ``cut``: the step that leaves the
    language model, which has ``architecture`` and ``model_type`` by itself, from tensors whose
    names do not start with any of ``others``; ``keys`` of the config speak of these. ``tower``: the
    module with the eyes in PyTorch (``load``, ``see``). ``share``: how much of the parameters that
    are not the language model's are the eyes'. ``crops``: the most that a picture is cut into.
    ``after_mark``: what stands between a picture and its question.
    """

    architecture: str = "Phi3ForCausalLM"
    model_type: str = "phi3"
    cut: str
    cut_toolchain: str | None = None
    others: tuple[str, ...]
    keys: tuple[str, ...]
    tower: str
    share: float = 1.0
    crops: int
    after_mark: str


KINDS: Mapping[str, Kind] = {
    PHI3: Kind(
        cut="vision/cut_language",
        others=("model.vision_embed_tokens.",),
        keys=("img_processor", "embd_layer", "auto_map"),
        tower="phipipe.vision.clip",
        crops=16,
        after_mark="\n",
    ),
    PHI4: Kind(
        cut="vision/merge_lora",
        cut_toolchain="torch",
        others=("model.embed_tokens_extend.",),
        keys=(
            "img_processor",
            "audio_processor",
            "embd_layer",
            "vision_lora",
            "speech_lora",
            "auto_map",
        ),
        tower="phipipe.vision.siglip",
        share=0.27,  # 0.46 G of 1.73 G in the original: the rest hears, or is low-rank
        crops=36,
        after_mark="",
    ),
}


def language_config(config: Mapping[str, Json]) -> dict[str, Json]:
    """``config.json`` of the language model in a model of ``config`` that sees."""
    kind = KINDS[str(config["architectures"][0])]
    kept = {key: value for key, value in config.items() if key not in kind.keys}
    return kept | {"architectures": [kind.architecture], "model_type": kind.model_type}


def language(checkpoint: Checkpoint) -> Checkpoint:
    """What the step ``source`` makes of ``checkpoint``; its bytes are an estimate."""
    from phipipe.models import checkpoints  # rules name the kinds where no checkpoint is read

    alone = checkpoints.of_config(language_config(checkpoint.config), checkpoint.tokenizer)
    weight_bytes = round(alone.parameters * checkpoint.weight_bytes / checkpoint.parameters)
    return replace(alone, folder=checkpoint.folder, weight_bytes=weight_bytes)


def sees(checkpoint: Checkpoint) -> bool:
    """Whether phipipe knows how to take ``checkpoint`` apart."""
    return checkpoint.architecture in KINDS


def after_mark(architecture: str) -> str:
    """``Kind.after_mark`` of a model that sees; nothing for others."""
    return KINDS[architecture].after_mark if architecture in KINDS else ""
