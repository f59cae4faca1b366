"""What tests ask the kernel about processes that are not children of theirs."""

from __future__ import annotations

from pathlib import Path

import trio


def is_alive(pid: int) -> bool:
    """Say whether `pid` runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def name_of(pid: int) -> str:
    """Return the name of a running program, as far as the kernel keeps it: 15 letters."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def is_reaped(pid: int) -> bool:
    """Say whether nothing at all is left of `pid`."""
    return not Path(f"/proc/{pid}").exists()


def find_processes(mark: str) -> list[int]:
    """Return the processes with `mark` somewhere in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def inside(pid: int) -> int:
    """Return the process that a sandbox's `pid` runs; `pid` itself if there is none in between."""
    if name_of(pid) not in ("unshare", "bwrap"):
        return pid
    return inside(_child_of(pid))


def _child_of(pid: int) -> int:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rpartition(")")[2].split()[1] == str(pid):
                return int(path.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError(f"{pid} has no child")


def count_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def wait_dead(pid: int) -> None:
    """Wait until `pid`, which may be anybody's child, has ended."""
    with trio.fail_after(10):
        while is_alive(pid):  # noqa: ASYNC110 - the kernel has no event for another's child
            await trio.sleep(0.01)
