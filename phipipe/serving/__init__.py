"""A finished package behind an HTTP server that speaks OpenAI's API: for a first try in the apps
that people have.

One front for all runtimes, over ``Runtime``. Some runtimes have servers of their own (llama.cpp's,
mlx-lm's); they are not used. They would take other defaults (penalties, samplers, contexts,
templates) than what a package was measured with, each answers errors and stops in its own way, and
they run strangers' templates and tokenizers without limits, in a process that may use the network.
For many users at once they are the better choice, and a package opens in them as it is.

The parts: ``bodies`` reads requests, ``engine`` asks the model's process (``answering``, in the
toolchain) one after another, ``replies`` says it as OpenAI does, ``app`` and ``server`` are the
HTTP side.
"""
