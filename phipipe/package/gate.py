"""The gate for packages: nothing that a stranger made is opened by a runtime before it has passed
here.

Two lists say what a package may be: kinds of files, by the backend that made it (its ``FILES``),
and what those files may ask for. Code, in whatever form, is none of it. Nothing here loads a
library or runs anything; reads are bounded.

``auto_map`` alone is harmless and common (Phi-3.5-mini has one): no code can lie beside it in a
package, and every toolchain opens packages with ``trust_remote_code`` off and without a network.
Where transformers would build the model itself by it, phipipe never ships one, and it is refused.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from phipipe import backends
from phipipe.errors import SourceError
from phipipe.evaluate import papers, reference
from phipipe.files import json_files
from phipipe.models import code_keys, config_check, weight_files, weights
from phipipe.package import (
    gate_apps,
    gate_bill,
    gate_genai,
    gate_reference,
    layouts,
    peek_gguf,
    peek_litert,
    peek_modelfile,
    peek_onnx,
    peek_openvino,
)
from phipipe.package.manifest import Finding
from phipipe.package.manifest_schema import Manifest

CONFIGS = (  # of tools that read checkpoints; every backend's packages may have some
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "chat_template.json",
)
COMMON = (
    papers.CARD,
    papers.RECIPE,
    papers.SUMS,
    papers.BILL,
    *papers.LICENCES,
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
REFERENCE = ("tokens.npy", "top.npz", "baseline.json")
MAX_TEXT_BYTES = 2**20  # of a card, a licence, a recipe, a template
MAX_CONFIG_BYTES = 2**25
QUANTIZED = {"bits": 16, "group_size": 2**20}  # at most, in a config
# What no data file is called, whatever pattern it fits: systems and tools run these by their names.
_CODE = re.compile(
    r"\.(py[cdiowxz]?|so|dll|dylib|exe|com|bat|cmd|psm?1|sh|jse?|jar|class|wasm|lnk|pkl|pickle|pth?"
    r"|ckpt|joblib|node|app|vb[es]?|ws[fh]|hta|scr|pif|msi|reg|cpl|command|desktop"
    r"|ipynb|url|webloc|workflow|tool)"
    r"(\.|$)",
    re.IGNORECASE,
)
_MACHO = (
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
)
_SAVED = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's older files begin

Files = Mapping[str, int]  # path in the package → size


def pass_(folder: Path, manifest: Manifest) -> None:
    """Let the package in ``folder`` pass, whose files are what ``manifest`` says; files that are
    missing do not count.

    Raises:
        SourceError: it holds, or asks for, what phipipe never packages.
    """
    for finding in findings(folder, manifest):
        raise SourceError(
            f"`{folder}` is not safe to open: `{finding.path}` {finding.message}",
            hint=f"phipipe never writes such a package; phipipe verify {folder} names "
            f"everything in it",
        )


def findings(folder: Path, manifest: Manifest, skip: Iterable[str] = ()) -> Iterator[Finding]:
    """Everything in the package that phipipe never packages; of files in ``skip`` only names
    count."""
    backend = manifest.backend
    files = {entry.path: entry.size for entry in manifest.files}
    patterns = (*COMMON, *backends.load(backend).files)
    apps = layouts.inside(backend)
    skipped = frozenset(skip)
    for name in sorted(files):
        if name not in apps and not _is_known(name, patterns):
            yield Finding(name, f"is no file that `{backend}` packages have")
        elif name not in skipped and _is_plain(folder / name):
            yield from (
                Finding(name, phrase) for phrase in _content(folder / name, name, files, backend)
            )


def _is_known(name: str, patterns: Iterable[str]) -> bool:
    path = PurePosixPath(name)
    if _CODE.search(path.name):
        return False
    if path.parts[0] == reference.FOLDER:
        return len(path.parts) == 2 and path.name in REFERENCE
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _content(path: Path, name: str, files: Files, backend: str) -> Iterator[str]:
    """Phrases, to follow the file's name, on what is wrong with its content."""
    try:
        yield from _magic(path)
        if name in papers.APPS:
            yield from gate_apps.problems(path, _beside(name, files))
        else:
            yield from _by_kind(path, name, files, backend)
    except SourceError as error:
        yield error.message.removeprefix(f"`{path}` ")
    except (
        ValueError,
        struct.error,
        IndexError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
    ) as error:
        yield f"is malformed: {error}"
    except OSError as error:
        yield f"cannot be read: {error.strerror}"


def _magic(path: Path) -> Iterator[str]:
    """Programs, archives and pickles, whatever they are called."""
    with path.open("rb") as stream:
        start = stream.read(1024)
        stream.seek(-min(1, path.stat().st_size), 2)
        last = stream.read(1)
    if start.startswith(b"\x7fELF") or start.startswith(_MACHO) or _is_windows_program(start, path):
        yield "is a program or a library"
    elif start.startswith(b"#!") and path.suffix not in (".bin", ".data"):
        yield "is a script"
    elif start.startswith(b"PK\x03\x04") and path.suffix != ".npz":
        yield "is an archive"
    elif start.startswith(_SAVED) or (
        re.match(rb"\x80[\x02-\x05][\x95\x8a}\](cXK.]", start) and last == b"."
    ):
        yield "is a pickle, which can run code when it is loaded"


