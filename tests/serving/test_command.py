"""``phipipe serve`` before anything is served: where it listens, for whom, and what is missing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from testing import small_package
from testing.places import ROOT
from testing.shell import Run

from phipipe import Package
from phipipe.errors import RecipeError
from phipipe.serving import address

TOKEN = "a-token-of-some-length"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_package.written(tmp_path / "small")


def test_a_port_in_use_names_the_next_that_is_free(run: Run, folder: Path) -> None:
    with address.bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, _, err = run("serve", folder, "--port", str(port))
        assert code == 2
        assert f"port {port} is in use" in err
        free = int(err.rpartition("--port ")[2])
        assert port < free <= port + address.NEXT_PORTS
        with pytest.raises(RecipeError, match="is in use"):
            Package.open(folder).serve(port=port)


@pytest.mark.parametrize("host", ["no such host", "203.0.113.1", ""])
def test_an_address_that_is_not_this_machines_is_refused(run: Run, folder: Path, host: str) -> None:
    code, _, err = run("serve", folder, "--host", host, "--port", "0")
    assert code == 2
    assert "--host 127.0.0.1" in err or "cannot listen on" in err


def test_others_may_ask_with_a_token_alone(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run("serve", folder, "--host", "0.0.0.0", "--port", "0")
    assert (code, "--token-env NAME" in err) == (2, True)
    monkeypatch.delenv("SOME_KEY", raising=False)
    code, _, err = run("serve", folder, "--token-env", "SOME_KEY", "--port", "0")
    assert (code, "has no `SOME_KEY`" in err) == (2, True)
    for bad in ("short", "with a space in the token", "ü" * 20):
        monkeypatch.setenv("SOME_KEY", bad)
        code, _, err = run("serve", folder, "--token-env", "SOME_KEY", "--port", "0")
        assert (code, "secrets.token_urlsafe" in err, bad in err) == (2, True, False)


def test_a_token_is_inherited_by_no_process(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_SERVED", TOKEN)
    code, _, _ = run("serve", folder, "--token-env", "PHIPIPE_SERVED", "--port", "0")
    assert code == 4  # no toolchain can be installed here
    assert "PHIPIPE_SERVED" not in os.environ


def test_what_is_no_origin_is_refused(run: Run, folder: Path) -> None:
    code, _, err = run("serve", folder, "--allow-origin", "page.example", "--port", "0")
    assert (code, "no origin" in err) == (2, True)


def test_the_package_is_checked_first(run: Run, folder: Path) -> None:
    (folder / "added.txt").write_text("x", "utf-8")
    code, _, err = run("serve", folder, "--port", "0")
    assert (code, "phipipe verify" in err) == (8, True)


def test_the_extra_that_is_missing_is_named(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = run("serve", folder, "--port", "0")
    assert (code, "pip install 'phipipe[serve]'" in err) == (4, True)


def test_localhost_is_what_apps_try_first() -> None:
    with address.bound("localhost", 0) as listening:
        assert address.is_loopback(listening)
        port = listening.getsockname()[1]
        assert address.base_url(listening) == f"http://127.0.0.1:{port}/v1"
        assert {"localhost", "127.0.0.1", "::1"} <= address.local_hosts(listening, "localhost")


def test_a_server_on_all_addresses_is_named_by_its_own_loopback() -> None:
    with address.bound("0.0.0.0", 0) as listening:
        assert not address.is_loopback(listening)
        assert address.base_url(listening).startswith("http://127.0.0.1:")


@pytest.mark.skipif(not socket.has_ipv6, reason="IPv6")
def test_an_address_of_ipv6_stands_in_brackets() -> None:
    try:
        listening = address.bound("::1", 0)
    except RecipeError:
        pytest.skip("this machine has no IPv6 loopback")
    with listening:
        assert address.base_url(listening).startswith("http://[::1]:")


def test_the_parent_of_a_server_stays_light() -> None:
    code = "import phipipe.serving.app, phipipe.serving.front, phipipe.serving.start, sys\n"
    code += "print(sorted({'numpy', 'torch', 'huggingface_hub', 'openai'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"
