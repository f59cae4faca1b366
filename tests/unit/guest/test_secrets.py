"""Reading the secrets of a build from the operator's directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.errors import HostError
from supervisor.guest.secrets import MAX_SECRET_BYTES, SecretNotFound, read_secrets_sync
from supervisor.model.build import SecretRef
from supervisor.model.ids import Tenant

ACME = Tenant("acme")
TOKEN = (SecretRef("token"),)


def test_the_tenants_own_secret_goes_before_the_shared_one(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"shared")
    assert read_secrets_sync(tmp_path, ACME, TOKEN) == {"token": b"shared"}
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "token").write_bytes(b"own")
    assert read_secrets_sync(tmp_path, ACME, TOKEN) == {"token": b"own"}
    assert read_secrets_sync(tmp_path, Tenant("globex"), TOKEN) == {"token": b"shared"}


@pytest.mark.parametrize("directory", [None, Path("/no/such/directory")])
def test_a_secret_that_is_nowhere_is_named(directory: Path | None) -> None:
    with pytest.raises(SecretNotFound, match=r"'token'.*acme"):
        read_secrets_sync(directory, ACME, TOKEN)


def test_names_of_tenants_and_of_shared_secrets_may_collide(tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()
    with pytest.raises(SecretNotFound):
        read_secrets_sync(tmp_path, ACME, TOKEN)
    (tmp_path / "acme").write_bytes(b"a shared secret that is called like the tenant")
    with pytest.raises(SecretNotFound):
        read_secrets_sync(tmp_path, ACME, TOKEN)


def test_what_is_no_plain_file_is_no_secret(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    with pytest.raises(SecretNotFound):
        read_secrets_sync(tmp_path, ACME, TOKEN)


def test_a_secret_over_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    with pytest.raises(HostError, match="over"):
        read_secrets_sync(tmp_path, ACME, TOKEN)
