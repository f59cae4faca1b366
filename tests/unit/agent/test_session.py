"""One supervisor's conversation: config, build, result; and every way in which it can end early."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from agent import control, wire
from agent import session as session_module
from agent.session import Send, Session
from tests.kit import cancel_at_every_checkpoint
from tests.unit.agent.test_control import CONFIG

HELLO = wire.Hello(1, "test")
GOOD = wire.BuildResult(seq=0, ok=True, image_digest="sha256:" + "0" * 64)


class Build:
    """A build that goes on until it is told what comes of it."""

    def __init__(self) -> None:
        self.configs: list[wire.Config] = []
        self.began = trio.Event()
        self.result = trio.Event()
        self.is_running = False

    async def __call__(self, config: wire.Config, send: Send) -> wire.BuildResult:
        self.configs.append(config)
        self.is_running = True
        try:
            await send([control.status("building")])
            self.began.set()
            await self.result.wait()
            return GOOD
        finally:
            self.is_running = False


class Supervisor:
    """The other end of a session."""

    def __init__(self, hello: wire.Hello | None = HELLO, warm: trio.Event | None = None) -> None:
        self.stream, theirs = trio.testing.memory_stream_pair()
        self.build = Build()
        self.session = Session(theirs, self.build, hello, warm)
        self.end = ""
        self._decoder = wire.FrameDecoder()
        self._pending: list[wire.Message | wire.Unknown] = []

    async def run(self) -> None:
        self.end = await self.session.run()

    async def send(self, *messages: wire.Message) -> None:
        for message in messages:
            await self.stream.send_all(wire.encode(message))

    async def receive(self) -> wire.Message | wire.Unknown:
        while not self._pending:
            data = await self.stream.receive_some()
            assert data, "the agent closed"
            self._pending.extend(self._decoder.feed(bytes(data)))
        return self._pending.pop(0)

    async def receive_status(self) -> str:
        message = await self.receive()
        assert isinstance(message, wire.Status)
        return message.phase

    async def start(self) -> None:
        assert await self.receive() == HELLO
        await self.send(CONFIG, wire.HostReady())
        assert await self.receive_status() == "building"


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


async def test_a_build_from_hello_to_result(nursery: trio.Nursery, supervisor: Supervisor) -> None:
    nursery.start_soon(supervisor.run)
    await supervisor.start()
    assert supervisor.build.configs == [CONFIG]
    supervisor.build.result.set()
    assert await supervisor.receive_status() == "done"
    result = await supervisor.receive()
    assert isinstance(result, wire.BuildResult)
    assert result.image_digest == GOOD.image_digest
    await supervisor.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert supervisor.session.is_over
    assert supervisor.end == "the supervisor closed its connection"


async def test_a_supervisor_that_was_greeted_is_not_greeted_again(nursery: trio.Nursery) -> None:
    supervisor = Supervisor(hello=None)
    nursery.start_soon(supervisor.run)
    await supervisor.send(wire.GetStatus())
    assert await supervisor.receive_status() == "idle"
    await supervisor.stream.aclose()


async def test_nothing_is_built_before_the_host_is_ready(
    nursery: trio.Nursery, supervisor: Supervisor
) -> None:
    nursery.start_soon(supervisor.run)
    await supervisor.receive()
    await supervisor.send(CONFIG, wire.GetStatus())
    assert await supervisor.receive_status() == "idle"
    assert not supervisor.build.configs
    await supervisor.stream.aclose()


async def test_status_is_answered_while_building(
    nursery: trio.Nursery, supervisor: Supervisor
) -> None:
    nursery.start_soon(supervisor.run)
    await supervisor.start()
    await supervisor.send(wire.GetStatus())
    assert await supervisor.receive_status() == "building"
    await supervisor.stream.aclose()


async def test_what_does_not_fit_is_answered_and_changes_nothing(
    nursery: trio.Nursery, supervisor: Supervisor
) -> None:
    nursery.start_soon(supervisor.run)
    await supervisor.start()
    await supervisor.send(CONFIG)
    assert isinstance(await supervisor.receive(), wire.Error)
    unknown = b"\xa1\x64type\x64news"
    await supervisor.stream.send_all(len(unknown).to_bytes(4, "big") + unknown)
    assert await supervisor.receive() == wire.Error("unknown message type 'news'")
    assert supervisor.build.is_running
    await supervisor.stream.aclose()


async def test_cancel_stops_the_build_and_says_so(
    nursery: trio.Nursery, supervisor: Supervisor
) -> None:
    nursery.start_soon(supervisor.run)
    await supervisor.start()
    await supervisor.send(wire.Cancel("the user asked"))
    assert await supervisor.receive_status() == "done"
    result = await supervisor.receive()
    assert isinstance(result, wire.BuildResult)
    assert (result.ok, result.error_code) == (False, "cancelled")
    assert "the user asked" in result.error
    assert not supervisor.build.is_running
    await supervisor.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert supervisor.session.is_over


async def test_cancel_before_a_build_ends_the_machine(
    nursery: trio.Nursery, supervisor: Supervisor
) -> None:
    nursery.start_soon(supervisor.run)
    await supervisor.receive()
    await supervisor.send(wire.Cancel("the pool shrinks"))
    assert await supervisor.receive_status() == "done"
    await supervisor.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert supervisor.session.is_over
    assert not supervisor.build.configs


async def test_a_lost_connection_stops_the_build(
    nursery: trio.Nursery, supervisor: Supervisor
) -> None:
    nursery.start_soon(supervisor.run)
    await supervisor.start()
    await supervisor.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert not supervisor.build.is_running
    assert supervisor.session.is_over


async def test_a_connection_lost_before_a_build_leaves_the_machine_to_another(
    nursery: trio.Nursery, supervisor: Supervisor
) -> None:
    nursery.start_soon(supervisor.run)
    await supervisor.receive()
    await supervisor.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert supervisor.end
    assert not supervisor.session.is_over


async def test_a_result_that_nobody_reads_is_not_waited_for_forever(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    supervisor: Supervisor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Sooner than a silent supervisor is given up anyway.
    monkeypatch.setattr(session_module, "READ_RESULT_SECONDS", 10.0)
    nursery.start_soon(supervisor.run)
    await supervisor.start()
    start = trio.current_time()
    supervisor.build.result.set()
    while await supervisor.stream.receive_some():
        pass
    assert trio.current_time() - start == pytest.approx(session_module.READ_RESULT_SECONDS)


async def test_a_supervisor_that_reads_nothing_can_still_stop_the_build(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def flood(config: wire.Config, send: Send) -> wire.BuildResult:
        while True:
            await send([wire.Log(seq=0, time=0.0, step="", stream=1, data=b"y" * 1000)])

    ours, theirs = trio.testing.lockstep_stream_pair()
    session = Session(theirs, flood, None)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await ours.send_all(wire.encode(CONFIG) + wire.encode(wire.HostReady()))
        await trio.testing.wait_all_tasks_blocked()
        await ours.send_all(wire.encode(wire.GetStatus()) * 100)  # answers that find no room
        await ours.send_all(wire.encode(wire.Cancel("enough")))
    assert session.is_over
    assert trio.current_time() - start <= session_module.READ_CANCELLED_SECONDS + 0.001


async def test_a_bug_in_the_build_is_not_hidden(supervisor: Supervisor) -> None:
    async def broken(config: wire.Config, send: Send) -> wire.BuildResult:
        raise ZeroDivisionError

    ours, theirs = trio.testing.memory_stream_pair()
    session = Session(theirs, broken, None)
    await ours.send_all(wire.encode(CONFIG) + wire.encode(wire.HostReady()))
    with pytest.RaisesGroup(ZeroDivisionError):
        await session.run()


async def test_cancelling_a_session_anywhere_leaves_no_build_running() -> None:
    made: list[Supervisor] = []

    async def operation() -> None:
        supervisor = Supervisor()
        made.append(supervisor)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            await supervisor.start()
            supervisor.build.result.set()
            while not isinstance(await supervisor.receive(), wire.BuildResult):
                pass
            await supervisor.stream.aclose()

    async def check(n: int) -> None:
        assert not made[-1].build.is_running

    assert await cancel_at_every_checkpoint(operation, check) > 5


async def test_a_machine_says_that_it_is_idle_when_it_is_warm(nursery: trio.Nursery) -> None:
    warm = trio.Event()
    supervisor = Supervisor(warm=warm)
    nursery.start_soon(supervisor.run)
    assert await supervisor.receive() == HELLO
    await supervisor.send(wire.GetStatus(), wire.Hello(1, "out of place"))
    assert isinstance(await supervisor.receive(), wire.Error), "what came later was answered first"
    warm.set()
    assert await supervisor.receive_status() == "idle"
    await supervisor.send(wire.GetStatus())
    assert await supervisor.receive_status() == "idle"
    await supervisor.stream.aclose()


async def test_a_machine_that_nobody_asked_says_nothing_when_it_is_warm(
    nursery: trio.Nursery,
) -> None:
    warm = trio.Event()
    supervisor = Supervisor(warm=warm)
    nursery.start_soon(supervisor.run)
    assert await supervisor.receive() == HELLO
    warm.set()
    await trio.testing.wait_all_tasks_blocked()
    await supervisor.send(CONFIG, wire.HostReady())
    assert await supervisor.receive_status() == "building"
    await supervisor.stream.aclose()


async def test_a_build_does_not_wait_until_its_machine_is_warm(nursery: trio.Nursery) -> None:
    supervisor = Supervisor(warm=trio.Event())
    nursery.start_soon(supervisor.run)
    assert await supervisor.receive() == HELLO
    await supervisor.send(wire.GetStatus(), CONFIG, wire.HostReady())
    assert await supervisor.receive_status() == "building"
    await supervisor.send(wire.GetStatus())
    assert await supervisor.receive_status() == "building"
    await supervisor.stream.aclose()
