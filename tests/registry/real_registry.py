"""The registry that the distribution ships, as an upstream."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE

import trio

_LISTENING = re.compile(rb"listening on (127\.0\.0\.1:\d+)")
_CONFIG = """\
version: 0.1
log: {{level: info}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:0"}}
"""


@asynccontextmanager
async def open_real_registry(directory: Path) -> AsyncIterator[str]:
    """Run it with its data below `directory`; gives its host:port."""
    config = _write_config(directory)
    argv = ["docker-registry", "serve", str(config)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(trio.run_process, argv, stdout=PIPE, stderr=PIPE, check=False, env={})
        )
        output = bytearray()
        while (match := _LISTENING.search(output)) is None:
            piece = await process.stderr.receive_some()
            assert piece, output.decode()
            output += piece
        nursery.start_soon(_drain, process.stderr)
        nursery.start_soon(_drain, process.stdout)
        yield match[1].decode()
        process.kill()
        await process.wait()
        nursery.cancel_scope.cancel(reason="the test is over")


def _write_config(directory: Path) -> Path:
    directory.mkdir()
    config = directory / "config.yml"
    config.write_text(_CONFIG.format(root=directory / "data"))
    return config


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass
