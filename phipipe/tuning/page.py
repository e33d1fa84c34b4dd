"""x"""
from collections.abc import Sequence
from phipipe.tuning.results import Tuned
def render(tuned: Sequence[Tuned], command: str) -> str:
    return ""
