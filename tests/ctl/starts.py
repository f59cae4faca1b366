"""Runs of `hypeman-ctl` that tests.ctl.starter starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

ROOT = Path(__file__).parents[2]


@dataclass
class Result:
    """How a run of the program ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Starter:
    """The process that starts the programs, by its socket."""

    address: str

    async def run(
        self, args: Sequence[str], *, stdin: bytes, env: Mapping[str, str], cwd: Path | None
    ) -> Result:
        """Run the program through pipes and return how it ended. Cancelled, it is killed."""
        order = json.dumps({"args": args, "env": env, "cwd": os.fspath(cwd or Path.cwd())})
        said = {1: bytearray(), 2: bytearray()}
        with ExitStack() as stack:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connection.connect(self.address)
            pipes = [os.pipe() for _ in range(3)]
            theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
            source, *sinks = [pipes[0][1], pipes[1][0], pipes[2][0]]
            socket.send_fds(connection, [order.encode()], theirs)
            for descriptor in theirs:
                os.close(descriptor)
            answer = trio.socket.from_stdlib_socket(connection)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_feed, trio.lowlevel.FdStream(source), stdin)
                for number, sink in enumerate(sinks, 1):
                    nursery.start_soon(_drain, trio.lowlevel.FdStream(sink), said[number])
            code = int(await answer.recv(100))
        return Result(code, said[1].decode(), said[2].decode())


@contextmanager
def starter(directory: Path, env: Mapping[str, str]) -> Iterator[Starter]:
    """Have such a process around the block."""
    address = os.fspath(directory / "s")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ctl.starter", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=env,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        yield Starter(address)


async def _feed(stream: trio.lowlevel.FdStream, data: bytes) -> None:
    async with stream:
        with suppress(trio.BrokenResourceError):  # it need not read everything
            await stream.send_all(data)


async def _drain(stream: trio.lowlevel.FdStream, into: bytearray) -> None:
    async with stream:
        async for data in stream:
            into += data
