"""What a model's page on the hub shows of an evaluation: ``.eval_results/*.yaml``, as the hub's
documents describe it (hub-docs, ``eval_results.yaml``).

A result there belongs to a data set on the hub and to one of its tasks. So there is one where the
evaluation text is a file of such a data set, and none of a text of phipipe's or of the user's. The
hub shows what its data set calls a benchmark; of others it keeps the file and shows nothing.
"""

from __future__ import annotations

from phipipe.package.manifest_schema import Manifest
from phipipe.steps import Json

FOLDER = ".eval_results"
PATH = f"{FOLDER}/phipipe.yaml"
# metric → the task's id, and what its value is
TASKS = {
    "kld_mean": ("fidelity-kld", "mean KL divergence from the original, nats; lower is better"),
    "top1": ("fidelity-top1", "share of positions with the original's first choice"),
    "ppl": ("perplexity", "perplexity of the text; lower is better"),
}


def text(manifest: Manifest, page: str) -> str | None:
    """The file's content for the repository at the address ``page``; None where there is nothing
    to be said."""
    import yaml

    data = manifest.recipe.evaluate.text.dataset
    if data is None:
        return None
    given = manifest.as_json()["recipe"]["evaluate"]["text"]["dataset"]
    revision = given.get("revision")
    fidelity = manifest.fidelity
    rows: list[dict[str, Json]] = []
    for name, (task, meaning) in TASKS.items():
        if name in fidelity.metrics:
            dataset = {"id": data.repo, "task_id": task}
            rows.append(
                {
                    "dataset": dataset | ({"revision": revision} if revision else {}),
                    "value": fidelity.metrics[name],
                    "source": {"url": page, "name": "Model card"},
                    "notes": f"{meaning}; {fidelity.positions} positions, windows of "
                    f"{fidelity.baseline.window} tokens, by phipipe {manifest.phipipe}",
                }
            )
    return yaml.safe_dump(rows, sort_keys=False, allow_unicode=False) if rows else None
