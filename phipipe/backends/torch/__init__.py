"""PyTorch: the baseline every runtime is compared with, and a checkpoint for transformers as
output.

fp32 and fp16 are plain casts. int8 and int4 are auto-round's own format: safetensors in which each
linear of the decoder layers is packed integers with a scale per group, everything else the source's
own tensors and files.

Quantized artifacts are scored in fp32 on the stored values, like all others of this backend.
auto-round's layers for the CPU would compute in 16 bits (positions too), and unpack every weight
anew for each token: 40 s with 4 G weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from phipipe.backends import group_rules
from phipipe.backends.base import Backend, Finer, Job, Runtime, Tokenizer
from phipipe.backends.rules import Rule
from phipipe.errors import StepFailed
from phipipe.models import longrope, tokenizer_files
from phipipe.models.staging import staged
from phipipe.steps import Inputs, Json, Params, Step

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.recipe.recipe import Precision

TOOLCHAIN = "torch"
STEPS: Mapping[str, str] = {
    "cast": "phipipe.backends.torch:cast",
    "quantize": "phipipe.backends.torch:quantize",
}
_DTYPES: Mapping[Precision, str] = {"fp32": "float32", "fp16": "float16"}
BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
_SCHEMES: Mapping[Precision, str] = {
    **_DTYPES,
    "int8": "auto-round, 8 bits",
    "int4": "auto-round, 4 bits",
}
ITERATIONS = 200  # auto-round's own default


class Options(BaseModel):
    """How int8 and int4 weights are rounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Literal["rtn", "signround"] = Field(
        default="rtn",
        description="rtn: round to nearest, without data. signround: learns the rounding and "
        "the ranges layer by layer "
        "from the calibration text (auto-round's own method); more accurate, same size, much "
        "slower.",
    )
    group_size: Literal[32, 64, 128, -1] = Field(
        default=128,
        description="Weights that share one scale; -1: a whole row. Smaller is more accurate "
        "and larger on disk.",
    )
    symmetric: bool = Field(
        default=True,
        strict=True,
        description="Rounding around zero. Off (int4 only): a zero point per group, for skewed "
        "weights.",
    )
    iterations: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        strict=True,
        description=f"signround: steps of learning for each layer; {ITERATIONS} if not set.",
    )


RULES: tuple[Rule, ...] = (
    Rule(
        id="T01",
        level="warning",
        when=lambda r, o, c: r.precision not in BITS and bool(o.model_fields_set),
        message="`quantize` is set, but {recipe.precision} quantizes nothing",
        hint="take `quantize` out, or choose int8 or int4",
    ),
    Rule(
        id="T02",
        level="error",
        when=lambda r, o, c: (
            r.precision in BITS and o.algorithm == "rtn" and o.iterations is not None
        ),
        message="`quantize.iterations` is set, but `rtn` learns nothing",
        hint="remove it, or set `quantize.algorithm: signround`",
    ),
    Rule(
        id="T04",
        level="error",
        when=lambda r, o, c: r.precision == "int8" and not o.symmetric,
        message="auto-round's format has no zero points at 8 bits",
        hint="remove `quantize.symmetric`, or choose int4",
    ),
    Rule(
        id="T05",
        level="error",
        when=lambda r, o, c: r.precision in BITS and c.model_type == "phimoe",
        message="`torch` quantizes dense models only; `{checkpoint.architecture}` is a mixture "
        "of experts",
        hint="choose fp16 or fp32, or `backend: openvino`",
    ),
    Rule(
        id="T06",
        level="error",
        when=lambda r, o, c: (
            r.precision in BITS
            and math.gcd(*c.input_widths.values(), c.kv_heads * c.head_size) % 32 != 0
        ),
        message="auto-round packs weights whose width and height are multiples of 32; this "
        "model has others",
        hint="choose fp16 or fp32",
    ),
    group_rules.rule("T03", BITS, (32, 64, 128)),
)


def steps(job: Job[Options]) -> list[Step]:
    """One step, straight from the checkpoint: ``convert`` (a cast), or ``quantize``."""
    recipe, checkpoint = job.recipe, job.checkpoint
    if recipe.precision in BITS:
        return [_quantize_step(job)]
    size = checkpoint.parameters * (4 if recipe.precision == "fp32" else 2)
    step = Step(
        name="convert",
        runs="torch/cast",
        version=2,
        needs={"source": "source"},
        params={"dtype": _DTYPES[recipe.precision]},
        unquantized=recipe.precision,
        toolchain=TOOLCHAIN,
        output_bytes=size,
        memory_bytes=size,
    )
    return [step]


def _quantize_step(job: Job[Options]) -> Step:
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    bits, learns = BITS[recipe.precision], options.algorithm == "signround"
    params: dict[str, Json] = {
        "bits": bits,
        **options.model_dump(mode="json", exclude={"iterations"}),
    }
    needs, memory = {"source": "source"}, 4 * checkpoint.parameters + 2**30  # all weights in fp32
    if learns:
        params["iterations"] = options.iterations or ITERATIONS
        needs["calibration"] = "calibration"
        # a layer's inputs and both its outputs for all tokens, and one layer's activations for a
        # batch
        memory += 12 * recipe.calibrate.tokens * checkpoint.hidden_size + 2**30
    return Step(
        name="quantize",
        runs="torch/quantize",
        version=1,
        needs=needs,
        params=params,
        toolchain=TOOLCHAIN,
        output_bytes=(bits + 1) * checkpoint.parameters // 8
        + 4 * checkpoint.vocab_size * checkpoint.hidden_size,
        memory_bytes=memory,
    )


def scheme(job: Job[Options]) -> str:
    """The dtype; or the format, its bits and groups."""
    recipe, options = job.recipe, job.options
    if recipe.precision not in BITS:
        return _DTYPES[recipe.precision]
    kind = "symmetric" if options.symmetric else "asymmetric"
    groups = "a scale per row" if options.group_size == -1 else f"groups of {options.group_size}"
    return f"auto-round, {BITS[recipe.precision]} bits {kind}, {groups}"


def cast(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: copy the checkpoint file by file, floating-point tensors cast to
    ``params["dtype"]``."""
    import torch

    from phipipe.models import tensors

    dtype = getattr(torch, params["dtype"])

    def change(name: str, tensor: Any) -> dict[str, Any]:
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor}

    settings = {"torch_dtype": params["dtype"], **_respelled(inputs["source"])}
    tensors.rewrite(inputs["source"], out, change, settings)


def _respelled(source: Path) -> dict[str, Any]:
    return longrope.respelled(json.loads((source / "config.json").read_text("utf-8")))


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]`` with the linears of its decoder layers at ``params["bits"]`` bits.

    ``params`` holds the options besides. With "signround", ``inputs["calibration"]`` has the tokens
    to learn from. The result is verified from disk before the step counts as done.

    Raises:
        StepFailed: auto-round did something else than asked.
    """
    import tempfile

    from phipipe.backends.torch import verify
    from phipipe.models import tensors

    source, patch = inputs["source"], _respelled(inputs["source"])
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".quantize-") as scratch:
        read = staged(source, patch, Path(scratch) / "source") if patch else source
        packed = Path(scratch) / "packed"
        _auto_round(read, packed, params, inputs.get("calibration"))
        made = tensors.where_are(sorted(packed.rglob("*.safetensors")))
        config = min(packed.rglob("config.json"), default=None)
        if config is None or not made:
            raise StepFailed("auto-round left no checkpoint")
        settings = json.loads(config.read_text("utf-8")).get("quantization_config", {})

        def change(name: str, tensor: Any) -> dict[str, Any]:
            parts = [
                key for part in tensors.PARTS if (key := name.removesuffix("weight") + part) in made
            ]
            return {key: tensors.read(made[key], key) for key in parts} or {name: tensor}

        tensors.rewrite(source, out, change, {"quantization_config": settings, **patch})
    verify.verify(source, out, params)


def _auto_round(source: Path, out: Path, params: Params, calibration: Path | None) -> None:
    """Run auto-round in this process.

    Without ``disable_model_free`` it would send shards to spawned processes, which the worker's
    guards do not reach; without ``disable_opt_rtn`` its "data-free" rounding downloads a text.
    Arithmetic is fp32: left alone it depends on whether this machine has bf16. A dataset is always
    given, or its default would be downloaded.
    """
    import numpy as np
    import torch
    from auto_round import AutoRound

    windows = np.zeros((0, 1), np.int64)
    chosen: dict[str, Any] = {"iters": 0, "disable_opt_rtn": True, "disable_model_free": True}
    if params["algorithm"] == "signround":
        assert calibration is not None
        windows = np.load(calibration / "tokens.npy", allow_pickle=False).astype(np.int64)
        chosen = {
            "iters": params["iterations"],
            "gradient_accumulate_steps": 1,
            "enable_minmax_tuning": True,
        }
    ids = [torch.from_numpy(window)[None] for window in windows]
    # masks of our own: auto-round would hide repeated tokens at a window's end, and every pad token
    chosen["dataset"] = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    chosen |= {
        "nsamples": max(1, len(windows)),
        "seqlen": windows.shape[1],
        "batch_size": 8,
        "seed": 42,
    }
    chosen |= {
        "bits": params["bits"],
        "group_size": params["group_size"],
        "sym": params["symmetric"],
    }
    chosen |= {
        "scale_dtype": "fp16",
        "quant_lm_head": False,
        "amp": False,
        "model_dtype": "float32",
    }
    chosen |= dict.fromkeys(("enable_torch_compile", "trust_remote_code"), False) | {
        "device_map": "cpu"
    }
    chosen |= dict.fromkeys(
        ("low_gpu_mem_usage", "low_cpu_mem_usage"), False
    )  # no weights set aside on disk
    packing = (
        "auto_round" if params["symmetric"] else "auto_round:gptqmodel"
    )  # else AWQ's, which no CPU layer reads
    AutoRound(str(source), scheme=f"W{params['bits']}A16", **chosen).quantize_and_save(
        str(out), format=packing
    )


