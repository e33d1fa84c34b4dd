"""Facts for `config`: settings and their files; as data (``output``)."""

from __future__ import annotations

from phipipe.errors import RecipeError
from phipipe.output import lists
from phipipe.settings import Settings, config, toml
from phipipe.settings.rows import SETTINGS


def shown() -> list[lists.Setting]:
    """One row for each setting.

    Raises:
        RecipeError: a value makes no sense, or a file is wrong.
    """
    found = config.values()
    used = Settings.read()
    defaults = {"cache": str(used.cache), "toolchains": str(used.toolchains)}
    return [
        lists.Setting(
            key=setting.key if setting.in_files else None,
            variable=setting.variable,
            value=found[setting.key].text if setting.key in found else defaults.get(setting.key),
            source=found[setting.key].origin if setting.key in found else "default",
            default=setting.default,
            needs_trust=setting.asks_trust,
            what=setting.what,
        )
        for setting in SETTINGS
    ]


def files() -> list[lists.SettingsFile]:
    """One row for each file of settings, the stronger first."""
    return [
        lists.SettingsFile(
            path=str(file.path),
            kind="project" if file.is_project else "user",
            exists=file.found,
            trusted=_is_trusted(file),
        )
        for file in config.files()
    ]


def _is_trusted(file: config.File) -> bool:
    """Whether ``file`` may set everything; a damaged one may set nothing."""
    try:
        return not file.is_project or config.is_trusted(toml.read(file.path))
    except RecipeError:
        return False
