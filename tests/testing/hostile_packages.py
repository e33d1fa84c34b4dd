"""Packages as somebody hostile would make them: edits of a real one that would run, write or read
what they must not.

Light, so that benchmarks can import it: of phipipe only what seals a manifest. An edit changes a
copy of a package; ``sealed`` then makes its manifest fit again, as anybody can.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phipipe.evaluate import papers
from phipipe.package import manifest

BACKENDS = ("onnxruntime", "qnn", "openvino", "mlx", "torch", "llamacpp", "litert")


@dataclass(frozen=True)
class Edit:
    """Something that a stranger did to a package of ``backend``; ``apply`` does it to a folder,
    unsealed."""

    name: str
    backend: str
    apply: Callable[[Path], object]


def sealed(folder: Path, change: Callable[[dict[str, Any]], object] = lambda made: None) -> Path:
    """Make manifest and sums fit what lies in ``folder``, after ``change`` of the manifest; what
    was attached to the package before goes."""
    made = json.loads((folder / manifest.NAME).read_text("utf-8"))
    change(made)
    for name in (manifest.NAME, manifest.SUMS, *papers.ATTACHED):
        (folder / name).unlink(missing_ok=True)
    manifest.seal(
        folder, {name: value for name, value in made.items() if name not in ("files", "digest")}
    )
    return folder


def resealed(folder: Path, made: Mapping[str, Any]) -> Path:
    """Write ``made`` as the manifest, with a digest that fits; files stay as they are listed."""
    whole = {**made, "digest": manifest.digest(made)}
    (folder / manifest.NAME).write_text(manifest.dump(whole), "utf-8")
    return folder


# -- layouts


def laid_out(package: Path, folder: Path, backend: str) -> Path:
    """A copy of ``package`` that passes for one of ``backend``: the fewest files that such a
    package has."""
    shutil.copytree(package, folder)
    if json.loads((folder / manifest.NAME).read_text("utf-8"))["backend"] == backend:
        return folder
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in (
            "README.md",
            "LICENSE",
            "recipe.yaml",
            manifest.NAME,
            manifest.SUMS,
        ):
            path.unlink()
    for name, data in _files(backend).items():
        (folder / name).write_bytes(data)

    def renamed(made: dict[str, Any]) -> None:
        made["backend"] = made["recipe"]["backend"] = backend

    return sealed(folder, renamed)


def _files(backend: str) -> dict[str, bytes]:
    tokenizer = {
        "tokenizer_config.json": text({"tokenizer_class": "TokenizersBackend"}),
        "tokenizer.json": b"{}",
    }
    config = {"config.json": text({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]})}
    generation = {"generation_config.json": text({"eos_token_id": [2]})}
    weights = {"model.safetensors": struct.pack("<Q", 2) + b"{}"}
    own: dict[str, dict[str, bytes]] = {
        "onnxruntime": {
            "genai_config.json": text(GENAI),
            "model.onnx": onnx(),
            "model.onnx.data": b"\0" * 64,
        },
        "qnn": {
            "genai_config.json": text(GENAI),
            "model.onnx": onnx(),
            "static.json": text({"layers": 2}),
        },
        "openvino": config
        | generation
        | {"openvino_model.xml": openvino(), "openvino_model.bin": b"\0" * 64},
        "mlx": config | generation | weights,
        "torch": config | generation | weights,
        "llamacpp": {"model.gguf": gguf(), "Modelfile": b"FROM ./model.gguf\n"},
        "litert": config | generation | {"model.tflite": tflite()},
    }
    return own[backend] | ({} if backend == "llamacpp" else tokenizer)


GENAI: dict[str, Any] = {
    "model": {
        "type": "phi3",
        "context_length": 2048,
        "decoder": {
            "filename": "model.onnx",
            "session_options": {"log_id": "x", "provider_options": []},
        },
    },
    "search": {"max_length": 2048},
}


def text(value: object) -> bytes:
    """A JSON file."""
    return json.dumps(value).encode()


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def node(kind: bytes, domain: bytes = b"", **attributes: bytes | int) -> bytes:
    """A node of an ONNX graph, with attributes that are texts or numbers."""
    made = field(4, kind) + (field(7, domain) if domain else b"")
    for name, value in attributes.items():
        made += field(5, field(1, name.encode()) + field(3 if isinstance(value, int) else 4, value))
    return made


def onnx(*nodes: bytes, location: bytes | None = None, extra: bytes = b"") -> bytes:
    """An ONNX file with ``nodes`` and, at ``location``, a tensor."""
    tensor = (
        b"" if location is None else field(5, field(13, field(1, b"location") + field(2, location)))
    )
    return field(1, 10) + field(7, b"".join(field(1, one) for one in nodes) + tensor) + extra


def openvino(layers: str = "", head: str = "", more: str = "") -> bytes:
    """An OpenVINO graph with a constant and ``layers``."""
    constant = (
        '<layer id="0" name="c" type="Const" version="opset1"><data offset="0" size="64"/></layer>'
    )
    net = (
        f'<net name="Model" '
        f'version="11"><layers>{constant}{layers}</layers><edges/><rt_info/>{more}</net>'
    )
    return f'<?xml version="1.0"?>{head}{net}'.encode()


def gguf(
    tensors: int = 0, pairs: tuple[bytes, ...] = (), promised: int | None = None, version: int = 3
) -> bytes:
    """A GGUF file of settings alone."""
    count = len(pairs) if promised is None else promised
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + b"".join(pairs)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    """A setting of a GGUF file."""
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def tflite(custom: bytes | None = None, external: bool = False) -> bytes:
    """A TensorFlow Lite model of one operator code: a library's, if it is named."""
    fields = struct.pack("<10H", 24, 8, 0, 4, 0, 0, 0, 0, 0, 0) + struct.pack(
        "<2H", 4 if external else 0, 0
    )
    made = struct.pack("<I", 32) + b"TFL3" + fields + struct.pack("<iI", 24, 4)
    made += struct.pack("<II", 1, 16)
    made += struct.pack("<6H", 12, 12, 0, 4 if custom else 0, 0, 8)
    name = custom or b""
    return (
        made
        + struct.pack("<iIi", 12, 8, 32 if custom else 9)
        + struct.pack("<I", len(name))
        + name
        + b"\0" * 4
    )


