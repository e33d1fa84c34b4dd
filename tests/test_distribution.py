"""The wheel, the archive, the container and the release: what a stranger gets, tried outside of the
checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import uv
import yaml
from testing.places import RECIPES, ROOT

import phipipe

CONTAINER = (ROOT / "Containerfile").read_text("utf-8")
RELEASE = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))
BIN = "Scripts" if sys.platform == "win32" else "bin"


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without what leads to this checkout."""
    led = ("PYTHONPATH", "VIRTUAL_ENV", "GITHUB_SERVER_URL", "GITHUB_REPOSITORY")
    return {name: value for name, value in os.environ.items() if name not in led} | more


def build(out: Path, **variables: str) -> Path:
    """``python -m build`` of the checkout into the folder ``out``."""
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(
        command,
        cwd=out.parent,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the archive."""
    return build(tmp_path_factory.mktemp("built") / "dist")


def sources(*folders: str) -> set[str]:
    """The files that git has in ``folders``."""
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.mark.full
def test_the_wheel_has_the_package_the_recipes_and_the_docs_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    shipped = {f"phipipe/shipped/{name}" for name in sources("recipes", "docs")}
    assert names == sources("phipipe") | shipped
    assert "phipipe/py.typed" in names


@pytest.mark.full
def test_the_archive_has_what_git_has(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert names - {"PKG-INFO", ""} == sources()


@pytest.mark.full
def test_a_release_names_the_repository_that_builds_it(tmp_path: Path) -> None:
    out = build(
        tmp_path / "dist",
        GITHUB_SERVER_URL="https://git.example.com",
        GITHUB_REPOSITORY="somebody/phipipe",
    )
    (wheel,) = out.glob("*.whl")
    opened = zipfile.ZipFile(wheel)
    (about,) = [name for name in opened.namelist() if name.endswith("/METADATA")]
    text = opened.read(about).decode("utf-8")
    urls = dict(re.findall(r"^Project-URL: (\w+), (\S+)$", text, re.M))
    assert urls["Source"] == "https://git.example.com/somebody/phipipe"
    assert {"Homepage", "Documentation", "Issues", "Changelog"} < set(urls)


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_the_quickstart_passes_in_a_fresh_environment(
    built: Path, kind: str, tmp_path: Path, toolchains: Path
) -> None:
    (package,) = built.glob(kind)
    venv, work = tmp_path / "venv", tmp_path / "work"
    work.mkdir()
    run([uv.find_uv_bin(), "venv", "-q", "--python", sys.executable, venv], work)
    run([uv.find_uv_bin(), "pip", "install", "-q", "--python", venv, package], work)
    command = venv / BIN / "phipipe"
    where = run([venv / BIN / "python", "-c", "import phipipe; print(phipipe.__file__)"], work)
    assert Path(where.strip()).is_relative_to(venv)
    assert "recipes copy quickstart" in run([command, "run", "quickstart.yaml"], work, expect=2)
    run([command, "recipes", "copy", "quickstart"], work)
    run([command, "run", "quickstart.yaml", "--out", "packages"], work)
    run([command, "verify", "packages/quickstart"], work)


def run(
    words: list[str | Path], folder: Path, expect: int = 0, env: Mapping[str, str] | None = None
) -> str:
    """What a program says, which ends with the exit code ``expect``."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**clean_environment(), **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_classifiers_name_the_python_versions_that_are_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    minors = [
        int(found[1])
        for line in project["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", line))
    ]
    assert project["requires-python"] == f">=3.{min(minors)}"
    assert "Typing :: Typed" in project["classifiers"]
    assert (ROOT / "phipipe" / "py.typed").exists()


# --- the release


def steps(job: str) -> list[dict[str, Any]]:
    return list(RELEASE["jobs"][job]["steps"])


