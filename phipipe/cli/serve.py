"""The command ``serve``: a package behind an HTTP server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, PACKAGE, Count
from phipipe.cli.workplace import settings_of_user
from phipipe.errors import RecipeError
from phipipe.suggestions import shorten

if TYPE_CHECKING:
    from phipipe.serving.server import Server

ASKED = '{"role": "user", "content": "Tell me a story."}'


@command("phipipe serve packages/quickstart --port 8080")
@PACKAGE
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="The port; 0 for any that is free.",
)
@click.option(
    "--token-env",
    metavar="NAME",
    help="The environment variable with the token that clients must bring.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="A web page's origin that may ask from a browser; repeatable.",
)
@click.option(
    "--context", type=Count(min=2), help="Longest prompt with its answer; default the package's."
)
@click.option(
    "--tokens",
    default=1024,
    show_default=True,
    type=Count(min=1),
    help="Longest answer where a request does not say.",
)
@click.option(
    "--waiting",
    default=32,
    show_default=True,
    type=Count(min=1),
    help="Requests that may wait while one is answered.",
)
@AS_JSON
def serve(
    package: Path,
    host: str,
    port: int,
    token_env: str | None,
    origins: Sequence[str],
    context: int | None,
    tokens: int,
    waiting: int,
    as_json: bool,
) -> None:
    """Serve a package to apps that speak OpenAI's API, until Ctrl-C."""
    from phipipe.output import documents
    from phipipe.serving import start

    options = start.Options(
        host=host,
        port=port,
        token=_token(token_env),
        origins=tuple(origins),
        tokens=tokens,
        context=context,
        waiting=waiting,
    )
    with start.begin(package, settings_of_user(), note, options) as server:
        if as_json:
            told = documents.Served(
                package=str(package),
                base_url=server.base_url,
                model=server.model,
                context=server.context,
            )
            answers.give(told)
        else:
            echo(_words(server, token_env))
        server.run()


def _token(name: str | None) -> str | None:
    """The token in the environment variable ``name``, which no process of ours inherits."""
    if name is None:
        return None
    token = os.environ.pop(name, "")
    if not token:
        raise RecipeError(
            f"the environment has no `{shorten(name)}`, or it is empty",
            hint="put the token into it first",
        )
    return token


def _words(server: Server, token_env: str | None) -> str:
    """How to ask the server: with curl, and with OpenAI's client."""
    url, model = server.base_url, server.model
    body = f'{{"model": "{model}", "messages": [{ASKED}]}}'
    header = f' -H "Authorization: Bearer ${token_env}"' if token_env else ""
    key = f'os.environ["{token_env}"]' if token_env else '"none"'
    return "\n".join(
        (
            f"serving  {model}, context {server.context:,} tokens, at {url}",
            f"curl     curl {url}/chat/completions -H 'Content-Type: application/json'{header} "
            f"-d '{body}'",
            f'python   client = openai.OpenAI(base_url="{url}", api_key={key})',
            f'         client.chat.completions.create(model="{model}", messages=[{ASKED}])',
            "stop     Ctrl-C",
        )
    )
