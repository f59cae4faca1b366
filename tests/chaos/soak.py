"""A long day: many builds in one daemon, and what it is made of before and after.

python -m tests.chaos.soak --builds 1000        on fake machines
python -m tests.chaos.soak --real 40            on real ones, ten seconds or so each
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import trio

from tests.chaos.guest import END
from tests.chaos.host import Host, open_host
from tests.chaos.places import place
from tests.chaos.vitals import count_rows, measure
from tests.e2e.daemon import FINAL, Daemon, free_port, pack
from tests.processes import find_processes

TENANTS = ("acme", "bolt", "crab", "dune")
MIB = 1024
"""KiB."""
MOST_GROWTH_KIB = 12 * MIB
"""Of memory from the first quarter on: caches that are full by then, and the heap's own ways."""
MOST_MORE = {"descriptors": 4, "threads": 8, "tasks": 16, "children": 1}
"""A worker thread more or a connection that is just ending are no leak; one for each of hundreds of
builds would be."""
MOST_OBJECTS = (1500, 4)
"""Of Python, in the second half: what a few connections and caches have, and for each build. The
fakes note one or two; a single build that is not let go of has 150."""
IDLE_THREADS_SECONDS = 11
"""A worker thread that has nothing to do ends after ten."""
MOST_ROWS = {
    "builds": 1,
    "registry_repositories": 1,
    "registry_manifests": 3,
    "registry_tags": 1,
    "registry_blobs": 10,
    "registry_links": 10,
    "registry_references": 10,
}
"""Of one build while it is kept: an index, the image and its provenance with what they are made of.
No other table may have a row more after a thousand builds than after the first ones."""


@dataclass
class Soak:
    """What the daemon was made of, after so many builds."""

    vitals: dict[int, Mapping[str, int]] = field(default_factory=dict)
    rows: dict[int, Mapping[str, int]] = field(default_factory=dict)
    grown: list[str] = field(default_factory=list)
    """What has grown and should not have, in sentences."""
    seconds: float = 0.0

    def __str__(self) -> str:
        names = list(next(iter(self.vitals.values())))
        lines = [f"{max(self.vitals)} builds in {self.seconds:.0f} s"]
        for name in names:
            values = (f"{self.vitals[at][name]:>9}" for at in sorted(self.vitals))
            lines.append(f"  {name:<14}" + "".join(values))
        for name in sorted({name for rows in self.rows.values() for name in rows}):
            values = (f"{self.rows[at].get(name, 0):>9}" for at in sorted(self.rows))
            lines.append(f"  rows {name:<20}" + "".join(values))
        return "\n".join([*lines, *(f"GROWN: {sentence}" for sentence in self.grown)])


