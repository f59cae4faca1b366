"""Builds that attack their own machine, each beside one that must not notice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.daemon import Daemon

MIB = 1 << 20
LOG_BYTES = MIB
# So many lines are several times what may be stored; then it goes on, with a bomb beside it.
BUSY = "FROM busybox\nRUN yes | head -n 50000; yes & f() { f | f & }; f; while :; do :; done\n"
EATS_MEMORY = "FROM busybox\nRUN echo eating; tail /dev/zero\n"
# Most of the disk is taken without being written, or this would take the host minutes and 32 GiB.
EATS_DISK = (
    "FROM busybox\n"
    "RUN for part in a b c d; do fallocate -l 7800M /$part; done; "
    "while fallocate -l 99M /more$((n += 1)); do :; done; cat /dev/zero > /filled\n"
)
QUIET = "FROM busybox\nRUN seq 1 1000 | md5sum > /sum\n"
BUSY_SECONDS = 75


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
    busy = attacked.submit({"Dockerfile": BUSY}, timeout_seconds=BUSY_SECONDS)
    quiet = attacked.submit({"Dockerfile": QUIET}, tenant="globex")
    memory = attacked.submit({"Dockerfile": EATS_MEMORY}, memory_mb=512)
    disk = attacked.submit({"Dockerfile": EATS_DISK}, tenant="globex")

    ended = attacked.wait(quiet["id"])
    assert ended["status"] == "ready", attacked.log(quiet["id"])

    ended = attacked.wait(busy["id"])
    assert (ended["status"], ended["error_code"]) == ("failed", "build_timeout")
    assert ended["duration_ms"] < (BUSY_SECONDS + 10) * 1000
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
