"""The source: from the supervisor's port into `/src`.

One frame says how long the archive is; then it comes as raw bytes, is hashed, and is unpacked as it
arrives by GNU tar, which runs as `builder`: what it makes can be read by the build, and can be
nothing that an ordinary user could not make. Nothing is built before the hash is known to be right.
"""

from __future__ import annotations

import hashlib
import os

import trio

from agent import paths, wire
from agent.failure import BUILD_FAILED, BUILDER_LOST, OUT_OF_DISK, Failure
from agent.process import Tail, describe_status, own_child
from agent.rootless import builder_env
from agent.spawn import Spawned, spawn

CHUNK_BYTES = 256 << 10
_HEADER_LIMIT_BYTES = 4 << 10

UNPACK = (
    "tar", "--extract", "--gzip", "--file=-",
    f"--directory={paths.SOURCE_DIR}",
    "--no-same-owner",
    "--preserve-permissions",  # or tar would take the umask from the modes
    "--no-overwrite-dir",      # an entry for `.` must not lock us out of the directory
    "--warning=no-timestamp",
    "--warning=no-unknown-keyword",
)  # fmt: skip


class SourceBroken(Exception):
    """The bytes are not the source that was announced. Says why."""


def start_unpacking() -> Spawned:
    """Start the program that unpacks, for `fetch_source`: it takes longer to start than most
    sources to unpack, so it waits for the source and not the source for it. Raises OSError.
    """
    os.chown(paths.SOURCE_DIR, paths.BUILDER_UID, paths.BUILDER_UID)
    env = {**builder_env(), "TMPDIR": "/tmp"}  # noqa: S108 - the guest's own, on the scratch disk
    return spawn(UNPACK, env, user=paths.BUILDER_UID, has_input=True)


async def fetch_source(
    stream: trio.abc.ReceiveStream, config: wire.Config, unpacking: Spawned
) -> Failure | None:
    """Receive, check and unpack the source; return why that failed, or None.

    Closes the stream, and ends what `start_unpacking` has started.
    """
    tail = Tail()
    problem, status = "", 0
    async with stream, own_child(unpacking, tail) as tar:
        assert tar.stdin is not None
        try:
            await receive_source(stream, tar.stdin, config.source_size, config.source_sha256)
        except SourceBroken as exc:
            problem = str(exc)
        else:
            await tar.stdin.aclose()
            status = await tar.wait()
    if problem:
        return Failure(BUILDER_LOST, problem)
    if status != 0:
        why = tail.text or describe_status(status)
        code = OUT_OF_DISK if "No space left on device" in why else BUILD_FAILED
        return Failure(code, f"the source archive could not be unpacked: {why}")
    return None


async def receive_source(
    stream: trio.abc.ReceiveStream, into: trio.abc.SendStream, size: int, sha256: str
) -> None:
    """Copy exactly the announced bytes to `into`.

    If the other end of `into` stops reading, the rest is only hashed: it will say why. Raises
    SourceBroken if the bytes are not `size` bytes with the hash `sha256`.
    """
    header, data = await _receive_header(stream)
    if (header.size, header.sha256) != (size, sha256):
        raise SourceBroken(
            f"the source on offer ({header.size} bytes, sha256 {header.sha256[:64]}) is not"
            f" the configured one ({size} bytes, sha256 {sha256})"
        )
    digest = hashlib.sha256()
    left = size
    is_read = True
    while True:
        if len(data) > left:
            raise SourceBroken(f"more than the {size} bytes of the source arrived")
        left -= len(data)
        digest.update(data)
        if is_read and data:
            try:
                await into.send_all(data)
            except trio.BrokenResourceError:
                is_read = False
        if left == 0:
            break
        data = await _receive(stream, min(CHUNK_BYTES, left))
        if not data:
            raise SourceBroken(f"the source ended {left} bytes before its {size}")
    if digest.hexdigest() != sha256:
        raise SourceBroken(f"the source has sha256 {digest.hexdigest()} instead of {sha256}")


async def _receive_header(stream: trio.abc.ReceiveStream) -> tuple[wire.SourceHeader, bytes]:
    """Return the header, and the source's bytes that came with it."""
    decoder = wire.FrameDecoder(_HEADER_LIMIT_BYTES)
    while data := await _receive(stream, CHUNK_BYTES):
        try:
            # Only the first frame is one; behind it are raw bytes, which must not be decoded.
            message = next(decoder.feed(data), None)
        except wire.WireError as exc:
            raise SourceBroken(f"the source's header is broken: {exc}") from exc
        if isinstance(message, wire.SourceHeader):
            return message, decoder.take_rest()
        if message is not None:
            raise SourceBroken(f"the source begins with a {message} instead of its header")
    raise SourceBroken("the source ended before its header")


async def _receive(stream: trio.abc.ReceiveStream, limit: int) -> bytes:
    try:
        return bytes(await stream.receive_some(limit))
    except trio.BrokenResourceError as exc:
        raise SourceBroken("the connection for the source broke") from exc
