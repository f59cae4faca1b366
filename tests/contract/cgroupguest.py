"""A host with all controllers: cgroups of version 2 on a kernel of a machine's own.

It runs in the machine as root, with Python and what the test has packed beside it: the daemon's own
`vm/cgroups.py`. What came of it goes to whoever connects, as JSON in a frame.
"""

import json
import socket
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

COMMAND_PORT = 5001
SERVICE = Path("/sys/fs/cgroup/service")
MIB = 1 << 20
SLEEP = ["sleep", "600"]
SPIN = ["sh", "-c", "while :; do :; done"]
FORK = ["sh", "-c", "for n in $(seq 40); do sleep 600 & done"]
EAT = ["python3", "-ISc", f"print(len(b'x' * {200 * MIB}))"]
TASKS = 20
LONGEST_SECONDS = 30


def main() -> None:
    try:
        found = look()
    except BaseException:
        found = {"failed": traceback.format_exc()}
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, COMMAND_PORT))
    listener.listen()
    connection, _ = listener.accept()
    body = json.dumps(found).encode()
    connection.sendall(struct.pack(">I", len(body)) + body)
    time.sleep(LONGEST_SECONDS)


def look() -> dict[str, Any]:
    """Be a service with `Delegate=cpu memory pids`, and hold machines to their limits."""
    stand_in("trio", "TASK_STATUS_IGNORED")
    stand_in("supervisor.runtime.logs", "log")
    stand_in("supervisor.runtime.process", "run_tool")
    from supervisor.model.ids import MachineId
    from supervisor.vm import cgroups
    from supervisor.vm.machine import MachineSpec

    SERVICE.mkdir()
    (SERVICE.parent / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    (SERVICE / "cgroup.procs").write_text("0")
    subtree = cgroups.take_subtree()
    if subtree is None:
        return {"taken": False}
    cgroups.MAX_TASKS = TASKS
    found: dict[str, Any] = {"controllers": subtree.controllers}

    # 64 MiB and one processor, whatever the VMM's own share would be.
    spec = MachineSpec(MachineId("m1"), cpus=0, memory_mb=64 - cgroups.OVERHEAD_MB)
    place = subtree.root / spec.id
    with subtree.open(spec) as enter:
        beside = subprocess.Popen([*enter, *SLEEP])
        eater = run([*enter, *EAT])
        found["eater"] = eater.returncode
        found["beside the eater"] = beside.wait(LONGEST_SECONDS)
        found["memory"] = counts(place / "memory.events")

        forker = run([*enter, *FORK])
        found["forker"] = forker.returncode
        found["pids"] = counts(place / "pids.events")
        found["tasks"] = int((place / "pids.current").read_text())
        (place / "cgroup.kill").write_text("1")
        while inside(place):
            time.sleep(0.05)

        spinners = [subprocess.Popen([*enter, *SPIN]) for _ in range(2)]
        wanted = {str(spinner.pid) for spinner in spinners}
        deadline = time.monotonic() + LONGEST_SECONDS
        while not wanted <= inside(place) and time.monotonic() < deadline:
            time.sleep(0.05)
        before = counts(place / "cpu.stat")["nr_throttled"]
        while counts(place / "cpu.stat")["nr_throttled"] == before and time.monotonic() < deadline:
            time.sleep(0.05)
        found["throttled"] = counts(place / "cpu.stat")["nr_throttled"] - before
    found["spinners"] = [spinner.wait(LONGEST_SECONDS) for spinner in spinners]
    while place.exists() and time.monotonic() < deadline:
        subtree.sweep()
    found["left"] = place.exists()
    return found


def run(argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end; not to that of those that it leaves, which would hold a pipe."""
    nothing = subprocess.DEVNULL
    return subprocess.run(
        argv, stdin=nothing, stdout=nothing, stderr=nothing, timeout=LONGEST_SECONDS, check=False
    )


def stand_in(name: str, content: str) -> None:
    """Have a module that the machine lacks, and that nothing here calls."""
    module = ModuleType(name)
    setattr(module, content, None)
    sys.modules[name] = module


def inside(place: Path) -> set[str]:
    return set((place / "cgroup.procs").read_text().split())


def counts(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in map(str.split, path.read_text().splitlines())}


if __name__ == "__main__":
    main()
