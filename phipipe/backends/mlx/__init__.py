"""Apple MLX: checkpoint → MLX folder in floating point, once → mlx-lm's quantization, many times.

Both steps are lazy: a tensor is read, changed and written one at a time. MLX also runs on Linux
(its CPU build), so that the very file that ships is evaluated where it is built; speed there says
nothing of a Mac.

Fidelity is computed in fp32 arithmetic over the stored values, as for every runtime here; text is
generated in the dtype that ships, as ``mlx_lm`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from phipipe.backends.base import Backend, Finer, Job
from phipipe.backends.rules import SOFTMAX_ROUTED, WINDOWLESS, Fixup, Rule
from phipipe.errors import StepFailed
from phipipe.models import tokenizer_files
from phipipe.models.staging import copy_beside
from phipipe.steps import Step

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.backends.base import Runtime, Tokenizer
    from phipipe.models.checkpoints import Checkpoint
    from phipipe.recipe.recipe import Precision, Recipe
    from phipipe.steps import Inputs, Json, Params

TOOLCHAIN = "mlx"
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.mlx:convert",
    "quantize": "phipipe.backends.mlx:quantize",
}
_SCHEMES: Mapping[Precision, str] = {
    "fp32": "float32",
    "fp16": "float16, bfloat16",
    "int8": "8 bits affine, mxfp8",
    "int4": "2 to 6 bits affine, mxfp4, nvfp4, mixed",
}
GROUPS: Mapping[str, int] = {
    "affine": 64,
    "mxfp4": 32,
    "nvfp4": 16,
    "mxfp8": 32,
}  # mlx-lm's own defaults
BITS: Mapping[str, int] = {"mxfp4": 4, "nvfp4": 4, "mxfp8": 8}


_BLAS_BYTES = 2**26  # weights beyond this are scored with numpy's products where there is no GPU


class Options(BaseModel):
    """mlx-lm's own knobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["affine", "mxfp4", "nvfp4", "mxfp8"] = Field(
        default="affine",
        description="affine: scale and bias per group. mxfp4, nvfp4, mxfp8: small "
        "floating-point formats with a shared "
        "scale, of fixed width and group.",
    )
    bits: Literal[2, 3, 4, 5, 6, 8] | None = Field(
        default=None,
        description="Bits per weight, affine only. Without it 4 for int4 and 8 for int8.",
    )
    group_size: Literal[16, 32, 64, 128] | None = Field(
        default=None,
        description="Weights that share one scale: 32, 64 (default) or 128; the other modes fix "
        "it.",
    )
    mixed: Literal["none", "mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"] = Field(
        default="none",
        description="Two widths: the LM head, and attention inputs and down projections of "
        "every third and the outer "
        "layers get the higher one.",
    )
    dtype: Literal["float16", "bfloat16"] | None = Field(
        default=None,
        description="16-bit type of fp16 builds, and of scales. Without it the checkpoint's own.",
    )


def scheme(job: Job[Options]) -> str:
    """Bits, mode and group size."""
    recipe, options = job.recipe, job.options
    if recipe.precision == "fp32":
        return "float32"
    if recipe.precision == "fp16":
        return options.dtype or "16-bit floats of the checkpoint"
    group = f", groups of {_group(options)}"
    if options.mode != "affine":
        return options.mode + group
    return (
        f"{_bits(recipe, options)}-bit affine" if options.mixed == "none" else options.mixed
    ) + group


def _bits(recipe: Recipe, options: Options) -> int:
    return BITS.get(options.mode) or options.bits or (8 if recipe.precision == "int8" else 4)


def _group(options: Options) -> int:
    return options.group_size or GROUPS[options.mode]


