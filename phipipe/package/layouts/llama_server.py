"""llama-server, llama.cpp's own: a GGUF file.

What its code asks for (llama.cpp, tools/server/README.md): `--model`, `--ctx-size`, `--alias`, by
which clients name the model. The chat template is the GGUF's own.
"""

from __future__ import annotations

from phipipe.package.layout import Facts, Layout, Use, only


def _use(facts: Facts) -> Use:
    return Use(
        commands=(
            f"llama-server --model model.gguf --alias {facts.name} "
            f"--ctx-size {facts.context} --port 8080",
        )
    )


LAYOUT = Layout(
    title="llama-server",
    about="llama.cpp's own server, with a page to chat on: every desktop and server system.",
    backends={"llamacpp": ""},
    use=_use,
    takes=only("model.gguf"),
    needs=("model.gguf",),
)
