"""The event log: what was said is there once, in order, for everybody, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor.errors import HostError, ResourceExhausted
from supervisor.model.build import Reason, Status
from supervisor.model.events import DAMAGED, START, EventBatch, EventId, log_event, status_event
from supervisor.runtime.threads import Threads
from supervisor.store import eventlog
from supervisor.store.eventlog import EVENTS_FILE, TEXT_FILE, BuildLog, BuildLogs
from tests.kit import cancel_at_every_checkpoint
from tests.samples import a_build, build_id

BUILD = build_id(1)
NOW = "2026-03-01T12:00:00.000Z"
READY = status_event(NOW, a_build(status=Status.READY))
QUEUED = status_event(NOW, a_build())


def line(text: str) -> bytes:
    return log_event(NOW, "", text)


def logs_in(path: Path) -> BuildLogs:
    return BuildLogs(path, Threads())


def events_file(path: Path) -> Path:
    return path / BUILD / "logs" / EVENTS_FILE


def text_file(path: Path) -> Path:
    return path / BUILD / "logs" / TEXT_FILE


async def read_all(log: BuildLog, after: EventId = START) -> list[bytes]:
    events = []
    while (batch := await log.read(after)) is not None:
        events += [event for _, event in batch.events]
        after = batch.last_id
    return events


async def ids_in(log: BuildLog) -> list[EventId]:
    ids: list[EventId] = []
    while (batch := await log.read(ids[-1] if ids else START)) is not None:
        ids += [at for at, _ in batch.events]
    return ids


@contextlib.contextmanager
def largest_file(limit_bytes: int) -> Iterator[None]:
    """Make every write past `limit_bytes` of a file fail, as a full disk does: part-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# -- appending and reading ---------------------------------------------------------------------


async def test_what_is_appended_is_read_in_order(tmp_path: Path) -> None:
    said = [QUEUED, *(line(f"line {n}") for n in range(100))]
    async with logs_in(tmp_path).open(BUILD) as log:
        assert await log.read(START) is None
        for event in said:
            await log.append([event], b"text\n")
        assert await read_all(log) == said
    assert text_file(tmp_path).read_bytes() == b"text\n" * len(said)


