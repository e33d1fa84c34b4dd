"""When to use which of PyTorch's options."""

from __future__ import annotations

from collections.abc import Mapping

# Option → when to use which of its values.
ADVICE: Mapping[str, str] = {
    "map": "To keep single layers at 8 bits or in floats, or to pack an untied `lm_head`, which is "
    "in floats otherwise. Embeddings stay in floats.",
    "algorithm": "rtn to try out. signround for what ships: same size, closer, and much slower to "
    "build.",
    "group_size": "128 is the usual choice. 32 is closer and about 10 % larger.",
    "symmetric": "On is what most runtimes have fast kernels for. Off helps int4 a little.",
    "iterations": "200 is the usual number. 1,000 where hours do not matter; 50 for a first look.",
}
