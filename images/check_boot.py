"""Boot the builder image that was made, and wait for the agent's first byte: does it, and how fast?

`python -m images.check_boot --count 100` is the acceptance check of the kernel, the initramfs and
the root disk together. It uses nothing of the daemon: two programs, two sockets, one console file.
"""

import argparse
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
    """One boot: seconds until the agent's first byte, and the guest's own stamps of the way."""

    seconds: float
    stamps: dict[str, float]


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
        stamps = " ".join(f"{name} {at:.2f}" for name, at in boots[-1].stamps.items())
        print(f"{number:4}  hello {boots[-1].seconds:.2f} s   guest: {stamps}", flush=True)
    seconds = [each.seconds for each in boots]
    print(
        f"{len(boots)} of {options.count} boots; hello after "
        f"{min(seconds):.2f} (least) {statistics.median(seconds):.2f} (median) "
        f"{max(seconds):.2f} (most) seconds"
    )
    return 0


def boot(image: Path, memory_mb: int = 2048, append: str = "") -> Boot:
    """Boot one machine, wait for the agent, and end it."""
    with tempfile.TemporaryDirectory(prefix="hm-") as directory:
        return _boot(image.resolve(), Path(directory), memory_mb, append)


def _boot(image: Path, work: Path, memory_mb: int, append: str) -> Boot:
    facts = json.loads((image / "manifest.json").read_text())
    facts["cmdline"] += f" {append}"
    console, scratch = work / "console", work / "scratch"
    run(["cp", "--sparse=always", image / facts["scratch"]["path"], scratch])
    deadline = time.monotonic() + LIMIT_SECONDS
    with running(_vsock_argv(work)):
        _wait(lambda: (work / "dev").exists(), deadline, console)
        started = time.monotonic()
        with running(_qemu_argv(image, facts, work, memory_mb)) as machine:

            def up() -> bool:
                if machine.poll() is not None:
                    raise BootFailed(_text(console) + f"\nthe VMM ended: {machine.returncode}")
                return UP in _text(console)

            _wait(up, deadline, console)
            _wait(lambda: greeted(work / "vsock"), deadline, console)
            seconds = time.monotonic() - started
    stamps = re.findall(r"hypeman: ([\d.]+) (\w+)", _text(console))
    return Boot(seconds, {name: float(at) for at, name in stamps})


def greeted(vsock: Path) -> bool:
    """Whether somebody on the control port says a first byte."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(LIMIT_SECONDS)
        try:
            link.connect(str(vsock))
            link.sendall(b"CONNECT %d\n" % CONTROL_PORT)
            answer = link.makefile("rb")
            return answer.readline().startswith(b"OK ") and answer.read(1) != b""
        except OSError:
            return False


@contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the length of a block."""
    program = shutil.which(argv[0], path=search_path())
    process = subprocess.Popen(
        [program or argv[0], *argv[1:]],
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
            raise BootFailed(_text(console) + f"\nnothing after {LIMIT_SECONDS:.0f} seconds")
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


def _qemu_argv(image: Path, facts: Facts, work: Path, memory_mb: int) -> list[str]:
    return [
        "qemu-system-x86_64",
        "-M", "q35,graphics=off,sata=off,smbus=off,smm=off,vmport=off,memory-backend=mem",
        "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", f"{memory_mb}M",
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
