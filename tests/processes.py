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


def count_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def wait_dead(pid: int) -> None:
    """Wait until `pid`, which may be anybody's child, has ended."""
    with trio.fail_after(10):
        while is_alive(pid):  # noqa: ASYNC110 - the kernel has no event for another's child
            await trio.sleep(0.01)
