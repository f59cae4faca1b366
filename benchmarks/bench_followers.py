"""The log path: one build with a fake guest, many followers over HTTP; lines delivered a second.

The guest speaks the real protocol; its lines pass the guest link's decoder, the session, the event
log on disk and the API. First lines are paced, ten a second, and say when they were written: that
gives the delay at a reader. Then come as many as the path takes. Nothing may be lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import trio

from agent import wire
from benchmarks.fakes import serving
from benchmarks.progress import tell
from benchmarks.results import Row, Size, at_least, at_most, quantile
from tests.fakes.agent import DIGEST, Talk, agent
from tests.fakes.hypervisor import FakeHypervisor

_LINE = b"a line of a build, of the usual length: gcc -O2 -c -o build/some/file.o src/file.c\n"
_PACE_SECONDS = 0.1


class _Chatty:
    """A build that talks when it is told to."""

    def __init__(self, paced: int, lines: int) -> None:
        self._paced = paced
        self._lines = lines
        self.may_talk = trio.Event()

    async def __call__(self, talk: Talk) -> None:
        await talk.greet()
        await talk.phase("building")
        await talk.step("[1/1] RUN make")
        await self.may_talk.wait()
        for _ in range(self._paced):
            await talk.log(b"at %.6f\n" % time.time())
            await trio.sleep(_PACE_SECONDS)
        whole = wire.MAX_LOG_DATA_BYTES // len(_LINE)
        left = self._lines
        while left:
            count = min(left, whole)
            await talk.log(_LINE * count)
            left -= count
        await talk.phase("pushing")
        await talk.push()
        await talk.result(ok=True, digest=DIGEST)


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    followers = size.pick(100, 3)
    paced, lines = size.pick(30, 2), size.pick(20_000, 200)
    rates: list[float] = []
    delays: list[float] = []
    rounds = size.pick(3, 1)
    for number in range(rounds):
        tell(f"followers: round {number + 1} of {rounds}")
        directory = work / str(number)
        directory.mkdir()
        found = trio.run(_round, directory, followers, paced, lines)
        expected = followers * (paced + lines)
        if found["lines"] != expected:
            raise AssertionError(f"{found['lines']} of {expected} lines were delivered")
        rates.append(followers * lines / found["seconds"])
        delays.append(quantile(found["late"], 0.99) * 1000)
    return [
        at_least(f"lines delivered to {followers} followers", rates, "1/s", 300_000),
        at_most("delay of a line at a reader, p99", delays, "ms", 100),
    ]


async def _round(work: Path, followers: int, paced: int, lines: int) -> dict[str, Any]:
    script = _Chatty(paced, lines)
    async with serving(work, FakeHypervisor(agent(script))) as (world, socket):
        build = await world.submit()
        argv = [sys.executable, "-m", "benchmarks.follow", str(socket), build, str(followers)]
        process = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE)
        assert process.stdout is not None
        said = b""
        while b"\n" not in said:
            said += await process.stdout.receive_some()
        script.may_talk.set()
        async for piece in process.stdout:
            said += piece
        await process.wait()
        await world.wait_end(build)
    found: dict[str, Any] = json.loads(said.split(b"\n")[1])
    return found
