"""AI Edge Gallery, Google's app for Android: a `.litertlm` bundle, and a list that names it.

What its code asks for (google-ai-edge/gallery, Android/…/gallery/data/ModelAllowlist.kt,
ui/modelmanager/ModelManagerViewModel.kt, GlobalModelManager.kt): files that are imported by hand
end in `.litertlm`. A list `model_allowlist_test.json` in `/data/local/tmp` is read before any
other; a model has there `name`, `modelId`, `modelFile`, `commitHash`, `description`, `sizeInBytes`
and `taskTypes`, all required, and `defaultConfig` {topK, topP, temperature, maxTokens,
accelerators}, `minDeviceMemoryInGb`, `localModelFilePathOverride`. Where that path exists, nothing
is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

from phipipe.package.layout import Built, Facts, Layout, Use, only
from phipipe.package.layouts.litert_lm import BUNDLE
from phipipe.package.layouts.litert_lm import refuses as refuses_bare

LIST = "model_allowlist_test.json"
PLACE = "/data/local/tmp"  # where the app looks for lists of testers
TASKS = ("llm_chat", "llm_prompt_lab")
SAMPLING = {"topK": 64, "topP": 0.95, "temperature": 1.0}  # the app's own
LEAST_GB = 4
MEMORY_FACTOR = 3  # a phone's memory for each byte of the file, as in the app's own list


def _makes(facts: Facts) -> Mapping[str, bytes]:
    """``commitHash`` names a version of the file: the first 40 digits of its SHA-256."""
    with (facts.folder / BUNDLE).open("rb") as stream:
        version = hashlib.file_digest(stream, "sha256").hexdigest()[:40]
    size = facts.files[BUNDLE]
    model = {
        "name": facts.name,
        "modelId": "",  # a repository of the hub's, once it is published
        "modelFile": BUNDLE,
        "commitHash": version,
        "description": f"{facts.name}, built by phipipe",
        "sizeInBytes": size,
        "minDeviceMemoryInGb": max(LEAST_GB, math.ceil(MEMORY_FACTOR * size / 1e9)),
        "defaultConfig": {**SAMPLING, "maxTokens": facts.context, "accelerators": facts.api},
        "taskTypes": list(TASKS),
        "localModelFilePathOverride": f"{PLACE}/{facts.name}.litertlm",
    }
    return {LIST: (json.dumps({"models": [model]}, indent=2, sort_keys=True) + "\n").encode()}


def _use(facts: Facts) -> Use:
    return Use(
        then="Then, in the app's model manager, tap + and import the file from the downloads.",
        commands=(f"adb push {BUNDLE} /sdcard/Download/{facts.name}.litertlm",),
    )


def _after(facts: Facts) -> Use:
    return Use(
        then=f"The app then lists this model alone; remove `{PLACE}/{LIST}` to get its own list "
        "back.",
        commands=(
            f"adb push {BUNDLE} {PLACE}/{facts.name}.litertlm",
            f"adb push {LIST} {PLACE}/{LIST}",
        ),
    )


def _refuses(built: Built) -> str | None:
    return refuses_bare(built) if built.api == "cpu" else f"is given nothing for `{built.api}`"


LAYOUT = Layout(
    title="AI Edge Gallery",
    about="Google's app for on-device models: Android.",
    backends={"litert": "`quantize.format: litertlm`"},
    use=_use,
    after=_after,
    refuses=_refuses,
    takes=only(BUNDLE),
    needs=(BUNDLE,),
    makes=_makes,
    inside=(LIST,),
)
