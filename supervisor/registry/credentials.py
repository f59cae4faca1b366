"""The operator's credentials for upstream registries: docker's `config.json`.

Only `auths` counts. A credential belongs to the host that its key names and is sent to no other
one; Docker Hub's three spellings are one host.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisor.errors import ConfigError

HUB_HOST = "registry-1.docker.io"
_HUB_ALIASES = frozenset({"docker.io", "index.docker.io", "auth.docker.io"})
"""`docker login` writes https://index.docker.io/v1/; the tokens come from auth.docker.io."""
_DEFAULT_PORTS = (":443", ":80")


class Credentials:
    """Values of Basic authorization by host. Never printed."""

    def __init__(self, basic: Mapping[str, str] | None = None) -> None:
        self._basic = dict(basic or {})

    def for_host(self, host: str) -> str | None:
        """Return the value after `Basic ` for `host[:port]`, or None."""
        return self._basic.get(canonical_host(host))


def load_credentials(path: Path | None) -> Credentials:
    """Read the file. Raises ConfigError naming the entry that cannot be used, never its value."""
    if path is None:
        return Credentials()
    try:
        content = json.loads(path.read_bytes())
    except OSError as exc:
        raise _unusable(path, f"it cannot be read: {exc.strerror}") from exc
    except ValueError:
        raise _unusable(path, "it is not JSON") from None  # the cause would quote it
    auths = content.get("auths") if isinstance(content, dict) else None
    if not isinstance(auths, dict):
        raise _unusable(path, 'it has no object "auths"')
    return Credentials(
        {canonical_host(key): _basic(path, key, value) for key, value in auths.items()}
    )


def canonical_host(key: str) -> str:
    """Return the one spelling of a `host[:port]` or of a URL's host: Docker Hub has several."""
    host = key.rpartition("://")[2].partition("/")[0].lower()
    for port in _DEFAULT_PORTS:
        host = host.removesuffix(port)
    host = host.removesuffix(".")
    return HUB_HOST if host in _HUB_ALIASES else host


def _basic(path: Path, key: str, value: Any) -> str:
    match value:
        case {"auth": str() as encoded} if encoded:
            try:
                user, colon, _ = base64.b64decode(encoded, validate=True).partition(b":")
            except binascii.Error:
                user, colon = b"", b""
            if user and colon:
                return encoded
        case {"username": str() as name, "password": str() as password} if name:
            return base64.b64encode(f"{name}:{password}".encode()).decode()
    raise _unusable(
        path,
        f'the entry of {key!r} needs "auth" (base64 of user:password) or "username" and'
        ' "password"; credential helpers and identity tokens are not supported',
    )


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(f"MIRROR_CREDENTIALS_FILE {path} cannot be used: {why}")
