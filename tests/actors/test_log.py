"""The daemon's log: it tells of a build, and nothing that its guest has said."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from agent import wire
from supervisor.runtime.logs import log
from tests.actors.world import open_world
from tests.fakes.agent import Talk, agent
from tests.fakes.hypervisor import FakeHypervisor

pytestmark = pytest.mark.usefixtures("inline_threads")

WORD = "words-of-a-guest"


@pytest.fixture
def entries() -> Iterator[list[dict[str, Any]]]:
    """Everything that is logged, down to the last detail."""
    found: list[dict[str, Any]] = []

    def keep(message: Any) -> None:
        record = message.record
        found.append({"event": record["message"], "text": str(message), **record["extra"]})

    sink = log.add(keep, level=0, format="{message} {extra} {exception}")
    yield found
    log.remove(sink)


async def talkative(talk: Talk, *, end: str) -> None:
    """Say the word wherever there is room for one, then end somehow."""
    talk.guest.print(f"{WORD}\nhypeman: 1.5 {WORD}\n")
    await talk.greet()
    await talk.phase("building")
    await talk.step(WORD)
    await talk.log(f"{WORD}\n".encode())
    await talk.say(wire.Error(WORD))
    match end:
        case "result":
            await talk.result(ok=False, code="build_failed", error=WORD)
        case "panic":
            await talk.guest.panic()
        case "nonsense":
            await talk.stream.send_all(b"\0\0\0\x20" + WORD.encode().ljust(32))


@pytest.mark.parametrize("end", ["result", "panic", "nonsense"])
async def test_nothing_that_a_guest_says_is_logged(
    end: str, data_dir: Path, entries: list[dict[str, Any]], autojump_clock: MockClock
) -> None:
    guest = agent(partial(talkative, end=end))
    async with open_world(data_dir, hypervisor=FakeHypervisor(guest)) as world:
        build_id = await world.submit()
        await world.wait_end(build_id)
        said = [event for event in await world.events(build_id) if WORD in str(event)]
    assert said, "the guest did say it"
    story = [entry["event"] for entry in entries if entry.get("build_id") == build_id]
    assert story[0] == "build.queued"
    assert story[-1] == "build.failed"
    assert not [entry for entry in entries if WORD in str(entry)]


async def test_a_build_is_told_with_its_tenant_and_its_machine(
    data_dir: Path, entries: list[dict[str, Any]], autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        build_id = await world.submit(tenant="acme")
        await world.wait_end(build_id)
    story = [entry for entry in entries if entry.get("build_id") == build_id]
    assert {entry["tenant"] for entry in story} == {"acme"}
    assert [entry["event"] for entry in story if "machine_id" in entry] == ["machine.leased"]
    assert story[-1]["event"] == "build.ready"
