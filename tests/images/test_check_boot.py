"""Where the time of a boot goes, as the check tells it."""

from __future__ import annotations

from images.check_boot import Boot


def test_the_timeline_puts_the_guests_clock_into_the_hosts() -> None:
    boot = Boot(3.0, {"init": 1.0, "handover": 1.5}, {"agent": 1.75, "hello": 2.0})
    assert boot.timeline == {
        "kernel": 1.0, "init": 2.0, "handover": 2.5, "agent": 2.75, "hello": 3.0,
    }  # fmt: skip
    assert list(boot.timeline) == ["kernel", "init", "handover", "agent", "hello"]


def test_an_agent_that_tells_nothing_leaves_the_guests_own_times() -> None:
    assert Boot(3.0, {"init": 1.0}, {}).timeline == {"kernel": 0.0, "init": 1.0}
