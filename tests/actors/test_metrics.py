"""The counters are what has happened, and the gauges what is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from trio.testing import MockClock

from supervisor.actors.gauges import watch_actors
from supervisor.model.build import BuildRequest, Phase, Status
from supervisor.model.ids import BuildId
from supervisor.runtime.metrics import Metrics
from tests.actors.world import open_world
from tests.fakes.agent import (
    Script,
    Talk,
    Working,
    agent,
    claim_an_image,
    fail_step,
    fall_silent,
    never_say_hello,
    power_off_early,
    succeed,
)
from tests.fakes.hypervisor import FakeHypervisor
from tests.pools import open_pool, wait_counts
from tests.samples import POLICY

pytestmark = pytest.mark.usefixtures("inline_threads")

NOBODY = {"booting": 0, "idle": 0, "leased": 0}


def machines(metrics: Metrics) -> dict[str, float | None]:
    read = metrics.registry.get_sample_value
    return {state: read("hypeman_machines", {"state": state}) for state in NOBODY}


def ended(metrics: Metrics, name: str = "hypeman_builds_total") -> dict[str, float | None]:
    final = [status.value for status in Status if status.is_final]
    read = metrics.registry.get_sample_value
    return {status: read(name, {"status": status}) for status in final}


async def test_every_end_is_counted_once_and_nothing_is_left_in_the_gauges(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    metrics, held, endless = Metrics(), Working(), Working()
    scripts: list[Script] = [
        held,
        succeed,
        fail_step,
        claim_an_image,
        power_off_early,
        fall_silent,
        never_say_hello,
        endless,
        succeed,
    ]
    turns = iter(scripts)

    async def play(talk: Talk) -> None:
        await next(turns)(talk)

    async with open_world(
        data_dir,
        hypervisor=FakeHypervisor(agent(play)),
        on_end=metrics.count_end,
        max_concurrent_source_builds=1,
    ) as world:
        watch_actors(metrics, world.queue, world.runner, world.pool)
        read = metrics.registry.get_sample_value
        assert ended(metrics) == {"ready": 0, "failed": 0, "cancelled": 0}
        ours: list[BuildId] = []
        for script in scripts:
            seconds = 100 if script is endless else POLICY.timeout_seconds
            request = BuildRequest(replace(POLICY, timeout_seconds=seconds))
            ours.append(await world.submit(request=request))
        waits_for_ever = await world.submit()
        await world.wait_output(ours[0], "working")
        assert machines(metrics) == {**NOBODY, "leased": 1}
        assert read("hypeman_builds_active") == 1
        assert read("hypeman_build_queue_length") == len(scripts)
        await world.builds.cancel(waits_for_ever)
        await world.wait_end(waits_for_ever)
        assert ended(metrics) == {"ready": 0, "failed": 0, "cancelled": 1}
        await world.builds.cancel(ours[0])
        codes = [(await world.wait_end(each)).error_code for each in ours]
        assert codes == [
            "cancelled",
            None,
            "build_failed",
            "push_failed",
            "builder_lost",
            "builder_lost",
            "builder_lost",
            "build_timeout",
            None,
        ]
        assert ended(metrics) == {"ready": 2, "failed": 6, "cancelled": 2}
        started = ended(metrics, "hypeman_build_duration_seconds_count")
        assert started == {"ready": 2, "failed": 6, "cancelled": 1}, "one has never started"
        ends = [await world.builds.get(each) for each in (*ours, waits_for_ever)]
        for phase in Phase:
            spent = [build.phases[phase] for build in ends if phase in build.phases]
            labels = {"phase": phase.value}
            assert read("hypeman_build_phase_seconds_count", labels) == (len(spent) or None)
            if spent:
                told = read("hypeman_build_phase_seconds_sum", labels)
                assert told == pytest.approx(sum(spent))
        assert machines(metrics) == NOBODY
        assert read("hypeman_builds_active") == read("hypeman_build_queue_length") == 0

    again = Metrics()
    async with open_world(data_dir, on_end=again.count_end) as world:
        await world.wait_end(await world.submit())
        assert ended(again) == {"ready": 1, "failed": 0, "cancelled": 0}, "an end is told once"


async def test_machines_that_wait_are_those_of_the_pool(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async def be_idle(talk: Talk) -> None:
        await talk.greet()

    metrics = Metrics()
    hypervisor = FakeHypervisor(agent(be_idle), boot_delay=3)
    async with open_world(data_dir) as world, open_pool(hypervisor) as pool:
        watch_actors(metrics, world.queue, world.runner, pool)
        await wait_counts(pool, booting=1)
        assert machines(metrics) == {**NOBODY, "booting": 1}
        await wait_counts(pool, idle=1)
        assert machines(metrics) == {**NOBODY, "idle": 1}
