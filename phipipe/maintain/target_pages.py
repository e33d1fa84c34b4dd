"""Pages about devices, backends and models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from pydantic import BaseModel

from phipipe import backends
from phipipe.backends.base import AnyBackend
from phipipe.backends.llamacpp.types import DEFAULTS, TYPES
from phipipe.backends.widths import Width
from phipipe.maintain import rotary_tables, support_tables
from phipipe.maintain.markdown import (
    bullets,
    code,
    codes,
    page,
    prose,
    section,
    sentence,
    table,
)
from phipipe.maintain.schema_pages import kind
from phipipe.models import family
from phipipe.models.members import NEIGHBOUR, PHI
from phipipe.recipe import device
from phipipe.recipe.device import Device
from phipipe.recipe.recipe import PRECISIONS


def options() -> str:
    """Every backend and every option of its ``quantize:`` section."""
    names = backends.names()
    faces = {name: backends.load(name) for name in names}
    choice = [[f"[`{name}`](#{name})", faces[name].title, faces[name].suits] for name in names]
    return page(
        "Options of each backend",
        "A backend is the family of runtimes that a file is for. Its options stand in the "
        "recipe's `quantize` section. They are the runtime's own names.",
        section("Which backend", table(["backend", "runtime", "when"], choice)),
        "What a device's unit can run is in the [table of devices](devices.md#support). "
        "`phipipe backends NAME` prints the options in the terminal.",
        *(_backend(name, faces[name]) for name in names),
        section("Width", prose(inspect.getdoc(Width)), _options(Width, {})),
    )


def _backend(name: str, face: AnyBackend) -> str:
    schemes = [
        [unit, *(table_.get(precision, "") for precision in PRECISIONS)]
        for unit, table_ in sorted(face.precisions.items())
    ]
    return section(
        name,
        f"{face.title}, for {', '.join(sorted(face.systems))}. Toolchain: `{face.toolchain}`."
        + (" It is compiled when it is installed." if face.is_compiled else ""),
        face.suits,
        section(
            f"{name}: precisions",
            "How the runtime calls each precision, unit by unit.",
            table(["unit", *PRECISIONS], schemes),
            level=3,
        ),
        section(
            f"{name}: options",
            _options(face.options, face.advice),
            level=3,
        ),
        _types() if name == "llamacpp" else "",
    )


def _options(model: type[BaseModel], advice: Mapping[str, str]) -> str:
    """What each field of ``model`` takes; with ``advice``, when to use which of its values."""
    rows = [
        [
            code(key),
            kind(option, has_null=False),
            _default(option.get("default")),
            prose(option.get("description")),
            *([advice.get(key, "")] if advice else []),
        ]
        for key, option in model.model_json_schema()["properties"].items()
    ]
    last = ["when to use which"] if advice else []
    return table(["option", "value", "default", "meaning", *last], rows)


def _types() -> str:
    """Every type of llama.cpp's."""
    rows = [
        [code(name), f"{one.bits:g}", "yes" if one.needs_imatrix else "", one.use]
        for name, one in TYPES.items()
    ]
    return section(
        "llamacpp: every type",
        "Bits are those per weight of a whole model of some billion weights. Without `type`: "
        + ", ".join(f"`{own}` for {ours}" for ours, own in DEFAULTS.items())
        + ".",
        table(["type", "bits", "needs `imatrix`", "what for"], rows),
        level=3,
    )


def _default(value: object) -> str:
    return "" if value in (None, [], {}) else code(_yaml(value))


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")


def devices() -> str:
    """Every device, and what can be built for it."""
    every = [device.load(name) for name in device.names()]
    rows = [
        [
            f"[`{d.name}`](#{d.name})",
            d.title,
            f"{d.memory_gib:g} GiB" if d.memory_gib else "varies",
            ", ".join(d.systems),
            ", ".join(unit.api for unit in d.units),
        ]
        for d in every
    ]
    return page(
        "Devices",
        "A recipe names its device. Memory is the share that a model can use. `phipipe devices "
        "NAME` prints one device in the terminal. A device of yours is one YAML file: see "
        "[Add a device of your own](../how-to/device.md).",
        section("All devices", table(["device", "title", "memory", "systems", "units"], rows)),
        section(
            "Support",
            "Bits of the weights that can be built for each unit: 4 and 8 are integers, 16 and 32 "
            "are floats. An empty cell means that the backend builds nothing for this unit.",
            support_tables.support(),
        ),
        *(_device(one) for one in every),
    )


def _device(one: Device) -> str:
    units = [
        [
            unit.api,
            prose(unit.on),
            ", ".join(unit.precisions),
            _settings(unit.constraints),
            _settings(unit.defaults),
        ]
        for unit in one.units
    ]
    start = f"Start from `phipipe recipes show {one.recipe}`." if one.recipe else ""
    return section(
        one.name,
        f"{one.title}.",
        sentence(one.notes),
        start,
        table(["unit", "is", "precisions", "insists on", "gets by default"], units),
        f"Sources: {', '.join(f'<{source}>' for source in one.sources)}",
    )


def _settings(tables: object) -> str:
    assert isinstance(tables, dict)
    return "; ".join(
        f"{precision}: " + ", ".join(f"`{key}` {_either(value)}" for key, value in settings.items())
        for precision, settings in tables.items()
    )


def _either(value: object) -> str:
    return codes(map(_yaml, value), " or ") if isinstance(value, list) else code(_yaml(value))


def models() -> str:
    """Members of the family, and its neighbours, against backends."""
    repos = [
        [member.name, codes(member.repos), "" if member.native else "no"]
        for member in family.MEMBERS
    ]
    return page(
        "Models",
        "A small checkpoint of every architecture goes through every ✓ in the tests. It has the "
        "real configuration, shrunk, and random weights. The result is compared with transformers.",
        section(
            "The Phi family",
            "✓ means that the backend builds the model. A mark after ✓ is either a fix-up (F) or a "
            "limit (M). A fix-up changes a staged copy of `config.json` and is recorded in the "
            "package. `phipipe plan` tells a limit. – means that `plan` refuses the model and "
            "says what works instead.",
            support_tables.family_table(PHI),
            _legend(PHI),
        ),
        section(
            "Phi's neighbours",
            "The layers of these models are arranged as Phi's are. They pass the same tests, on "
            "shorter and on longer texts than their windows and original contexts. Phi comes "
            "first: recipes, defaults and advice are made for it. How the neighbours differ is in "
            "[Phi's neighbours](../how-to/neighbours.md).",
            support_tables.family_table(NEIGHBOUR),
            _legend(NEIGHBOUR),
        ),
        rotary_tables.rotary_section(),
        section(
            "Repositories",
            "Fine-tunes are treated like their originals: rules look at the shape of the model, "
            "never at its name.",
            table(["model", "repositories", "built into transformers"], repos),
        ),
    )


def _legend(group: str) -> str:
    legend = support_tables.family_legend(group)
    return bullets(
        f"[**{mark}**](rules.md#{mark.lower()}) {sentence(words)}" for mark, words in legend.items()
    )
