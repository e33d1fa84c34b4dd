"""The page of settings: our own variables, and those of other programs that count."""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.maintain.markdown import code, codes, page, section, sentence, table
from phipipe.settings.rows import SETTINGS

OTHERS: Mapping[str, str] = {
    "HF_TOKEN HF_ENDPOINT HF_HOME HF_HUB_CACHE": "The hub's client: who you are, which hub, and "
    "where its cache lies. `hf auth login` counts, too.",
    "HF_HUB_OFFLINE": "`1`: nobody is asked; the cache has to hold the model.",
    "UV_* PIP_INDEX_URL PIP_FIND_LINKS": "Where toolchains are installed from.",
    "HTTPS_PROXY NO_PROXY SSL_CERT_FILE": "The way to the network.",
    "AWS_* AZURE_* GOOGLE_APPLICATION_CREDENTIALS": "Who you are at the shared store.",
    "NO_COLOR": "No colours.",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "Where traces go; needs the extra `otel`.",
}


def settings() -> str:
    """Every setting, by its variable and its key in a file."""
    rows = [
        [
            code(one.variable),
            code(one.key) if one.in_files else "",
            sentence(one.what),
            codes(one.choices, " or ") if one.choices else one.kind.value,
            one.default,
            "yes" if one.asks_trust and one.in_files else "",
        ]
        for one in SETTINGS
    ]
    head = ["variable", "key", "meaning", "value", "default", "asks for trust"]
    return page(
        "Settings",
        "A setting is an environment variable, or a key in a file of settings. The environment "
        "counts before the project's `phipipe.toml`, and this file before the user's "
        "`config.toml`. A setting changes where and how a build runs, never its result.",
        "`phipipe config show` prints each setting with its value and where it comes from. "
        "`phipipe config path` prints the files. A project's file may set a key that asks for "
        "trust only after `phipipe config trust`. The variable `PHIPIPE_CONFIG` names another file "
        "in place of the user's; `off` reads no file.",
        table(head, rows),
        _others(),
    )


def _others() -> str:
    rows = [[codes(names.split()), words] for names, words in OTHERS.items()]
    return section("Variables of other programs", table(["variable", "meaning"], rows))
