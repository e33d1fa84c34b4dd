"""What graphs of fixed shape for Qualcomm's NPU cannot do, or do badly, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phipipe.backends.qnn.options import Options
from phipipe.backends.qnn.rotary import SCALINGS
from phipipe.backends.qnn.shape import MODEL_TYPES, unrotated
from phipipe.backends.qnn.stages import ranges_of
from phipipe.backends.rules import Rule

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

# Larger models are scored in fixed point on the CPU, and emulated for one prompt and a few tokens
# (what that takes: ``times``). Both ways gave the same divergence within 2 % (hidden size 3072).
EMULATED_PARAMETERS = 2 * 10**8


def _has_part_without_positions(options: Options, checkpoint: Checkpoint) -> bool:
    parts = options.parts or 1
    if parts > checkpoint.layers:
        return False
    bare = unrotated(checkpoint.config)
    return any(bare.issuperset(layers) for layers in ranges_of(checkpoint.layers, parts))


RULES = (
    Rule(
        id="Q01",
        level="error",
        when=lambda r, o, c: c.model_type not in MODEL_TYPES,
        message=f"`qnn` builds its graphs for {', '.join(MODEL_TYPES)} models; "
        "`{checkpoint.architecture}` is another",
        hint="use a dense Phi-3 or Phi-4, or another backend on the device's CPU",
    ),
    Rule(
        id="Q02",
        level="error",
        when=lambda r, o, c: o.context_length > c.context_length,
        message="`quantize.context_length: {options.context_length}` is beyond the model's "
        "{checkpoint.context_length}",
        hint="set `quantize.context_length` to that or less",
    ),
    Rule(
        id="Q05",
        level="error",
        when=lambda r, o, c: (
            o.context_length < 2 * o.prompt_length or o.context_length % o.prompt_length != 0
        ),
        message="`quantize.context_length: {options.context_length}` is not a multiple, two at "
        "least, of "
        "`prompt_length: {options.prompt_length}`",
        hint="set `quantize.context_length: 512`, say",
    ),
    Rule(
        id="Q06",
        level="error",
        when=lambda r, o, c: r.evaluate.window > o.context_length,
        message="`evaluate.window: {recipe.evaluate.window}` is beyond `quantize.context_length: "
        "{options.context_length}`",
        hint="make the window smaller, or the context longer",
    ),
    Rule(
        id="Q07",
        level="warning",
        when=lambda r, o, c: r.precision == "int8" and "keep_8bit" in o.model_fields_set,
        message="`quantize.keep_8bit` is set, but int8 keeps everything at 8 bits",
        hint="take `quantize.keep_8bit` out",
    ),
    Rule(
        id="Q08",
        level="error",
        when=lambda r, o, c: r.calibrate.window < o.prompt_length + 16,
        message="`calibrate.window: {recipe.calibrate.window}` is too short for prompts of "
        "{options.prompt_length}",
        hint="set `calibrate.window: 512`",
    ),
    Rule(
        id="Q11",
        level="error",
        when=lambda r, o, c: (
            c.longrope
            and (o.context_length > c.original_context_length)
            != (r.evaluate.window > c.original_context_length)
        ),
        message="the graphs hold one set of LongRoPE factors, chosen by `quantize.context_length: "
        "{options.context_length}`: with windows of {recipe.evaluate.window} tokens the "
        "original takes the other",
        hint="keep both within {checkpoint.original_context_length} tokens",
    ),
    Rule(
        id="Q12",
        level="error",
        when=lambda r, o, c: c.cuts and o.context_length > (c.sliding_window or 0),
        message="the graphs have no sliding window, and the model's is "
        "{checkpoint.sliding_window} tokens: with a "
        "longer cache it would differ from the original",
        hint="set `quantize.context_length` to that or less",
    ),
    Rule(
        id="Q09",
        level="error",
        when=lambda r, o, c: (o.parts or 1) > c.layers,
        message="`quantize.parts: {options.parts}` is more than the model's {checkpoint.layers} "
        "layers",
        hint="leave `quantize.parts` out",
    ),
    Rule(
        id="Q13",
        level="error",
        when=lambda r, o, c: bool(o.rotate) and c.model_type != "phi3",
        message="`quantize.rotate` works on phi3 models; `{checkpoint.architecture}` is another",
        hint="take `quantize.rotate` out",
    ),
    Rule(
        id="Q14",
        level="error",
        when=lambda r, o, c: not c.longrope and c.scaling not in SCALINGS,
        message="the graphs know no `rope_scaling` of type `{checkpoint.scaling}`",
        hint=f"they know {', '.join(kind for kind in SCALINGS if kind != 'default')}; or choose "
        "another backend on the device's CPU",
    ),
    Rule(
        id="Q15",
        level="error",
        when=lambda r, o, c: _has_part_without_positions(o, c),
        message="`quantize.parts: {options.parts}` leaves a part whose layers all take no "
        "positions, and the runtime hands positions to every part",
        hint="leave `quantize.parts` out",
    ),
    Rule(
        id="Q10",
        level="warning",
        when=lambda r, o, c: c.parameters > EMULATED_PARAMETERS,
        message="a model of this size takes an emulated NPU hours: it is scored in fixed point "
        "on the CPU, and "
        "emulated for one prompt and two tokens",
        hint="nothing is wrong; what the device itself does, only the device can tell",
    ),
)
