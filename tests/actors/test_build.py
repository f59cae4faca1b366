"""One build from its submission to its verdict, with guests of every kind."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from agent import wire
from supervisor.actors import build as build_module
from supervisor.actors.build import BuildActor
from supervisor.actors.hostports import GuestPort
from supervisor.actors.loss import NOT_STARTED, REAP_SECONDS
from supervisor.actors.phases import PhaseClock
from supervisor.api.views import render_build
from supervisor.egress.policy import Decision
from supervisor.egress.proxy import OnDecision
from supervisor.errors import HostError, NotFound, ResourceExhausted
from supervisor.model.build import (
    BuildRequest,
    ErrorReason,
    NetworkMode,
    Phase,
    Policy,
    Reason,
    SecretRef,
    Status,
)
from supervisor.model.ids import BuildId
from supervisor.runtime.logs import log
from supervisor.store import builds
from supervisor.store.database import Database
from supervisor.store.eventlog import BuildLog
from supervisor.vm.machine import MachineSpec
from tests.actors.world import World, contents, open_world, statuses
from tests.fakes import agent as agents
from tests.fakes.agent import DIGEST, Script, Working, agent
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.registry import FakeRegistry
from tests.kit import cancel_at_every_checkpoint
from tests.samples import CREATED_AT, POLICY, SOURCE, a_build

pytestmark = pytest.mark.usefixtures("inline_threads")

QUICK: dict[str, Any] = {"boot_timeout": 30.0, "link_silence": 20.0}
HAPPY = ["queued", "building", "pushing", "ready"]


def holding(content: bytes, directory: Path) -> list[Path]:
    """Return the files that hold `content`."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path for path in files if content in path.read_bytes()]


def hypervisor(script: Script, **knobs: float) -> FakeHypervisor:
    return FakeHypervisor(agent(script), **knobs)  # type: ignore[arg-type]


# -- the good end ------------------------------------------------------------------------------


