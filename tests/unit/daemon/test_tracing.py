"""Traces of builds, sent to a collector over HTTP that reads the protocol's own messages."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio
from loguru import logger
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.proto.trace.v1.trace_pb2 import Status as SpanStatus

from supervisor.daemon import tracing
from supervisor.daemon.tracing import MAX_WAITING_SPANS, SPANS_AT_ONCE, open_tracing
from supervisor.model.build import Build, BuildRequest, Phase, Reason, Status
from supervisor.model.ids import BuildId
from supervisor.model.times import MAX_UNIX_SECONDS
from tests.actors.world import open_world
from tests.fakes.agent import Script, Talk, Working, agent, fail_step, succeed
from tests.fakes.collector import Collector, collecting
from tests.fakes.hypervisor import FakeHypervisor
from tests.samples import POLICY, a_build


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The daemon's log."""
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="INFO")
    yield lines
    logger.remove(sink)


@pytest.fixture(autouse=True)
def _real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is sent is sent when the block is left, however busy the machine is.
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 60.0)
    monkeypatch.setattr(tracing, "SEND_EVERY_SECONDS", 3600.0)


def ended(number: int = 1, **changes: Any) -> Build:
    first = a_build(number)
    return replace(
        first,
        status=Status.READY,
        attempt=1,
        started_at=first.created_at + 1,
        completed_at=first.created_at + 9,
        phases={Phase.QUEUE: 1.0, Phase.LEASE: 0.5, Phase.BUILD: 7.0},
        **changes,
    )


async def test_each_build_is_one_trace_with_a_span_for_each_of_its_phases(
    tmp_path: Path, collector: Collector
) -> None:
    held = Working()
    scripts: Iterator[Script] = iter([succeed, fail_step, held])

    async def play(talk: Talk) -> None:
        await next(scripts)(talk)

    builds: dict[str, Build] = {}
    async with (
        open_tracing(collector.url + "/") as tell,
        open_world(
            tmp_path,
            hypervisor=FakeHypervisor(agent(play)),
            on_end=tell,
            max_concurrent_source_builds=1,
        ) as world,
    ):
        ours = [await world.submit(), await world.submit(), await world.submit()]
        never = await world.submit()
        await world.wait_output(ours[2], "working")
        for each in (never, ours[2]):
            await world.builds.cancel(each)
        for each in (*ours, never):
            builds[each] = await world.wait_end(each)
    assert collector.paths == {"/v1/traces"}
    traces: dict[bytes, list[Span]] = {}
    for span in collector.spans():
        traces.setdefault(span.trace_id, []).append(span)
    assert len(traces) == len(builds) == 4
    codes = []
    for spans in traces.values():
        (whole,) = [span for span in spans if not span.parent_span_id]
        parts = [span for span in spans if span is not whole]
        assert {span.parent_span_id for span in parts} == {whole.span_id}
        facts = {each.key: each.value for each in whole.attributes}
        build = builds.pop(facts["hypeman.build.id"].string_value)
        assert facts["hypeman.build.tenant"].string_value == build.tenant
        assert facts["hypeman.build.status"].string_value == build.status
        codes.append(facts["error.type"].string_value if "error.type" in facts else "")
        assert whole.name == tracing.ROOT
        assert whole.start_time_unix_nano / 1e9 == pytest.approx(build.created_at)
        assert build.completed_at is not None
        assert whole.end_time_unix_nano / 1e9 == pytest.approx(build.completed_at)
        is_error = whole.status.code == SpanStatus.STATUS_CODE_ERROR
        assert is_error is (build.status is Status.FAILED)
        took = {s.name: (s.end_time_unix_nano - s.start_time_unix_nano) / 1e9 for s in parts}
        assert took == pytest.approx(
            {phase.value: seconds for phase, seconds in build.phases.items()}, abs=1e-5
        )
    assert sorted(codes) == ["", "build_failed", "cancelled", "cancelled"]
    (resource,) = {
        r.resource.SerializeToString() for e in collector.requests() for r in e.resource_spans
    }
    assert b"hypeman" in resource