def test_a_release_is_tried_before_it_is_published() -> None:
    jobs = RELEASE["jobs"]
    assert RELEASE[True]["push"] == {"tags": ["v[0-9]+.[0-9]+.[0-9]+*"]}  # `on` is true in YAML 1.1
    assert (jobs["publish"]["needs"], jobs["quickstart"]["needs"]) == ("quickstart", "build")
    assert [step["run"] for step in steps("quickstart") if "phipipe" in step.get("run", "")] == [
        "phipipe recipes copy quickstart",
        "phipipe run quickstart.yaml",
    ]


def test_a_release_needs_no_token_and_says_where_it_was_built() -> None:
    publish = RELEASE["jobs"]["publish"]
    assert RELEASE["permissions"] == {"contents": "read"}
    assert publish["permissions"]["id-token"] == "write"
    assert publish["environment"] == "release"
    assert "secrets" not in (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    assert steps("publish")[-1]["with"] == {"attestations": True}
    writers = [name for name, job in RELEASE["jobs"].items() if "write" in str(job)]
    assert writers == ["publish"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="the workflow's shell")
@pytest.mark.parametrize("tag", ["right", "v0.0.0", "v9.9.9"])
def test_a_tag_that_is_not_the_version_stops_the_release(tag: str) -> None:
    (step,) = [step for step in steps("build") if step.get("name") == "The tag is the version"]
    name = f"v{phipipe.__version__}" if tag == "right" else tag
    done = subprocess.run(
        ["bash", "-c", step["run"]],
        cwd=ROOT,
        env={**os.environ, "GITHUB_REF_NAME": name},
        check=False,
    )
    assert (done.returncode == 0) is (tag == "right")


# --- the container


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the container file with its words, continued lines joined."""
    text = re.sub(r"^#.*\n", "", CONTAINER, flags=re.M).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (s.partition(" ") for s in text.splitlines())]


def test_the_container_file_has_no_lint() -> None:
    tool = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [tool, ROOT / "Containerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_container_is_pinned_slim_without_root_and_without_a_compiler() -> None:
    told = [(word, rest) for word, rest in instructions() if word]
    last = told[max(i for i, (word, _) in enumerate(told) if word == "FROM") :]
    ((_, base),) = [pair for pair in told if pair[0] == "ARG"]
    assert re.fullmatch(r"PYTHON=docker\.io/library/python:3\.\d+\.\d+-slim-\w+", base)
    assert ("USER", "1000") in last
    assert not [rest for word, rest in last if word == "RUN" and re.search(r"g\+\+|pip ", rest)]
    assert "PHIPIPE_CACHE=/data" in dict(last)["ENV"]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_steps_of_the_container_lead_to_a_phipipe_that_builds(
    tmp_path: Path, toolchains: Path
) -> None:
    """As podman would do them, but for packages of the system; llama.cpp is really compiled."""
    source, opt, work = tmp_path / "source", tmp_path / "opt", tmp_path / "work"
    opt.mkdir()
    work.mkdir()
    for name in sources():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    commands = [rest for word, rest in instructions() if word == "RUN" and "apt-get" not in rest]
    here = {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    for command in commands:
        run(["bash", "-euc", command.replace("/opt/", f"{opt}/")], source, env=here)
    (wheel,) = (opt / "wheels").glob("*.whl")
    command = opt / "phipipe" / "bin" / "phipipe"
    variables = {"PHIPIPE_TOOLCHAINS": str(tmp_path / "toolchains"), "CXX": "no-such-compiler"}
    variables |= {"UV_CACHE_DIR": str(tmp_path / "uv")}
    variables |= {"PIP_FIND_LINKS": f"{wheel.parent} {os.environ.get('PIP_FIND_LINKS', '')}"}
    run([command, "toolchain", "install", "llamacpp"], work, env=variables)
    run([command, "recipes", "copy", "quickstart"], work)
    run([command, "run", "quickstart.yaml"], work)


def test_the_recipes_of_a_wheel_are_those_of_the_checkout() -> None:
    """hatchling takes what is there; what git ignores would not be in a release."""
    assert {f"recipes/{path.name}" for path in RECIPES.iterdir()} == sources("recipes")
