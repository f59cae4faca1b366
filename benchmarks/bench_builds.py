"""Builds on real machines, as a user has them: cold, with a cache, warm, and cancelled.

The floor of a build is what its own machine spent on it (boot, source, build, push, as the daemon
records them): what is above it is the supervisor's. A warm build finds a machine that waits.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.results import Row, Size, at_most
from tests.e2e.daemon import REPOSITORY_ROOT, Daemon

_EXAMPLE = REPOSITORY_ROOT / "examples" / "hello"
_GUEST_PHASES = ("boot", "source", "build", "push")
_SLEEPER = {"Dockerfile": "FROM busybox\nRUN echo begun; sleep 300\n"}
_WARM_SECONDS = 120.0


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    times = size.pick(3, 1)
    rows = []
    cold = Daemon(work / "cold", {"POOL_SIZE": "0"})
    cold.root.mkdir()
    cold.start()
    try:
        found = [_build(cold) for _ in range(times)]
        rows.append(_row("cold build, submit to ready", found, 1.10))
        _build(cold, cache_scope="bench")
        found = [_build(cold, cache_scope="bench") for _ in range(times)]
        rows.append(_row("with the tenant's cache", found, 1.10))
        gone = [_cancel(cold) for _ in range(times)]
        rows.append(at_most("cancel: answer to machine gone, slowest", [max(gone)], "s", 1))
    finally:
        cold.stop()
    warm = Daemon(work / "warm", {"POOL_SIZE": "1"})
    warm.root.mkdir()
    warm.start()
    try:
        found = []
        for _ in range(times):
            _wait_warm(warm)
            found.append(_build(warm))
        rows.append(_row("warm build, submit to ready", found, 1.15))
    finally:
        warm.stop()
    return rows


def _row(what: str, found: list[tuple[float, float]], aim: float) -> Row:
    return at_most(what, [total for total, _ in found], "s", aim, [floor for _, floor in found])


def _build(daemon: Daemon, **fields: Any) -> tuple[float, float]:
    """Return the seconds from submit to ready, and those that the machine has spent."""
    began = time.monotonic()
    build = daemon.build_image(_EXAMPLE, **fields)
    total = time.monotonic() - began
    return total, sum(build["phases"].get(phase, 0) for phase in _GUEST_PHASES) / 1000


def _cancel(daemon: Daemon) -> float:
    build = daemon.submit(_SLEEPER)["id"]
    daemon.wait_for(build, "begun")
    with daemon.client() as client:
        client.delete(f"/builds/{build}").raise_for_status()
        began = time.monotonic()
    while daemon.leftovers():
        time.sleep(0.01)
    gone = time.monotonic() - began
    daemon.wait(build)
    return gone


def _wait_warm(daemon: Daemon) -> None:
    deadline = time.monotonic() + _WARM_SECONDS
    with daemon.client(permissions=["build:admin"]) as client:
        while True:
            machines = client.get("/machines").json()
            if any(machine["state"] == "idle" for machine in machines):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"no machine became idle: {machines}")
            time.sleep(0.1)