async def test_nothing_that_a_user_or_a_guest_wrote_is_in_a_trace(collector: Collector) -> None:
    secret = "hunter2"
    request = BuildRequest(
        POLICY,
        dockerfile=f"FROM {secret}",
        dockerfile_path=secret,
        target=secret,
        build_args={secret: secret},
        tags={secret: secret},
        image_name=secret,
        cache_scope=secret,
        global_cache_key=secret,
    )
    async with open_tracing(collector.url) as tell:
        tell(ended(request=request, error=f"the step said {secret}"))
        failed = replace(ended(2), status=Status.FAILED, error_code=Reason.BUILD_FAILED)
        tell(replace(failed, request=request, error=secret))
    assert len(collector.spans()) == 8
    assert secret.encode() not in b"".join(collector.bodies)


async def test_times_that_make_no_sense_cost_no_other_trace(collector: Collector) -> None:
    async with open_tracing(collector.url) as tell:
        tell(ended(1))
        tell(replace(ended(2), created_at=MAX_UNIX_SECONDS, completed_at=MAX_UNIX_SECONDS))
        tell(replace(ended(3), created_at=0.0, started_at=None, completed_at=0.0, phases={}))
        tell(replace(ended(4), completed_at=0.0))
    assert len([span for span in collector.spans() if not span.parent_span_id]) == 4


@pytest.mark.parametrize("seconds", [math.inf, -math.inf, math.nan])
async def test_a_damaged_record_whose_times_are_no_numbers_has_a_trace_all_the_same(
    seconds: float, collector: Collector
) -> None:
    phases = {Phase.QUEUE: seconds, Phase.LEASE: seconds, Phase.BUILD: 7.0}
    async with open_tracing(collector.url) as tell:
        tell(replace(ended(1), phases=phases))
        tell(replace(ended(2), created_at=seconds, completed_at=seconds))
        tell(ended(3))
    spans = collector.spans()
    assert len([span for span in spans if not span.parent_span_id]) == 3
    for span in spans:
        assert 0 <= span.start_time_unix_nano <= span.end_time_unix_nano < 1 << 63


async def test_a_collector_that_hangs_holds_nobody_up_and_what_waits_for_it_is_bounded(
    collector: Collector,
) -> None:
    collector.may_answer.clear()
    many = MAX_WAITING_SPANS  # each of four spans
    async with open_tracing(collector.url) as tell:
        for number in range(SPANS_AT_ONCE):
            tell(ended(number))
        assert await trio.to_thread.run_sync(collector.asked.wait, 60)
        for number in range(many):
            tell(ended(SPANS_AT_ONCE + number))
        collector.may_answer.set()
    spans = collector.spans()
    assert len(spans) <= MAX_WAITING_SPANS + SPANS_AT_ONCE < 4 * many
    newest = BuildId(f"{SPANS_AT_ONCE + many - 1:024d}")
    assert newest in {value.value.string_value for span in spans for value in span.attributes}


async def test_the_end_of_the_daemon_does_not_wait_for_a_collector_that_hangs(
    collector: Collector, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.05)
    collector.may_answer.clear()
    async with open_tracing(collector.url) as tell:
        tell(ended())
    assert not collector.bodies
    assert [line.strip() for line in said] == ["tracing.on", "tracing.spans_lost"]


async def test_a_loss_is_said_once_and_so_is_its_end(
    collector: Collector, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "SEND_EVERY_SECONDS", 0.01)
    async with open_tracing(collector.url) as tell:
        for status in (400, 400, 200, 200):
            collector.status = status
            tell(ended())
            assert await trio.to_thread.run_sync(collector.answers.acquire, True, 60)
    assert [line.strip() for line in said] == [
        "tracing.on",
        "tracing.spans_lost",
        "tracing.works_again",
    ]


async def test_a_collector_that_is_not_there_costs_its_spans_only(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "ATTEMPT_SECONDS", 0.1)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
    async with open_tracing(url) as tell:
        tell(ended())
    assert "tracing.spans_lost" in [line.strip() for line in said]


def test_without_a_collector_the_library_is_not_even_loaded() -> None:
    script = (
        "import sys, trio; from supervisor.daemon import tracing\n"
        "async def main():\n"
        "    async with tracing.open_tracing(None) as tell: tell(None)\n"
        "trio.run(main)\n"
        "print(*(name for name in sys.modules if name.startswith('opentelemetry')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []
