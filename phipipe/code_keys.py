"""Keys by which a config file makes some tool of the field load code (promise S2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phipipe import json_files
from phipipe.errors import SourceError

# transformers (auto_map, and CVE-2026-4372's kernel and attention fields), mlx-lm (model_file), ONNX Runtime GenAI
# (custom_ops_library).
CODE_KEYS = frozenset(
    {
        "custom_ops_library",
        "custom_pipelines",
        "custom_generate",
        "model_file",
        "trust_remote_code",
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "attn_implementation_kernel",
        "kernel_config",
        "hub_kernels",
        "remote_code",
        "plugin_library",
    }
)


def refuse(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse ``settings``, the content of ``path``, if any key in it asks some tool to run code.

    Raises:
        SourceError: names the key.
    """
    for where, key, value in json_files.walk(settings):
        if key in CODE_KEYS and value:
            raise SourceError(f"`{path}` asks to run code (`{where}`); phipipe never runs a model's code")
