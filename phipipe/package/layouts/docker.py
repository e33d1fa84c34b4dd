"""Docker Model Runner: a GGUF file, packaged by Docker itself.

What its code asks for (docker/model-runner, cmd/cli/commands/package.go): `--gguf` and `--license`
take absolute paths alone; `--context-size` goes into the artifact; without `--push` it is kept on
this machine. The chat template is the GGUF's own.
"""

from __future__ import annotations

import shlex

from phipipe.package.layout import Facts, Layout, Use, only


def _use(facts: Facts) -> Use:
    # the names are the original's own
    licences = "".join(f' --license "$PWD"/{shlex.quote(name)}' for name in facts.licences)
    return Use(
        commands=(
            f'docker model package --gguf "$PWD"/model.gguf{licences} '
            f"--context-size {facts.context} {facts.name}",
            f"docker model run {facts.name}",
        )
    )


LAYOUT = Layout(
    title="Docker Model Runner",
    about="Runs models beside containers: Docker Desktop and Docker Engine.",
    backends={"llamacpp": ""},
    use=_use,
    takes=only("model.gguf"),
    needs=("model.gguf",),
)