def _is_windows_program(start: bytes, path: Path) -> bool:
    if not start.startswith(b"MZ") or len(start) < 64:
        return False
    (place,) = struct.unpack_from("<I", start, 60)
    with path.open("rb") as stream:
        stream.seek(min(place, 2**31))
        return stream.read(4) == b"PE\0\0"


def _by_kind(path: Path, name: str, files: Files, backend: str) -> Iterator[str]:
    own, suffix, face = path.name, path.suffix, backends.load(backend)
    checks: Mapping[str, Callable[[], Iterable[str]]] = {
        ".onnx": lambda: peek_onnx.problems(path, name, files, contexts=face.has_contexts),
        ".gguf": lambda: peek_gguf.problems(path),
        ".tflite": lambda: peek_litert.problems(path),
        ".litertlm": lambda: peek_litert.problems(path),
        ".xml": lambda: _graph(path, name, files),
        ".safetensors": lambda: _safetensors(path),
        ".npy": lambda: gate_reference.tokens(path),
        ".npz": lambda: gate_reference.likeliest(path),
    }
    named: Mapping[str, Callable[[], Iterable[str]]] = {
        "baseline.json": lambda: gate_reference.baseline(
            json_files.read_object(path, MAX_CONFIG_BYTES)
        ),
        papers.BILL: lambda: gate_bill.problems(path),
        "Modelfile": lambda: _modelfile(path),
    }
    if own in CONFIGS:
        yield from _config(path, backend)
    elif own in ("genai_config.json", "processor_config.json", "static.json"):
        spec = {"g": gate_genai.CONFIG, "p": gate_genai.PROCESSOR, "s": gate_genai.STATIC}[own[0]]
        yield from gate_genai.problems(
            json_files.read_object(path, MAX_TEXT_BYTES), spec, _beside(name, files)
        )
    elif own in named:
        yield from named[own]()
    elif own.endswith(".safetensors.index.json"):
        yield from _index(path, _beside(name, files))
    elif suffix in checks:
        yield from checks[suffix]() if files[name] else ["is empty"]
    elif own in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"):
        if files[name] > json_files.MAX_BYTES:
            yield f"is larger than {json_files.MAX_BYTES} bytes, as no tokenizer is"
    elif suffix in ("", ".md", ".txt", ".yaml", ".jinja"):
        json_files.read_bytes(path, MAX_TEXT_BYTES)


def _beside(name: str, files: Files) -> Files:
    """The files in the folder of ``name``, by their own names."""
    folder = PurePosixPath(name).parent
    return {
        PurePosixPath(other).name: size
        for other, size in files.items()
        if PurePosixPath(other).parent == folder
    }


def _config(path: Path, backend: str) -> Iterator[str]:
    bounded = path.name in ("config.json", "generation_config.json")
    settings = (
        config_check.read(path) if bounded else json_files.read_object(path, MAX_CONFIG_BYTES)
    )
    yield from code_keys.hooks(settings)
    methods = backends.load(backend).quantized_by
    if path.name != "config.json" or methods is None:
        return
    for where, key, value in json_files.walk(settings):
        if key == "auto_map" and value:
            yield f"names classes of a model's own code (`{where[:120]}`)"
        if key == "quant_method" and not (isinstance(value, str) and value in methods):
            yield f"is quantized in a way that phipipe never writes (`{where[:120]}`)"
        if (
            key in QUANTIZED
            and value is not None
            and (type(value) is not int or not -1 <= value <= QUANTIZED[key])
        ):
            yield f"is quantized in no possible way (`{where[:120]}`)"


def _graph(path: Path, name: str, files: Files) -> list[str]:
    weights = files.get(PurePosixPath(name).with_suffix(".bin").as_posix(), 0)
    tokenizing = path.name in ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
    return peek_openvino.problems(path, weights, tokenizing=tokenizing)


def _safetensors(path: Path) -> Iterator[str]:
    weights.tensors(path)
    yield from ()


def _index(path: Path, beside: Files) -> Iterator[str]:
    """Which file each tensor lies in: transformers goes wherever it says."""
    places = json_files.read_object(path, weight_files.MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict):
        yield "has no `weight_map`, the table of tensors and their files"
    elif not all(isinstance(place, str) and place in beside for place in places.values()):
        yield "names a file that is not in the package (`weight_map`)"


def _modelfile(path: Path) -> Iterator[str]:
    yield from peek_modelfile.problems(json_files.read_bytes(path, MAX_TEXT_BYTES).decode("utf-8"))
