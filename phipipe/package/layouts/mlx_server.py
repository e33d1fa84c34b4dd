"""mlx_lm.server: a folder in MLX's layout.

What its code asks for (mlx-lm, mlx_lm/server.py and utils.py): `--model` takes a folder with
`config.json`, which holds `quantization`, with `*.safetensors` and a tokenizer; the chat template
is the tokenizer's own.
"""

from __future__ import annotations

from phipipe.package.layout import Built, Facts, Layout, Use


def _use(facts: Facts) -> Use:
    return Use(commands=("pip install mlx-lm", "mlx_lm.server --model . --port 8080"))


def _refuses(built: Built) -> str | None:
    return "answers text alone" if built.sees else None


LAYOUT = Layout(
    title="mlx_lm.server",
    about="MLX's own server: Macs with Apple silicon.",
    backends={"mlx": ""},
    use=_use,
    refuses=_refuses,
    needs=("config.json",),
)