async def test_a_build_that_succeeds_is_ready_with_all_that_belongs_to_it(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        build_id = await world.submit()
        events = await world.events(build_id)
        build = await world.wait_end(build_id)
        assert statuses(events) == HAPPY
        assert contents(events) == ["compiling", "linking", "no newline"]
        assert (build.status, build.attempt, build.image_digest) == (Status.READY, 1, DIGEST)
        assert set(build.phases) == set(Phase) - {Phase.SOURCE} | {Phase.SOURCE}
        assert build.started_at is not None
        assert build.completed_at is not None
        assert build.provenance is not None
        assert build.provenance.source_hash == f"sha256:{SOURCE.sha256}"
        assert build.provenance.builder_image_digest == world.deps.builder_image_digest
        assert build.provenance.buildkit_version == "v0.32"
        (step,) = await world.builds.steps(build_id)
        assert (step.name, step.completed_at) == ("[1/1] RUN make", agents.AGENT_TIME + 1)
        assert not world.hypervisor.running


async def test_the_text_of_a_build_reads_as_a_log(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        build_id = await world.submit()
        await world.wait_end(build_id)
        assert world.builds.log_path(build_id).read_text().splitlines() == [
            "[queued]",
            "[building]",
            "#1 [1/1] RUN make",
            "#1 compiling",
            "#1 linking",
            "#1 no newline",
            "#1 DONE 1.0s",
            "[pushing]",
            "[ready]",
        ]


async def test_the_file_for_people_tells_the_last_status(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        build_id = await world.submit()
        await world.wait_end(build_id)
        shown = json.loads((world.ledger.directory(build_id) / "metadata.json").read_text())
        assert (shown["status"], shown["image_digest"]) == ("ready", DIGEST)


async def test_the_machine_has_the_shape_that_was_asked_for(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        policy = replace(POLICY, cpus=3, memory_mb=777)
        build_id = await world.submit(request=BuildRequest(policy))
        await world.wait_end(build_id)
        (spec,) = world.hypervisor.booted
        assert (spec.id, spec.cpus, spec.memory_mb) == (f"{build_id}-1", 3, 777)


async def test_the_token_is_minted_at_the_boot_and_outlives_the_build(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    registry = FakeRegistry()
    async with open_world(data_dir, registry=registry) as world:
        short = await world.submit()
        await world.wait_end(short)
        long = await world.submit(request=BuildRequest(replace(POLICY, timeout_seconds=7000)))
        await world.wait_end(long)
    assert dict(registry.minted)[short] == build_module.MIN_TOKEN_SECONDS
    assert dict(registry.minted)[long] > 7000


async def test_an_image_name_is_given_below_the_tenant(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    for name, expected in (("app:1", "acme/app:1"), ("team/app", "acme/team/app:latest")):
        async with open_world(data_dir) as world:
            build_id = await world.submit(request=BuildRequest(POLICY, image_name=name))
            assert (await world.wait_end(build_id)).status is Status.READY
            assert world.registry.names == {expected: DIGEST}


async def test_a_name_that_the_registry_refuses_fails_the_push(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    registry = FakeRegistry()
    registry.refuses_names = True
    async with open_world(data_dir, registry=registry) as world:
        build_id = await world.submit(request=BuildRequest(POLICY, image_name="app:1"))
        build = await world.wait_end(build_id)
        assert (build.status, build.error_code) == (Status.FAILED, Reason.PUSH_FAILED)
        assert build.error == "an image cannot be named acme/app:1"


async def test_a_guest_that_talks_out_of_turn_is_told_so_and_may_go_on(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    fake = hypervisor(agents.say_what_is_not_its_to_say)
    async with open_world(data_dir, hypervisor=fake) as world:
        assert (await world.wait_end(await world.submit())).status is Status.READY


# -- what a guest may make of it ---------------------------------------------------------------


async def test_a_step_that_fails_fails_the_build_in_the_guests_words(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, hypervisor=hypervisor(agents.fail_step)) as world:
        build_id = await world.submit()
        events = await world.events(build_id)
        build = await world.wait_end(build_id)
        assert statuses(events) == ["queued", "building", "failed"]
        assert events[-1]["error_code"] == "build_failed"
        assert (build.status, build.error_code) == (Status.FAILED, Reason.BUILD_FAILED)
        assert build.error == "RUN make: exit code 2"
        assert build.image_digest is None


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        *((reason.value, reason) for reason in sorted(build_module.GUEST_REASONS)),
        ("cancelled", Reason.BUILD_FAILED),
        ("build_timeout", Reason.BUILD_FAILED),
        ("daemon_stopped", Reason.BUILD_FAILED),
        ("", Reason.BUILD_FAILED),
        ("surprise", Reason.BUILD_FAILED),
    ],
)
async def test_a_guest_gives_only_reasons_that_are_its_to_give(
    data_dir: Path, said: str, believed: Reason, autojump_clock: MockClock
) -> None:
    fake = hypervisor(partial(agents.fail_step, code=said))
    more = {
        Reason.OUT_OF_MEMORY: ErrorReason.GUEST_OUT_OF_MEMORY,
        Reason.OUT_OF_DISK: ErrorReason.GUEST_OUT_OF_DISK,
        Reason.BUILDER_LOST: ErrorReason.BUILDKIT_FAILED,
    }
    async with open_world(data_dir, hypervisor=fake) as world:
        build = await world.wait_end(await world.submit())
        assert (build.status, build.error_code) == (Status.FAILED, believed)
        assert build.error_reason is more.get(believed)


async def test_a_failure_without_a_word_gets_one(data_dir: Path, autojump_clock: MockClock) -> None:
    fake = hypervisor(partial(agents.fail_step, message=""))
    async with open_world(data_dir, hypervisor=fake) as world:
        assert (await world.wait_end(await world.submit())).error


@pytest.mark.parametrize("digest", [DIGEST, "", "latest", "sha256:../../x", "x" * 10_000])
async def test_an_image_that_the_registry_does_not_hold_is_not_believed(
    data_dir: Path, digest: str, autojump_clock: MockClock
) -> None:
    fake = hypervisor(partial(agents.claim_an_image, digest=digest))
    async with open_world(data_dir, hypervisor=fake) as world:
        build = await world.wait_end(await world.submit())
        assert (build.status, build.error_code) == (Status.FAILED, Reason.PUSH_FAILED)
        assert build.image_digest is None
        assert len(build.error or "") < 300


async def test_an_image_of_another_build_is_not_believed(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    registry = FakeRegistry()
    async with open_world(data_dir, registry=registry) as world:
        await world.wait_end(await world.submit())
        world.hypervisor.guest = agent(agents.claim_an_image)
        build = await world.wait_end(await world.submit())
        assert build.error_code is Reason.PUSH_FAILED


async def test_an_image_of_a_build_that_fails_is_not_kept(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    registry = FakeRegistry()
    fake = hypervisor(agents.push_and_fail)
    async with open_world(data_dir, hypervisor=fake, registry=registry) as world:
        build = await world.wait_end(await world.submit())
        assert build.error_code is Reason.BUILD_FAILED
        assert registry.images == set()


async def test_a_registry_that_never_answers_does_not_hold_a_failure_up(
    data_dir: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = FakeRegistry()

    async def hang(repository: str) -> bool:
        return await trio.sleep_forever()

    monkeypatch.setattr(registry, "delete_repository", hang)
    fake = hypervisor(agents.fail_step)
    async with open_world(data_dir, hypervisor=fake, registry=registry) as world:
        build = await world.wait_end(await world.submit())
        assert build.error_code is Reason.BUILD_FAILED
        assert build.attempt == 1


@pytest.mark.parametrize("reported", ["", "sha256:" + "0" * 64, "x" * 5000])
async def test_an_image_on_another_base_is_not_believed_whatever_the_guest_says_of_it(
    data_dir: Path, reported: str, autojump_clock: MockClock
) -> None:
    registry = FakeRegistry()
    fake = hypervisor(partial(agents.succeed_on, base=reported))
    request = BuildRequest(POLICY, base_image_digest=DIGEST)
    async with open_world(data_dir, hypervisor=fake, registry=registry) as world:
        build = await world.wait_end(await world.submit(request=request))
        assert build.error_code is Reason.BASE_IMAGE_MISMATCH
        assert DIGEST in (build.error or "")
        assert len(build.error or "") < 300
        assert registry.images == set()


async def test_an_image_on_the_base_that_was_asked_for_is_ready(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    fake = hypervisor(partial(agents.succeed_on, base=DIGEST))
    request = BuildRequest(POLICY, base_image_digest=DIGEST)
    async with open_world(data_dir, hypervisor=fake) as world:
        build = await world.wait_end(await world.submit(request=request))
        assert build.status is Status.READY
        assert build.provenance is not None
        assert build.provenance.base_image_digest == DIGEST


async def test_followers_are_told_what_became_of_requests_to_the_network(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async def serve_egress(port: GuestPort, policy: Policy, on_decision: OnDecision) -> None:
        await on_decision(Decision(True, "example.org", 443, "", 10, 20))
        await on_decision(Decision(False, "example.net", 80, "it is not in allowed_domains"))
        await trio.sleep_forever()

    request = BuildRequest(replace(POLICY, network_mode=NetworkMode.EGRESS))
    async with open_world(data_dir, serve_egress=serve_egress) as world:
        build_id = await world.submit(request=request)
        events = await world.events(build_id)
        told = [event["egress"] for event in events if event["type"] == "egress"]
        assert [(each["host"], each["allowed"]) for each in told] == [
            ("example.org", True),
            ("example.net", False),
        ]
        assert "[egress] denied example.net:80: it is not in allowed_domains" in contents(events)
        await world.wait_end(build_id)


@pytest.mark.parametrize(
    ("script", "why", "reason"),
    [
        (agents.never_say_hello, "said nothing for 20 s", ErrorReason.GUEST_SILENT),
        (agents.speak_another_protocol, "rebuild the builder", ErrorReason.PROTOCOL_BROKEN),
        (agents.send_garbage, "broke the protocol", ErrorReason.PROTOCOL_BROKEN),
        (agents.send_an_oversize_frame, "over the limit", ErrorReason.PROTOCOL_BROKEN),
        (agents.nest_deeply, "deeper", ErrorReason.PROTOCOL_BROKEN),
        (agents.cut_a_frame, "powered off", ErrorReason.GUEST_STOPPED),
        (agents.cut_the_link, "in the middle of a message", ErrorReason.LINK_LOST),
        (agents.hold_connections_half_open, "nothing for 20 s", ErrorReason.GUEST_SILENT),
        (agents.fall_silent, "said nothing for 20 s", ErrorReason.GUEST_SILENT),
        (agents.go_back_in_numbers, "after", ErrorReason.PROTOCOL_BROKEN),
        (agents.power_off_early, "panicked", ErrorReason.GUEST_STOPPED),
        (agents.die_unheard, "powered off", ErrorReason.BOOT_FAILED),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_guest_that_breaks_the_rules_loses_the_build(
    data_dir: Path, script: Script, why: str, reason: ErrorReason, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, hypervisor=hypervisor(script), **QUICK) as world:
        build_id = await world.submit()
        build = await world.wait_end(build_id)
        assert (build.status, build.error_code) == (Status.FAILED, Reason.BUILDER_LOST)
        assert why in (build.error or "")
        assert build.error_reason is reason
        assert build.attempt == 1
        assert not world.hypervisor.running
        evidence = (await world.builds.evidence(build_id)).decode()
        assert evidence.startswith(f"build {build_id}, attempt 1: builder_lost, {reason}\n")
        assert "[console]" in evidence


async def test_a_machine_that_dies_is_told_with_its_last_words(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    fake = hypervisor(agents.power_off_early)
    async with open_world(data_dir, hypervisor=fake) as world:
        build = await world.wait_end(await world.submit())
        assert build.error_code is Reason.BUILDER_LOST
        assert "panicked" in (build.error or "")
        assert "Killed process 1" in (build.error or "")
        assert "a fake VMM" not in (build.error or ""), "what the host says is not the tenant's"
        evidence = (await world.builds.evidence(build.id)).decode()
        assert "Killed process 1" in evidence
        assert "a fake VMM" in evidence
        last = evidence.rpartition("[messages]\n")[2].splitlines()
        assert last[-1].endswith("s ago: received status 1")
        assert any(line.endswith("s ago: sent config") for line in last)


async def test_a_vmm_that_does_not_answer_is_told_from_an_agent_that_does_not(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    fake = hypervisor(agents.fall_silent)
    async with open_world(data_dir, hypervisor=fake, **QUICK) as world:
        build_id = await world.submit()
        await trio.testing.wait_all_tasks_blocked()
        (machine,) = fake.running.values()
        machine.is_paused = True
        build = await world.wait_end(build_id)
        assert build.error_reason is ErrorReason.VMM_UNRESPONSIVE
        assert "its VMM does not answer, either" in (build.error or "")


async def test_evidence_that_cannot_be_written_costs_nothing_else(
    data_dir: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise ResourceExhausted("evidence.txt cannot be written: No space left on device")

    async with open_world(data_dir, hypervisor=hypervisor(agents.power_off_early)) as world:
        monkeypatch.setattr(world.ledger, "keep_evidence", refuse)
        build = await world.wait_end(await world.submit())
        assert build.error_reason is ErrorReason.GUEST_STOPPED
        with pytest.raises(NotFound, match="left no evidence"):
            await world.builds.evidence(build.id)


async def test_a_machine_that_is_killed_is_told_as_such(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    fake = hypervisor(working)
    async with open_world(data_dir, hypervisor=fake) as world:
        build_id = await world.submit()
        await working.is_building.wait()
        (machine,) = fake.running.values()
        machine.kill()
        build = await world.wait_end(build_id)
        assert build.error_code is Reason.BUILDER_LOST
        assert build.error_reason is ErrorReason.VMM_EXITED
        assert "SIGKILL" in (build.error or "")


async def test_a_machine_that_cannot_boot_fails_the_build_with_its_evidence(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    fake = hypervisor(agents.succeed, fails_to_boot=1)
    async with open_world(data_dir, hypervisor=fake) as world:
        build_id = await world.submit()
        build = await world.wait_end(build_id)
        assert (build.status, build.error_code) == (Status.FAILED, Reason.BUILDER_LOST)
        assert build.error_reason is ErrorReason.BOOT_FAILED
        assert build.error == NOT_STARTED
        files = holding(b"/run/hypeman", world.ledger.directory(build_id))
        assert files == [world.ledger.evidence_path(build_id)], "what the host says is not theirs"
        assert b"/run/hypeman" not in json.dumps(await world.events(build_id)).encode()
        evidence = (await world.builds.evidence(build_id)).decode()
        said = evidence.rpartition("[VMM]\n")[2]
        assert "the directory /run/hypeman/" in said
        assert "a fake console" in said
        assert (await world.wait_end(await world.submit())).status is Status.READY


async def test_what_the_host_refuses_is_told_to_the_operator_alone(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def refuse(self: BuildActor) -> None:
        raise HostError("/etc/hypeman/secrets/acme/key cannot be read: Permission denied")

    said: list[str] = []
    sink = log.add(
        lambda message: said.append(message.record["extra"].get("why", "")), level="ERROR"
    )
    monkeypatch.setattr(BuildActor, "_read_secrets", refuse)
    async with open_world(data_dir) as world:
        build_id = await world.submit()
        build = await world.wait_end(build_id)
        assert (build.status, build.error_code) == (Status.FAILED, Reason.BUILDER_LOST)
        assert build.error_reason is ErrorReason.HOST_FAILED
        assert build.error == build_module.HOST_FAILED
        assert not holding(b"/etc/hypeman", world.ledger.directory(build_id))
    log.remove(sink)
    assert said == ["/etc/hypeman/secrets/acme/key cannot be read: Permission denied"]


async def test_a_host_without_room_for_a_machines_disk_is_told_as_such(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise ResourceExhausted("a scratch disk cannot be made: No space left on device")

    fake = hypervisor(agents.succeed)
    async with open_world(data_dir, hypervisor=fake) as world:
        with monkeypatch.context() as full:
            full.setattr(fake, "run_machine", refuse)
            build = await world.wait_end(await world.submit())
        assert (build.status, build.error_code) == (Status.FAILED, Reason.OUT_OF_DISK)
        assert build.error_reason is ErrorReason.HOST_OUT_OF_DISK
        assert "No space left" in (build.error or "")
        assert (await world.wait_end(await world.submit())).status is Status.READY


async def test_a_guest_that_never_listens_is_given_up_after_the_boot_timeout(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    fake = FakeHypervisor(never_answers=True)
    async with open_world(data_dir, hypervisor=fake, **QUICK) as world:
        began = trio.current_time()
        build = await world.wait_end(await world.submit())
        assert build.error_code is Reason.BUILDER_LOST
        assert build.error_reason is ErrorReason.BOOT_TIMEOUT
        assert "did not boot within 30 s" in (build.error or "")
        assert trio.current_time() - began < 30 + REAP_SECONDS + 1


# -- time --------------------------------------------------------------------------------------


async def test_a_build_that_takes_too_long_ends_at_its_timeout(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=hypervisor(working)) as world:
        began = trio.current_time()
        build_id = await world.submit(request=BuildRequest(replace(POLICY, timeout_seconds=20)))
        build = await world.wait_end(build_id)
        assert (build.status, build.error_code) == (Status.FAILED, Reason.BUILD_TIMEOUT)
        assert "20 s" in (build.error or "")
        assert 20 <= trio.current_time() - began < 22
        assert build.phases[Phase.BUILD] == pytest.approx(20, abs=1)
        assert not world.hypervisor.running


async def test_the_timeout_counts_from_the_lease_of_the_machine(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    fake = hypervisor(Working(), boot_delay=25)
    async with open_world(data_dir, hypervisor=fake) as world:
        build_id = await world.submit(request=BuildRequest(replace(POLICY, timeout_seconds=20)))
        build = await world.wait_end(build_id)
        assert build.error_code is Reason.BUILD_TIMEOUT
        assert not fake.booted


@pytest.mark.parametrize("jump_seconds", [7 * 86_400.0, -7 * 86_400.0])
async def test_a_clock_that_jumps_while_a_build_runs_changes_neither_deadline_nor_durations(
    data_dir: Path,
    jump_seconds: float,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=FakeHypervisor(agent(working))) as world:
        request = BuildRequest(replace(POLICY, timeout_seconds=60))
        ours = await world.submit(request=request)
        await world.wait_status(ours, Status.BUILDING)
        began = trio.current_time()
        monkeypatch.setattr(world.ledger, "clock", lambda: CREATED_AT + jump_seconds)
        build = await world.wait_end(ours)
        assert build.error_code is Reason.BUILD_TIMEOUT
        assert 50 < trio.current_time() - began < 70
        assert all(0 <= seconds < 100 for seconds in build.phases.values())
        shown = render_build(build, queue_position=None, registry_address="r")
        assert shown["duration_ms"] >= 0


async def test_the_guest_is_told_how_much_time_is_left(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    seconds: list[float] = []

    async def note(talk: agents.Talk) -> None:
        await talk.greet()
        seconds.append(talk.config.timeout_seconds)

    async with open_world(data_dir, hypervisor=hypervisor(note, boot_delay=15)) as world:
        await world.wait_end(await world.submit())
    assert seconds == [pytest.approx(585, abs=1)]


def test_phases_add_up_and_are_handed_out_as_a_copy() -> None:
    async def main() -> None:
        clock = PhaseClock(Phase.LEASE)
        await trio.sleep(1)
        clock.enter(Phase.BUILD)
        await trio.sleep(2)
        clock.enter(Phase.BUILD)
        clock.enter(Phase.PUSH)
        await trio.sleep(4)
        clock.enter(Phase.BUILD)
        await trio.sleep(8)
        clock.stop()
        phases = clock.phases
        await trio.sleep(16)
        clock.stop()
        assert clock.phases == phases == {Phase.LEASE: 1, Phase.BUILD: 10, Phase.PUSH: 4}
        assert clock.phases is not phases

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# -- output ------------------------------------------------------------------------------------


async def test_the_last_words_of_a_lost_guest_are_kept(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async def die_in_the_middle_of_a_line(talk: agents.Talk) -> None:
        await talk.greet()
        await talk.log(b"first\nlast words")

    fake = hypervisor(die_in_the_middle_of_a_line)
    async with open_world(data_dir, hypervisor=fake) as world:
        build_id = await world.submit()
        assert (await world.wait_end(build_id)).error_code is Reason.BUILDER_LOST
        assert contents(await world.events(build_id)) == ["first", "last words"]


async def test_a_log_is_cut_at_its_limit_and_the_build_goes_on(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    sent = 4 << 20
    fake = hypervisor(partial(agents.flood_the_log, total_bytes=sent, line=b"yes\n"))
    async with open_world(data_dir, hypervisor=fake, max_log_bytes=1 << 20) as world:
        build_id = await world.submit()
        events = await world.events(build_id)
        assert statuses(events) == HAPPY
        *output, cut, missing = contents(events)
        assert cut == "[the log is cut here: it has reached 1048576 bytes]"
        assert output == ["yes"] * len(output)
        dropped = sent - 4 * len(output)
        assert missing == f"[{dropped} bytes of output were not stored: MAX_LOG_BYTES is 1048576]"
        stored = sum(p.stat().st_size for p in world.ledger.logs.directory(build_id).iterdir())
        assert stored < (1 << 20) + (256 << 10)


@pytest.mark.parametrize("line", [b"\n", b"\x01", b"\xff\n"])
async def test_no_kind_of_output_takes_more_disk_than_the_limit(
    data_dir: Path, line: bytes, autojump_clock: MockClock
) -> None:
    fake = hypervisor(partial(agents.flood_the_log, total_bytes=2 << 20, line=line))
    async with open_world(data_dir, hypervisor=fake, max_log_bytes=1 << 20) as world:
        build_id = await world.submit()
        assert (await world.wait_end(build_id)).status is Status.READY
        stored = sum(p.stat().st_size for p in world.ledger.logs.directory(build_id).iterdir())
        assert stored < (1 << 20) + (256 << 10)


async def test_steps_that_change_for_ever_take_no_more_disk_either(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    fake = hypervisor(agents.flood_with_steps)
    async with open_world(data_dir, hypervisor=fake, max_log_bytes=1 << 20) as world:
        build_id = await world.submit()
        assert (await world.wait_end(build_id)).status is Status.READY
        stored = sum(p.stat().st_size for p in world.ledger.logs.directory(build_id).iterdir())
        assert stored < (1 << 20) + (256 << 10)


async def test_a_full_disk_under_the_log_ends_the_build_and_every_follower(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    def refuse(self: BuildLog, data: bytes, text: bytes) -> None:
        raise ResourceExhausted("the log cannot be written: No space left on device")

    go_on = trio.Event()

    async def print_twice(talk: agents.Talk) -> None:
        await talk.greet()
        await talk.log(b"before\n")
        await go_on.wait()
        await talk.log(b"after\n")
        await talk.hear()
        await trio.sleep_forever()

    async with open_world(data_dir, hypervisor=hypervisor(print_twice)) as world:
        build_id = await world.submit()
        await world.wait_output(build_id, "before")
        with monkeypatch.context() as full:
            full.setattr(BuildLog, "_append_sync", refuse)
            go_on.set()
            heard = await world.events(build_id)
            assert statuses(heard) == ["queued", "building"]
            build = await world.wait_end(build_id)
        assert (build.status, build.error_code) == (Status.FAILED, Reason.OUT_OF_DISK)
        assert "No space left" in (build.error or "")
        assert not world.hypervisor.running
        # The disk has room again: the end is announced once, to whoever asks.
        for _ in range(2):
            heard = await world.events(build_id)
            assert statuses(heard) == ["queued", "building", "failed"]
            assert contents(heard) == ["before"]


async def test_a_verdict_that_the_database_refuses_means_another_attempt(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    working = Working()
    run_sync = Database.run_sync

    def refuse_updates(self: Database, unit: Any, *args: Any, **kwargs: Any) -> Any:
        if unit in (builds.update_build, builds.set_steps):
            raise ResourceExhausted("the database cannot be written: the disk is full")
        return run_sync(self, unit, *args, **kwargs)

    async with open_world(data_dir, hypervisor=hypervisor(working)) as world:
        build_id = await world.submit()
        await working.is_building.wait()
        with monkeypatch.context() as full:
            full.setattr(Database, "run_sync", refuse_updates)
            working.may_finish.set()
            await trio.sleep(60)
            assert not world.hypervisor.running
            assert (await world.builds.get(build_id)).status is Status.BUILDING
        build = await world.wait_end(build_id)
        assert (build.status, build.attempt) == (Status.READY, 2)


# -- secrets -----------------------------------------------------------------------------------


async def test_a_missing_secret_fails_the_build_before_anything_boots(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    (data_dir / "secrets").mkdir()
    async with open_world(data_dir, build_secrets_dir=data_dir / "secrets") as world:
        request = BuildRequest(POLICY, secrets=(SecretRef("npm_token"),))
        build = await world.wait_end(await world.submit(request=request))
        assert (build.status, build.error_code) == (Status.FAILED, Reason.SECRET_NOT_FOUND)
        assert not world.hypervisor.booted


async def test_a_secret_is_handed_over_once_and_is_nowhere_else(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    (data_dir / "secrets" / "acme").mkdir(parents=True)
    (data_dir / "secrets" / "acme" / "npm_token").write_bytes(b"hunter2")
    heard: list[object] = []

    async def ask(talk: agents.Talk) -> None:
        await talk.greet()
        async with await talk.guest.connect(wire.SECRETS_PORT) as stream:
            await stream.send_all(wire.encode(wire.GetSecrets(("npm_token", "other"))))
            heard.extend(wire.FrameDecoder().feed(await stream.receive_some()))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TimeoutError):
            await talk.guest.connect(wire.SECRETS_PORT)
        await talk.phase("pushing")
        await talk.push()
        await talk.result(ok=True, digest=DIGEST)

    directory = data_dir / "secrets"
    async with open_world(
        data_dir, hypervisor=hypervisor(ask), build_secrets_dir=directory
    ) as world:
        request = BuildRequest(POLICY, secrets=(SecretRef("npm_token"),))
        build_id = await world.submit(request=request)
        assert (await world.wait_end(build_id)).status is Status.READY
        assert heard == [wire.SecretsResponse({"npm_token": b"hunter2"})]
    assert holding(b"hunter2", data_dir) == [directory / "acme" / "npm_token"]


# -- cancellation ------------------------------------------------------------------------------


async def cancelled(world: World, build_id: str) -> None:
    build = await world.wait_end(build_id)  # type: ignore[arg-type]
    assert (build.status, build.error_code) == (Status.CANCELLED, Reason.CANCELLED)
    assert build.completed_at is not None
    assert not world.hypervisor.running


async def test_a_build_can_be_cancelled_while_its_machine_boots(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    fake = hypervisor(agents.succeed, boot_delay=60)
    async with open_world(data_dir, hypervisor=fake) as world:
        build_id = await world.submit()
        await world.wait_status(build_id, Status.BUILDING)
        await trio.sleep(30)
        assert fake.running
        await world.builds.cancel(build_id)
        await cancelled(world, build_id)
        assert not fake.booted


async def test_a_build_can_be_cancelled_while_it_builds(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=hypervisor(working)) as world:
        build_id = await world.submit()
        await world.wait_output(build_id, "working")
        await world.builds.cancel(build_id)
        await cancelled(world, build_id)
        events = await world.events(build_id)
        assert statuses(events) == ["queued", "building", "cancelled"]
        assert contents(events) == ["working"]


async def test_a_build_can_be_cancelled_twice(data_dir: Path, autojump_clock: MockClock) -> None:
    working = Working()
    async with open_world(data_dir, hypervisor=hypervisor(working)) as world:
        build_id = await world.submit()
        await working.is_building.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.builds.cancel, build_id)
            nursery.start_soon(world.builds.cancel, build_id)
        await cancelled(world, build_id)


@pytest.mark.parametrize("end", ["the daemon dies", "cancel", "interrupt"])
async def test_an_attempt_that_ends_anywhere_leaves_no_machine_and_a_build_that_can_go_on(
    data_dir: Path, end: str, autojump_clock: MockClock
) -> None:
    """Sweep an attempt: at each step something ends it. What is stored is final or recoverable."""
    number = 0
    ended: dict[BuildId, bool] = {}

    async def attempt() -> None:
        nonlocal number
        number += 1
        build = a_build(number, status=Status.BUILDING, attempt=1)
        world.ledger.source_path(build.id).parent.mkdir(parents=True)
        world.ledger.source_path(build.id).write_bytes(b"not really an archive")
        await world.ledger.enter(build)
        actor = build_module.BuildActor(build, world.deps)
        if end == "the daemon dies":
            await actor.run()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_cancelled, actor, end, ended)
            with trio.CancelScope(shield=True):
                await actor.run()
            nursery.cancel_scope.cancel(reason="the attempt is over")

    async def check(_: int) -> None:
        assert not world.hypervisor.running
        assert world.ledger.logs.open_count == 0
        try:
            build = await world.builds.get(a_build(number).id)
        except NotFound:
            return  # cancelled before it was submitted
        if end == "the daemon dies":
            assert build.status in (Status.BUILDING, Status.PUSHING, Status.READY)
        elif ended.get(build.id, True):
            assert build.status is Status.READY
        else:
            assert build.status is (Status.CANCELLED if end == "cancel" else Status.QUEUED)

    async with open_world(data_dir) as world:
        swept = await cancel_at_every_checkpoint(attempt, check, most=2000)
    assert swept > 50


async def _end_when_cancelled(
    actor: build_module.BuildActor, end: str, ended: dict[BuildId, bool]
) -> None:
    """When cancelled, end the actor; note whether it had a verdict before."""
    try:
        await trio.sleep_forever()
    finally:
        ended[actor.id] = actor._verdict is not None
        if end == "cancel":
            actor.cancel()
        else:
            actor.interrupt()


async def test_a_verdict_stands_against_a_cancellation_that_comes_later(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir) as world:
        build = a_build(status=Status.BUILDING, attempt=1)
        world.ledger.source_path(build.id).parent.mkdir(parents=True)
        world.ledger.source_path(build.id).write_bytes(b"not really an archive")
        await world.ledger.enter(build)
        actor = build_module.BuildActor(build, world.deps)
        await actor.run()
        actor.cancel()
        actor.interrupt()
        assert actor.build.status is Status.READY
        assert (await world.builds.get(build.id)).status is Status.READY


class _LeavesBadly(FakeHypervisor):
    """A driver whose clean-up fails."""

    async def run_machine(
        self, spec: MachineSpec, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await super().run_machine(spec, task_status=task_status)
        finally:
            raise OSError("the directory of the machine cannot be removed")


async def test_a_verdict_stands_when_the_machine_cannot_be_cleaned_up(
    data_dir: Path, autojump_clock: MockClock
) -> None:
    async with open_world(data_dir, hypervisor=_LeavesBadly(agent(agents.succeed))) as world:
        build = await world.wait_end(await world.submit())
    assert (build.status, build.attempt) == (Status.READY, 1)
