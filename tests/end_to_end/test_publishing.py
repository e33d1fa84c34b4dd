"""A real package goes to a hub, a registry and a bucket, and answers where it arrives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from testing import registry_server, shared_store
from testing.hub_writes import WritableHub
from testing.shell import Shell

from phipipe.package import package as packages


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> Shell:
    return Shell(tmp_path_factory.mktemp("publishing"), toolchains)


def test_a_real_package_goes_from_place_to_place_and_answers(
    shell: Shell, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (build,) = shell.run()
    built = Path(build["package"])
    digest = packages.read_manifest(shell.folder / built).digest
    bucket = shared_store.bucket(server, tmp_path, monkeypatch)
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    env = {name: os.environ[name] for name in names}
    with WritableHub() as hub, registry_server.running(tmp_path / "registry") as host:
        env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.TOKEN, "HF_HUB_DISABLE_XET": "1"}
        here: Path = built
        for number, address in enumerate(("hf://me/quick", f"oci://{host}/quick:1", bucket)):
            pushed = shell("push", here, address, "--private", "--json", env=env).stdout
            assert digest in pushed
            here = Path(f"pulled-{number}")
            shell("pull", address, "--out", here, env=env)
            assert hub.TOKEN not in pushed
    assert packages.verify(shell.folder / here) == []
    assert packages.read_manifest(shell.folder / here).digest == digest
    words = ("chat", here, "--prompt", "Where is the key?", "--tokens", "8")
    assert shell(*words).stdout.strip()
