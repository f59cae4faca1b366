"""Credentials of upstreams: whose they are, and what is refused without being shown."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import ConfigError
from supervisor.registry.credentials import load_credentials

SECRET = base64.b64encode(b"me:s3cr3t").decode()


def write(tmp_path: Path, auths: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": auths}))
    return path


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ("docker.io", "registry-1.docker.io"),
        ("docker.io", "auth.docker.io"),
        ("ghcr.io", "ghcr.io"),
        ("GHCR.io", "ghcr.io"),
        ("https://ghcr.io", "ghcr.io:443"),
        ("registry.example:5000", "registry.example:5000"),
    ],
)
def test_a_credential_belongs_to_the_host_of_its_key(tmp_path: Path, key: str, host: str) -> None:
    found = load_credentials(write(tmp_path, {key: {"auth": SECRET}}))
    assert found.for_host(host) == SECRET
    for other in ("docker.io.evil.example", "evil.example", f"{host}:1", f"x{host}", ""):
        assert found.for_host(other) is None


def test_a_name_and_a_password_are_as_good(tmp_path: Path) -> None:
    entry = {"username": "me", "password": "s3cr3t"}
    found = load_credentials(write(tmp_path, {"ghcr.io": entry}))
    assert found.for_host("ghcr.io") == SECRET


def test_without_a_file_there_are_none() -> None:
    assert load_credentials(None).for_host("registry-1.docker.io") is None


@pytest.mark.parametrize(
    "entry",
    [{}, {"auth": ""}, {"auth": "s3cr3t!"}, {"auth": "czNjcjN0"}, {"username": "s3cr3t"}, 1],
)
def test_an_entry_that_cannot_be_used_is_named_and_not_shown(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(ConfigError, match=r"ghcr\.io") as caught:
        load_credentials(write(tmp_path, {"ghcr.io": entry}))
    assert "s3cr3t" not in str(caught.value)
    assert "czNjcjN0" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "s3cr3t", "[]", "{}", '{"auths": []}'])
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="MIRROR_CREDENTIALS_FILE") as caught:
        load_credentials(path)
    assert "s3cr3t" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_credentials(tmp_path / "absent")
