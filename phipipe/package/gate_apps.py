"""What the files that packages hold for apps may say: what phipipe writes there, with bounds.

Such a file tells a server or an app what to load, so each names nothing but what lies in the
package, and asks for nothing else: no plugin, no address, no place outside but the one that the
app looks at by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from phipipe.files import json_files
from phipipe.package.layouts import ai_edge_gallery, foundry_local, ovms
from phipipe.recipe.recipe import SLUG
from phipipe.steps import Json

MAX_BYTES = 2**16
MAX_TEMPLATE = 2**14  # characters
MAX_TOKENS = 2**20
_NAME = SLUG[1:-1]
_GRAPH_LINES = (
    re.compile(r'models_path: "\./"'),
    re.compile(r'device: "(CPU|GPU|NPU)"'),
    re.compile(r"enable_prefix_caching: (true|false)"),
    re.compile(r"plugin_config: '(?P<lengths>\{[^'\\]{0,200}\})'"),
)
_MODEL: Mapping[str, Callable[[Json], bool]] = {
    "name": lambda v: _matches(_NAME, v),
    "modelId": lambda v: v == "",
    "commitHash": lambda v: _matches("[0-9a-f]{40}", v),
    "description": lambda v: _matches(rf"{_NAME}, built by phipipe", v),
    "minDeviceMemoryInGb": lambda v: type(v) is int and 0 < v < 2**16,
    "taskTypes": lambda v: v == list(ai_edge_gallery.TASKS),
    "localModelFilePathOverride": lambda v: _matches(
        rf"{ai_edge_gallery.PLACE}/{_NAME}\.litertlm", v
    ),
}
_CONFIG: Mapping[str, Callable[[Json], bool]] = {
    "topK": lambda v: type(v) is int and 0 < v < 2**16,
    "topP": lambda v: type(v) is float and 0 < v <= 1,
    "temperature": lambda v: type(v) is float and 0 <= v <= 10,
    "maxTokens": lambda v: type(v) is int and 0 < v <= MAX_TOKENS,
    "accelerators": lambda v: v in ("cpu", "gpu", "npu"),
}


def problems(path: Path, files: Mapping[str, int]) -> Iterator[str]:
    """Phrases, to follow the file's name, on what phipipe never writes into the app's file
    ``path``; ``files`` lie beside it."""
    if path.name == ovms.GRAPH:
        yield from _graph(json_files.read_bytes(path, MAX_BYTES).decode("utf-8"))
    elif path.name == foundry_local.INDEX:
        yield from _index(json_files.read_object(path, MAX_BYTES))
    else:
        yield from _list(json_files.read_object(path, MAX_BYTES), files)


def _matches(pattern: str, value: Json) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _graph(text: str) -> Iterator[str]:
    """Nothing but the options of the one node may differ from what phipipe writes."""
    inside = text.removeprefix(ovms.HEAD).removesuffix(ovms.TAIL)
    if f"{ovms.HEAD}{inside}{ovms.TAIL}" != text:
        yield "is another graph than the one that answers chats"
        return
    lines = [line.strip() for line in inside.splitlines()]
    names = [line.partition(":")[0] for line in lines]
    if len(set(names)) != len(names) or "models_path" not in names:
        yield "sets an option twice, or no `models_path`"
    for line in lines:
        match = next((m for one in _GRAPH_LINES if (m := one.fullmatch(line))), None)
        if match is None:
            yield f"has an option that phipipe never writes (`{ascii(line[:60])[1:-1]}`)"
        elif lengths := match.groupdict().get("lengths"):
            yield from _lengths(lengths)


def _lengths(text: str) -> Iterator[str]:
    lengths = json.loads(text)
    known = set(lengths) <= set(ovms.LENGTHS)
    if not known or not all(type(n) is int and 0 < n <= MAX_TOKENS for n in lengths.values()):
        yield "tells the pipeline what phipipe never does (`plugin_config`)"


def _index(index: Mapping[str, Json]) -> Iterator[str]:
    if set(index) != {"Name", "PromptTemplate"}:
        yield "has other keys than `Name` and `PromptTemplate`"
        return
    if not _matches(rf"{_NAME}:[0-9]{{1,9}}", index["Name"]):
        yield "names the model as phipipe never does (`Name`)"
    texts = index["PromptTemplate"]
    if texts is None:
        return
    is_known = isinstance(texts, dict) and set(texts) == {"assistant", "prompt"}
    if not is_known or not all(_is_template(one) for one in texts.values()):
        yield "holds no prompts around one content (`PromptTemplate`)"


def _is_template(text: Json) -> bool:
    return (
        isinstance(text, str)
        and len(text) <= MAX_TEMPLATE
        and text.count(foundry_local.CONTENT) == 1
    )


def _list(whole: Mapping[str, Json], files: Mapping[str, int]) -> Iterator[str]:
    models = whole.get("models")
    if set(whole) != {"models"} or not isinstance(models, list) or len(models) != 1:
        yield "is no list of one model"
        return
    (model,) = models
    fixed = {"modelFile", "sizeInBytes", "defaultConfig"}
    if not isinstance(model, dict) or set(model) != fixed | set(_MODEL):
        yield "tells other things of the model than phipipe does"
        return
    yield from (f"has an odd `{key}`" for key, fits in _MODEL.items() if not fits(model[key]))
    file, size = model["modelFile"], model["sizeInBytes"]
    if not isinstance(file, str) or file not in files or type(size) is not int:
        yield "names a file that is not in the package (`modelFile`)"
    elif files[file] != size:
        yield f"says that `{ascii(file)[1:-1]}` has another size (`sizeInBytes`)"
    config = model["defaultConfig"]
    if not isinstance(config, dict) or set(config) != set(_CONFIG):
        yield "sets other things than phipipe does (`defaultConfig`)"
    else:
        yield from (f"has an odd `{key}`" for key, fits in _CONFIG.items() if not fits(config[key]))
