"""All that is stored, hashed anew: what is damaged or has lost its counterpart is found."""

from __future__ import annotations

from phipipe.errors import StepFailed
from phipipe.store import files, letting_go
from phipipe.store.quarantine import Quarantine
from phipipe.store.records import Damaged, NoRecord, Records
from phipipe.store.trees import Trees


def lost(message: str) -> StepFailed:
    """What to say where something was made again and again, and is damaged each time."""
    return StepFailed(message, hint="check the disk; then phipipe cache verify")


def verify(trees: Trees, records: Records, quarantine: Quarantine) -> list[str]:
    """Hash every tree and every record; put damage aside. One line per finding."""
    findings, damaged = _verify_trees(trees, quarantine)
    for path in sorted(records.folder.iterdir()):
        seen = files.identity(path)
        try:
            stored = records.result(records.read(path.stem))
        except NoRecord:
            continue
        except Damaged as damage:
            findings.append(damage.message)
            quarantine.put(path, seen, damage.message)
            continue
        if stored.digest in damaged:
            quarantine.put(path, seen)
        elif not trees.path(stored.digest).is_dir() and stored.is_whole:
            findings.append(f"the result {path.stem[:12]} is gone")
            quarantine.drop(path, seen)
        elif not stored.is_whole and not letting_go.is_left(stored):
            findings.append(f"what is left of the result {path.stem[:12]} is damaged")
            quarantine.put(path, seen, findings[-1])
    return findings


def _verify_trees(trees: Trees, quarantine: Quarantine) -> tuple[list[str], set[str]]:
    """One line per finding, and the digests of damaged trees."""
    findings, damaged = [], set()
    for path in sorted(trees.folder.iterdir()):
        seen = files.identity(path)
        if not trees.is_intact(path, path.name) and path.exists():  # else collected meanwhile
            findings.append(f"the stored tree {path.name[:12]} is damaged")
            quarantine.put(path, seen, findings[-1])
            damaged.add(path.name)
    return findings, damaged
