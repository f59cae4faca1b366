"""The BuildKit of the builder image, on the host: rootless as there, but without its machine.

It runs in a sandbox that shows it the host's files read-only, as root of a user namespace. So it
needs no rights, all its mounts are its own, and nothing of it outlives the sandbox. Its builds copy
files and run nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE

import trio

from images.gotools import BIN
from tests.registry.clients import Program

PLATFORMS = ("linux/amd64", "linux/arm64")

_READY = b"running server on "
_CONFIG = """\
root = "{home}/state"
[grpc]
  address = ["unix://{socket}"]
[otel]
  socketPath = "{socket}.otel"
[cdi]
  disabled = true
[worker.oci]
  enabled = true
  snapshotter = "native"
  binary = "{runc}"
  platforms = {platforms}
  gc = false
[worker.containerd]
  enabled = false
[registry."{address}"]
  http = true
"""


class BuildKit(Program):
    """Builds, pushes, pulls and keeps caches, through a daemon that listens on `socket`."""

    def __init__(self, home: Path, address: str, token: str, socket: Path) -> None:
        super().__init__(home, address, token)
        self.socket = socket

    async def build(
        self, context: Path, *options: str, platforms: Sequence[str] = PLATFORMS[:1]
    ) -> str:
        """Build the Dockerfile of `context`; return the log."""
        argv = [
            *(str(BIN / "buildctl"), "--addr", f"unix://{self.socket}", "build"),
            *("--progress", "plain", "--frontend", "dockerfile.v0"),
            *("--local", f"context={context}", "--local", f"dockerfile={context}"),
            *("--opt", f"platform={','.join(platforms)}", *options),
        ]
        # Where it looks for credentials.
        done = await self.run(argv, {"DOCKER_CONFIG": str(self.home)})
        assert done.returncode == 0, done.stderr.decode()
        return bytes(done.stderr).decode()


@asynccontextmanager
async def open_buildkit(home: Path, address: str, token: str) -> AsyncIterator[BuildKit]:
    """Run the daemon; nothing is left of it afterwards but files below `home`."""
    # The name of a socket has to be short, and a test's directory may be deep.
    with tempfile.TemporaryDirectory(prefix="hm-") as sockets:
        buildkit = BuildKit(home, address, token, Path(sockets) / "s")
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                partial(trio.run_process, _sandboxed(buildkit), stderr=PIPE, check=False)
            )
            try:
                await _wait_ready(process.stderr)
                nursery.start_soon(_drain, process.stderr)
                yield buildkit
            finally:
                process.kill()
                nursery.cancel_scope.cancel(reason="the test is over")


def _sandboxed(buildkit: BuildKit) -> list[str]:
    config, home, sockets = buildkit.home / "buildkitd.toml", buildkit.home, buildkit.socket.parent
    config.write_text(
        _CONFIG.format(
            home=home,
            socket=buildkit.socket,
            runc=BIN / "runc",
            platforms=json.dumps(PLATFORMS),
            address=buildkit.address,
        )
    )
    return [
        *("bwrap", "--die-with-parent", "--unshare-all", "--share-net"),
        *("--uid", "0", "--gid", "0", "--cap-add", "ALL", "--clearenv"),
        *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
        *("--bind", str(home), str(home), "--bind", str(sockets), str(sockets)),
        *("--setenv", "TMPDIR", str(home), "--setenv", "PATH", os.environ["PATH"]),
        *(str(BIN / "buildkitd"), "--config", str(config)),
    ]


async def _wait_ready(output: trio.abc.ReceiveStream) -> None:
    said = bytearray()
    while _READY not in said:
        piece = await output.receive_some()
        assert piece, said.decode()
        said += piece


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass
