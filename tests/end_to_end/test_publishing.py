"""A real package from its maker to somebody else: signed, pushed to a hub, a registry and a bucket,
pulled on another machine, verified without a network, served, and made again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from testing import registry_server, shared_store, signatures
from testing.elsewhere import varied, works
from testing.hub_writes import WritableHub
from testing.served_package import STORY, TOKENS, Served
from testing.shell import Shell

from phipipe.package import package as packages

NAMES = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
OFFLINE = ("unshare", "--user", "--map-root-user", "--net")


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> Shell:
    return Shell(tmp_path_factory.mktemp("maker"), toolchains)


@pytest.fixture
def receiver(tmp_path: Path, toolchains: Path) -> Shell:
    """Another user of another machine: other home, cache, zone and language."""
    home = tmp_path / "another home"
    home.mkdir()
    shell = Shell(home, toolchains)
    before, environment = varied(home)
    own = {name: shell._env[name] for name in ("PHIPIPE_CACHE", "PHIPIPE_TOOLCHAINS")}
    shell._env, shell.before = environment | own, before
    return shell


def test_a_package_goes_from_its_maker_to_an_app_of_somebody_else(
    maker: Shell,
    receiver: Shell,
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (build,) = maker.run()
    built, key = Path(build["package"]), signatures.key(tmp_path / "keys")
    maker("sign", built, "--key", key)
    digest = packages.read_manifest(maker.folder / built).digest
    bucket = shared_store.bucket(server, tmp_path, monkeypatch)
    pulled = []
    with WritableHub() as hub, registry_server.running(tmp_path / "registry") as host:
        env = {name: os.environ[name] for name in NAMES}
        env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.TOKEN, "HF_HUB_DISABLE_XET": "1"}
        for address in ("hf://me/quick", f"oci://{host}/quick:1", bucket):
            who = ["--private"] if address.startswith("hf:") else []  # others have their own
            pushed = maker("push", built, address, *who, "--json", env=env).stdout
            assert digest in pushed
            assert hub.TOKEN not in pushed
            pulled.append(receiver.folder / f"from {address.partition(':')[0]}")
            receiver("pull", address, "--out", pulled[-1], env=env)
    proven(receiver, pulled, key, digest)
    here = pulled[-1]
    served = Served(receiver, here, before=receiver.before)
    try:
        answer = served.chat().choices[0].message.content
    finally:
        served.end()
    words = ("chat", built, "--prompt", STORY, "--tokens", str(TOKENS))
    assert answer == maker(*words).stdout.removesuffix("\n")
    told = receiver("rebuild", here, "--check").stdout
    assert "made again, the same bit for bit" in told


def proven(receiver: Shell, pulled: list[Path], key: Path, digest: str) -> None:
    """Every package that arrived is the maker's, without a network; another key's owner is not."""
    public, other = key.with_suffix(".pub"), signatures.key(key.parent, "other").with_suffix(".pub")
    receiver.before = [*OFFLINE] if works(*OFFLINE) else receiver.before
    for package in pulled:
        assert packages.read_manifest(package).digest == digest
        told = receiver("verify", package, "--key", public).stdout
        assert "signed by key sha256:" in told
        receiver("verify", package, "--key", other, expect=8)
    receiver.before = varied(receiver.folder)[0]