def steps(job: Job[Options]) -> list[Step]:
    """``convert``, one in 16 bits for all but fp32; for int8 and int4 ``quantize``.

    A large model is not written out in 16 bits first: ``quantize`` then reads the checkpoint
    itself.
    """
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    parameters = checkpoint.parameters
    dtype = "float32" if recipe.precision == "fp32" else options.dtype or _own_dtype(checkpoint)
    width = 4 if dtype == "float32" else 2
    convert_step = Step(
        name="convert",
        runs="mlx/convert",
        version=1,
        needs={"source": "source"},
        params={"dtype": dtype, "config_patch": dict(job.patch)},
        toolchain=TOOLCHAIN,
        unquantized="fp32" if dtype == "float32" else "fp16",
        output_bytes=width * parameters,
        memory_bytes=2**30 + parameters,
    )
    if recipe.precision.startswith("fp"):
        return [convert_step]
    bits, group = _bits(recipe, options), _group(options)
    direct = {"dtype": dtype, "config_patch": dict(job.patch)} if checkpoint.large else {}
    quantize_step = Step(
        name="quantize",
        runs="mlx/quantize",
        version=1,
        needs={"source": "source"} if direct else {"model": "convert"},
        params={
            "mode": options.mode,
            "bits": bits,
            "group_size": group,
            "mixed": options.mixed,
            **direct,
        },
        toolchain=TOOLCHAIN,
        output_bytes=(size := parameters * (bits * group + 32) // group // 8),
        memory_bytes=size + 2**29 if direct else 2**30 + parameters,
        loaded_bytes=5 * size // 4,  # measured with 3.8 G parameters at 4 bits: 3.2 GiB in all
    )
    return [quantize_step] if direct else [convert_step, quantize_step]


def _own_dtype(checkpoint: Checkpoint) -> str:
    found = str(checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype"))
    return found if found in ("float16", "bfloat16") else "float16"


RULES = (
    Rule(
        id="X01",
        level="error",
        when=lambda r, o, c: o.mode == "affine" and o.group_size == 16,
        message="mlx's affine mode has groups of 32, 64 or 128",
        hint="set `quantize.group_size` to one of them",
    ),
    Rule(
        id="X02",
        level="error",
        when=lambda r, o, c: (
            o.mode != "affine" and (o.bits or o.group_size not in (None, GROUPS[o.mode]))
        ),
        message="`{options.mode}` has a width and a group size of its own",
        hint="leave `bits` and `group_size` out",
    ),
    Rule(
        id="X03",
        level="error",
        when=lambda r, o, c: (
            o.mixed != "none" and (o.mode != "affine" or o.bits or r.precision != "int4")
        ),
        message="`{options.mixed}` is an affine int4 scheme with widths of its own; mlx-lm "
        "would ignore it here",
        hint="leave `mode` and `bits` out and set `precision: int4`, or remove `mixed`",
    ),
    Rule(
        id="X07",
        level="error",
        when=lambda r, o, c: (
            not r.precision.startswith("fp") and (_bits(r, o) == 8) != (r.precision == "int8")
        ),
        message="these options store 8 bits only for int8, fewer only for int4; the recipe says "
        "{recipe.precision}",
        hint="change `precision`, or `quantize.bits` and `quantize.mode`",
    ),
    Rule(
        id="X08",
        level="error",
        when=lambda r, o, c: not r.precision.startswith("fp") and not c.is_divided_by(_group(o)),
        message="the group size does not divide this model's layers (hidden size "
        "{checkpoint.hidden_size}, "
        "intermediate size {checkpoint.intermediate_size}); mlx-lm would leave those "
        "unquantized without a word",
        hint="set `quantize.group_size: 32`, or `precision: fp16`",
    ),
    Rule(
        id="X14",
        level="warning",
        when=lambda r, o, c: r.precision.startswith("fp") and bool(o.model_fields_set - {"dtype"}),
        message="`quantize` is set, but {recipe.precision} quantizes nothing",
        hint="take `quantize` out, or choose int8 or int4",
    ),
    *SOFTMAX_ROUTED,
    *WINDOWLESS,
    Rule(
        id="M11",
        level="warning",
        when=lambda r, o, c: c.longrope and r.evaluate.window <= c.original_context_length,
        message="mlx-lm knows one set of LongRoPE factors; the short ones are built in, so use "
        "the model with at "
        "most {checkpoint.original_context_length} tokens",
        hint="for longer prompts alone, set `evaluate.window` beyond that: the long factors are "
        "then built in",
    ),
    Rule(
        id="M16",
        level="warning",
        when=lambda r, o, c: c.longrope and r.evaluate.window > c.original_context_length,
        message="mlx-lm knows one set of LongRoPE factors; since `evaluate.window` asks for "
        "them, the long ones are "
        "built in, so use the model with more than {checkpoint.original_context_length} tokens",
        hint="for shorter prompts, lower `evaluate.window` to that: the short factors are then "
        "built in",
    ),
)


def _with_short_factors(scaling: Mapping[str, Json]) -> dict[str, Json]:
    return {**scaling, "long_factor": scaling["short_factor"]}


FIXUPS = (
    Fixup(
        id="F2",
        rule="M11",
        when=lambda r, c: (
            c.rope_scaling is not None and r.evaluate.window <= c.original_context_length
        ),
        reason="mlx-lm applies LongRoPE's long factors to every prompt; with the short ones in "
        "their place it is exact "
        "up to the original context length",
        patch=lambda c: {"rope_scaling": _with_short_factors(c.rope_scaling or {})},
    ),
)


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to an MLX folder in ``params["dtype"]``.

    Raises:
        StepFailed: a tensor has another dtype than asked.
    """
    import tempfile

    import mlx.core as mx

    dtype = getattr(mx, params["dtype"])
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        model, config, source = _opened(inputs["source"], params, Path(scratch) / "model")
        _save(model, config, source, out)
    keep = _castable(model)
    wrong = [
        n for n, v in _stored(out).items() if n.endswith(".weight") and keep(n) and v.dtype != dtype
    ]
    if wrong or any(name.endswith(".scales") for name in _stored(out)):
        raise StepFailed(
            f"the conversion is not {params['dtype']}: {', '.join(wrong[:1]) or 'it is quantized'}"
        )


def _opened(checkpoint: Path, params: Params, scratch: Path) -> tuple[Any, dict[str, Any], Path]:
    """mlx-lm's model of ``checkpoint`` in ``params["dtype"]``, nothing read yet; its config; the
    patched folder."""
    import mlx.core as mx
    from mlx.utils import tree_map_with_path
    from mlx_lm import utils

    from phipipe.models.staging import staged

    dtype, source = (
        getattr(mx, params["dtype"]),
        staged(checkpoint, params["config_patch"], scratch),
    )
    model, config = utils.load_model(source, lazy=True)
    keep = _castable(model)

    def cast(name: str, value: Any) -> Any:
        return (
            value.astype(dtype) if keep(name) and mx.issubdtype(value.dtype, mx.floating) else value
        )

    model.update(tree_map_with_path(cast, model.parameters()))
    config["torch_dtype"] = params["dtype"]
    config.pop("auto_map", None)
    return model, config, source


def _castable(model: Any) -> Callable[[str], bool]:
    """Whether a tensor takes the model's width: some models want a few in fp32."""
    found: Callable[[str], bool] = getattr(model, "cast_predicate", lambda name: True)
    return found


def _save(model: Any, config: dict[str, Any], source: Path, out: Path) -> None:
    """mlx-lm's own files, but the tokenizer's as they are in ``source``: saving them again would
    change them."""
    from mlx_lm import utils

    utils.save_model(out, model, donate_model=True)
    utils.save_config(config, out / "config.json")
    copy_beside(source, out, leave=lambda name: "safetensors" in name or (out / name).exists())


def _stored(folder: Path) -> dict[str, Any]:
    """Every tensor in the folder by name, not yet read."""
    import mlx.core as mx

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= mx.load(str(path))
    return found


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, quantized as ``params`` say, and read
    back.

    With ``inputs["source"]``, a checkpoint, in its place it is opened as ``convert`` would (dtype,
    config_patch).

    Raises:
        StepFailed: mlx-lm stored something else than asked.
    """
    import tempfile

    from mlx_lm import utils

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".quantize-") as scratch:
        if "source" in inputs:
            model, config, folder = _opened(inputs["source"], params, Path(scratch) / "model")
        else:
            folder = inputs["model"]
            model, config = utils.load_model(folder, lazy=True)
        inner = {
            n: module.weight.shape[-1]
            for n, module in model.named_modules()
            if hasattr(module, "to_quantized")
        }
        predicate = _predicate(model, params)
        asked = {
            name: predicate(name, None)["bits"] if predicate else params["bits"] for name in inner
        }
        model, config = utils.quantize_model(
            model,
            config,
            params["group_size"],
            params["bits"],
            mode=params["mode"],
            quant_predicate=predicate,
        )
        _save(model, config, folder, out)
    _check_quantized(_stored(out), inner, asked, params["group_size"])


def _predicate(model: Any, params: Params) -> Any:
    """mlx-lm's choice of widths for ``params["mixed"]``; None is the same for all."""
    import importlib

    if params["mixed"] == "none":
        return None
    convert_module = importlib.import_module(
        "mlx_lm.convert"
    )  # `mlx_lm.convert` itself is a function by now
    return convert_module.mixed_quant_predicate_builder(
        params["mixed"], model, params["group_size"]
    )


def _check_quantized(
    stored: Mapping[str, Any], inner: Mapping[str, int], asked: Mapping[str, int], group_size: int
) -> None:
    """Bits and group size of every layer, from the shapes of what was written: 32-bit words and
    scales."""
    for name, width in inner.items():
        if f"{name}.scales" not in stored:
            raise StepFailed(f"mlx-lm left `{name}` unquantized")
        bits = stored[f"{name}.weight"].shape[-1] * 32 // width
        group = width // stored[f"{name}.scales"].shape[-1]
        if (bits, group) != (asked[name], group_size):
            raise StepFailed(
                f"`{name}` was asked for in {asked[name]} bits and groups of {group_size}, and "
                f"mlx-lm stored {bits} "
                f"bits and groups of {group}"
            )


def _by_blas(model: Any) -> None:
    """Let ``model``'s linear layers compute with numpy, on the very values that are stored.

    mlx's products on CPUs reach 3 GFLOP/s on two cores (Linux), numpy's 60: a window of 512 tokens
    through 4 G parameters would take 20 minutes. Metal has kernels of its own, which no CPU can try
    anyway.
    """
    import mlx.core as mx
    import numpy as np
    from mlx import nn

    class Blas(nn.Module):  # type: ignore[misc]
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self._layer = layer

        def __call__(self, x: Any) -> Any:
            layer = self._layer
            weight = np.array(_dense(layer))
            made = np.array(x).reshape(-1, weight.shape[1]) @ weight.T
            y = mx.array(made).reshape(*x.shape[:-1], weight.shape[0])
            return y + layer.bias if "bias" in layer else y

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.QuantizedLinear):
            parent = model
            *path, last = name.split(".")
            for part in path:
                parent = parent[int(part)] if isinstance(parent, list) else getattr(parent, part)
            setattr(parent, last, Blas(module))
        elif isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
            object.__setattr__(
                module, "as_linear", Blas(module)
            )  # a module keeps its own methods from being set


def _dense(layer: Any) -> Any:
    """The layer's weight [out, in] in fp32."""
    import mlx.core as mx

    if "scales" not in layer:
        return layer.weight.astype(mx.float32)
    how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    return mx.dequantize(layer.weight, layer.scales, layer.get("biases"), **how).astype(mx.float32)


class _Session:
    def __init__(self, folder: Path) -> None:
        import mlx.core as mx
        from mlx_lm import utils

        self._mx: Any = mx
        self._model: Any = None  # for generation, as it is used; loaded in place of the other
        self._wide: Any = None  # for scoring
        self._ends = tokenizer_files.end_ids(utils.load_config(folder).get("eos_token_id"))
        self._folder = folder

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        import numpy as np

        if self._wide is None:
            self._model = None
            self._wide = self._in_fp32()
        return np.array(self._wide(self._mx.array([list(tokens)]))[0].astype(self._mx.float32))

    def _in_fp32(self) -> Any:
        """The model again, with floating-point values (scales too) in fp32: 16-bit activations
        would be measured."""
        from mlx.utils import tree_map
        from mlx_lm import utils

        mx = self._mx
        model, _ = utils.load_model(self._folder, lazy=True)
        model.update(
            tree_map(
                lambda v: v.astype(mx.float32) if mx.issubdtype(v.dtype, mx.floating) else v,
                model.parameters(),
            )
        )
        size = sum(path.stat().st_size for path in self._folder.glob("*.safetensors"))
        if size > _BLAS_BYTES and mx.default_device() == mx.Device(mx.cpu):
            _by_blas(model)
        return model

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        from mlx_lm import utils
        from mlx_lm.generate import generate_step

        if self._model is None:
            self._wide = None
            self._model, _ = utils.load_model(self._folder)
        for token, _ in generate_step(self._mx.array(list(prompt)), self._model, max_tokens=limit):
            yield int(token)
            if int(token) in self._ends:
                return

    def close(self) -> None:
        self._model = self._wide = None
        self._mx.clear_cache()


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Load an MLX folder on what this machine's MLX computes with; "metal" insists on the GPU."""
    if api == "metal":
        import mlx.core as mx

        from phipipe.backends.base import absent

        if not mx.metal.is_available():
            raise absent("Apple GPU", "MLX")
    return _Session(artifact)


def tokenizer(artifact: Path) -> Tokenizer:
    """The tokenizer as mlx-lm reads it."""
    from phipipe.backends.mlx.tokenizer import of_folder

    return of_folder(artifact)


FACE = Backend(
    title="Apple MLX (mlx-lm)",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions={"metal": _SCHEMES},
    systems=frozenset({"macos", "ios"}),
    host_apis=frozenset({"metal"}),
    cache_bytes={"metal": 2},
    files=("config.json", "*.safetensors", "*.safetensors.index.json"),
    quantized_by=frozenset(),
    steps=steps,
    scheme=scheme,
    rules=RULES,
    fixups=FIXUPS,
    is_uniform=lambda o: o.mixed == "none" and (o.bits or 4) <= 4,
    wider="set `quantize.mixed: mixed_4_6`",
    finer=(
        Finer(options={"mixed": "mixed_4_6"}, told="mixed_4_6"),
        Finer(options={"bits": 6}, told="6-bit"),
    ),
    open=open,
    tokenizer=tokenizer,
    rank=4,
    colour=4,
)
