"""A cgroup for each machine, where the host has delegated a subtree to the daemon (cgroups(7), v2).

The limits are the second line: a machine has its memory and processors from QEMU. Here the host's
kernel holds the VMM itself to them, also one that a guest has taken over.

    <the service's own>/daemon          the daemon; a cgroup with children may hold no process
    <the service's own>/<machine id>    the machine's processes
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from supervisor.errors import ToolFailed
from supervisor.model.ids import MachineId
from supervisor.runtime.logs import log
from supervisor.runtime.process import run_tool
from supervisor.vm.machine import MachineSpec

PROC = Path("/proc")
WANTED = ("cpu", "memory", "pids")
OVERHEAD_MB = 1536
"""Of a VMM and its vsock device beside the guest's memory; most of it is what emulation translates
(QEMU keeps at most 1 GiB of that)."""
MAX_TASKS = 512
CPU_PERIOD_USEC = 100_000

_MOVE = 'echo 0 >"$1/cgroup.procs"'
_ENTER = f'{{ {_MOVE}; }} 2>/dev/null; shift; exec "$@"'
"""A machine that may not enter goes on without: it is limited by its other means."""
_TRIAL = MachineSpec(MachineId("trial"), cpus=1, memory_mb=64)


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The delegated subtree, and what can be limited in it."""

    root: Path
    controllers: tuple[str, ...]

    @contextmanager
    def open(self, spec: MachineSpec) -> Iterator[list[str]]:
        """Have a cgroup for a machine during the block; yield what starts a program in it.

        A machine does without one that cannot be made: it is limited by its other means.
        """
        path = self.root / spec.id
        try:
            path.mkdir(exist_ok=True)
            for name, value in self._limits(spec):
                (path / name).write_text(value)
        except OSError as exc:
            log.bind(machine_id=spec.id, why=str(exc)).warning("cgroup.refused")
            yield []
            return
        try:
            yield ["sh", "-c", _ENTER, "sh", os.fspath(path)]
        finally:
            # Should a process be in it still, `kill` is its end, and the next start's sweep that
            # of the directory.
            with suppress(OSError):
                (path / "cgroup.kill").write_text("1")
            with suppress(OSError):
                path.rmdir()

    async def is_usable(self) -> bool:
        """Say whether the host lets a process into a cgroup of the subtree, by trying it; warn if
        it does not.
        """
        with self.open(_TRIAL) as enter:
            if not enter:
                return False
            try:
                await run_tool(["sh", "-c", _MOVE, "sh", enter[-1]])
            except ToolFailed as exc:
                log.bind(cgroup=self.root, why=exc.message).warning("cgroup.refused")
                return False
        return True

    def check_inside(self, spec: MachineSpec) -> None:
        """Warn if a machine runs outside of its cgroup: the host has refused it after all."""
        try:
            pids = (self.root / spec.id / "cgroup.procs").read_text().split()
        except OSError as exc:
            log.bind(machine_id=spec.id, why=str(exc)).warning("cgroup.refused")
            return
        if not pids:
            why = "the host let none of its processes in"
            log.bind(machine_id=spec.id, why=why).warning("cgroup.refused")

    def sweep(self) -> None:
        """End what an earlier daemon's machines have left in the subtree."""
        for path in self.root.iterdir():
            if path.is_dir() and path.name != "daemon":
                with suppress(OSError):
                    (path / "cgroup.kill").write_text("1")
                with suppress(OSError):
                    path.rmdir()

    def _limits(self, spec: MachineSpec) -> Iterator[tuple[str, str]]:
        if "memory" in self.controllers:
            yield "memory.max", str((spec.memory_mb + OVERHEAD_MB) << 20)
            yield "memory.oom.group", "1"
        if "pids" in self.controllers:
            yield "pids.max", str(MAX_TASKS)
        if "cpu" in self.controllers:
            # One more than the guest has, for the VMM's own work and the vsock device.
            yield "cpu.max", f"{(spec.cpus + 1) * CPU_PERIOD_USEC} {CPU_PERIOD_USEC}"


def take_subtree(proc: Path = PROC) -> Cgroups | None:
    """Move this process down and return its cgroup, if that is the daemon's alone; else None."""
    root = _own_cgroup(proc)
    if root is None or not _is_delegated(root):
        return None
    try:
        daemon = root / "daemon"
        daemon.mkdir(exist_ok=True)
        (daemon / "cgroup.procs").write_text("0")
        offered = (root / "cgroup.controllers").read_text().split()
        controllers = tuple(name for name in WANTED if name in offered)
        if controllers:
            enable = " ".join(f"+{name}" for name in controllers)
            (root / "cgroup.subtree_control").write_text(enable)
    except OSError as exc:
        log.bind(cgroup=root, why=str(exc)).warning("cgroup.refused")
        return None
    return Cgroups(root, controllers)


def _own_cgroup(proc: Path) -> Path | None:
    """Return the directory of this process's cgroup of version 2, unless that is the root."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
        mounts = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    names = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    points = [line.split()[4] for line in mounts if " - cgroup2 " in line]
    if not names or not names[0] or not points:
        return None
    return Path(points[0]) / names[0]


def _is_delegated(root: Path) -> bool:
    """Say whether the cgroup is this user's to divide, with nobody else in it."""
    try:
        pids = (root / "cgroup.procs").read_text().split()
        return root.stat().st_uid == os.geteuid() and pids == [str(os.getpid())]
    except OSError:
        return False