# -- edits


def edits(canary: Path) -> Iterator[Edit]:
    """Everything that is tried; what runs or writes leaves something under ``canary``, a folder."""
    canary.mkdir(parents=True, exist_ok=True)
    yield from _genai(canary)
    yield from _added()
    yield from _disguised(canary)
    yield from _graphs()
    yield from _configs()
    yield from _others()


def _set(name: str, dotted: str, value: object) -> Callable[[Path], None]:
    """Put ``value`` under ``dotted`` in the JSON file ``name``."""

    def apply(folder: Path) -> None:
        path = folder / name
        made = json.loads(path.read_text("utf-8")) if path.exists() else {}
        *parents, last = dotted.split("/")
        inner = made
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = value
        path.write_text(json.dumps(made), "utf-8")

    return apply


def _put(name: str, data: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return apply


def _genai(canary: Path) -> Iterator[Edit]:
    options, library = "model/decoder/session_options", str(canary / "libops.so")
    stage = {"filename": "model.onnx", "session_options": {"custom_ops_library": library}}
    hooks: dict[str, object] = {
        f"{options}/custom_ops_library": "libops.so",
        f"{options}/enable_profiling": str(canary / "profile"),
        f"{options}/session.load_model_format": "ORT",
        f"{options}/session.model_external_initializers_file_folder_path": "/etc",
        f"{options}/session.save_model_path": str(canary / "saved"),
        f"{options}/ep.context_file_path": str(canary / "context"),
        f"{options}/ep.context_enable": "1",
        f"{options}/optimized_model_filepath": str(canary / "optimized"),
        f"{options}/intra_op_num_threads": 10**9,
        f"{options}/provider_options": [{"qnn": {"backend_path": library}}],
        f"{options}/config_entries": {"session.x": "1"},
        "model/decoder/filename": "/etc/passwd",
        "model/decoder/run_options": {"x": "y"},
        "model/decoder/pipeline": [{"one": stage}],
        "model/decoder/shared_initializers": [{"name": "w", "data_file": "../../w"}],
        "model/decoder/num_hidden_layers": 10**9,
        "model/embedding": {"filename": "../model.onnx"},
        "model/vision": {"filename": "model.onnx", "config_filename": "/etc/passwd"},
        "model/vision/adapter_filename": "adapter",
        "model/speech": {"filename": "model.onnx"},
        "model/encoder": {
            "filename": "model.onnx",
            "session_options": {"custom_ops_library": library},
        },
        "model/draft": {"filename": "model.onnx"},
        "model/mtp": {"filename": "model.onnx"},
        "model/tokenizer_dir": "/etc",
        "model/context_length": "many",
        "search/max_length": 1e300,
        "engine": {"dynamic_batching": {"block_size": 1}},
        "custom_ops_library": library,
    }
    for dotted, value in hooks.items():
        yield Edit(f"genai {dotted}", "onnxruntime", _set("genai_config.json", dotted, value))
    for name, more in {
        "tensorrt": {"trt_engine_cache_path": str(canary)},
        "NvTensorRtRtx": {"nv_runtime_cache_path": str(canary)},
        "OpenVINO": {"cache_dir": str(canary), "load_config": "x.json"},
        "VitisAI": {"config_file": "/etc/passwd"},
        "cuda": {"tunable_op_path": str(canary)},
        "x": {"library_path": library},
    }.items():
        value = [{name: more}]
        yield Edit(
            f"provider {name}",
            "onnxruntime",
            _set("genai_config.json", f"{options}/provider_options", value),
        )
    twice = b'{"model": {"context_length": 1, "context_length": 2}}'
    yield Edit("genai twice", "onnxruntime", _put("genai_config.json", twice))
    yield Edit("genai deep", "onnxruntime", _put("genai_config.json", b"[" * 5000 + b"]" * 5000))
    attrs = {
        "processor": {
            "transforms": [{"operation": {"type": "DecodeImage", "attrs": {"file": "/etc/passwd"}}}]
        }
    }
    yield Edit("processor", "onnxruntime", _put("processor_config.json", text(attrs)))


def _added() -> Iterator[Edit]:
    names = (
        "evil.py",
        "libops.so",
        "libops.so.1",
        "ops.dll",
        "ops.dylib",
        "run.sh",
        "a.exe",
        "w.pkl",
        "w.pt",
        "w.bin",
    )
    names += (
        "LICENSE.py",
        "NOTICE.dll",
        "conftest.py",
        "adapter_config.json",
        "modeling_phi3.pyc",
        "a/b/evil.py",
    )
    names += (
        "reference/evil.npy",
        "chat.ipynb",
        "tokenizer.jsonl",
        "MODEL.ONNX",
        "inference_model.json",
        ".env",
    )
    for name in names:
        yield Edit(f"file {name}", "onnxruntime", _put(name, b"x"))
    for backend in BACKENDS:
        yield Edit(f"file evil.py in {backend}", backend, _put("evil.py", b"print()"))
        yield Edit(f"file pytorch_model.pt in {backend}", backend, _put("pytorch_model.pt", b"x"))
    yield Edit("file pytorch_model.bin", "torch", _put("pytorch_model.bin", b"x"))


class _Runs:
    """Pickled, what makes a folder when it is loaded."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.makedirs, (self._path,)


def _disguised(canary: Path) -> Iterator[Edit]:
    program = b"MZ" + b"\0" * 58 + struct.pack("<I", 64) + b"PE\0\0" + b"\0" * 100
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data.pkl", b"x")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids.npy", b"\0" * 10**6)
    pickled = pickle.dumps(_Runs(str(canary / "pickle")), 4)
    array = (
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128)
        + pickled
    )
    disguises = {
        "model.onnx.data": b"\x7fELF" + b"\0" * 100,
        "tokenizer.json": b"\xcf\xfa\xed\xfe" + b"\0" * 100,
        "LICENSE": b"#!/bin/sh\ntouch x\n",
        "NOTICE": program,
        "README.md": packed.getvalue(),
        "tokenizer.model": pickled,
        "vocab.json": pickle.dumps(_Runs(str(canary / "pickle")), 2),
        "reference/tokens.npy": array,
        "reference/top.npz": bomb.getvalue(),
        "reference/baseline.json": b"[" * 10_000,
    }
    for name, data in disguises.items():
        yield Edit(f"disguised {name}", "onnxruntime", _put(name, data))
    yield Edit(
        "disguised weights", "openvino", _put("openvino_model.bin", b"\x7fELF" + b"\0" * 100)
    )
    yield Edit("disguised checkpoint", "torch", _put("model.safetensors", packed.getvalue()))


def _graphs() -> Iterator[Edit]:
    context = {"ep_cache_context": b"../../context.bin", "embed_mode": 0}
    inside = {"ep_cache_context": b"\0" * 100, "embed_mode": 1}
    deep = field(1, node(b"If"))
    for _ in range(60):
        deep = field(1, field(5, field(6, deep)))
    graphs = {
        "outside": onnx(location=b"../../../etc/passwd"),
        "absolute": onnx(location=b"/etc/passwd"),
        "memory": onnx(location=b"*/_ORT_MEM_ADDR_/*"),
        "missing": onnx(location=b"other.data"),
        "domain": onnx(node(b"Evil", b"evil.ops")),
        "extensions": onnx(node(b"DecodeImage", b"ai.onnx.contrib")),
        "compiled": onnx(node(b"EPContext", b"com.microsoft", **context)),
        "settings": onnx(extra=field(14, field(1, b"ort_config") + field(2, b"{}"))),
        "training": onnx(extra=field(20, b"")),
        "function": onnx(extra=field(25, field(7, node(b"Evil", b"evil.ops")))),
        "deep": field(7, deep),
        "cut": onnx(node(b"Add"))[:-1],
        "nothing": b"",
    }
    for name, data in graphs.items():
        yield Edit(f"onnx {name}", "onnxruntime", _put("model.onnx", data))
    for name, kind in {"outside": context, "embedded": inside}.items():
        yield Edit(
            f"qnn context {name}",
            "qnn",
            _put("model.onnx", onnx(node(b"EPContext", b"com.microsoft", **kind))),
        )
    yield Edit("qnn layers", "qnn", _set("static.json", "layers", 10**9))
    yield Edit("qnn caches", "qnn", _set("static.json", "caches", {"x": 1}))
    layer = '<layer id="1" name="e" type="Evil" version="{}"/>'
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    outside = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    beyond = (
        '<layer id="2" name="b" type="Const" version="opset1"><data offset="9999" '
        'size="64"/></layer>'
    )
    for name, data in {
        "extension": openvino(layer.format("extension")),
        "opset": openvino(layer.format("evil_opset")),
        "bomb": openvino(head=bomb),
        "entity": openvino(head=outside),
        "beyond": openvino(beyond),
        "negative": openvino(beyond.replace("9999", "-1")),
        "part": openvino(more="<extensions path='libops.so'/>"),
        "deep": openvino("<a>" * 500 + "</a>" * 500),
        "broken": b"<net>",
        "nothing": b"",
    }.items():
        yield Edit(f"openvino {name}", "openvino", _put("openvino_model.xml", data))


def _configs() -> Iterator[Edit]:
    code = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    hooks: dict[str, object] = {
        "model_file": "evil.py",
        "_attn_implementation": "kernels-community/x",
        "attn_implementation": {"": "sdpa", "text_config": "someone/kernel:fn"},
        "text_config/_attn_implementation": "someone/kernel@main",
        "_experts_implementation": "someone/kernel",
        "_attn_implementation_internal": "x/y",
        "kernel_config": {"a": "b"},
        "trust_remote_code": True,
        "custom_generate": "someone/code",
        "quantization_config/quantizer_class": "os.system",
        "quantization_config/quant_method": "torchao",
        "auto_map": code,
        "model_type": "../../evil",
        "tokenizer_class": "os.path.join",
    }
    for backend in ("torch", "mlx"):
        for dotted, value in hooks.items():
            yield Edit(f"{backend} config {dotted}", backend, _set("config.json", dotted, value))
    for backend in ("openvino", "litert"):
        for dotted in ("model_file", "_attn_implementation", "quantization_config/quantizer_class"):
            yield Edit(
                f"{backend} config {dotted}", backend, _set("config.json", dotted, hooks[dotted])
            )
    for dotted, value in {
        "tokenizer_file": "/etc/passwd",
        "vocab_file": "../../vocab",
        "chat_template_type": "..evil",
        "tool_parser_type": "a.b",
        "tokenizer_class": ["evil.mod.Cls", None],
        "processor_class": "a/b",
        "custom_ops_library": "x.so",
    }.items():
        yield Edit(f"tokenizer {dotted}", "mlx", _set("tokenizer_config.json", dotted, value))
    yield Edit(
        "generation", "torch", _set("generation_config.json", "custom_generate", "someone/code")
    )
    yield Edit(
        "preprocessor",
        "openvino",
        _set("preprocessor_config.json", "image_processor_type", "a.b.C"),
    )


def _others() -> Iterator[Edit]:
    long = struct.pack("<Q", 2**40)
    for name, data in {
        "51 bytes": gguf(promised=2**61).ljust(51, b"\0"),
        "tensors": gguf(tensors=2**61),
        "text": gguf(pairs=(pair(b"a", 8, long),)),
        "list": gguf(pairs=(pair(b"a", 9, struct.pack("<IQ", 0, 2**61)),)),
        "lists": gguf(pairs=(pair(b"a", 9, struct.pack("<IQ", 9, 1)),)),
        "key": gguf(pairs=(struct.pack("<Q", 2**50),)),
        "kind": gguf(pairs=(pair(b"a", 77, b""),)),
        "template": gguf(
            pairs=(pair(b"tokenizer.chat_template", 8, struct.pack("<Q", 2**21) + b" " * 2**21),)
        ),
        "version": gguf(version=9),
        "other": b"NOPE" * 20,
        "nothing": b"",
    }.items():
        yield Edit(f"gguf {name}", "llamacpp", _put("model.gguf", data))
    for name, line in {
        "from": "FROM /etc/passwd",
        "address": "FROM https://evil.example/x.gguf",
        "adapter": "FROM ./model.gguf\nADAPTER ./evil",
        "unknown": "RUN touch x",
    }.items():
        yield Edit(f"modelfile {name}", "llamacpp", _put("Modelfile", line.encode()))
    for name, data in {
        "custom": tflite(b"EvilOp"),
        "flex": tflite(b"FlexReadFile"),
        "external": tflite(external=True),
        "cut": tflite()[:30],
        "wild": tflite()[:8] + b"\xff" * 60,
        "other": b"x" * 100,
        "nothing": b"",
    }.items():
        yield Edit(f"litert {name}", "litert", _put("model.tflite", data))
    bundle = b"LITERTLM" + b"\0" * 16 + struct.pack("<Q", 2**60) + b"\xff" * 64
    yield Edit("litert bundle", "litert", _put("model.litertlm", bundle))


# -- manifests


def mutated(made: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what was done, a manifest) for every value of a manifest and everything that may stand in
    its place."""
    deep: Any = "x"
    for _ in range(40):
        deep = [deep]
    values: dict[str, Any] = {
        "null": None,
        "list": [],
        "map": {},
        "text": "x",
        "number": 7,
        "true": True,
        "huge": 10**30,
        "float": 1e300,
        "tiny": 5e-324,
        "negative": -1,
        "control": "\x1b]0;X\x07\x00",
        "surrogate": "\ud800",
        "long": "x" * 200_000,
        "path": "../../x",
        "deep": deep,
        "numbers": [-1, 1e300],
        "empty": "",
    }
    for path in _paths({name: value for name, value in made.items() if name != "digest"}):
        for name, value in values.items():
            yield f"{'.'.join(map(str, path))} = {name}", _with(made, path, value)
        yield f"{'.'.join(map(str, path))} deleted", _with(made, path, None, delete=True)


def _paths(value: object, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if before:
        yield before
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*before, key))
    elif isinstance(value, list) and value:
        yield from _paths(value[0], (*before, 0))


def _with(
    made: Mapping[str, Any], path: tuple[Any, ...], value: Any, delete: bool = False
) -> dict[str, Any]:
    whole: Any = copy.deepcopy(dict(made))
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if delete:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return whole  # type: ignore[no-any-return]


def sized(made: Mapping[str, Any], count: int) -> dict[str, Any]:
    """A manifest that lists ``count`` files more, none of which is there."""
    more = [
        {"path": f"f/{i}", "size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        for i in range(count)
    ]
    return {**made, "files": [*made["files"], *more]}
