"""A bare build: the same VMM, the same BuildKit and buildctl, the same registry, and no Hypeman.

The floor of `builds`. The machine boots from the same kernel, initramfs and disk; a second archive
behind the initramfs replaces its last step, so that bare_guest.py runs instead of the agent. There
is no cage, no agent, no guest link and no status. The registry is the daemon's, by a relay.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from agent import buildctl, wire
from agent.rootless import DEFAULT_MIRRORS, REGISTRY
from benchmarks import bare_guest
from images import cpio
from images.check_boot import running
from supervisor.config import Settings
from supervisor.images.lookup import find_builder_image
from supervisor.model.ids import MachineId
from supervisor.model.image import BuilderImage
from supervisor.vm.argv import DEVICE_NAME, VSOCK_NAME, Descriptors, qemu_argv, vsock_argv
from supervisor.vm.machine import MachineSpec
from supervisor.vm.platform import Platform
from supervisor.vm.scratch import make_scratch_sync
from supervisor.vm.tsc import TscMeasurement
from tests.e2e.daemon import IMAGES_DIR, REPOSITORY_ROOT, Daemon, pack

_INIT = REPOSITORY_ROOT / "images" / "builder" / "init"
_PID1 = REPOSITORY_ROOT / "images" / "builder" / "files" / "usr" / "lib" / "hypeman" / "pid1"
_AGENT = "/usr/bin/builder-agent"
_SWITCH = "exec switch_root -c /dev/console /root /usr/lib/hypeman/pid1"
_COPY = """\
mkdir -p /root/run/bare
for file in /bare/*; do cat "$file" >"/root/run/bare/${file##*/}"; done
exec switch_root -c /dev/console /root /bin/sh /run/bare/pid1"""
_BOOT_SECONDS = 120
_BUILD_SECONDS = 600.0
_CHUNK_BYTES = 256 << 10
_FIRST_STEP = b'"started"'


@dataclass(frozen=True)
class BareBuild:
    """When it came to what, in seconds since the machine (or the word `go`) was given."""

    first_step: float
    done: float


class Bare:
    """Runs bare builds of one source against the registry of a daemon that runs."""

    def __init__(self, daemon: Daemon, work: Path, source: Path) -> None:
        self._daemon = daemon
        self._work = work
        self._tsc_khz = trio.run(TscMeasurement().wait_khz)
        with daemon.client(permissions=["build:admin"]) as client:
            self._platform = Platform(*client.get("/system/info").json()["platform"].split("/"))
        settings = Settings()
        self._numbers = itertools.count(1)
        self._shape = (settings.build_cpus, settings.build_memory_mb)
        self._image = find_builder_image(IMAGES_DIR, settings.builder_image)
        self._source = pack(source)

    def cold(self) -> BareBuild:
        """Boot a machine, build in it, and end it."""
        began = time.monotonic()
        with self.machine() as link:
            return _build(link, began)

    def warm(self, settle_seconds: float) -> BareBuild:
        """Build in a machine that has been up for a while."""
        with self.machine() as link:
            time.sleep(settle_seconds)
            return _build(link, time.monotonic())

    @contextmanager
    def machine(self) -> Iterator[socket.socket]:
        """Boot a machine; yield its link when BuildKit is ready. It is gone afterwards."""
        name = f"bare-{next(self._numbers)}"
        directory = self._work / name
        directory.mkdir()
        image = self._image_of(name, directory)
        environment = {"PATH": self._daemon.environment["PATH"]}
        with ExitStack() as stack:
            device = stack.enter_context(running(vsock_argv(directory), env=environment))
            link = stack.enter_context(_listening(directory, bare_guest.HOST_PORT))
            registry = stack.enter_context(_listening(directory, 8083))
            _in_thread(_relay_all, registry, self._daemon.port)
            ours, theirs = socket.socketpair()
            control, control_side = socket.socketpair()
            vsock = stack.enter_context(socket.socket(socket.AF_UNIX))
            _connect(vsock, directory / DEVICE_NAME, device)
            for sock in (ours, theirs, control, control_side):
                stack.enter_context(sock)
            scratch = make_scratch_sync(self._image.scratch, self._work)
            stack.callback(os.close, scratch)
            fds = Descriptors(theirs.fileno(), control_side.fileno(), vsock.fileno(), scratch)
            spec = MachineSpec(MachineId(name), *self._shape)
            argv = qemu_argv(spec, image, self._platform, directory, fds, self._tsc_khz)
            said: list[bytes] = []
            _in_thread(_read_all, ours, said)
            machine = stack.enter_context(running(argv, env=environment, pass_fds=fds.all()))
            connection = _accept(link, machine)
            if connection is None:
                console = b"".join(said)[-3000:].decode(errors="replace")
                raise RuntimeError(f"the bare machine did not come up:\n{console}")
            stack.enter_context(connection)
            yield connection

    def _image_of(self, name: str, directory: Path) -> BuilderImage:
        initramfs = directory / "initramfs"
        initramfs.write_bytes(
            _padded(self._image.initramfs.read_bytes()) + archive(self._source, self._task(name))
        )
        return replace(self._image, initramfs=initramfs)

    def _task(self, name: str) -> dict[str, object]:
        token = self._daemon.token()
        config = wire.Config(
            build_id="bare",
            registry=REGISTRY,
            registry_token=token,
            repository=f"acme/{name}",
            source_sha256="",
            source_size=0,
            timeout_seconds=_BUILD_SECONDS,
            mirrors=DEFAULT_MIRRORS,
        )
        basic = base64.b64encode(f"bare:{token}".encode()).decode()
        credentials = {"auths": {REGISTRY: {"auth": basic, "registrytoken": token}}}
        return {"argv": buildctl.argv(config, {}), "credentials": credentials}


def archive(source: bytes, task: object) -> bytes:
    """Return what comes behind the initramfs: another `init`, and what runs instead of the agent.

    Raises AssertionError if the image starts its agent in another way than this expects.
    """
    init, pid1 = _INIT.read_text(), _PID1.read_text()
    assert _SWITCH in init, f"{_INIT} does not end with {_SWITCH!r}"
    assert _AGENT in pid1, f"{_PID1} does not start {_AGENT}"
    files = {
        "bare/guest.py": Path(bare_guest.__file__).read_bytes(),
        "bare/pid1": pid1.replace(_AGENT, "/usr/bin/python3 -ISB /run/bare/guest.py").encode(),
        "bare/source.tar.gz": source,
        "bare/task.json": json.dumps(task).encode(),
    }
    entries = {name: cpio.file(data) for name, data in files.items()}
    entries["bare"] = cpio.directory()
    entries["init"] = cpio.file(init.replace(_SWITCH, _COPY).encode(), 0o755)
    return cpio.pack(entries)


def _build(link: socket.socket, began: float) -> BareBuild:
    link.sendall(b"go\n")
    said = b""
    first_step = 0.0
    while bare_guest.ENDED not in said or not said.endswith(b"\n"):
        data = link.recv(_CHUNK_BYTES)
        said += data
        if not first_step and _FIRST_STEP in said:
            first_step = time.monotonic() - began
        if not data:
            break
    done = time.monotonic() - began
    if not said.endswith(bare_guest.ENDED + b"0\n"):
        raise RuntimeError(f"the bare build failed: {said[-2000:].decode(errors='replace')}")
    return BareBuild(first_step, done)


@contextmanager
def _listening(directory: Path, port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / f"{VSOCK_NAME}_{port}"))
        listener.listen(128)
        try:
            yield listener
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # who waits in `accept` is not woken by a close


def _connect(sock: socket.socket, path: Path, device: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            sock.connect(str(path))
            return
        except OSError:
            if device.poll() is not None:
                raise
            time.sleep(0.005)


def _accept(link: socket.socket, machine: subprocess.Popen[bytes]) -> socket.socket | None:
    """Return the connection of a machine whose BuildKit is ready; None if it does not get there."""
    link.settimeout(1.0)
    for _ in range(_BOOT_SECONDS):
        if machine.poll() is not None:
            return None
        with suppress(TimeoutError):
            connection, _ = link.accept()
            connection.settimeout(_BUILD_SECONDS)
            return connection if connection.recv(16) == b"ready\n" else None
    return None


def _relay_all(listener: socket.socket, port: int) -> None:
    while True:
        try:
            guest, _ = listener.accept()
        except OSError:
            return  # the machine has ended
        registry = socket.create_connection(("127.0.0.1", port))
        _in_thread(_relay, guest, registry)
        _in_thread(_relay, registry, guest)


def _relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            target.sendall(data)
    for sock in (source, target):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _read_all(sock: socket.socket, said: list[bytes]) -> None:
    with suppress(OSError):
        while data := sock.recv(4096):
            said.append(data)


def _in_thread(work: Callable[..., None], *args: object) -> None:
    threading.Thread(target=work, args=args, daemon=True).start()


def _padded(data: bytes) -> bytes:
    """Return an archive with what the kernel wants before the next one: a multiple of 4 bytes."""
    return data + b"\0" * (-len(data) % 4)
