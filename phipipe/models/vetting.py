"""What a stranger's checkpoint may hold: files that are none, code, settings and weights that
contradict each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import (
    code_keys,
    config_check,
    layouts,
    remarks,
    tokenizer_files,
    weight_files,
    weights,
)
from phipipe.models.remarks import Remark
from phipipe.models.weight_files import Choice
from phipipe.models.weights import Tensor
from phipipe.steps import Json

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")
# What trainers leave beside the weights: no pickle of these holds a model.
_TRAINING = re.compile(
    r"(training_args|optimizer|scheduler|scaler|sampler|rng_state|random_states)\w*\.(bin|pth?|pkl)"
)
_ADAPTED = re.compile(r"[._]lora_|\blora_[AB]|hada_w|\bia3_l")
# What downloaders leave beside a file until it is whole.
_UNFINISHED = (".aria2", ".part", ".incomplete", ".crdownload", ".download")


def refuse_code(folder: Path, config: Mapping[str, Json]) -> list[Remark]:
    """Refuse what would make a tool run code that came with the weights (promise S2).

    An ``auto_map`` alone is harmless and common (Phi-3.5-mini has one): without the code beside it,
    and with ``trust_remote_code`` off, transformers uses its own class. With the code it points to
    it is refused.
    """
    for name in SETTINGS:
        settings = config if name == "config.json" else optional_settings(folder / name)
        code_keys.refuse(folder / name, settings)
        for _, key, value in json_files.walk(settings):
            if key == "auto_map":
                _refuse_code_beside(folder / name, value)
    idle = sorted(json_files.shown(p.name) for p in folder.glob("*.py") if p.is_file())
    return [remarks.of("W02", *idle)] if idle else []


def _refuse_code_beside(path: Path, auto_map: object) -> None:
    code = _code(path.parent, auto_map)
    if code:
        raise SourceError(
            f"`{path}` asks to run code that lies beside it (`auto_map`, {', '.join(code[:3])}); "
            "phipipe never runs a model's code",
            hint="if transformers has this architecture built in (all dense Phi models), delete "
            "the *.py files",
        )


def _code(folder: Path, value: object) -> list[str]:
    """Files in ``folder`` that an ``auto_map`` points to: "module.Class";
    "repository--module.Class" is elsewhere."""
    classes = [text for text in _texts(value) if "--" not in text]
    names = {text.rpartition(".")[0].lstrip(".").replace(".", "/") + ".py" for text in classes}
    return sorted(json_files.shown(name) for name in names if (folder / name).is_file())


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in _texts(part)]


def optional_settings(path: Path) -> dict[str, Json]:
    """A settings file that need not be there."""
    if not path.is_file():
        return {}
    return (
        config_check.read(path)
        if path.name == "generation_config.json"
        else tokenizer_files.settings(path)
    )


def with_architecture(path: Path, config: dict[str, Json]) -> tuple[dict[str, Json], list[Remark]]:
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


def refuse_no_files(folder: Path, names: Sequence[str]) -> None:
    """Refuse what has the name of a model's file and is none: it would count as missing, and people
    see it there."""
    for path in sorted(folder.iterdir()):
        if not any(fnmatchcase(path.name, pattern) for pattern in names) or path.is_file():
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


def refuse_pointers(folder: Path, names: Iterable[str]) -> None:
    """Refuse what git-lfs did not bring, and what a download has not finished: some tools would
    take the one for a file without content, the other for whole."""
    for name in names:
        _refuse_unfinished(folder / name)
        size = (folder / name).stat().st_size
        if not size and name.endswith((".json", ".model")):
            raise SourceError(f"`{folder / name}` is empty", hint="download or copy it again")
        if size < json_files.POINTER_BYTES:
            with (folder / name).open("rb") as stream:
                json_files.refuse_pointer(stream.read(json_files.POINTER_BYTES), folder / name)


def _refuse_unfinished(path: Path) -> None:
    """What loads files piece by piece may give them their whole size from the start."""
    for ending in _UNFINISHED:
        beside = path.with_name(f"{path.name}{ending}")
        if beside.is_file():
            raise SourceError(
                f"`{path}` is not downloaded to its end: `{beside.name}` lies beside it",
                hint=f"let the download finish; or delete `{beside.name}`, if it is left over",
            )


def note_unknown_ends(folder: Path, config: Mapping[str, Json]) -> list[Remark]:
    """Tokens at which a text ends and that the model does not have."""
    generation = "generation_config.json"
    beyond: list[str] = []
    for name, settings in (
        (generation, optional_settings(folder / generation)),
        ("config.json", config),
    ):
        ends = tokenizer_files.end_ids(settings.get("eos_token_id"))
        beyond += [f"{number} of {name}" for number in ends if number >= config["vocab_size"]]
    return [remarks.of("W07", *beyond)] if beyond else []


def note_double_settings(config: Mapping[str, Json]) -> list[Remark]:
    """Rotary settings of which an older value was left beside `rope_parameters`."""
    new = config.get("rope_parameters") or {}
    names = [
        name
        for name in ("rope_theta", "partial_rotary_factor")
        if new.get(name) and config.get(name)
    ]
    older = [f"{name}: {config[name]:g}" for name in names if config[name] != new[name]]
    return [remarks.of("W08", *older)] if older and not config.get("rope_scaling") else []


def note_files_beside(folder: Path, choice: Choice) -> list[Remark]:
    """What lies beside the model and is not taken."""
    _refuse_loose_adapter(folder, choice)
    pickles = sorted(
        p.name for pattern in weight_files.PICKLES for p in folder.glob(pattern) if p.is_file()
    )
    pickles = [name for name in pickles if not _TRAINING.fullmatch(name)]
    left = (("W01", choice.ignored), ("W03", pickles))
    return [remarks.of(rule, *map(json_files.shown, names)) for rule, names in left if names]


def _refuse_loose_adapter(folder: Path, choice: Choice) -> None:
    """Refuse an adapter under a name of its own beside the model, by what its header names."""
    for name in choice.ignored:
        odd = [one for one in _names(folder / name) if _ADAPTED.search(one)]
        if odd:
            shown = json_files.shown(name)
            raise SourceError(
                f"`{folder}` holds a model (`{choice.files[0]}`) and a LoRA adapter beside it "
                f"(`{shown}`, which has `{json_files.shown(odd[0])}`): nothing says whether the "
                "adapter belongs to what is built",
                hint=weight_files.MERGING,
            )


def _names(path: Path) -> list[str]:
    """Names of the tensors in a file that is not read otherwise; none, if it is anything else."""
    try:
        return weights.names(path) if path.suffix == ".safetensors" else []
    except SourceError:
        return []


def check_head(
    folder: Path, tensors: Mapping[str, Tensor], *, tied: bool, here: bool
) -> list[Remark]:
    """A head that is stored beside the embedding it is tied to; ``here``: the weights are, not
    their headers alone."""
    head, table = tensors.get(layouts.HEAD), tensors.get(layouts.EMBEDDING)
    if not tied or head is None or table is None:
        return []
    if not here:
        return [remarks.of("W05", layouts.HEAD)]
    if not weights.same_bytes(folder, table, head):
        raise SourceError(
            f"`{folder / 'config.json'}` ties the head to the embedding, and the "
            f"weights have a head of "
            f"their own that differs (`{layouts.HEAD}`)",
            hint='set `"tie_word_embeddings": false`; or delete the stored head, if it is left '
            "over",
        )
    return []
