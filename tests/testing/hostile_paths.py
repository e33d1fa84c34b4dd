"""Odd paths and odd arguments of every kind, and command lines that hand them to every command.

Light: the standard library and the command line alone. Run as a program (``python -m
testing.hostile_paths FOLDER``) it tries them all in this one process, and prints a JSON line for
each: before it, so that a hang has a name, and after it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from testing.places import ROOT

DOCUMENTED = frozenset({0, 2, 3, 4, 5, 6, 7, 8, 9, 130})
RECIPE = """\
name: tried
source: {builtin: tiny-phi3}
device: cpu-x86_64
precision: int8
calibrate: {text: {builtin: stories}}
"""
SYSTEM = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/stdin",
    "/proc/self/mem",
    "/proc/kmsg",
    "/proc/self/environ",
)
SYSTEM += (
    "/proc/self/fd/0",
    "/proc",
    "/sys",
    "/dev",
    "/dev/tty",
    "/dev/null/x",
    "/proc/self/mem/x",
)


def paths(folder: Path) -> dict[str, str]:
    """Odd paths by name; those that must be there are made in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text("a plain file", "utf-8")
    (folder / "folder" / "inner").mkdir(parents=True, exist_ok=True)
    made = {
        "empty": "",
        "a long name": "n" * 300,
        "a long name, not ASCII": "ä" * 200,
        "a long path": "/".join(["part"] * 1000),
        "a long path that begins here": str(folder / "/".join(["part"] * 1000)),
        "just below the limit": str(folder / "/".join(["p" * 99] * 40))[:4090],
        "nobody's home": "~nobody-of-that-name/x",
        "nobody alone": "~nobody-of-that-name",
        "a NUL": "a\0b",
        "not UTF-8": "a\udcff\udc80b",
        "control characters": "a\x1b[31mb\x07\x9b",
        "right to left": "a\u202eb",
        "lines": "a\nb\rc",
        "spaces": "   ",
        "a dash": "-",
        "up and up": "../" * 500,
        "a wildcard": "*[",
        "a folder": str(folder / "folder"),
        "a file": str(folder / "file"),
        "below a file": str(folder / "file" / "x"),
        "missing": str(folder / "missing"),
        "missing, deep": str(folder / "missing" / "x" / "y"),
        "root": "/",
        "a URL": "https://host.invalid/x",
    }
    return made | _special(folder) | {name: name for name in SYSTEM if os.name != "nt"}


def _special(folder: Path) -> dict[str, str]:
    """What only some systems have: links, pipes, sockets, folders that may not be read."""
    made: dict[str, str] = {}
    with contextlib.suppress(OSError, NotImplementedError):
        links = {
            "loop": "loop",
            "one": "two",
            "two": "one",
            "dangling": "nowhere",
            "to-pipe": "pipe",
        }
        links |= {"to-null": "/dev/null", "dangling-deep": "no/where"}
        for name, target in links.items():
            if not os.path.lexists(folder / name):
                (folder / name).symlink_to(target)
            made[f"a link, {name}"] = str(folder / name)
        made["below a loop"] = str(folder / "loop" / "x")
    if hasattr(os, "mkfifo"):
        if not (folder / "pipe").exists():
            os.mkfifo(folder / "pipe")
        made["a pipe"] = str(folder / "pipe")
    if hasattr(socket, "AF_UNIX"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "socket"))
        made["a socket"] = str(folder / "socket")
    for name in ("closed", "closed-file"):
        if not (folder / name).exists():
            (folder / name).mkdir() if name == "closed" else (folder / name).touch()
        (folder / name).chmod(0)
        if not os.access(folder / name, os.R_OK):  # the superuser may
            made[f"unreadable, {name}"] = str(folder / name)
            made[f"below what is unreadable, {name}"] = str(folder / name / "x")
    return made


def arguments() -> dict[str, str]:
    """Odd values for whatever an option takes."""
    return {
        "empty": "",
        "nothing": " ",
        "not a number": "nan",
        "infinite": "inf",
        "overflowing": "1e400",
        "negative": "-1",
        "zero": "0",
        "huge": "9" * 400,
        "a large whole number": str(10**30),
        "long": "x" * 1_000_000,
        "brackets": "[" * 3000,
        "a NUL": "a\0b",
        "not UTF-8": "\udcff",
        "control characters": "\x1b]0;x\x07",
        "a quote": "'",
        "a path": "../../../etc/passwd",
        "a star": "*" * 300,
        "an option": "--help-not",
    }


