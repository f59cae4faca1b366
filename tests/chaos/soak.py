"""A long day: many builds in one daemon, and what it is made of before and after.

python -m tests.chaos.soak --builds 1000
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import trio

from tests.chaos.guest import END
from tests.chaos.host import Host, open_host
from tests.chaos.places import place
from tests.e2e.daemon import FINAL, pack
from tests.processes import find_processes

TENANTS = ("acme", "bolt", "crab", "dune")
MIB = 1024
"""KiB."""
MOST_GROWTH_KIB = 24 * MIB
"""Of memory from the first quarter on: caches that are full by then, and the heap's own ways."""
MOST_MORE = {"descriptors": 4, "threads": 8, "tasks": 8, "children": 1}
"""A worker thread more or a connection that is just ending are no leak; one for each of hundreds of
builds would be."""
STEADY_ROWS = ("registry_uploads", "idempotency_keys")
"""Tables that a finished build has no row in."""


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
            result.rows[step] = _count_rows(host.data_dir / "hypeman.db")
        processes = find_processes(str(host.runtime_dir / "machines"))
        assert await host.stop() == 0, host.log_tail()
        _judge(result, steps, processes, host)
    result.seconds = trio.current_time() - began
    return result


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


def _count_rows(database: Path) -> dict[str, int]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608
            for (name,) in names
        }


def _judge(result: Soak, steps: list[int], processes: list[int], host: Host) -> None:
    first, last = result.vitals[steps[0]], result.vitals[steps[-1]]
    if (grown := last["anonymous_kib"] - first["anonymous_kib"]) > MOST_GROWTH_KIB:
        result.grown.append(f"memory by {grown} KiB")
    for name, most in MOST_MORE.items():
        if last[name] > first[name] + most:
            result.grown.append(f"{name} from {first[name]} to {last[name]}")
    for name in STEADY_ROWS:
        if result.rows[steps[-1]][name]:
            result.grown.append(f"{result.rows[steps[-1]][name]} rows in {name}")
    if len(processes) > last["children"]:
        result.grown.append(f"processes of machines: {processes}")
    if left := list((host.runtime_dir / "machines").iterdir()):
        result.grown.append(f"machines left: {left}")
    if left := list((host.data_dir / "registry" / "uploads").iterdir()):
        result.grown.append(f"uploads left: {left}")


def main() -> None:
    """Soak once, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--builds", type=int, default=1000)
    options = parser.parse_args()
    with place() as root:
        result = trio.run(lambda: soak(root, builds=options.builds))
    print(result)  # noqa: T201 - the result
    sys.exit(bool(result.grown))


if __name__ == "__main__":
    main()
