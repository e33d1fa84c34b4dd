"""A bucket on an S3 server of our own."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from phipipe.store import keys

SECRET = "rather-secret-key-0815"


def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "b" + keys.key_of({"for": str(tmp_path)})[:20]
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT")).close()
    return f"s3://{name}/some/prefix"
