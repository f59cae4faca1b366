"""The source archive on its way into the guest: the bytes as uploaded, after a small header."""

from __future__ import annotations

from pathlib import Path

import trio

from agent import wire
from supervisor.model.build import Source
from supervisor.runtime.accept import accept
from supervisor.runtime.logs import log

_CHUNK_BYTES = 1 << 20
_MAX_TRANSFERS = 3
"""One is needed; a guest that asks again and again is not served for ever."""


async def serve_source(
    listener: trio.abc.Listener[trio.abc.Stream], path: Path, source: Source
) -> None:
    """Send the archive to whoever connects, one connection after the other, until cancelled."""
    header = wire.encode(wire.SourceHeader(size=source.size_bytes, sha256=source.sha256))
    for _ in range(_MAX_TRANSFERS):
        stream = await accept(listener)
        try:
            async with await trio.open_file(path, "rb") as file:
                await stream.send_all(header)
                while data := await file.read(_CHUNK_BYTES):
                    await stream.send_all(data)
            # The guest closes when it has everything: closing first could cut what is in flight.
            await stream.receive_some(1)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("source.transfer_broken")
        except OSError as exc:
            # The guest notices that the source is short, and says so in its result.
            log.error("source.unreadable", path=path, why=exc.strerror)
        finally:
            await trio.aclose_forcefully(stream)
