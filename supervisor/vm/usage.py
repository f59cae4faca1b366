"""What running machines take of the host: the process of each, and its memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.model.ids import MachineId
from supervisor.vm.argv import QEMU
from supervisor.vm.sweep import PROC, is_leftover


@dataclass(frozen=True, slots=True)
class MachineUsage:
    """The VMM of a machine, as the host's kernel sees it."""

    pid: int
    """Of the VMM itself, not of the sandbox that it runs in."""
    rss_bytes: int
    """What is in memory of it, the guest's memory as far as the guest has touched it included."""


def measure_machines_sync(machines: Path) -> Mapping[MachineId, MachineUsage]:
    """Return what each machine with a directory below `machines` takes now.

    VMMs are found as `sweep` finds those of a killed daemon. What ends meanwhile is left out.
    """
    found = {}
    prefix = os.fsencode(machines) + b"/"
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or not is_leftover(entry, machines):
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            pages = int((entry / "statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        if Path(os.fsdecode(argv[0])).name != QEMU:
            continue
        named = next(word for word in argv if word.startswith(prefix))
        name = MachineId(os.fsdecode(named.removeprefix(prefix).partition(b"/")[0]))
        found[name] = MachineUsage(int(entry.name), pages * os.sysconf("SC_PAGE_SIZE"))
    return found
