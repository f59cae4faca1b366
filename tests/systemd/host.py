"""A host that runs systemd and the installed daemon: a container of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BOOT = Path(__file__).with_name("boot.sh")
LONGEST_SECONDS = 120
"""A bound on what never happens; it judges no speed."""
_NAMESPACES = ("--mount", "--pid", "--fork", "--cgroup", "--uts", "--ipc", "--net", "--kill-child")


@dataclass(frozen=True)
class Host:
    """The running container, by its first process as this host sees it."""

    pid: int

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a program in it and return what it printed."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), "--all", "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{argv} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def shell(self, script: str) -> str:
        """Run a script of the shell in it and return what it printed."""
        return self.run("sh", "-euc", script)

    def property(self, name: str, unit: str = "hypeman.service") -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def journal(self, *matches: str) -> list[Mapping[str, str]]:
        """Return the entries of the journal, oldest first."""
        self.run("journalctl", "--sync")
        text = self.run("journalctl", "--output=json", "--no-pager", *matches)
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def wait(self, name: str, value: str) -> None:
        """Wait until a property of the service has a value."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while (found := self.property(name)) != value:
            assert time.monotonic() < deadline, f"{name} is {found}:\n{self.story()}"
            time.sleep(0.05)

    def story(self) -> str:
        """Return what there is to know when something is wrong."""
        status = self.run("systemctl", "status", "--no-pager", "hypeman.service", check=False)
        return status + self.run("journalctl", "--no-pager", "--lines=60", check=False)

    def processes(self, name: str) -> list[int]:
        """Return the processes of that name in it, by this host's numbers."""
        namespace = Path(f"/proc/{self.pid}/cgroup").read_text().splitlines()[-1]
        top = namespace.removeprefix("0::").removesuffix("/init.scope")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"0::{top}/" not in (path / "cgroup").read_text():
                    continue
                if (path / "comm").read_text().strip() == name[:15]:
                    found.append(int(path.name))
        return found


def install(destination: Path, *arguments: str) -> None:
    """Do what `just install` does as a maker of packages would; `remove` is an argument."""
    tools = Path(sys.executable).parent
    environment = {**os.environ, "DESTDIR": str(destination), "PREFIX": "/usr"}
    environment["PATH"] = f"{tools}:{os.environ['PATH']}"
    script = ROOT / "systemd" / "install.sh"
    subprocess.run([script, *arguments], env=environment, check=True)


@contextmanager
def booted(directory: Path, installation: Path) -> Iterator[Host]:
    """Boot a container around the block; nothing of it is left behind."""
    cgroup = _make_cgroup()
    try:
        boot = subprocess.Popen(
            [
                *("sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', cgroup),
                *("unshare", *_NAMESPACES, "--", BOOT, directory, installation),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            host = Host(_wait_systemd(boot))
            host.run("systemctl", "is-system-running", "--wait", check=False)
            yield host
        finally:
            boot.kill()
            boot.wait()
    finally:
        _remove_cgroup(cgroup)


def _wait_systemd(boot: subprocess.Popen[bytes]) -> int:
    """Return the process in which systemd has started."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while True:
        assert boot.poll() is None, "the container ended"
        assert time.monotonic() < deadline, "systemd did not start"
        children = Path(f"/proc/{boot.pid}/task/{boot.pid}/children").read_text().split()
        with contextlib.suppress(OSError):
            for child in children:
                socket = Path(f"/proc/{child}/root/run/systemd/private")
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n" and socket.exists():
                    return int(child)
        time.sleep(0.05)


def _make_cgroup() -> Path:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in mounts if " - cgroup2 " in line]
    assert points, "the cgroup file system (version 2) is not mounted; systemd needs it"
    path = Path(points[0]) / f"hypeman-test-{os.getpid()}"
    path.mkdir()
    return path


def _remove_cgroup(path: Path) -> None:
    """End what is in a cgroup, and remove it with those below it."""
    (path / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + LONGEST_SECONDS
    while "populated 1" in (path / "cgroup.events").read_text():
        assert time.monotonic() < deadline, f"processes in {path} do not end"
        time.sleep(0.02)
    for below in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
        below.rmdir()
    path.rmdir()
