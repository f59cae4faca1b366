"""Builds that attack their own machine, each beside one that must not notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.image import pull

MIB = 1 << 20
LOG_BYTES = 4 * MIB
LINES = 300_000
TIME = "2026-01-01T00:00:00Z"
# What BuildKit and its client write, and what a terminal obeys. `\060` is how printf spells a zero.
FORGERY = r"""
FROM busybox
COPY report.json /
RUN cat /report.json; cat /report.json >&2
RUN printf '\033[2J\033]0;title\007red \033[31m text\r over\b\n'; \
    printf 'a\000b\377\376c\n'; printf '[ready]\n#1 DONE 0.0s\nid: 7\ndata: {}\n\nerror: x\n'; \
    printf 'u\342\200\250data: {}\302\205v\r#1 DONE\n'
RUN head -c 3000000 /dev/zero | tr '\000' x; echo; echo after the line
RUN seq 1000000 1299999
"""
REPORT = f"""\
{{"vertexes":[{{"digest":"sha256:forged","name":"exporting to image","started":"{TIME}"}}]}}
{{"vertexes":[{{"digest":"sha256:forged","name":"[9/9] RUN forged","error":"forged"}}]}}
{{"containerimage.digest":"sha256:{"0" * 64}"}}
error: failed to solve: forged
{{"type":"status","status":"ready"}}
"""
# So many lines are several times what may be stored; then it goes on, with a bomb beside it.
BUSY = "FROM busybox\nRUN yes | head -n 200000; yes & f() { f | f & }; f; while :; do :; done\n"
EATS_MEMORY = "FROM busybox\nRUN echo eating; tail /dev/zero\n"
# Most of the disk is taken without being written, or this would take the host minutes and 32 GiB.
EATS_DISK = (
    "FROM busybox\n"
    "RUN for part in a b c d; do fallocate -l 7800M /$part; done; cat /dev/zero > /filled\n"
)
QUIET = "FROM busybox\nRUN seq 1 1000 | md5sum > /sum\n"


def test_output_is_whole_and_forges_nothing(daemon: Daemon, tmp_path: Path) -> None:
    build = daemon.build_image({"Dockerfile": FORGERY, "report.json": REPORT})
    assert pull(daemon, build["image_ref"], tmp_path).digest == build["image_digest"]

    events = list(daemon.follow(build["id"]))
    statuses = [event["status"] for event in events if event["type"] == "status"]
    assert statuses == ["queued", "building", "pushing", "ready"]
    steps = {event["step"]["digest"] for event in events if event["type"] == "step"}
    assert "sha256:forged" not in steps
    assert not any(event["step"].get("error") for event in events if event["type"] == "step")
    lines = [event for event in events if event["type"] == "log"]
    said = [event["content"] for event in lines]
    assert said.count(REPORT.splitlines()[0]) == 2  # each stream is told as it was written
    assert "\x1b[2J\x1b]0;title\x07red \x1b[31m text\r over\b" in said
    assert "a\0b\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c" in said
    # What is a line's end to some readers (to this one of events, too) is none here.
    assert "u\u2028data: {}\x85v\r#1 DONE" in said
    # BuildKit would stop at 2 MiB, and above 200 KiB a second.
    pieces = [event["content"] for event in lines if event["content"].startswith("xxx")]
    assert sum(map(len, pieces)) == 3_000_000
    assert [line for line in said if len(line) == 7 and line.isdigit()] == [
        str(number) for number in range(1_000_000, 1_000_000 + LINES)
    ]
    text = daemon.log(build["id"])
    assert text.count("\n") > LINES
    assert text.count("\n") == len(text.splitlines())
    assert "u\\u2028data: {}\\x85v\\r#1 DONE\n" in text
    assert "clipped" not in text
    assert "log is cut" not in text


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose limits are near."""
    settings = {
        "MAX_LOG_BYTES": str(LOG_BYTES),
        "POOL_SIZE": "0",
    }
    daemon = Daemon(tmp_path_factory.mktemp("hm"), settings)
    daemon.start()
    try:
        yield daemon
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log_tail()


def test_bombs_and_floods_end_with_their_reason_and_others_go_on(attacked: Daemon) -> None:
    busy = attacked.submit({"Dockerfile": BUSY}, timeout_seconds=40)
    quiet = attacked.submit({"Dockerfile": QUIET}, tenant="globex")
    memory = attacked.submit({"Dockerfile": EATS_MEMORY}, memory_mb=512)
    disk = attacked.submit({"Dockerfile": EATS_DISK}, tenant="globex")

    ended = attacked.wait(quiet["id"])
    assert ended["status"] == "ready", attacked.log(quiet["id"])

    ended = attacked.wait(busy["id"])
    assert (ended["status"], ended["error_code"]) == ("failed", "build_timeout")
    assert ended["duration_ms"] < 50_000
    log = attacked.log(busy["id"])
    assert f"[the log is cut here: it has reached {LOG_BYTES} bytes]" in log
    stored = attacked.data_dir / "builds" / busy["id"] / "logs"
    assert sum(path.stat().st_size for path in stored.iterdir()) < LOG_BYTES + MIB

    ended = attacked.wait(memory["id"])
    assert (ended["status"], ended["error_code"]) == ("failed", "out_of_memory")
    assert ended["error_reason"] == "guest_out_of_memory"
    assert "[console]" in attacked.evidence(memory["id"])
    assert "raise memory_mb" in ended["error"]

    ended = attacked.wait(disk["id"])
    assert (ended["status"], ended["error_code"]) == ("failed", "out_of_disk")
    assert ended["error_reason"] == "guest_out_of_disk"
    assert "[messages]" in attacked.evidence(disk["id"])
    attacked.wait_clean(10)
