"""A backup that is taken while builds and pushes run, and a daemon that begins with it."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import trio

from supervisor.runtime.clock import wall_clock
from tests.chaos.guest import END
from tests.chaos.host import open_host
from tests.chaos.invariants import Broken, Since, check_images, check_stopped, read_counters
from tests.chaos.workload import Told, Workload
from tests.e2e.daemon import FINAL

BUSY_SECONDS = 1.5
BETWEEN_SECONDS = 0.5
"""Between the copy of the database and that of the files: builds go on meanwhile, and end."""
SETTLE_SECONDS = 60.0


async def test_a_backup_taken_under_load_restores_a_working_daemon(root: Path) -> None:
    broken, rng = Broken(), random.Random(6)
    (root / "a").mkdir()
    (root / "b" / "data").mkdir(parents=True)
    async with open_host(root / "a") as host:
        workload = Workload(host, rng)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workload.run)
            assert await host.start(), host.log_tail()
            await trio.sleep(BUSY_SECONDS)
            pushed = list(workload.told.pushed)
            await back_up(host.data_dir, root / "b" / "data")
            nursery.cancel_scope.cancel(reason="the host is lost")
        await host.kill()

    rows = rows_of(root / "b" / "data")
    told = Told(
        accepted={row["id"]: row["tenant"] for row in rows},
        wanted={row["id"]: json.loads(row["build_args"])[END] for row in rows},
        finals={row["id"]: row["status"] for row in rows if row["status"] in FINAL},
        pushed=pushed,
    )
    ahead = [build_id for build_id in told.unfinished if has_ended(root / "b" / "data", build_id)]
    assert told.unfinished, "builds ran when the backup was taken"
    assert ahead, "and ended before their files were copied"
    assert pushed

    async with open_host(root / "b") as restored:
        began = wall_clock()
        assert await restored.start(), restored.log_tail()
        with trio.fail_after(SETTLE_SECONDS):
            while told.unfinished:
                await trio.sleep(0.05)
                told.finals |= {
                    row["id"]: row["status"]
                    for row in rows_of(restored.data_dir)
                    if row["status"] in FINAL and row["id"] in told.unfinished
                }
        images = await check_images(restored, told, broken)
        counted = await read_counters(restored, broken)
        assert await restored.stop() == 0, restored.log_tail()
        await check_stopped(restored, told, broken, Since(began, counted))
        assert restored.log.read_text().count("build.log_was_ahead") == len(ahead)
    assert broken.found == []
    assert images >= len(pushed)


async def back_up(data_dir: Path, backup: Path) -> None:
    """Do what docs/operations.md says: the database first, then what it names."""
    with (
        closing(sqlite3.connect(data_dir / "hypeman.db")) as source,
        closing(sqlite3.connect(backup / "hypeman.db")) as target,
    ):
        source.backup(target)
    await trio.sleep(BETWEEN_SECONDS)
    await trio.to_thread.run_sync(copy_files, data_dir, backup)


def copy_files(source: Path, target: Path) -> None:
    """Copy a tree that changes meanwhile: what has gone is not copied, as rsync does it."""
    for path in sorted(source.iterdir()):
        copy = target / path.name
        if path.name.startswith("hypeman.db"):
            continue
        try:
            if path.is_dir():
                copy.mkdir(exist_ok=True)
                copy_files(path, copy)
            else:
                shutil.copy2(path, copy)
        except FileNotFoundError:
            continue


def rows_of(data_dir: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(data_dir / "hypeman.db")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM builds ORDER BY id")]


def has_ended(data_dir: Path, build_id: str) -> bool:
    """Say whether the copied log of a build tells of an end."""
    log = data_dir / "builds" / build_id / "logs" / "events.jsonl"
    return any(json.loads(line).get("status") in FINAL for line in log.read_bytes().splitlines())
