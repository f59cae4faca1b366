"""A build of nothing, while the machine waits for its own.

What costs time in the first build of a machine is that everything happens for the first time:
programs are read from the disk, and an emulator translates them. So each program that a build needs
runs once before there is a build: `buildctl`, the Dockerfile frontend, runc, the exporter; and so
does what the agent itself does between the configuration and `buildctl`.

It must not be seen by the build that follows. The name of its only file is random, so that no step
of a build is a step of this one; its directory has a name of its own in BuildKit, or what a
build sends would only be compared with it by size and time. Nothing is pulled, pushed or kept but
some KiB on the scratch disk and the tmpfs, which no step sees.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import trio

from agent import buildctl, paths, wire
from agent.buildctl import ATTESTATION, csv
from agent.buildkit import Daemon
from agent.process import Tail, describe_status, run_child
from agent.rootless import DEFAULT_MIRRORS, REGISTRY, builder_env
from agent.source import receive_source

WARM_UP_SECONDS = 30.0
"""It takes two under emulation. What hangs must not hold up a machine that would work as well."""
_LOCAL = "warmup"
_SOURCE_BYTES = 4096
_EXIT = bytes.fromhex("31ff 6a3c 58 0f05")
"""`_exit(0)` on x86-64, as the only instructions of a program that needs nothing."""
_ADDRESS = 0x400000


class WarmUp:
    """The warm-up of one machine. `done` is set when the machine is fit for a build."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self._scope = trio.CancelScope()

    def stop(self) -> None:
        """Give it up: there is a build. Returns at once."""
        self._scope.cancel(reason="a build has begun")

    async def run(self, daemon: Daemon) -> str:
        """Run it as soon as BuildKit is ready; return why this machine cannot build, or nothing.

        A BuildKit that has ended is the next build's to tell of.
        """
        why = ""
        with self._scope:
            if not await daemon.wait_ready(DEFAULT_MIRRORS):
                with trio.move_on_after(WARM_UP_SECONDS):
                    why = await _build_nothing()
        if not why:
            self.done.set()
        return why


async def _rehearse() -> None:
    """Take a configuration and a source as a build does, keeping nothing. Raises OSError."""
    source = bytes(_SOURCE_BYTES)
    config = wire.Config(
        build_id=_LOCAL,
        registry=REGISTRY,
        registry_token="",
        repository=_LOCAL,
        source_sha256=hashlib.sha256(source).hexdigest(),
        source_size=len(source),
        timeout_seconds=0,
        mirrors=DEFAULT_MIRRORS,
    )
    [parsed] = wire.FrameDecoder().feed(wire.encode(config))
    json.dumps(wire.as_map(parsed))
    buildctl.check(config)
    buildctl.argv(config, {})
    near, far = trio.socket.socketpair()
    async with trio.SocketStream(near) as stream, trio.SocketStream(far) as supervisor:
        header = wire.SourceHeader(config.source_size, config.source_sha256)
        await supervisor.send_all(wire.encode(header) + source)
        async with trio.lowlevel.FdStream(os.open(os.devnull, os.O_WRONLY)) as nowhere:
            await receive_source(stream, nowhere, config.source_size, config.source_sha256)


async def _build_nothing() -> str:
    """Build; return what went wrong, or nothing."""
    tail = Tail()
    command = argv(paths.WARMUP_DIR)
    try:
        await _rehearse()
        write_context_sync(Path(paths.WARMUP_DIR), os.urandom(16).hex())
        status = await run_child(command, tail, env=builder_env(), user=paths.BUILDER_UID)
    except OSError as exc:
        return f"the warm-up could not be started: {exc}"
    return f"{describe_status(status)}: {tail.text}" if status else ""


def write_context_sync(directory: Path, name: str) -> None:
    """Make the context: a program of that name, and a Dockerfile that runs it. Raises OSError."""
    directory.mkdir(0o755)
    program = directory / name
    program.write_bytes(exit_program())
    program.chmod(0o755)
    dockerfile = f'FROM scratch\nCOPY --from={_LOCAL} {name} /{name}\nRUN ["/{name}"]\n'
    (directory / "Dockerfile").write_text(dockerfile, encoding="utf-8")


def argv(directory: str) -> list[str]:
    """Return the command, like a build's in all that costs time."""
    return [
        "buildctl", "--addr", f"unix://{paths.BUILDKIT_SOCKET}",
        "build",
        "--progress", "rawjson",
        "--frontend", "dockerfile.v0",
        "--local", f"{_LOCAL}={directory}",
        "--opt", f"context:{_LOCAL}=local:{_LOCAL}",
        "--opt", f"dockerfilekey={_LOCAL}",
        "--opt", ATTESTATION,
        "--output", csv(
            type="image", name=_LOCAL, push="false", oci_mediatypes="true", compression="gzip"
        ),
    ]  # fmt: skip


def exit_program() -> bytes:
    """Return the smallest program that there is: a step of a build that has no base."""
    size = 64 + 56 + len(_EXIT)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _ADDRESS + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x1000)
    return header + segment + _EXIT
