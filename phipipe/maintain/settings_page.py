"""The page of settings: our own variables, and those of other programs that count."""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.maintain.markdown import code, codes, page, section, table

OURS: Mapping[str, str] = {
    "PHIPIPE_CACHE": "The cache's folder; by default the platform's.",
    "PHIPIPE_TOOLCHAINS": "Where toolchains lie; by default in the cache.",
    "PHIPIPE_TOOLCHAIN": "`current`: steps run in the Python that runs phipipe.",
    "PHIPIPE_STEP_TIMEOUT_S": "Seconds that a step may take; by default no limit.",
    "PHIPIPE_IDLE_TIMEOUT_S": "Seconds that a step may go without output, progress or CPU time.",
    "PHIPIPE_MEMORY_LIMIT_GIB": "GiB of memory that a step may take; mapped files do not count.",
    "PHIPIPE_PREFLIGHT": "`off`: try runs that seem too large for this machine.",
    "PHIPIPE_REMOTE": "The store that machines share: `s3://…`, `gs://…`, `az://…` or `file:///…`.",
    "PHIPIPE_REMOTE_MODE": "`read`: take results from the shared store, give none.",
    "PHIPIPE_WORKER_PATH": "More folders from which steps may import Python modules.",
}
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
    """Every setting."""
    rows = [[code(name), words] for name, words in OURS.items()]
    intro = "A setting changes where and how a build runs, never its result."
    return page("Settings", intro, table(["variable", "meaning"], rows), _others())


def _others() -> str:
    rows = [[codes(names.split()), words] for names, words in OTHERS.items()]
    return section("Variables of other programs", table(["variable", "meaning"], rows))
