"""The API with many builds stored: list and get, over HTTP, one request at a time.

The builds are of 20 tenants, finished but for one, and one in ten has a tag. What the daemon's
start costs with as many is measured by `daemon`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa
import trio

from benchmarks.fakes import serving
from benchmarks.progress import tell
from benchmarks.results import Row, Size, at_most, quantile
from supervisor.model.build import Build, BuildRequest, Phase, Reason, Status
from supervisor.model.ids import BuildId, IdSource, Tenant
from supervisor.store import builds
from supervisor.store.database import open_database
from tests.fakes.hypervisor import FakeHypervisor
from tests.samples import CREATED_AT, POLICY, SOURCE

_TENANTS = 20


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    count, asked = size.pick(100_000, 200), size.pick(200, 3)
    return trio.run(_measure, work, count, asked)


async def _measure(work: Path, count: int, asked: int) -> list[Row]:
    tell(f"stored: {count} builds are stored")
    ids = await fill(work, count)
    middle, tag = ids[count // 2], "tags%5Bbranch%5D=b7"
    targets = {
        "get": f"/builds/{middle}",
        "list, newest 50": "/builds",
        "list, 50 from the middle": f"/builds?cursor={middle}",
        "list, by status": "/builds?status=failed",
        "list, by a status that few have": "/builds?status=queued",
        "list, by tag": f"/builds?{tag}",
        "list, newest 1000": "/builds?limit=1000",
    }
    rows = []
    async with serving(work, FakeHypervisor()) as (_, socket):
        for what, target in targets.items():
            tell(f"stored: {what}")
            argv = [sys.executable, "-m", "benchmarks.ask", str(socket), target, str(asked)]
            done = await trio.run_process(argv, capture_stdout=True)
            took: list[float] = json.loads(done.stdout)
            aim = 100 if "1000" in what else 10
            rows.append(at_most(f"{what}, p50", [quantile(took, 0.5) * 1000], "ms", aim))
    return rows


async def fill(work: Path, count: int) -> list[BuildId]:
    """Store `count` builds below `work`; return their ids, the oldest first."""
    source = IdSource()
    made = [_build(source.build_id(CREATED_AT + number), number) for number in range(count)]
    async with open_database(work / "hypeman.db") as database:
        for start in range(0, count, 5000):
            await database.run(_insert, made[start : start + 5000])
    return [build.id for build in made]


def _insert(connection: sa.Connection, batch: list[Build]) -> None:
    for build in batch:
        builds.insert_build(connection, build)


def _build(build_id: BuildId, number: int) -> Build:
    tags = {"branch": f"b{number % 97}"} if number % 10 == 0 else {}
    is_failed = number % 7 == 0
    build = Build(
        id=build_id,
        tenant=Tenant(f"tenant{number % _TENANTS}"),
        request=BuildRequest(POLICY, tags=tags),
        source=SOURCE,
        created_at=CREATED_AT + number,
        queued_at=CREATED_AT + number,
        status=Status.FAILED if is_failed else Status.READY,
        attempt=1,
        started_at=CREATED_AT + number + 1,
        completed_at=CREATED_AT + number + 20,
        phases={Phase.QUEUE: 1.0, Phase.BOOT: 4.0, Phase.BUILD: 10.0},
    )
    if is_failed:
        return replace(build, error_code=Reason.BUILD_FAILED, error="RUN make: exit code 2")
    return replace(build, image_digest="sha256:" + "ab" * 32)
