"""How long the steps take, in seconds on one core of a usual PC: what `phipipe plan` says before
any has run here.

The constants are seconds of CPU on a shared two-core x86-64 machine with onnxruntime-qnn 2.7.0, of
two layers and the head of Phi-3.5-mini's shape (hidden size 3072; 226 and 99 million weights) with
caches of 512 and of 2048 positions:

    compile     17 s and 41 s for the layers' two graphs, 2.5 s for the head's
    emulate     26 s and 30 s for 64 tokens at once, 13 s and 15 s for one alone; head 8 s and 4 s
    calibrate   18 s for 928 tokens
    convert     9 s; quantize 7 s

The embedded model's steps take START_S at most, besides its 0.6 s for a token. Compiler and
emulator compute in one thread (of the emulator's CPU time 80 to 93 % is one thread's, where two
cores are free); calibration takes all cores, so that it ends sooner than said. Attention
costs by positions, as the HTP splits it by them. Other machines differ by a factor of two; after
the first run its own times count (``execution.estimates``).
"""

from __future__ import annotations

BILLION = 1e9
START_S = 2.0
# seconds for a billion weights
CONVERT = 21.0
QUANTIZE = 25.0
CALIBRATE = 0.06  # for each token
COMPILE = 40.0
RUN = 45.0  # of the emulator, however few tokens it reads
TOKEN = 0.9  # for each token of a run
# seconds for a position of the cache, a layer and a unit of the hidden size, of attention alone
COMPILE_ATTENTION = 2.5e-6
RUN_ATTENTION = 4e-7


def convert(parameters: int) -> float:
    """A checkpoint of so many ``parameters`` to graphs in float32."""
    return START_S + CONVERT * parameters / BILLION


def calibrate(weights: int, tokens: int) -> float:
    """Linears with so many ``weights`` read ``tokens`` of text on the CPU."""
    return START_S + CALIBRATE * tokens * weights / BILLION


def quantize(weights: int) -> float:
    """A stage of so many ``weights`` is rounded, and both its graphs are written."""
    return START_S + QUANTIZE * weights / BILLION


def compile(weights: int, attended: int) -> float:
    """Both graphs of a stage of so many ``weights`` become contexts; ``attended``: its layers ×
    positions of the cache × hidden size."""
    return START_S + COMPILE * weights / BILLION + COMPILE_ATTENTION * attended


def emulate(weights: int, attended: int, prompt: int, decoded: int) -> float:
    """A compiled stage reads ``prompt`` tokens at once, and ``decoded`` ones alone; the rest as
    for ``compile``."""
    runs = 1 + decoded
    read = (RUN * runs + TOKEN * (prompt + decoded)) * weights / BILLION
    return START_S + read + RUN_ATTENTION * attended * runs
