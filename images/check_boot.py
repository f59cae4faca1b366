"""Boot the builder image that was made, to the agent's hello: does it, and where does the time go?

`python -m images.check_boot --count 100` is the acceptance check of the kernel, the initramfs and
the root disk together. It uses nothing of the daemon: two programs, two sockets, one console file.
"""

import argparse
import json
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from images.manifest import Facts
from images.paths import OUTPUT
from images.tool import run, say, search_path

IMAGE = OUTPUT / "hypeman" / "builder" / "latest"
CONTROL_PORT = 5001
LIMIT_SECONDS = 60.0
POLL_SECONDS = 0.02

# The last line of the console before the agent starts. To connect earlier is not only in vain: a
# CONNECT that arrives while the guest's driver starts ends the worker of vhost-device-vsock 0.3.0.
UP = "handover"


@dataclass(frozen=True)
class Boot:
    """One boot: seconds until the agent's hello, and the guest's own stamps of the way."""

    seconds: float
    stamps: dict[str, float]
    """What its init printed, in seconds since the kernel started."""
    agent: dict[str, float]
    """What its agent said in the hello, in the same time."""

    @property
    def timeline(self) -> dict[str, float]:
        """The moments of the way in order, in seconds since the VMM was started.

        `kernel` is when the guest's clock began: all before it is the VMM and its firmware. The
        host sees the hello a moment after the agent says it, and that moment is counted there too.
        """
        began = self.seconds - self.agent.get("hello", self.seconds)
        marks = {"kernel": 0.0, **self.stamps, **self.agent}
        return {name: began + at for name, at in sorted(marks.items(), key=lambda mark: mark[1])}


class BootFailed(Exception):
    """No byte came; the text is the console's."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="images.check_boot")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--memory-mb", type=int, default=2048)
    parser.add_argument("--image", type=Path, default=IMAGE)
    parser.add_argument("--append", default="", help="more words for the kernel, to try them")
    options = parser.parse_args()
    boots: list[Boot] = []
    for number in range(1, options.count + 1):
        try:
            boots.append(boot(options.image, options.memory_mb, options.append))
        except BootFailed as exc:
            say(f"boot {number} of {options.count} failed\n{exc}")
            return 1
        marks = " ".join(f"{name} {at:.2f}" for name, at in boots[-1].timeline.items())
        print(f"{number:4}  {marks}", flush=True)
    print("median seconds from the moment before: " + _durations(boots))
    seconds = [each.seconds for each in boots]
    print(
        f"{len(boots)} of {options.count} boots; hello after "
        f"{min(seconds):.2f} (least) {statistics.median(seconds):.2f} (median) "
        f"{max(seconds):.2f} (most) seconds"
    )
    return 0


def boot(
    image: Path,
    memory_mb: int = 2048,
    append: str = "",
    accelerator: str = "tcg",
    limit_seconds: float = LIMIT_SECONDS,
) -> Boot:
    """Boot one machine, wait for the agent, and end it."""
    with tempfile.TemporaryDirectory(prefix="hm-") as directory:
        work = Path(directory)
        return _boot(image.resolve(), work, memory_mb, append, accelerator, limit_seconds)


def _boot(
    image: Path, work: Path, memory_mb: int, append: str, accelerator: str, limit_seconds: float
) -> Boot:
    facts = json.loads((image / "manifest.json").read_text())
    facts["cmdline"] += f" {append}"
    console, scratch = work / "console", work / "scratch"
    run(["cp", "--sparse=always", image / facts["scratch"]["path"], scratch])
    deadline = time.monotonic() + limit_seconds
    with running(_vsock_argv(work)):
        _wait(lambda: (work / "dev").exists(), deadline, console)
        started = time.monotonic()
        with running(_qemu_argv(image, facts, work, memory_mb, accelerator)) as machine:

            def up() -> bool:
                if machine.poll() is not None:
                    raise BootFailed(_text(console) + f"\nthe VMM ended: {machine.returncode}")
                return UP in _text(console)

            _wait(up, deadline, console)
            hello = b""

            def greeted() -> bool:
                nonlocal hello
                hello = receive_hello(work / "vsock")
                return hello != b""

            _wait(greeted, deadline, console)
            seconds = time.monotonic() - started
    stamps = re.findall(r"hypeman: ([\d.]+) (\w+)", _text(console))
    # The map's names and numbers as agent/greeting.py writes them: nothing here needs a decoder.
    agent = re.findall(rb"[\x60-\x77]([a-z]+)\xfb(.{8})", hello, re.DOTALL)
    return Boot(
        seconds,
        {name: float(at) for at, name in stamps},
        {name.decode(): struct.unpack(">d", at)[0] for name, at in agent},
    )


def receive_hello(vsock: Path) -> bytes:
    """Return what the agent says first on the control port, or nothing if nobody is there."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(LIMIT_SECONDS)
        try:
            link.connect(str(vsock))
            link.sendall(b"CONNECT %d\n" % CONTROL_PORT)
            answer = link.makefile("rb")
            if not answer.readline().startswith(b"OK "):
                return b""
            return answer.read(int.from_bytes(answer.read(4), "big"))
        except OSError:
            return b""


def _durations(boots: list[Boot]) -> str:
    """Where the time goes: how long each part of the way takes, as a median of all boots."""
    took: dict[str, list[float]] = {}
    for each in boots:
        before = 0.0
        for name, at in each.timeline.items():
            took.setdefault(name, []).append(at - before)
            before = at
    return " ".join(f"{name} {statistics.median(values):.2f}" for name, values in took.items())


@contextmanager
def running(
    argv: list[str], *, env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the length of a block."""
    program = shutil.which(argv[0], path=search_path())
    process = subprocess.Popen(
        [program or argv[0], *argv[1:]],
        env=env,
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait(condition: Callable[[], bool], deadline: float, console: Path) -> None:
    while not condition():
        if time.monotonic() > deadline:
            raise BootFailed(_text(console) + "\nnothing came in time")
        time.sleep(POLL_SECONDS)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _vsock_argv(work: Path) -> list[str]:
    return [
        "vhost-device-vsock",
        "--guest-cid", "3",
        "--socket", str(work / "dev"),
        "--uds-path", str(work / "vsock"),
    ]  # fmt: skip


def _qemu_argv(
    image: Path, facts: Facts, work: Path, memory_mb: int, accelerator: str
) -> list[str]:
    return [
        "qemu-system-x86_64",
        "-M", "q35,graphics=off,sata=off,smbus=off,smm=off,vmport=off,memory-backend=mem",
        "-accel", "tcg,thread=multi" if accelerator == "tcg" else accelerator,
        "-cpu", "max,-erms,-fsrm" if accelerator == "tcg" else "max",
        "-smp", "2", "-m", f"{memory_mb}M",
        "-object", f"memory-backend-memfd,id=mem,size={memory_mb}M,share=on",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", f"file:{work / 'console'}",
        "-kernel", str(image / facts["kernel"]["path"]),
        "-initrd", str(image / facts["initramfs"]["path"]),
        "-append", facts["cmdline"],
        "-blockdev", "driver=raw,node-name=root,read-only=on,file.driver=file,"
                     f"file.filename={image / facts['rootfs']['path']}",
        "-device", "virtio-blk-pci,drive=root",
        "-blockdev", "driver=raw,node-name=scratch,cache.no-flush=on,file.driver=file,"
                     f"file.filename={work / 'scratch'}",
        "-device", "virtio-blk-pci,drive=scratch",
        "-chardev", f"socket,id=vsock,path={work / 'dev'}",
        "-device", "vhost-user-vsock-pci,chardev=vsock",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