async def test_ids_are_the_offsets_behind_the_events(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append([QUEUED, line("a")])
        batch = await log.read(START)
        assert batch is not None
        assert [at for at, _ in batch.events] == [len(QUEUED) + 1, log.end]
        assert log.end == events_file(tmp_path).stat().st_size


async def test_a_reader_resumes_behind_any_event(tmp_path: Path) -> None:
    said = [line(f"line {n}") for n in range(20)]
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append(said)
        batch = await log.read(START)
        assert batch is not None
        for number, (at, _) in enumerate(batch.events, start=1):
            assert await log.locate(at) == at
            assert await read_all(log, at) == said[number:]


async def test_nothing_to_say_writes_nothing(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append([])
        assert log.end == 0


async def test_lines_of_any_length_are_kept_whole(tmp_path: Path) -> None:
    said = [line("x" * size) for size in (0, 65_536, 300_000, 3_000_000)] + [line("end")]
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append(said)
        assert await read_all(log) == said
        ids = await ids_in(log)
        for inside in (1, 70_000, 400_000, 2_000_000):
            assert await log.locate(inside) == min(at for at in ids if at >= inside)


async def test_the_log_is_the_same_after_it_was_closed(tmp_path: Path) -> None:
    logs = logs_in(tmp_path)
    async with logs.open(BUILD) as log:
        await log.append([QUEUED, line("a")])
        end = log.end
    async with logs.open(BUILD) as log:
        assert (log.end, log.is_final) == (end, False)
        await log.append([READY])
    async with logs.open(BUILD) as log:
        assert log.is_final
        assert await read_all(log) == [QUEUED, line("a"), READY]


# -- ids from outside --------------------------------------------------------------------------


async def test_any_number_is_taken_as_the_id_of_the_event_around_it(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append([line("a"), line("bc" * 20), line(""), line("é€🦀")])
        ids = [START, *await ids_in(log)]
        for number in (-(10**30), *range(-3, log.end + 4), 10**30):
            assert await log.locate(number) == min(
                (at for at in ids if at >= number), default=log.end
            )


async def test_an_id_in_an_empty_log_is_its_start(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        assert [await log.locate(n) for n in (-1, 0, 1, 10**30)] == [0, 0, 0, 0]


# -- the final status --------------------------------------------------------------------------


async def test_a_final_status_ends_the_log_and_a_second_one_changes_nothing(
    tmp_path: Path,
) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(log.append, [READY], b"[ready]\n")
        assert log.is_final
        assert await read_all(log) == [READY]
    assert text_file(tmp_path).read_bytes() == b"[ready]\n"


async def test_an_event_behind_the_final_status_is_a_bug(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append([READY])
        with pytest.raises(AssertionError, match="ended"):
            await log.append([line("late")])


async def test_an_end_that_is_taken_back_leaves_what_came_before_and_others_follow(
    tmp_path: Path,
) -> None:
    logs = logs_in(tmp_path)
    async with logs.open(BUILD) as log:
        await log.append([QUEUED, line("a"), READY])
        assert await read_all(log) == [QUEUED, line("a"), READY]
    async with logs.open(BUILD) as log:
        await log.take_back_end()
        assert not log.is_final
        assert await read_all(log) == [QUEUED, line("a")]
        await log.append([QUEUED])
        assert await read_all(log) == [QUEUED, line("a"), QUEUED]
        assert log.end == events_file(tmp_path).stat().st_size


async def test_a_final_status_of_any_length_is_known_again(tmp_path: Path) -> None:
    failed = a_build(status=Status.FAILED, error="\x01" * 16_384, error_code=Reason.BUILD_FAILED)
    logs = logs_in(tmp_path)
    async with logs.open(BUILD) as log:
        await log.append([line("x" * 100_000), status_event(NOW, failed)])
    async with logs.open(BUILD) as log:
        assert log.is_final


@pytest.mark.parametrize("size", [10, 65_520, 65_536, 65_600, 200_000])
async def test_a_long_last_line_is_never_taken_for_a_status(tmp_path: Path, size: int) -> None:
    logs = logs_in(tmp_path)
    async with logs.open(BUILD) as log:
        await log.append([line('{"type":"status","status":"ready"}' + "x" * size)])
    async with logs.open(BUILD) as log:
        assert not log.is_final


# -- followers ---------------------------------------------------------------------------------


async def follow(log: BuildLog) -> list[bytes]:
    """Follow from the start until the log has ended."""
    events: list[bytes] = []
    at = START
    while True:
        if (batch := await log.read(at)) is not None:
            events += [event for _, event in batch.events]
            at = batch.last_id
        elif log.has_ended:
            return events
        else:
            await log.wait_behind(at)


async def test_every_follower_gets_every_event_once_and_in_order(tmp_path: Path) -> None:
    logs = logs_in(tmp_path)
    said = [line(f"line {n}") for n in range(200)]
    heard: list[list[bytes]] = []

    async def one() -> None:
        async with logs.open(BUILD) as log:
            heard.append(await follow(log))

    async with logs.open(BUILD) as log, trio.open_nursery() as nursery:
        for number, event in enumerate(said):
            if number % 40 == 0:
                nursery.start_soon(one)
            await log.append([event])
        await log.append([READY])
    assert heard == [[*said, READY]] * 5


async def test_followers_that_wait_are_woken_by_one_append(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(log.wait_behind, log.end)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 10
        await log.append([line("a")])


async def test_followers_at_one_place_share_what_was_read(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append([line("a"), line("b")])
        first = await log.read(START)
        assert await log.read(START) is first
        assert first is not None
        assert first.as_sse is first.as_sse


def count_reads(log: BuildLog, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the place of every read of the file."""
    places: list[int] = []
    read_sync = log._read_sync

    def counting(after: int, end: int) -> EventBatch:
        places.append(after)
        return read_sync(after, end)

    monkeypatch.setattr(log, "_read_sync", counting)
    return places


async def test_followers_that_come_at_once_cost_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append([line(str(n)) for n in range(1000)])
        places = count_reads(log, monkeypatch)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(log.read, START)
        assert places == [START]


async def test_a_follower_is_not_left_waiting_for_one_that_was_cancelled(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append([line(str(n)) for n in range(1000)])
        first = trio.CancelScope()

        async def leave() -> None:
            with first:
                await log.read(START)

        async with trio.open_nursery() as nursery:
            for _ in range(int(log._threads.disk.total_tokens)):
                await log._threads.disk.acquire_on_behalf_of(object())
            nursery.start_soon(leave)  # waits for a thread
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(log.read, START)  # waits for the first
            await trio.testing.wait_all_tasks_blocked()
            first.cancel(reason="the first follower leaves")
            await trio.testing.wait_all_tasks_blocked()
            log._threads.disk.total_tokens += 1
        assert not log._reading
        assert START in log._chunks


async def test_a_line_now_and_then_is_not_read_back_for_its_followers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        places = count_reads(log, monkeypatch)
        for text in ("a", "b", "c"):
            at = log.end
            await log.append([line(text), line(text * 2)])
            batch = await log.read(at)
            assert batch is not None
            assert [event for _, event in batch.events] == [line(text), line(text * 2)]
            assert batch.last_id == log.end
        assert places == []
        log._chunks.clear()
        assert await read_all(log) == [line(text) for text in ("a", "aa", "b", "bb", "c", "cc")]


async def test_what_is_kept_for_followers_is_bounded(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append([line(str(n)) for n in range(100)])
        for at in (START, *await ids_in(log)):
            await log.read(at)
        assert len(log._chunks) == eventlog._CACHED_CHUNKS


async def test_a_follower_of_a_log_that_cannot_end_properly_does_not_wait(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log, trio.open_nursery() as nursery:
        await log.append([line("a")])
        nursery.start_soon(log.wait_behind, log.end)
        await trio.testing.wait_all_tasks_blocked()
        log.abandon()
        assert log.has_ended
        assert not log.is_final


# -- text --------------------------------------------------------------------------------------


async def test_a_text_continues_the_last_line_only_if_it_says_so(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append([], b"be")
        await log.append([], b"gun", continues=True)
        await log.append([], b"[pushing]\n")
        await log.append([], b"next\n", continues=True)
    assert text_file(tmp_path).read_bytes() == b"begun\n[pushing]\nnext\n"


# -- crashes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b"x", b'{"type":"log","content":"ha', b"y" * 200_000])
@pytest.mark.parametrize("before", [[], [line("whole")], [line("z" * 100_000)]])
async def test_a_line_that_a_crash_cut_short_is_taken_back(
    tmp_path: Path, torn: bytes, before: list[bytes]
) -> None:
    logs = logs_in(tmp_path)
    async with logs.open(BUILD) as log:
        await log.append(before, b"text\n" * len(before))
    with events_file(tmp_path).open("ab") as file:
        file.write(torn)
    async with logs.open(BUILD) as log:
        assert await read_all(log) == before
        await log.append([READY])
        assert await read_all(log) == [*before, READY]
    assert text_file(tmp_path).read_bytes() == b"text\n" * len(before)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 40,
        b"\xff\xfe not even text",
        b'{"type":"log","timestamp":"2026-03-01T12:00:00.000Z","content":"cut',
        b'{"type":"status","status":"ready"}',
        b'{"type":"status","timestamp":"x","status":"ready"},{"type":"log"}',
        b"17",
        b"[" * 5000,
        b"",
    ],
)
async def test_a_damaged_event_is_shown_as_such_and_breaks_no_other(
    tmp_path: Path, garbage: bytes
) -> None:
    logs = logs_in(tmp_path)
    async with logs.open(BUILD) as log:
        await log.append([QUEUED, line("before")])
    with events_file(tmp_path).open("ab") as file:
        file.write(garbage + b"\n")
    async with logs.open(BUILD) as log:
        assert not log.is_final, "a damaged line is nothing to believe"
        await log.append([line("behind"), READY])
    async with logs.open(BUILD) as log:
        assert log.is_final
        events = [json.loads(event) for event in await read_all(log)]
        assert [event.get("content") for event in events[:4]] == [
            None,
            "before",
            DAMAGED,
            "behind",
        ]
        assert (events[2]["type"], events[2]["damaged"]) == ("log", True)
        assert events[2]["timestamp"] == events[1]["timestamp"]
        assert events[4]["status"] == "ready"
        ids = await ids_in(log)
        assert ids[-1] == log.end
        batch = await log.read(ids[2])
        assert batch is not None
        assert [event for _, event in batch.events] == [line("behind"), READY]


async def test_a_text_that_a_crash_cut_short_is_kept_and_its_line_ended(tmp_path: Path) -> None:
    logs = logs_in(tmp_path)
    async with logs.open(BUILD) as log:
        await log.append([line("1")], b"an unfinished li")
    async with logs.open(BUILD) as log:
        await log.append([line("2")], b"next\n")
    assert text_file(tmp_path).read_bytes() == b"an unfinished li\nnext\n"


async def test_a_write_that_the_disk_refuses_part_way_is_taken_back(tmp_path: Path) -> None:
    async with logs_in(tmp_path).open(BUILD) as log:
        await log.append([line("before")], b"before\n")
        end = log.end
        with largest_file(1000), pytest.raises(ResourceExhausted, match="cannot be written"):
            await log.append([line("x" * 2000)], b"text\n")
        assert (log.end, events_file(tmp_path).stat().st_size) == (end, end)
        assert text_file(tmp_path).read_bytes() == b"before\n"
        with largest_file(1000), pytest.raises(ResourceExhausted):
            await log.append([line("short")], b"x" * 2000)
        await log.append([line("after")], b"after\n")
        assert await read_all(log) == [line("before"), line("after")]
    assert text_file(tmp_path).read_bytes() == b"before\nafter\n"


async def test_a_log_that_cannot_be_opened_says_so_and_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / BUILD).write_text("a file where a directory should be")
    logs = logs_in(tmp_path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count of descriptors
    with pytest.raises(HostError, match="cannot be opened"):
        async with logs.open(BUILD):
            pass
    assert logs.open_count == 0
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - a count of descriptors


async def test_a_log_whose_text_cannot_be_opened_leaves_no_descriptor(tmp_path: Path) -> None:
    text_file(tmp_path).mkdir(parents=True)
    logs = logs_in(tmp_path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count of descriptors
    with pytest.raises(HostError, match="cannot be opened"):
        async with logs.open(BUILD):
            pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - a count of descriptors


# -- cancellation ------------------------------------------------------------------------------


async def test_cancelled_anywhere_nothing_stays_open_and_no_event_is_half_written(
    tmp_path: Path,
) -> None:
    logs = logs_in(tmp_path)

    async def write_and_follow() -> None:
        async with logs.open(BUILD) as log, trio.open_nursery() as nursery:
            nursery.start_soon(log.wait_behind, EventId(log.end + 1))
            await log.append([line("a")], b"a\n")
            await log.append([line("b")], b"b\n")
            await log.sync()
            await log.read(await log.locate(1))

    async def check(_: int) -> None:
        assert logs.open_count == 0
        size = events_file(tmp_path).stat().st_size if events_file(tmp_path).exists() else 0
        async with logs.open(BUILD) as log:
            assert log.end == size
            assert set(await read_all(log)) <= {line("a"), line("b")}

    assert await cancel_at_every_checkpoint(write_and_follow, check) > 5


async def test_a_log_is_closed_with_its_last_user(tmp_path: Path) -> None:
    logs = logs_in(tmp_path)
    async with logs.open(BUILD) as first:
        async with logs.open(BUILD) as second:
            assert first is second
            assert logs.open_count == 1
        await first.append([line("a")])
    assert logs.open_count == 0
