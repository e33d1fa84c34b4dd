"""What ONNX Runtime GenAI may be told by a package: the keys that its builder and phipipe write,
with bounds.

Everything else in ``genai_config.json`` is refused: that runtime takes unknown session settings as
they are, and some of them load libraries, write files or read elsewhere (``custom_ops_library``,
``enable_profiling``, ``session.…``, ``ep.context_file_path``, a provider's ``backend_path``). So
are keys of its newer releases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

from phipipe.files import file_names, json_files
from phipipe.steps import Json

MAX_COUNT = 2**31
MAX_LIST = MAX_SMALL = 4096
# What a value may be: a number, a number of layers or threads, true or false, a short text without
# a path, the name of a tensor (``%d`` stands for a layer; the runtime hands it to ``snprintf``), a
# file of the package, an empty text, one or several ids of tokens, a list of texts or of numbers.
Kind = Literal[
    "number", "small", "flag", "text", "name", "file", "nothing", "ids", "texts", "counts"
]
# key → kind, or what may be inside; a list of one: a list of such; "*": any other key
Spec = Mapping[str, Json]
_TEXT = re.compile(r"[\w .:|-]{0,200}", re.ASCII)
_NAME = re.compile(r"[\w .:|-]{0,200}(%d[\w .:|-]{0,200})?", re.ASCII)

_PROVIDERS: Spec = {
    "cuda": {"enable_cuda_graph": "text", "enable_skip_layer_norm_strict_mode": "text"},
    "dml": {"enable_graph_capture": "text"},
    "webgpu": {
        "enableGraphCapture": "text",
        "validationMode": "text",
        "multiRotaryCacheConcatOffset": "text",
    },
    "NvTensorRtRtx": {"enable_cuda_graph": "text", "multi_rotary_cache_concat_offset": "text"},
    "qnn": dict.fromkeys(
        ("backend_type", "htp_performance_mode", "soc_model", "enable_htp_shared_memory_allocator"),
        "text",
    ),
}
_SESSION: Spec = {
    "log_id": "text",
    "provider_options": [_PROVIDERS],
    "intra_op_num_threads": "small",
    "inter_op_num_threads": "small",
    "log_severity_level": "number",
    "enable_cpu_mem_arena": "flag",
    "enable_mem_pattern": "flag",
    "ep.cuda.fpa_intb_gemm": "text",
}
_NAMES: Spec = {"*": "name"}  # names of a graph's inputs and outputs
_SHAPE: Spec = {
    "hidden_size": "number",
    **dict.fromkeys(
        ("head_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"), "small"
    ),
}
_STAGE: Spec = {
    "filename": "file",
    "session_options": _SESSION,
    "inputs": "texts",
    "outputs": "texts",
    **dict.fromkeys(("run_on_prompt", "run_on_token_gen", "is_lm_head"), "flag"),
    "reset_session_idx": "number",
}
_GRAPH: Spec = {
    "filename": "file",
    "session_options": _SESSION,
    "inputs": _NAMES,
    "outputs": _NAMES,
}
_WINDOW: Spec = {
    "window_size": "number",
    "pad_value": "number",
    "alignment": "text",
    "slide_key_value_cache": "flag",
    "slide_inputs": "flag",
    "layers": "counts",
    "cache_slack": "number",
}
_IDS = ("bos", "eos", "pad", "sep", "decoder_start", "image", "bot", "eot", "bor", "eor")
CONFIG: Spec = {
    "model": {
        "type": "text",
        **{f"{name}_token_id": "ids" for name in _IDS},
        "context_length": "number",
        "vocab_size": "number",
        "decoder": {**_GRAPH, **_SHAPE, "sliding_window": _WINDOW, "pipeline": [{"*": _STAGE}]},
        "embedding": _GRAPH,
        "vision": {
            **_GRAPH,
            **dict.fromkeys(("spatial_merge_size", "patch_size", "num_visual_tokens"), "number"),
            "config_filename": "file",
        },
        # its defaults are names of files
        "speech": dict.fromkeys(("filename", "config_filename"), "nothing"),
    },
    "search": {
        **dict.fromkeys(("do_sample", "early_stopping", "past_present_share_buffer"), "flag"),
        **dict.fromkeys(
            (
                "diversity_penalty",
                "length_penalty",
                "max_length",
                "min_length",
                "no_repeat_ngram_size",
                "num_beams",
                "num_return_sequences",
                "repetition_penalty",
                "temperature",
                "top_k",
                "top_p",
                "random_seed",
            ),
            "number",
        ),
    },
}
# onnxruntime-extensions' pipeline for pictures.
PROCESSOR: Spec = {
    "processor": {
        "name": "text",
        "transforms": [
            {
                "operation": {
                    "name": "text",
                    "domain": "text",
                    "type": "text",
                    "attrs": {
                        "color_space": "text",
                        "interpolation": "text",
                        **dict.fromkeys(
                            ("num_crops", "num_img_tokens", "dynamic_hd", "dyhd_base_resolution"),
                            "number",
                        ),
                        **dict.fromkeys(("mean", "std"), "counts"),
                    },
                    "inputs": "texts",
                }
            }
        ],
        "output_aligner": "text",
    }
}
# What phipipe's own session of static graphs reads.
STATIC: Spec = {
    **dict.fromkeys(("layers", "heads", "kv_heads", "head_size", "parts"), "small"),
    **dict.fromkeys(("hidden", "prompt_length", "context_length"), "number"),
    **dict.fromkeys(("begin", "pad", "ends"), "ids"),
    "vocabulary": "number",
    "caches": "text",
    "shared": "flag",
    "soc": {"model": "number", "arch": "number", "name": "text"},
}


def problems(settings: Mapping[str, Json], spec: Spec, files: Mapping[str, int]) -> Iterator[str]:
    """Phrases, to follow the file's name, on what in ``settings`` is not in ``spec``; ``files`` are
    the package's."""
    yield from _inside(settings, spec, files, "")


def _inside(value: object, spec: Json, files: Mapping[str, int], where: str) -> Iterator[str]:
    if value is None:
        return
    if isinstance(spec, str):
        if reason := _unfit(value, spec, files):
            yield f"{reason} (`{json_files.shown(where)}`)"
    elif isinstance(spec, list):
        if not isinstance(value, list) or len(value) > MAX_LIST:
            yield f"has no list, or too long a one, where one belongs (`{json_files.shown(where)}`)"
            return
        for inner in value:
            yield from _inside(inner, spec[0], files, where)
    elif not isinstance(value, dict):
        yield f"has something else than settings (`{json_files.shown(where) or '.'}`)"
    else:
        for key, inner in value.items():
            path = f"{where}.{key}" if where else key
            if key in spec or "*" in spec:
                yield from _inside(inner, spec.get(key, spec.get("*")), files, path)
            else:
                yield f"{_asked(key)} (`{json_files.shown(path)}`)"


_ASKED = (
    (
        re.compile(r"custom_ops|librar|backend_path|plugin|\.so\b|\.dll\b", re.IGNORECASE),
        "asks to load a library",
    ),
    (
        re.compile(r"profil|dump|trace|log_path|cache_(dir|path|prefix)", re.IGNORECASE),
        "asks to write a file",
    ),
    (
        re.compile(r"path|file|folder|dir$|adapter", re.IGNORECASE),
        "names a file that lies elsewhere",
    ),
)


def _asked(key: str) -> str:
    return next(
        (words for pattern, words in _ASKED if pattern.search(key)),
        "has a setting that phipipe never writes",
    )


def _unfit(value: object, kind: str, files: Mapping[str, int]) -> str | None:
    if kind == "number":
        return (
            None if _is_number(value) else "has no number, or an impossible one, where one belongs"
        )
    if kind == "small":
        return None if _is_number(value, MAX_SMALL) else "has an impossible number"
    if kind == "flag":
        return None if isinstance(value, bool) else "has something else than true or false"
    if kind == "nothing":
        return None if value == "" else "names a file where none belongs"
    if kind == "file":
        known = isinstance(value, str) and file_names.unfit(value) is None and value in files
        return None if known else "names a file that is not in the package"
    if kind == "text":
        return None if _is_text(value) else "has no plain text where one belongs"
    if kind == "name":
        known = isinstance(value, str) and bool(_NAME.fullmatch(value))
        return None if known else "has no name of a tensor where one belongs"
    listed = value if isinstance(value, list) else [value]
    if len(listed) > MAX_LIST or not all(
        _is_text(one) if kind == "texts" else _is_number(one) for one in listed
    ):
        return "has an impossible list"
    return None


def _is_number(value: object, most: float = MAX_COUNT) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= most


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(_TEXT.fullmatch(value))