def _load(folder: Path) -> Any:
    """The model in fp32: matrix products in fp16 accumulate as a CPU likes, and only what is stored
    is to be judged."""
    import torch
    from transformers import AutoModelForCausalLM

    from phipipe.models.transformers_files import config_of

    settings: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True}
    settings |= {"trust_remote_code": False, "use_safetensors": True, "config": config_of(folder)}
    if "quantization_config" in json.loads((folder / "config.json").read_text("utf-8")):
        from auto_round.inference.backend import BackendInfos
        from auto_round.logger import logger
        from transformers import AutoConfig

        logger.setLevel("WARNING")  # chats load models too
        settings["config"] = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        settings["config"].quantization_config["backend"] = "torch"
        for name in ("auto_round:torch", "auto_round:torch_zp"):
            # unless fp32 is listed, the whole model is cast to fp16 after loading, its rotary
            # frequencies included
            BackendInfos[name].compute_dtype = ["float32"]
    model = AutoModelForCausalLM.from_pretrained(folder, **settings).eval()
    for name, module in list(model.named_modules()):
        if hasattr(module, "qweight"):
            model.set_submodule(name, _unpacked(name, module))
    return model


def _unpacked(name: str, layer: Any) -> Any:
    """auto-round's ``layer`` as a dense one in fp32; checked against its own output."""
    import torch

    layer.scales = layer.scales.float()  # 11 bits times integers: exact in fp32, rounded in fp16
    bits, top = layer.bits, 2**layer.bits - 1
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    zeros = (layer.qzeros[:, :, None] >> shifts & top).reshape(layer.scales.shape)
    if type(layer).__module__.endswith("_zp"):
        zeros = zeros + 1  # GPTQ's layout stores them less one
    weight = (layer.qweight[:, None, :] >> shifts[None, :, None] & top).reshape(
        layer.infeatures, layer.outfeatures
    )
    grouped = weight.reshape(len(zeros), -1, layer.outfeatures)
    dense = (layer.scales[:, None] * (grouped - zeros[:, None])).reshape(weight.shape)
    linear = torch.nn.Linear(
        layer.infeatures, layer.outfeatures, bias=layer.bias is not None, device="meta"
    )
    linear.weight = torch.nn.Parameter(dense.t().contiguous(), requires_grad=False)
    if layer.bias is not None:
        linear.bias = torch.nn.Parameter(layer.bias.float(), requires_grad=False)
    with torch.inference_mode():
        probe = torch.sin(torch.arange(layer.infeatures, dtype=torch.float32))[None]
        theirs, ours = layer(probe), linear(probe)
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max())):
            raise StepFailed(f"`{name}` is not packed as auto-round reads it")
    return linear


class _Torch:
    def __init__(self, folder: Path) -> None:
        import torch

        self._torch = torch
        self._model = _load(folder)
        self._ends = tokenizer_files.end_ids(self._model.generation_config.eos_token_id)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        with self._torch.inference_mode():
            ids = self._torch.tensor([list(tokens)])
            output: Any = self._model(input_ids=ids, use_cache=False).logits[0].float().numpy()
        return output  # type: ignore[no-any-return]

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        ids, cache = self._torch.tensor([list(prompt)]), None
        for _ in range(limit):
            with self._torch.inference_mode():
                output = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            token = int(output.logits[0, -1].argmax())
            yield token
            if token in self._ends:
                return
            ids = self._torch.tensor([[token]])

    def close(self) -> None:
        del self._model


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Load a checkpoint in fp32 on the CPU, the only unit it is run on here."""
    return _Torch(artifact)


def tokenizer(artifact: Path) -> Tokenizer:
    """The checkpoint's tokenizer as transformers reads it."""
    from phipipe.models.tokenizer import of_folder

    return of_folder(artifact)


FACE = Backend(
    title="PyTorch checkpoint (transformers)",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions=dict.fromkeys(("cpu", "cuda", "metal"), _SCHEMES),
    systems=frozenset({"linux", "windows", "macos"}),
    toolchains={"cpu": TOOLCHAIN},
    cache_bytes={"cpu": 4, "cuda": 2, "metal": 2},
    files=("config.json", "*.safetensors", "*.safetensors.index.json"),
    quantized_by=frozenset({"auto-round"}),
    reads_resaved=True,
    steps=steps,
    scheme=scheme,
    rules=RULES,
    finer=(Finer(options={"algorithm": "signround", "group_size": 32}, told="groups of 32"),),
    open=open,
    tokenizer=tokenizer,
    rank=7,
    colour=1,
)
