"""A host that is short of something for a while, for real: of descriptors, and of disk.

    python -m tests.chaos.shortage

The data directory is a file system of its own, in a mount namespace: its limit is set to what is
used, and the daemon's limit of descriptors to what it has open. Builds and pushes go on meanwhile.
The daemon must neither crash nor say what is not so, and what it has accepted must have its end.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from supervisor.runtime.clock import wall_clock
from tests.chaos.host import Host, open_host
from tests.chaos.invariants import Broken, Since, check_images, check_stopped, read_counters
from tests.chaos.places import place
from tests.chaos.workload import Workload

SHORT_SECONDS = 1.0
SETTLE_SECONDS = 60.0
DISK = "700m"
"""More than a daemon wants free before it takes builds in; what is not written takes no memory."""
SPARE_BYTES = 64 << 10
UNWANTED = ("actor_crashed", "api.internal_error", " crashed", "=OSError")
"""In the log: what nobody had thought of."""


async def be_short(root: Path) -> list[str]:
    """Run a daemon through both, below `root`; return what was wrong, in sentences."""
    broken, began = Broken(), wall_clock()
    manager = {"WATCHDOG_USEC": "100000", "NOTIFY_SOCKET": str(root / "notify")}
    async with open_host(root, **manager) as host:
        workload = Workload(host, random.Random(5))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workload.run)
            assert await host.start(), host.log_tail()
            await trio.sleep(SHORT_SECONDS)
            async with _no_descriptors(host):
                await trio.sleep(SHORT_SECONDS)
            await trio.sleep(SHORT_SECONDS)
            async with _no_disk(host):
                await trio.sleep(SHORT_SECONDS)
            workload.is_paused = True
            if not host.is_running:
                return [f"the daemon ended: {host.log_tail(2000)}"]
            with trio.move_on_after(SETTLE_SECONDS) as scope:
                await workload.wait_all_ended()
            broken.check(not scope.cancelled_caught, f"no end: {sorted(workload.told.unfinished)}")
            nursery.cancel_scope.cancel(reason="enough")
        counted = await read_counters(host, broken)
        # What could not be removed or written then, the next start does.
        broken.check(await host.stop() == 0, "the first daemon did not stop cleanly")
        assert await host.start(), host.log_tail()
        images = await check_images(host, workload.told, broken)
        broken.check(await host.stop() == 0, "the second daemon did not stop cleanly")
        last = Since(began, counted)
        facts = await check_stopped(host, workload.told, broken, last, is_lossy=True)
        log = host.log.read_text(errors="replace")
        for line in log.splitlines():
            broken.check(not any(word in line for word in UNWANTED), line)
        for shortage in ("Too many open files", "No space left on device"):
            broken.check(shortage in log, f"nobody was told {shortage!r}")
    _print({**facts, "images pulled": images}, workload.told.answers)
    return broken.found


@asynccontextmanager
async def _no_descriptors(host: Host) -> AsyncIterator[None]:
    soft, hard = resource.prlimit(host.pid, resource.RLIMIT_NOFILE)
    with os.scandir(f"/proc/{host.pid}/fd") as descriptors:
        opened = sum(1 for _ in descriptors)
    resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (opened, hard))
    yield
    resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def _no_disk(host: Host) -> AsyncIterator[None]:
    while True:
        disk = os.statvfs(host.data_dir)
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        try:
            _limit(host.data_dir, str(used + SPARE_BYTES))
        except subprocess.CalledProcessError:
            await trio.lowlevel.checkpoint()  # builds have used more meanwhile
        else:
            break
    yield
    _limit(host.data_dir, DISK)


def _limit(directory: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", directory], check=True)


def _print(facts: dict[str, int], answers: Counter[str]) -> None:
    print("; ".join(f"{name}: {count}" for name, count in facts.items()))  # noqa: T201 - the result
    print(f"{answers.total()} answers over 499")  # noqa: T201


def main() -> None:
    """Be short of both, once, and say what was wrong. Starts itself again in namespaces."""
    if len(sys.argv) > 1:
        found = trio.run(be_short, Path(sys.argv[1]))
        for sentence in found:
            print(f"BROKEN: {sentence}")  # noqa: T201
        sys.exit(bool(found))
    own_users = [] if os.geteuid() == 0 else ["--map-root-user"]
    mounted = 'mkdir "$0/data" && mount -t tmpfs -o size="$1" none "$0/data" && shift && exec "$@"'
    with place() as root:
        again = [sys.executable, "-m", "tests.chaos.shortage", root]
        in_shell = ["sh", "-c", mounted, root, DISK, *again]
        sys.exit(subprocess.run(["unshare", *own_users, "--mount", *in_shell]).returncode)


if __name__ == "__main__":
    main()
