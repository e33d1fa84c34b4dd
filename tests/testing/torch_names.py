"""Names of the steps in ``torch_steps``, for tests, which have no PyTorch."""

from __future__ import annotations

ON_CPU = ("rounded",)  # its figures hang on last digits
STEPS = (
    *("logits", "rounded", "answers", "round", "search", "gptq", "session"),
    *("distil", "sensitivity", "smooth", "imatrix"),
)
