"""A recipe's data as YAML that reads back the same, by YAML 1.1 and 1.2 alike."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from phipipe.steps import Json

if TYPE_CHECKING:
    import yaml


def text(data: Json, *, short: bool = False) -> str:
    """``data`` as YAML; ``short``: mappings of plain values stand on one line."""
    import yaml

    style = None if short else False
    return yaml.dump(
        data,
        Dumper=_dumper(),
        sort_keys=False,
        allow_unicode=False,
        width=110,
        default_flow_style=style,
    )


def _dumper() -> type[yaml.SafeDumper]:
    """PyYAML's dumper, which knows YAML 1.1 only, made to quote whatever might not be a string in
    YAML 1.2."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def scalar(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        plain = re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII)
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')

    Dumper.add_representer(str, scalar)
    return Dumper