def sets() -> dict[str, str]:
    """Odd values of ``--set``."""
    odd = {f"precision is {name}": f"precision={value}" for name, value in arguments().items()}
    odd |= {f"source is {name}": f"source={value}" for name, value in arguments().items()}
    odd |= {f"tokens are {name}": f"evaluate.tokens={value}" for name, value in arguments().items()}
    odd |= {f"the key is {name}": f"{value}=1" for name, value in arguments().items()}
    return odd | {
        "deep": ".".join("a" * 3000) + "=1",
        "deep in what is there": "evaluate." * 3000 + "tokens=1",
        "deep value": "quantize=" + "{a: " * 3000,
        "deep brackets": "tags=" + "[" * 3000 + "]" * 3000,
        "only equals": "=",
        "two equals": "a==b",
        "dots": "...=1",
        "a bracket": "a[=1",
        "a number's key": "0=1",
        "through a scalar": "precision.inner=1",
        "through a list": "tags.0=1",
        "an anchor": "tags=&a [*a]",
        "a tag": "tags=!!python/object:os.system x",
        "a matrix": "matrix=[{precision: int4}, {precision: nope}, 3, null]",
        "many": "tags=[" + "x," * 30_000 + "]",
        "a name with ..": "name=../../x",
    }


def commands(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, command line) for every odd path at every place of every command, and for odd values
    of other options.

    ``folder`` is where odd paths lie, and a recipe ``tried.yaml``.
    """
    recipe = str(folder / "tried.yaml")
    (folder / "tried.yaml").write_text(RECIPE, "utf-8")
    (folder / "impossible.yaml").write_text(RECIPE.replace("int8", "fp16"), "utf-8")
    odd = paths(folder)
    for name, path in odd.items():
        for place, words in places(folder, path).items():
            yield f"{place}: {name}", words
        for key in ("source", "evaluate.text", "calibrate.text", "device"):
            inner = "path" if key == "source" else "file"
            told = f"{path}.yaml" if key == "device" else f"{{{inner}: {json.dumps(path)}}}"
            yield f"--set {key}: {name}", ["plan", recipe, "--set", f"{key}={told}"]
        written = folder / "written.yaml"
        text = RECIPE.replace("{builtin: tiny-phi3}", f"{{path: {json.dumps(path)}}}")
        yield f"source.path: {name}", ["validate", _written(written, text)]
    for name, text in sets().items():
        yield f"--set {name}", ["plan", recipe, "--set", text]
    for name, value in arguments().items():
        for place, words in values(folder, value).items():
            yield f"{place}: {name}", words


def _written(path: Path, text: str) -> str:
    """The recipe's path; ``text`` is written when its command's turn comes, since all share the one
    file."""
    path.write_text(text, "utf-8", errors="surrogatepass")
    return str(path)


def places(folder: Path, path: str) -> dict[str, list[str]]:
    """Every place on the command line that takes a path."""
    recipe, impossible, package = (
        str(folder / name) for name in ("tried.yaml", "impossible.yaml", "package")
    )
    never, own = str(folder / "never.yaml"), f"{path}.yaml"
    safe = path if _harmless(path, folder) else str(folder / "folder")
    return {
        "run RECIPE": ["run", path],
        "run --out": ["run", impossible, "--out", path],
        "plan RECIPE": ["plan", path],
        "validate RECIPES": ["validate", recipe, path],
        "pin RECIPE": ["pin", path],
        "init RECIPE": ["init", path, "--device", "nope"],
        "init --source": ["init", never, "--device", "nope", "--source", path],
        "init --device": ["init", never, "--backend", "nope", "--device", own],
        "batch PATHS": ["batch", path, "--name", "none-of-this-name"],
        "batch --out": ["batch", impossible, "--name", "none-of-this-name", "--out", path],
        "eval PACKAGE": ["eval", path],
        "eval --text": ["eval", package, "--text", path],
        "eval --source": ["eval", package, "--source", path],
        "measure PACKAGE": ["measure", path],
        "measure --out": ["measure", package, "--out", path],
        "compare PATHS": ["compare", path],
        "compare --out": ["compare", package, "--out", path],
        "verify PACKAGE": ["verify", path],
        "chat PACKAGE": ["chat", path, "--prompt", "x"],
        "schema --check": ["schema", "--check", path],
        "schema --write": ["schema", "--write", safe],
        "devices show": ["devices", "show", path],
        "devices show FILE": ["devices", "show", own],
        "schedule export PATHS": ["schedule", "export", "--cron", path],
        "schedule export --out": ["schedule", "export", "--cron", recipe, "--out", path],
        "schedule export --write": [
            "schedule", "export", "--systemd", recipe, "--write",
            path if _harmless(path, folder) else str(folder / "file"),
        ],
    }  # fmt: skip


def _harmless(path: str, folder: Path) -> bool:
    """Whether nothing of this machine's is hurt if a command does write there."""
    return path != "/" and not path.startswith("../")


def values(folder: Path, value: str) -> dict[str, list[str]]:
    """Options that take something else than a path."""
    recipe, package = str(folder / "tried.yaml"), str(folder / "package")
    impossible = str(folder / "impossible.yaml")
    return {
        "--only": ["plan", recipe, "--only", value],
        "--jobs": ["run", impossible, "--jobs", value],
        "--on": ["run", impossible, "--on", value],
        "--tokens": ["eval", package, "--tokens", value],
        "--prompt": ["chat", package, "--prompt", value],
        "--budget": ["cache", "gc", "--dry-run", "--budget", value],
        "--name": ["batch", impossible, "--name", value],
        "--tag": ["batch", impossible, "--tag", value],
        "--changed-since": ["batch", impossible, "--changed-since", value],
        "--keep": ["batch", impossible, "--name", "none", "--keep", value],
        "--at": ["schedule", "export", "--cron", recipe, "--at", value],
        "--job": ["schedule", "export", "--cron", recipe, "--job", value],
        "--scheduler": ["worker", "--scheduler", value],
        "runs show": ["runs", "show", value],
        "runs logs": ["runs", "logs", "latest", value],
        "toolchain install": ["toolchain", "install", value],
        "toolchain path": ["toolchain", "path", value],
        "devices": ["devices", value],
        "backends": ["backends", value],
        "init --precision": ["init", str(folder / "never.yaml"), "--precision", value],
        "init --backend": [
            "init",
            str(folder / "never.yaml"),
            "--device",
            "nope",
            "--backend",
            value,
        ],
        "a command": [value or " "],
        "an option": ["plan", recipe, f"--{value}"],
        "completion": ["completion", value],
    }


def variables(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(name, variable, value) of the environment's paths."""
    for name, path in paths(folder).items():
        if "\0" in path or not path:
            continue
        for variable in ("PHIPIPE_CACHE", "PHIPIPE_TOOLCHAINS", "HF_HOME", "HF_HUB_CACHE"):
            if _harmless(path, folder):
                yield f"{variable}: {name}", variable, path


def outcome(words: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and all output of one command line, in this process."""
    from phipipe import cli

    before, said = dict(os.environ), io.StringIO()
    os.environ.update(environ or {})
    sys.argv = ["phipipe", *words]
    code: object = None
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            cli.main()
    except SystemExit as ending:
        code = ending.code
    finally:
        os.environ.clear()
        os.environ.update(before)
    return int(code) if isinstance(code, int) else 0 if code is None else 1, said.getvalue()


def everything(folder: Path) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """All that is tried: (name, command line, environment)."""
    for name, words in commands(folder):
        yield name, words, {}
    for name, variable, value in variables(folder):
        yield name, ["plan", str(folder / "impossible.yaml")], {variable: value}


def main(folder: Path) -> None:
    """Try everything; a JSON line before and after each."""
    out = sys.stdout
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        ROOT / "phipipe" / "assets" / "tiny-phi3", folder / "package", dirs_exist_ok=True
    )
    here = folder / "here"
    here.mkdir(exist_ok=True)
    os.chdir(here)
    for name, words, environ in everything(folder):
        print(json.dumps({"trying": name}), file=out, flush=True)
        code, said = outcome(words, environ)
        told = {
            "name": name,
            "code": code,
            "said": said[-2000:],
            "words": [word[:200] for word in words],
        }
        print(json.dumps(told), file=out, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