async def soak(root: Path, *, builds: int) -> Soak:
    """Run `builds` builds in one daemon below `root`, an empty directory."""
    result = Soak()
    began = trio.current_time()
    async with open_host(root, BUILD_RETENTION_COUNT="0", MAX_QUEUED_BUILDS="64") as host:
        assert await host.start(), host.log_tail()
        steps = [builds // 4, builds // 2, builds]
        done = 0
        for step in steps:
            await _run_builds(host, done, step)
            done = step
            # What a request or a machine leaves for a moment is gone when nothing has run for one.
            await _wait_idle(host)
            result.vitals[step] = await host.vitals()
            result.rows[step] = count_rows(host.data_dir / "hypeman.db")
        processes = find_processes(str(host.runtime_dir / "machines"))
        assert await host.stop() == 0, host.log_tail()
        _judge(result, processes, host.runtime_dir, host.data_dir)
    result.seconds = trio.current_time() - began
    return result


def soak_real(root: Path, *, builds: int) -> Soak:
    """Run `builds` small builds on real machines, two at a time, in one daemon below `root`."""
    result = Soak()
    began = time.monotonic()
    metrics = f"127.0.0.1:{free_port()}"
    settings = {
        "BUILD_RETENTION_COUNT": "0",
        "MAX_CONCURRENT_SOURCE_BUILDS": "2",
        "METRICS_ADDRESS": metrics,
    }
    daemon = Daemon(root, settings)
    daemon.start()
    assert daemon.process is not None
    try:
        done = 0
        for step in sorted({max(1, builds // 4), max(1, builds // 2), builds}):
            with ThreadPoolExecutor(2) as two:
                list(two.map(lambda number: _build_real(daemon, number), range(done, step)))
            done = step
            daemon.wait_clean(10)
            time.sleep(IDLE_THREADS_SECONDS)
            tasks = _read_gauge("hypeman_tasks", f"http://{metrics}/metrics")
            result.vitals[step] = {**measure(daemon.process.pid), "tasks": tasks}
            result.rows[step] = count_rows(daemon.data_dir / "hypeman.db")
        processes = find_processes(str(daemon.runtime_dir / "machines"))
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log_tail()
    _judge(result, processes, daemon.runtime_dir, daemon.data_dir)
    result.seconds = time.monotonic() - began
    return result


def _read_gauge(name: str, url: str) -> int:
    for line in httpx2.get(url).text.splitlines():
        if line.startswith(f"{name} "):
            return int(float(line.rpartition(" ")[2]))
    raise AssertionError(f"{url} does not tell {name}")


def _build_real(daemon: Daemon, number: int) -> None:
    """Build an image, or (each tenth) fail at it."""
    end = "false" if number % 10 == 9 else f"echo {number} >/number"
    build = daemon.build({"Dockerfile": f"FROM busybox\nRUN {end}\n"})
    wanted = "failed" if number % 10 == 9 else "ready"
    assert build["status"] == wanted, f"build {number}: {build}"


async def _run_builds(host: Host, first: int, last: int) -> None:
    numbers = iter(range(first, last))

    async def be(tenant: str) -> None:
        async with host.client(tenant) as client:
            for number in numbers:
                await _build(client, number)

    async with trio.open_nursery() as nursery:
        for tenant in TENANTS:
            nursery.start_soon(be, tenant)


async def _build(client: httpx2.AsyncClient, number: int) -> None:
    end = "failed" if number % 10 == 9 else "ready"
    answer = await client.post(
        "/builds",
        files={"source": ("s.tar.gz", pack({"Dockerfile": f"# {number}\n"}), "application/gzip")},
        data={"build_args": json.dumps({END: end})},
    )
    assert answer.status_code == 202, answer.text
    build_id = answer.json()["id"]
    last = ""
    async with client.stream("GET", f"/builds/{build_id}/logs", timeout=60) as events:
        async for line in events.aiter_lines():
            if line.startswith("data:"):
                last = json.loads(line[5:]).get("status") or last
    assert last == end, f"build {number} is {last}"
    assert last in FINAL


async def _wait_idle(host: Host) -> None:
    with trio.fail_after(30):
        while "hypeman_builds_active 0.0" not in await host.metrics():  # noqa: ASYNC110
            await trio.sleep(0.05)


def _judge(result: Soak, processes: list[int], runtime_dir: Path, data_dir: Path) -> None:
    first, last = result.vitals[min(result.vitals)], result.vitals[max(result.vitals)]
    result.grown += grown_between(first, last)
    result.grown += more_rows_between(result.rows)
    result.grown += more_objects_in_second_half(result.vitals)
    if len(processes) > last["children"]:
        result.grown.append(f"processes of machines: {processes}")
    if left := list((runtime_dir / "machines").iterdir()):
        result.grown.append(f"machines left: {left}")
    if left := list((data_dir / "registry" / "uploads").iterdir()):
        result.grown.append(f"uploads left: {left}")


def grown_between(
    first: Mapping[str, int],
    last: Mapping[str, int],
    *,
    most_kib: int = MOST_GROWTH_KIB,
    most_more: Mapping[str, int] = MOST_MORE,
) -> list[str]:
    """Return what has grown more than it may from one moment without builds to another."""
    found = []
    if (grown := last["anonymous_kib"] - first["anonymous_kib"]) > most_kib:
        found.append(f"memory by {grown} KiB")
    for name, most in most_more.items():
        if last[name] > first[name] + most:
            found.append(f"{name} from {first[name]} to {last[name]}")
    return found


def more_rows_between(rows: Mapping[int, Mapping[str, int]]) -> list[str]:
    """Return which tables have got more rows between the first and the last look, after so many
    builds each, than these builds account for.
    """
    first, last = min(rows), max(rows)
    found = []
    for name, count in rows[last].items():
        most = MOST_ROWS.get(name, 0) * (last - first)
        if (more := count - rows[first].get(name, 0)) > most:
            found.append(f"{name} by {more} rows in {last - first} builds; {most} at most")
    return found


def more_objects_in_second_half(vitals: Mapping[int, Mapping[str, int]]) -> list[str]:
    """Return what a process holds more than its last builds account for, if it can tell."""
    half, last = sorted(vitals)[-2:] if len(vitals) > 1 else [max(vitals)] * 2
    more = vitals[last].get("objects", 0) - vitals[half].get("objects", 0)
    at_all, of_each = MOST_OBJECTS
    most = at_all + of_each * (last - half)
    return [f"objects by {more} in {last - half} builds; {most} at most"] if more > most else []


def main() -> None:
    """Soak once, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--builds", type=int, default=1000, help="on fake machines")
    parser.add_argument("--real", type=int, metavar="N", help="N builds on real machines instead")
    options = parser.parse_args()
    # The disks of real machines would take the memory that these need.
    with place(in_memory=options.real is None) as root:
        if options.real is not None:
            result = soak_real(root, builds=max(1, options.real))
        else:
            result = trio.run(lambda: soak(root, builds=options.builds))
    print(result)  # noqa: T201 - the result
    sys.exit(bool(result.grown))


if __name__ == "__main__":
    main()
