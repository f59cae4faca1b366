"""What the kernel tells of a caged process, held against what the cage promises."""

from __future__ import annotations

import os
from pathlib import Path

NAMESPACES = ("user", "net", "pid", "ipc", "mnt")
SYSTEM = {
    "/", "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/qemu", "/usr/share/seabios",
    "/usr/bin/setpriv", "/usr/bin/unshare", "/dev/null", "/dev/urandom", "/dev/kvm", "/proc",
}  # fmt: skip
"""All that may be visible, besides the program, the image and the machine's directory."""
IMAGE = {"bzImage", "vmlinux", "initramfs", "rootfs.erofs"}


def check_caged(pid: int, directory: str, uid: int) -> None:
    """Assert everything that a VMM and its vsock device have in common."""
    _check_privileges(pid, uid)
    for namespace in NAMESPACES:
        assert namespace_of(pid, namespace) != namespace_of(os.getpid(), namespace), namespace
    _check_network(pid)
    _check_view(pid, directory)
    limits = limits_of(pid)
    assert limits["Max core file size"] == "0"
    assert limits["Max processes"] == "256"
    assert limits["Max open files"] == "1024"
    assert limits["Max file size"].isdecimal(), "it is bounded"


def namespace_of(pid: int, name: str) -> str:
    """Return what identifies a namespace of a process."""
    return os.fspath(Path(f"/proc/{pid}/ns/{name}").readlink())


def status_of(pid: int) -> dict[str, str]:
    """Return /proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def limits_of(pid: int) -> dict[str, str]:
    """Return the hard limits."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[47:68].strip() for line in lines}


def cgroup_of(pid: int) -> str:
    """Return the cgroup, of version 2, as seen from the cgroup namespace of this process."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


def _check_privileges(pid: int, uid: int) -> None:
    status = status_of(pid)
    assert status["NoNewPrivs"] == "1"
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, f"{name} {status[name]}"
    assert set(status["Uid"].split()) == {str(uid)}
    # It can name, and signal, no process but the sandbox's own, which is the first one there.
    assert status["NSpid"].split()[-1] == "2", status["NSpid"]


def _check_network(pid: int) -> None:
    interfaces = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    assert [line.partition(":")[0].strip() for line in interfaces] == ["lo"]


def _check_view(pid: int, directory: str) -> None:
    """Nothing of the host is visible but what it needs, and of that only its own is writable."""
    program = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    visible, writable = set(), set()
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        fields = line.split()
        point, options = fields[4], fields[5].split(",")
        assert "nosuid" in options, point
        if not point.startswith("/proc/"):  # parts of it that bubblewrap covers
            visible.add(point)
        if "rw" in options and not point.startswith(("/dev/", "/proc")):
            writable.add(point)
    assert writable == {"/", directory}, "`/` is the view itself: in memory, and its own"
    assert {program, directory} <= visible
    # What is mounted below the libraries comes with them.
    beside = {point for point in visible if not point.startswith(("/usr/lib/", "/lib/"))}
    unexpected = beside - SYSTEM - {program, directory}
    assert {Path(path).name for path in unexpected} <= IMAGE, unexpected
    top = {path.name for path in Path(f"/proc/{pid}/root").iterdir()}
    assert not top & {"bin", "boot", "etc", "home", "root", "sbin", "srv", "sys"}, top
