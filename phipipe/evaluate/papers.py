"""What a package has beside its artifact: papers for people and for checks, which no runtime reads.

An artifact is sized without them, and so is the package that it became: both are the same size.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import PurePath

from phipipe.evaluate import reference

CARD = "README.md"
RECIPE = "recipe.yaml"
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
BILL = "bom.cdx.json"
LICENCES = ("LICENSE*", "NOTICE*")
# What is said of a sealed package lies beside the manifest, which does not list it.
PROVENANCE = "provenance.json"
SIGNATURE = "model.sig"
ATTACHED = (PROVENANCE, SIGNATURE)
# What some app wants to find beside a model; the runtime does without.
APPS = ("graph.pbtxt", "inference_model.json", "model_allowlist_test.json")


def is_paper(path: PurePath) -> bool:
    """Whether the file ``path`` of a package or an artifact, relative to it, is no part of what the
    runtime needs: the card, the recipe, the manifest, the sums, licences, the bill of materials,
    what is attached, what was made for apps, and the reference data."""
    if path.parts[0] == reference.FOLDER:
        return True
    papers = (CARD, RECIPE, MANIFEST, SUMS, BILL, *LICENCES, *ATTACHED, *APPS)
    return len(path.parts) == 1 and any(fnmatchcase(path.name, one) for one in papers)
