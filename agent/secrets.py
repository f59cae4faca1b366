"""The build's secrets: asked for once, kept as files on a tmpfs, given to BuildKit by path."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from agent import wire
from agent.failure import BUILDER_LOST, SECRET_NOT_FOUND, Failure

_RECEIVE_BYTES = 64 << 10


async def fetch_secrets(
    stream: trio.abc.Stream, ids: Sequence[str]
) -> Mapping[str, bytes] | Failure:
    """Ask for `ids` and return their values, all of them. Closes the stream."""
    async with stream:
        decoder = wire.FrameDecoder()
        try:
            await stream.send_all(wire.encode(wire.GetSecrets(tuple(ids))))
            while data := await stream.receive_some(_RECEIVE_BYTES):
                for message in decoder.feed(data):
                    return _answer(message, ids)
        except (trio.BrokenResourceError, wire.WireError) as exc:
            return Failure(BUILDER_LOST, f"the secrets could not be fetched: {exc}")
    return Failure(BUILDER_LOST, "the secrets' connection ended without an answer")


def _answer(
    message: wire.Message | wire.Unknown, ids: Sequence[str]
) -> Mapping[str, bytes] | Failure:
    if not isinstance(message, wire.SecretsResponse):
        return Failure(BUILDER_LOST, "the answer on the secrets' port is not a secrets_response")
    for secret_id in ids:
        if secret_id not in message.secrets:
            return Failure(SECRET_NOT_FOUND, f"there is no secret {secret_id!r}")
    return {secret_id: message.secrets[secret_id] for secret_id in ids}


def write_secrets_sync(values: Mapping[str, bytes], directory: str, owner: int) -> dict[str, str]:
    """Write each value to a file that only `owner` can read; return the paths by id.

    Files are numbered: a name of a user does not become one.
    """
    Path(directory).mkdir(0o500)
    files = {}
    for number, (secret_id, value) in enumerate(values.items()):
        path = f"{directory}/{number}"
        write_file_sync(path, value, mode=0o400, owner=owner)
        files[secret_id] = path
    os.chown(directory, owner, owner)
    return files


def write_file_sync(path: str, data: bytes, *, mode: int, owner: int) -> None:
    """Make a new file that has its mode and owner before it has its contents."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        os.fchown(fd, owner, owner)
        os.fchmod(fd, mode)
        file.write(data)
