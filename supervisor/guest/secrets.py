"""Secrets of builds: read from the operator's directory, handed to one guest once.

A secret is the file `<tenant>/<id>` below the directory, or `<id>` for those that the operator
shares with every tenant. Values are held in memory while the attempt lasts; they are never in the
configuration, a log or an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from agent import wire
from supervisor.errors import HostError
from supervisor.guest.link import GuestLink
from supervisor.model.build import SecretRef
from supervisor.model.ids import Tenant
from supervisor.runtime.accept import accept
from supervisor.runtime.logs import log

MAX_SECRET_BYTES = 500 << 10
"""BuildKit's own limit for one secret."""
MAX_TOTAL_BYTES = wire.MAX_FRAME_BYTES - (64 << 10)
"""All secrets of a build travel in one frame."""


class SecretNotFound(Exception):
    """There is no file for a secret that the build names. The message names the id, not a path."""


def read_secrets_sync(
    directory: Path | None, tenant: Tenant, wanted: Sequence[SecretRef]
) -> dict[str, bytes]:
    """Return the values of `wanted` by id. Ids and tenants have been parsed: they are safe names.

    Raises SecretNotFound, and HostError for a file that is there and cannot be used.
    """
    values: dict[str, bytes] = {}
    for secret in wanted:
        value = None
        if directory is not None:
            value = _read(directory / tenant / secret.id)
            if value is None:
                value = _read(directory / secret.id)
        if value is None:
            raise SecretNotFound(
                f"there is no secret {secret.id!r} for tenant {tenant}; ask the operator to add it"
            )
        values[secret.id] = value
    if sum(map(len, values.values())) > MAX_TOTAL_BYTES:
        raise HostError(f"the secrets of the build are over {MAX_TOTAL_BYTES} bytes together")
    return values


async def serve_secrets(
    listener: trio.abc.Listener[trio.abc.Stream],
    secrets: Mapping[str, bytes],
    *,
    silence_seconds: float,
) -> None:
    """Answer one request for secrets, then return: the caller closes the port.

    Whoever connects first gets them. That is the agent: it asks before it starts anything of the
    build, and steps of a build cannot open vsock.
    """
    stream = await accept(listener)
    link = GuestLink(stream, silence_seconds=silence_seconds)
    try:
        request = await link.receive()
        if not isinstance(request, wire.GetSecrets):
            await link.send(wire.Error("this port answers get_secrets only"))
            return
        answer = {name: secrets[name] for name in request.ids if name in secrets}
        await link.send(wire.SecretsResponse(answer))
        await stream.receive_some(1)  # the guest closes when it has everything
    except (HostError, trio.BrokenResourceError):
        log.debug("secrets.transfer_broken")
    finally:
        await trio.aclose_forcefully(stream)


def _read(path: Path) -> bytes | None:
    """Read a secret's file, or return None if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise HostError(f"the secret {path.name!r} cannot be read: {exc.strerror}") from exc
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return None  # the shared secret `x` and the directory of a tenant `x` may collide
        if info.st_size > MAX_SECRET_BYTES:
            raise HostError(f"the secret {path.name!r} is over {MAX_SECRET_BYTES} bytes")
        return os.read(fd, MAX_SECRET_BYTES)
    finally:
        os.close(fd)
