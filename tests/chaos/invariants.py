"""What must hold after any number of crashes, looked at from outside and on the disk."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio

from supervisor.model.lifecycle import MAX_LOST_ATTEMPTS
from supervisor.model.oci import RepositoryName
from tests.chaos.guest import image_for
from tests.chaos.host import Host
from tests.chaos.workload import Told
from tests.e2e.daemon import FINAL
from tests.processes import find_processes
from tests.registry.images import digest_of
from tests.registry.policies import AT_ONCE
from tests.registry.serve import open_registry

KNOWN_FILES = {
    "metadata.json", "source/source.tar.gz",
    "logs/events.jsonl", "logs/build.log", "logs/evidence.txt",
}  # fmt: skip
MOST_PLANNED = 1
"""Attempts that a planned stop ended: that of the life in which the points are found."""


@dataclass
class Broken:
    """The invariants that do not hold, each in a sentence."""

    found: list[str] = field(default_factory=list)

    def check(self, holds: object, otherwise: str) -> None:
        if not holds:
            self.found.append(otherwise)


# -- while the daemon runs -------------------------------------------------------------------------


async def check_images(host: Host, told: Told, broken: Broken) -> int:
    """Pull every image that is `ready` or was pushed, whole; return how many there are."""
    wanted: list[tuple[str, str, str]] = [
        (tenant, repository, made.digest) for tenant, repository, made in told.pushed
    ]
    for build_id, status in told.finals.items():
        if status == "ready":
            tenant = told.accepted[build_id]
            async with host.client(tenant) as client:
                build = (await client.get(f"/builds/{build_id}")).json()
            source = build["provenance"]["source_hash"].partition(":")[2]
            made = image_for(source)
            broken.check(
                build["image_digest"] == made.digest, f"{build_id} has an image of another build"
            )
            wanted.append((tenant, f"builds/{build_id}", build["image_digest"]))
    limiter = trio.CapacityLimiter(8)
    async with trio.open_nursery() as nursery:
        for item in wanted:
            nursery.start_soon(_pull, host, limiter, item, broken)
    return len(wanted)


async def _pull(
    host: Host, limiter: trio.CapacityLimiter, item: tuple[str, str, str], broken: Broken
) -> None:
    tenant, repository, digest = item
    async with limiter, host.client(tenant) as client:
        manifest = await client.get(f"/v2/{repository}/manifests/{digest}")
        if manifest.status_code != 200 or digest_of(manifest.content) != digest:
            broken.check(False, f"{repository}@{digest}: the manifest answers {manifest}")
            return
        content = manifest.json()
        for part in (content["config"], *content["layers"]):
            blob = await client.get(f"/v2/{repository}/blobs/{part['digest']}")
            is_whole = blob.status_code == 200 and digest_of(blob.content) == part["digest"]
            broken.check(is_whole, f"{repository}: the blob {part['digest']} answers {blob}")


@dataclass(frozen=True)
class Since:
    """What the last life counted."""

    began: float
    counted: float


async def read_counters(host: Host, broken: Broken) -> float:
    """The gauges are at zero; return how many builds ended in this life, as it counts."""
    values: dict[str, float] = defaultdict(float)
    for line in (await host.metrics()).splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name.partition("{")[0]] += float(value)
    for gauge in ("hypeman_build_queue_length", "hypeman_builds_active"):
        broken.check(values[gauge] == 0, f"{gauge} is {values[gauge]} when all have ended")
    return values["hypeman_builds_total"]


# -- when it has stopped ---------------------------------------------------------------------------


async def check_stopped(
    host: Host, told: Told, broken: Broken, last: Since, *, is_lossy: bool = False
) -> dict[str, int]:
    """Check everything that lies on the disk; return how much there is of what.

    `is_lossy`: the disk refused things, so a build may have failed for that.
    """
    rows = _rows(host.data_dir / "hypeman.db")
    ended = sum((row["completed_at"] or 0) >= last.began for row in rows.values())
    broken.check(last.counted == ended, f"{ended} builds ended, counted were {last.counted:g}")
    _check_ends(rows, told, broken, is_lossy=is_lossy)
    _check_order(rows, told, broken)
    _check_events(host, rows, told, broken)
    _check_files(host, rows, broken)
    _check_machines(host.journal, rows, broken)
    await _check_registry(host, told, broken)
    return {
        "builds": len(rows),
        **Counter(row["status"] for row in rows.values()),
        "second and third attempts": sum(row["attempt"] > 1 for row in rows.values()),
    }


def _rows(database: Path) -> dict[str, dict[str, Any]]:
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        assert verdict == "ok", verdict
        rows = connection.execute("SELECT * FROM builds ORDER BY id").fetchall()
    return {row["id"]: dict(row) for row in rows}


def _check_ends(
    rows: dict[str, dict[str, Any]], told: Told, broken: Broken, *, is_lossy: bool
) -> None:
    for build_id in told.accepted:
        row = rows.get(build_id)
        broken.check(row is not None, f"{build_id} was accepted and is gone")
        if row is None:
            continue
        broken.check(row["status"] in FINAL, f"{build_id} is {row['status']}: it has no end")
        seen = told.finals.get(build_id, row["status"])
        broken.check(seen == row["status"], f"{build_id} was {seen} and is {row['status']}")
        broken.check(
            is_lossy or row["lost_attempts"] <= MAX_LOST_ATTEMPTS,
            f"{build_id} lost {row['lost_attempts']} attempts",
        )
        most = min(row["lost_attempts"] + 1, MAX_LOST_ATTEMPTS) + MOST_PLANNED
        broken.check(
            is_lossy or row["attempt"] <= most,
            f"{build_id} had {row['attempt']} attempts, {row['lost_attempts']} of them lost",
        )
        if build_id in told.cancelled:
            broken.check(
                row["status"] == "cancelled", f"{build_id} was cancelled and is {row['status']}"
            )
        is_ready = row["status"] == "ready"
        broken.check(
            not is_ready or told.wanted[build_id] == "ready", f"{build_id} cannot be ready"
        )


def _check_order(rows: dict[str, dict[str, Any]], told: Told, broken: Broken) -> None:
    """First come, first served within a tenant: each submits one build after the other."""
    for tenant in {row["tenant"] for row in rows.values()}:
        starts = [
            (row["started_at"], build_id)
            for build_id, row in sorted(rows.items())
            if row["tenant"] == tenant
            and row["started_at"] is not None
            and build_id in told.accepted
        ]
        for before, after in pairwise(starts):
            broken.check(before <= after, f"{after[1]} was started before {before[1]}")


def _check_events(host: Host, rows: dict[str, dict[str, Any]], told: Told, broken: Broken) -> None:
    for build_id, row in rows.items():
        path = host.data_dir / "builds" / build_id / "logs" / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        events = [json.loads(line) for line in lines]
        finals = [event["status"] for event in events if event.get("status") in FINAL]
        broken.check(
            finals in ([row["status"]], []), f"{build_id} is {row['status']}, its events {finals}"
        )
        if build_id in told.followed:
            broken.check(finals, f"{build_id} was followed to an end that it does not have")
            heard = [json.loads(data) for _, data in told.followed[build_id]]
            broken.check(
                heard == events,
                f"{build_id}: a follower heard {len(heard)} events, there are {len(events)};"
                f" not heard: {[event for event in events if event not in heard][:3]},"
                f" not there: {[event for event in heard if event not in events][:3]}",
            )


def _check_files(host: Host, rows: dict[str, dict[str, Any]], broken: Broken) -> None:
    builds = host.data_dir / "builds"
    for directory in builds.iterdir():
        broken.check(directory.name in rows, f"{directory} belongs to no build")
        files = {
            str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
        }
        broken.check(files <= KNOWN_FILES, f"{directory} has {files - KNOWN_FILES}")
        row = rows.get(directory.name)
        if row is not None and (directory / "metadata.json").exists():
            shown = json.loads((directory / "metadata.json").read_text())
            finals = _finals_told(directory / "logs" / "events.jsonl")
            broken.check(
                not finals or shown["status"] == row["status"],
                f"{directory.name}: metadata.json says {shown['status']}, it is {row['status']}",
            )
    machines = list((host.runtime_dir / "machines").iterdir())
    broken.check(not machines, f"machines left: {machines}")
    processes = find_processes(str(host.runtime_dir))
    broken.check(not processes, f"processes left: {processes}")
    strange = [
        path.name
        for path in host.data_dir.iterdir()
        if path.name not in {"builds", "registry", "images", "lock"}
        and not path.name.startswith("hypeman.db")
    ]
    broken.check(not strange, f"left in the data directory: {strange}")
    sockets = [path.name for path in host.runtime_dir.iterdir() if path.is_socket()]
    broken.check(not sockets, f"sockets left: {sockets}")


def _finals_told(path: Path) -> bool:
    return path.exists() and any(
        json.loads(line).get("status") in FINAL for line in path.read_text().splitlines()
    )


def _check_machines(
    journal: list[dict[str, Any]], rows: dict[str, dict[str, Any]], broken: Broken
) -> None:
    """No build ever had two machines at once, and no machine two builds."""
    machines: dict[tuple[int, str], str] = {}
    running: dict[int, set[str]] = defaultdict(set)
    attempts: Counter[str] = Counter()
    for entry in journal:
        life, build_id = entry["life"], entry.get("build", "")
        if entry["event"] == "begin":
            attempts[build_id] += 1
            broken.check(build_id not in running[life], f"{build_id} had two machines at once")
            running[life].add(build_id)
            machine = (life, entry["machine"])
            broken.check(machine not in machines, f"{machine} was given to two builds")
            machines[machine] = build_id
        elif entry["event"] == "end":
            running[life].discard(build_id)
    for build_id, count in attempts.items():
        row = rows.get(build_id)
        stored = row["attempt"] if row else 0
        broken.check(count <= stored, f"{build_id} had {count} machines in {stored} attempts")


async def _check_registry(host: Host, told: Told, broken: Broken) -> None:
    """After a collection every file has an owner, and what was promised is still there."""
    async with open_registry(host.data_dir, policy=AT_ONCE) as served:
        await served.handle.collect()
        for digest in await served.actor.store.stored():
            content = served.actor.store.path(digest).read_bytes()
            broken.check(digest_of(content) == digest, f"the blob {digest} has other content")
        staged = list((host.data_dir / "registry" / "uploads").iterdir())
        broken.check(not staged, f"uploads left after a collection: {staged}")
        for _, repository, made in told.pushed:
            held = await served.handle.holds_image(RepositoryName(repository), made.digest)
            broken.check(held, f"{repository}@{made.digest} was pushed and is not whole")
