"""The pool: machines that wait, the builds that get them, and what ends them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from agent import wire
from supervisor.actors import turns
from supervisor.actors.pool import MachineCounts, Pool
from supervisor.actors.pool_machine import PROBE_SECONDS
from supervisor.actors.turns import TURN_SECONDS
from supervisor.errors import VmBootFailed
from supervisor.model.build import BuildRequest, Phase, Policy, Reason, Status
from supervisor.runtime.logs import log
from supervisor.vm.machine import MachineSpec
from tests.actors.world import World, open_world
from tests.fakes import agent as agents
from tests.fakes.agent import Talk, Working, agent
from tests.fakes.hypervisor import FakeGuest, FakeHypervisor
from tests.kit import cancel_at_every_checkpoint
from tests.pools import CPUS, leased, open_pool, spec, wait_counts

DEFAULT = BuildRequest(Policy(timeout_seconds=600, memory_mb=2048, cpus=2))
OTHER_SHAPE = BuildRequest(Policy(timeout_seconds=600, memory_mb=1024, cpus=2))


@pytest.fixture
def events() -> Iterator[list[str]]:
    """What is logged while the test runs."""
    found: list[str] = []
    handler = log.add(lambda message: found.append(message.record["message"]), level="INFO")
    yield found
    log.remove(handler)


class Waits:
    """Whether somebody waits for his turn, and since when."""

    def __init__(self) -> None:
        self.since: float | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.since = trio.current_time()
        yield
        self.since = None


async def _lease_in_time(
    pool: Pool, wanted: MachineSpec, waits: Waits, *, task_status: trio.TaskStatus[trio.Event]
) -> None:
    """Lease a machine, some time after `started`, and give it up when told."""
    may_end = trio.Event()
    task_status.started(may_end)
    async with leased(pool, wanted, waits):
        await may_end.wait()


async def be_idle(talk: Talk) -> None:
    """Be an agent that no build ever comes to."""
    await talk.greet()


def fake(script: agents.Script = be_idle, **knobs: float) -> FakeHypervisor:
    return FakeHypervisor(agent(script), **knobs)


async def test_a_machine_waits_is_leased_once_and_is_replaced(autojump_clock: MockClock) -> None:
    hypervisor = fake(boot_delay=3)
    async with open_pool(hypervisor) as pool:
        await wait_counts(pool, idle=1)
        seen = []
        for name in ("build-1", "build-2"):
            before = trio.current_time()
            async with leased(pool, spec(name)) as lease:
                assert trio.current_time() == before
                assert lease.contact is not None
                assert lease.contact.hello.agent == "fake"
                seen.append(lease.machine.id)
                assert pool.machine_of(spec(name).id) == lease.machine.id
                await wait_counts(pool, idle=1, leased=1)
            assert seen[-1] not in hypervisor.running
        assert len(set(seen)) == 2
    assert not hypervisor.running


async def test_two_builds_at_once_get_two_machines(autojump_clock: MockClock) -> None:
    async with open_pool(fake(boot_delay=3)) as pool:
        await wait_counts(pool, idle=1)
        async with leased(pool, spec("build-1")) as warm, leased(pool, spec("build-2")) as second:
            assert warm.machine.id != second.machine.id


@pytest.mark.parametrize(
    "wanted",
    [spec(cpus=1), spec(cpus=4), spec(memory_mb=1024), spec(memory_mb=4096)],
    ids=["fewer processors", "more processors", "less memory", "more memory"],
)
async def test_another_shape_boots_a_machine_of_its_own(
    wanted: MachineSpec,
    autojump_clock: MockClock,
) -> None:
    hypervisor = fake()
    async with open_pool(hypervisor) as pool:
        await wait_counts(pool, idle=1)
        async with leased(pool, wanted) as lease:
            assert lease.contact is None
            assert lease.machine.id == wanted.id
            assert hypervisor.running[wanted.id].spec == wanted
            assert pool.counts == MachineCounts(booting=0, idle=1, leased=1)
        assert wanted.id not in hypervisor.running


async def test_without_a_pool_every_machine_is_booted_for_its_build(
    autojump_clock: MockClock,
) -> None:
    hypervisor = fake()
    async with open_pool(hypervisor, size=0) as pool:
        async with leased(pool, spec()) as lease:
            assert (lease.contact, lease.machine.id) == (None, spec().id)
        await trio.sleep(1000)
        assert hypervisor.booted == [spec()]


async def test_a_build_takes_a_machine_that_is_still_booting(autojump_clock: MockClock) -> None:
    hypervisor = fake(boot_delay=10)
    async with open_pool(hypervisor) as pool:
        await trio.sleep(4)
        before = trio.current_time()
        async with leased(pool, spec()) as lease:
            assert lease.contact is not None
            assert trio.current_time() - before == pytest.approx(6, abs=0.5)
        assert spec() not in hypervisor.booted


async def test_a_boot_that_fails_sends_the_build_to_a_machine_of_its_own(
    autojump_clock: MockClock, events: list[str]
) -> None:
    hypervisor = fake(boot_delay=10, fails_to_boot=1)
    async with open_pool(hypervisor, host_cpus=2) as pool:
        await trio.sleep(4)
        async with leased(pool, spec()) as lease:
            assert (lease.contact, lease.machine.id) == (None, spec().id)
    assert "pool.machine_unfit" in events


async def test_machines_come_up_one_after_the_other_if_each_wants_all_processors(
    autojump_clock: MockClock,
) -> None:
    hypervisor = fake(boot_delay=1)
    async with open_pool(hypervisor, size=0, host_cpus=CPUS + 1) as pool:
        async with leased(pool, spec("build-1")) as first, trio.open_nursery() as nursery:
            assert trio.current_time() == 1
            waits = Waits()
            second = await nursery.start(_lease_in_time, pool, spec("build-2"), waits)
            await trio.sleep(3)
            assert hypervisor.booted == [spec("build-1")]
            assert waits.since == 1
            assert first.turn is not None
            first.turn.end()
            await trio.sleep(0.5)
            assert waits.since is None
            second.set()
        assert trio.current_time() == 5
        assert hypervisor.booted == [spec("build-1"), spec("build-2")]


@pytest.mark.parametrize("fails", [0, 1], ids=["one that ends", "one that cannot be started"])
async def test_a_machine_that_is_gone_leaves_its_turn_to_the_next(
    fails: int, autojump_clock: MockClock
) -> None:
    async with open_pool(fake(fails_to_boot=fails), size=0, host_cpus=CPUS) as pool:
        with contextlib.suppress(BaseExceptionGroup):
            async with leased(pool, spec("build-1")):
                pass
        async with leased(pool, spec("build-2")):
            assert trio.current_time() < TURN_SECONDS


async def test_a_machine_of_the_pool_that_comes_up_keeps_no_build_waiting(
    autojump_clock: MockClock,
) -> None:
    async with open_pool(fake(boot_delay=10), host_cpus=CPUS) as pool:
        await trio.sleep(4)
        async with leased(pool, spec("other", memory_mb=1024)):
            assert trio.current_time() == pytest.approx(14, abs=0.5)


async def test_a_lease_that_is_cancelled_while_it_waits_for_its_turn_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    hypervisor = fake()
    async with (
        open_pool(hypervisor, size=0, host_cpus=CPUS) as pool,
        leased(pool, spec("build-1")) as first,
    ):
        with trio.move_on_after(1) as waiting:
            async with leased(pool, spec("build-2")):
                pass
        assert waiting.cancelled_caught
        assert pool.counts == MachineCounts(booting=0, idle=0, leased=1)
        assert hypervisor.booted == [spec("build-1")]
        assert first.turn is not None
        first.turn.end()
        async with leased(pool, spec("build-3")):
            assert trio.current_time() == pytest.approx(1)


async def test_a_turn_is_over_when_buildkit_serves_and_the_wait_for_it_is_no_part_of_the_timeout(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", math.inf)
    is_starting, may_serve, has_booted = trio.Event(), trio.Event(), trio.Event()

    async def serve_when_told(talk: Talk) -> None:
        if is_starting.is_set():
            has_booted.set()
        await talk.greet()
        await talk.phase("starting")
        is_starting.set()
        await may_serve.wait()
        await talk.phase("building")
        await trio.sleep_forever()

    hypervisor = fake(serve_when_told)
    async with open_world(
        data_dir, hypervisor=hypervisor, max_concurrent_source_builds=2, pool_size=0
    ) as world:
        with trio.fail_after(60):
            first = await world.submit(request=DEFAULT)
            await is_starting.wait()
            second = await world.submit(
                request=BuildRequest(replace(DEFAULT.policy, timeout_seconds=1))
            )
            await world.wait_status(second, Status.BUILDING)
            await trio.sleep(1.1)
            assert len(hypervisor.booted) == 1
            may_serve.set()
            await has_booted.wait()
            assert (await world.wait_end(second)).error_code is Reason.BUILD_TIMEOUT
            await world.builds.cancel(first)


async def test_a_cold_boot_that_fails_is_the_builds_to_hear(autojump_clock: MockClock) -> None:
    async with open_pool(fake(fails_to_boot=1), size=0) as pool:
        with pytest.RaisesGroup(VmBootFailed):
            async with leased(pool, spec()):
                pass
        assert pool.counts == MachineCounts(0, 0, 0)


async def test_boots_that_fail_are_tried_again_less_and_less_often(
    autojump_clock: MockClock,
) -> None:
    hypervisor = fake(fails_to_boot=math.inf)
    async with open_pool(hypervisor) as pool:
        await trio.sleep(64)  # 1 + 2 + 4 + 8 + 16 + 32
        assert pool.state.failures == 7
        await trio.sleep(600)  # once a minute
        assert 15 <= pool.state.failures <= 18
        hypervisor.fails_to_boot = 0
        await wait_counts(pool, idle=1)
        async with leased(pool, spec()):
            assert pool.state.failures == 0


async def test_a_guest_that_never_answers_is_given_up(autojump_clock: MockClock) -> None:
    hypervisor = fake()
    hypervisor.never_answers = True
    async with open_pool(hypervisor, boot_timeout=30) as pool:
        (first,) = [machine.id for machine in pool.state.waiting]
        await trio.sleep(31)
        assert pool.state.failures == 1
        assert first not in hypervisor.running


async def warm_up_after(seconds: float, talk: Talk) -> None:
    """Be alive, and for so long not fit for a build."""
    await talk.say(wire.Hello(protocol=wire.PROTOCOL_VERSION, agent="fake"))
    assert isinstance(await talk.hear(), wire.GetStatus)
    with trio.move_on_after(seconds):
        while True:
            await talk.say(wire.Heartbeat(agents.AGENT_TIME))
            await trio.sleep(wire.HEARTBEAT_SECONDS)
    await talk.say(wire.Status(1, agents.AGENT_TIME, "idle"))
    while True:
        await talk.say(wire.Heartbeat(agents.AGENT_TIME))
        await trio.sleep(wire.HEARTBEAT_SECONDS)


async def test_a_guest_that_is_alive_and_never_fit_for_a_build_is_replaced(
    autojump_clock: MockClock, events: list[str]
) -> None:
    hypervisor = fake(partial(warm_up_after, math.inf))
    async with open_pool(hypervisor, boot_timeout=30) as pool:
        (first,) = [machine.id for machine in pool.state.waiting]
        await trio.sleep(29)
        assert pool.counts == MachineCounts(booting=1, idle=0, leased=0)
        assert first in hypervisor.running
        hypervisor.guest = agent(be_idle)
        await trio.sleep(2)
        assert pool.state.failures == 1
        assert first not in hypervisor.running
        assert "pool.machine_lost" in events
        await wait_counts(pool, idle=1)


async def test_the_time_to_become_fit_for_a_build_begins_with_the_hello(
    autojump_clock: MockClock,
) -> None:
    hypervisor = fake(partial(warm_up_after, 25), boot_delay=25)
    async with open_pool(hypervisor, boot_timeout=30) as pool:
        (first,) = [machine.id for machine in pool.state.waiting]
        await wait_counts(pool, idle=1)
        await trio.sleep(100)
        assert list(hypervisor.running) == [first]
        assert pool.state.failures == 0


@pytest.mark.parametrize("way", ["killed", "powers off"])
async def test_a_machine_that_dies_while_it_waits_is_replaced(
    way: str, autojump_clock: MockClock, events: list[str]
) -> None:
    hypervisor = fake()
    async with open_pool(hypervisor) as pool:
        await wait_counts(pool, idle=1)
        (first,) = hypervisor.running.values()
        if way == "killed":
            first.kill()
        else:
            first.guest.end = "the guest powered off"
            first.guest.ended.set()
        while first.id in hypervisor.running:
            await pool.wait_change()
        await wait_counts(pool, idle=1)
        assert first.id not in hypervisor.running
    assert "pool.machine_lost" in events


async def hang(talk: Talk) -> None:
    """Answer once, be alive, and never answer again."""
    await talk.say(wire.Hello(protocol=wire.PROTOCOL_VERSION, agent="fake"))
    assert isinstance(await talk.hear(), wire.GetStatus)
    await talk.say(wire.Status(1, agents.AGENT_TIME, "idle"))
    while True:
        await talk.say(wire.Heartbeat(agents.AGENT_TIME))
        await trio.sleep(wire.HEARTBEAT_SECONDS)


async def fall_silent(talk: Talk) -> None:
    """Answer once, and be dead."""
    await talk.say(wire.Hello(protocol=wire.PROTOCOL_VERSION, agent="fake"))
    assert isinstance(await talk.hear(), wire.GetStatus)
    await talk.say(wire.Status(1, agents.AGENT_TIME, "idle"))
    await trio.sleep_forever()


async def chatter(talk: Talk) -> None:
    """Say what no agent without a build has to say."""
    await talk.say(wire.Hello(protocol=wire.PROTOCOL_VERSION, agent="fake"))
    await talk.log(b"hello?\n")
    await trio.sleep_forever()


async def test_a_machine_that_does_not_answer_at_its_lease_is_discarded(
    autojump_clock: MockClock, events: list[str]
) -> None:
    hypervisor = fake(hang)
    async with open_pool(hypervisor, host_cpus=2) as pool:
        await wait_counts(pool, idle=1)
        (sick,) = hypervisor.running
        before = trio.current_time()
        async with leased(pool, spec()) as lease:
            assert (lease.contact, lease.machine.id) == (None, spec().id)
            assert trio.current_time() - before <= PROBE_SECONDS + 1
            assert sick not in hypervisor.running
    assert "pool.machine_unfit" in events


async def test_after_a_machine_that_does_not_answer_the_next_one_is_taken(
    autojump_clock: MockClock,
) -> None:
    async def only_the_first_hangs(talk: Talk) -> None:
        await (hang if talk.guest.spec.id == "warm-1" else be_idle)(talk)

    async with open_pool(fake(only_the_first_hangs), size=2, host_cpus=2) as pool:
        await wait_counts(pool, idle=2)
        async with leased(pool, spec()) as lease:
            assert lease.contact is not None
            assert lease.machine.id == "warm-2"


@pytest.mark.parametrize("script", [fall_silent, chatter])
async def test_an_idle_agent_that_misbehaves_is_noticed_before_a_build_meets_it(
    script: agents.Script, autojump_clock: MockClock, events: list[str]
) -> None:
    hypervisor = fake(script)
    async with open_pool(hypervisor) as pool:
        await trio.sleep(0.1)
        hypervisor.guest = agent(be_idle)
        await trio.sleep(70)
        await wait_counts(pool, idle=1)
        async with leased(pool, spec()) as lease:
            assert lease.contact is not None
    assert "pool.machine_lost" in events


async def test_a_machine_that_waits_long_stays_healthy_until_it_is_too_old(
    autojump_clock: MockClock, events: list[str]
) -> None:
    hypervisor = fake()
    async with open_pool(hypervisor, max_age_seconds=1000) as pool:
        await wait_counts(pool, idle=1)
        (first,) = hypervisor.running
        await trio.sleep(990)
        assert list(hypervisor.running) == [first]
        await trio.sleep(20)
        await wait_counts(pool, idle=1)
        assert first not in hypervisor.running
        assert len(hypervisor.running) == 1
    assert "pool.machine_lost" not in events
    assert "pool.machine_retired" in events


async def test_no_port_of_the_host_is_open_to_a_machine_that_waits(
    autojump_clock: MockClock,
) -> None:
    reached: list[int] = []
    tried = trio.Event()

    async def try_ports(guest: FakeGuest) -> None:
        for port in (
            wire.REGISTRY_PORT, wire.EGRESS_PORT, wire.SOURCE_PORT, wire.SECRETS_PORT,
        ):  # fmt: skip
            try:
                await guest.connect(port)
            except TimeoutError:
                continue
            reached.append(port)
        tried.set()
        await agent(be_idle)(guest)

    async with open_pool(FakeHypervisor(try_ports)):
        await tried.wait()
    assert reached == []


async def test_builds_and_waiting_machines_share_the_capacity(autojump_clock: MockClock) -> None:
    hypervisor = fake()
    async with open_pool(hypervisor, capacity=2) as pool:
        await wait_counts(pool, idle=1)
        async with leased(pool, spec("a", cpus=1)):
            assert pool.counts == MachineCounts(booting=0, idle=1, leased=1)
            async with leased(pool, spec("b", cpus=1)):
                await wait_counts(pool, leased=2)
                await trio.sleep(1)
                assert set(hypervisor.running) == {"a", "b"}
            await wait_counts(pool, idle=1, leased=1)


async def test_nothing_boots_ahead_while_builds_use_all_processors(
    autojump_clock: MockClock,
) -> None:
    hypervisor = fake()
    async with open_pool(hypervisor, host_cpus=2) as pool:
        await wait_counts(pool, idle=1)
        async with leased(pool, spec()):
            await trio.sleep(1000)
            assert pool.counts == MachineCounts(booting=0, idle=0, leased=1)
        await wait_counts(pool, idle=1)


@pytest.mark.parametrize("state", ["booting", "idle"])
async def test_cancelling_a_lease_anywhere_leaves_no_machine(
    state: str, autojump_clock: MockClock
) -> None:
    hypervisor = fake(boot_delay=1)
    swept = 0

    async with open_pool(hypervisor, host_cpus=2) as pool:

        async def lease_one() -> None:
            async with leased(pool, spec()) as lease:
                assert lease.contact is not None

        async def check(_: int) -> None:
            assert pool.counts.leased == 0
            for machine in pool.state.waiting:
                pool.retire_nowait(machine.id)
            await trio.sleep(0.1)
            await wait_counts(pool, **{state: 1})
            assert len(hypervisor.running) == 1
            assert spec().id not in hypervisor.running

        await check(0)
        swept = await cancel_at_every_checkpoint(lease_one, check)
    assert swept > 5
    assert not hypervisor.running


async def test_the_death_of_the_daemon_at_any_moment_leaves_no_machine(
    autojump_clock: MockClock,
) -> None:
    hypervisor = fake(boot_delay=1)

    async def live() -> None:
        async with open_pool(hypervisor, size=2) as pool:
            await wait_counts(pool, idle=2)
            async with leased(pool, spec()):
                await wait_counts(pool, idle=2, leased=1)

    async def check(_: int) -> None:
        assert not hypervisor.running

    assert await cancel_at_every_checkpoint(live, check) > 20


async def test_a_crash_of_the_actor_loses_no_machine_and_the_pool_goes_on(
    autojump_clock: MockClock, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor = fake(boot_delay=1)
    async with open_pool(hypervisor, size=2) as pool:
        await wait_counts(pool, idle=2)
        async with leased(pool, spec()) as lease:
            await wait_counts(pool, idle=2, leased=1)
            before = set(hypervisor.running)
            with monkeypatch.context() as buggy:
                buggy.setattr("supervisor.actors.pool.plan_pool", _crash)
                pool.retire_nowait(next(iter(before - {lease.machine.id})))
                await trio.sleep(0.1)
                assert events.count("actor.crashed") == 1
                assert lease.machine.id in hypervisor.running
            await wait_counts(pool, idle=2, leased=1)
            assert len(set(hypervisor.running) & before) == 2
            assert len(hypervisor.running) == 3
    assert not hypervisor.running


def _crash(*_: object) -> None:
    raise KeyError("a bug")


async def test_a_bug_in_one_machine_is_logged_and_it_is_replaced(
    autojump_clock: MockClock, events: list[str]
) -> None:
    class Buggy(FakeHypervisor):
        async def run_machine(self, *args: object, **kwargs: object) -> None:
            self.run_machine = super().run_machine  # type: ignore[method-assign]
            raise KeyError("a bug")

    async with open_pool(Buggy(agent(be_idle))) as pool:
        await wait_counts(pool, idle=1)
    assert "pool.machine_crashed" in events


async def test_draining_ends_what_waits_and_keeps_what_is_leased(
    autojump_clock: MockClock,
) -> None:
    hypervisor = fake(boot_delay=1)
    async with open_pool(hypervisor, size=2) as pool:
        await wait_counts(pool, idle=2)
        async with leased(pool, spec()) as lease:
            pool.drain()
            await trio.sleep(1000)
            assert list(hypervisor.running) == [lease.machine.id]
        await trio.sleep(1000)
        assert not hypervisor.running


# -- with builds -------------------------------------------------------------------------------


async def test_a_build_uses_the_warm_machine_and_tells_so_in_its_phases(
    data_dir: Path, autojump_clock: MockClock, inline_threads: None
) -> None:
    hypervisor = FakeHypervisor(agent(agents.succeed), boot_delay=20)
    async with open_world(data_dir, hypervisor=hypervisor, pool_size=1) as world:
        for _ in range(2):
            await wait_counts(world.pool, idle=1)
            build = await world.wait_end(await world.submit(request=DEFAULT))
            assert build.status is Status.READY
            assert build.phases[Phase.LEASE] + build.phases[Phase.BOOT] < 1
            assert build.provenance is not None
            assert build.provenance.buildkit_version == "v0.32"
        await wait_counts(world.pool, idle=1)
        ids = [each.id for each in hypervisor.booted]
        assert len(set(ids)) == len(ids) == 3


async def test_a_build_of_another_shape_boots_cold(
    data_dir: Path, autojump_clock: MockClock, inline_threads: None
) -> None:
    hypervisor = FakeHypervisor(agent(agents.succeed), boot_delay=20)
    async with open_world(data_dir, hypervisor=hypervisor, pool_size=1) as world:
        await wait_counts(world.pool, idle=1)
        build = await world.wait_end(await world.submit(request=OTHER_SHAPE))
        assert build.status is Status.READY
        assert build.phases[Phase.LEASE] >= 20
        assert world.pool.counts.idle == 1


async def test_the_deadline_of_a_build_counts_its_wait_for_a_booting_machine(
    data_dir: Path, autojump_clock: MockClock, inline_threads: None
) -> None:
    hypervisor = FakeHypervisor(agent(agents.succeed), boot_delay=100)
    short = BuildRequest(Policy(timeout_seconds=30, memory_mb=2048, cpus=2))
    async with open_world(data_dir, hypervisor=hypervisor, pool_size=1) as world:
        await trio.sleep(1)
        build = await world.wait_end(await world.submit(request=short))
        assert build.error_code == Reason.BUILD_TIMEOUT
        assert world.pool.counts.leased == 0


async def test_cancelling_a_build_in_a_warm_machine_ends_the_machine(
    data_dir: Path, autojump_clock: MockClock, inline_threads: None
) -> None:
    working = Working()
    hypervisor = FakeHypervisor(agent(working))
    async with open_world(data_dir, hypervisor=hypervisor, pool_size=1) as world:
        await wait_counts(world.pool, idle=1)
        ours = await world.submit(request=DEFAULT)
        await working.is_building.wait()
        (used,) = hypervisor.running
        await world.builds.cancel(ours)
        assert (await world.wait_end(ours)).status is Status.CANCELLED
        assert used not in hypervisor.running


async def test_a_machine_that_dies_under_its_build_is_explained(
    data_dir: Path, autojump_clock: MockClock, inline_threads: None
) -> None:
    hypervisor = FakeHypervisor(agent(agents.power_off_early))
    async with open_world(data_dir, hypervisor=hypervisor, pool_size=1) as world:
        await wait_counts(world.pool, idle=1)
        build = await world.wait_end(await world.submit(request=DEFAULT))
        assert build.error_code == Reason.BUILDER_LOST
        assert build.error is not None
        assert "Out of memory" in build.error


async def test_many_builds_with_a_pool_all_end_and_no_machine_is_used_twice(
    data_dir: Path, autojump_clock: MockClock, inline_threads: None
) -> None:
    hypervisor = FakeHypervisor(agent(agents.succeed), boot_delay=2)
    async with open_world(
        data_dir, hypervisor=hypervisor, pool_size=2, max_concurrent_source_builds=4
    ) as world:
        async with trio.open_nursery() as nursery:
            for number in range(12):
                request = OTHER_SHAPE if number % 3 == 0 else DEFAULT
                nursery.start_soon(partial(_build, world, request))
        assert len({machine.id for machine in hypervisor.booted}) == len(hypervisor.booted)


async def _build(world: World, request: BuildRequest) -> None:
    build = await world.wait_end(await world.submit(request=request))
    assert build.status is Status.READY
