"""Clients that others wrote, run as programs: skopeo, buildah, umoci, oras."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

import trio

REPOSITORY_ROOT = Path(__file__).parents[2]


class Program:
    """A program with a home of its own, and one user's credentials for one registry."""

    def __init__(self, home: Path, address: str, token: str | None) -> None:
        home.mkdir()
        self.home = home
        self.address = address
        auth = base64.b64encode(f"x:{token}".encode()).decode()
        self.authfile = home / "config.json"
        self.authfile.write_text(json.dumps({"auths": {address: {"auth": auth}} if token else {}}))
        self.policy = home / "policy.json"
        self.policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def name(self, reference: str) -> str:
        """Return how the program names an image of the registry."""
        return f"docker://{self.address}/{reference}"

    async def run(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None
    ) -> CompletedProcess[bytes]:
        """Run a command and return what came of it."""
        return await trio.run_process(
            argv,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=REPOSITORY_ROOT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.home),
                "TMPDIR": str(self.home),
                "XDG_RUNTIME_DIR": str(self.home),
                **(env or {}),
            },
        )

    async def run_ok(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> bytes:
        """Run a command that must succeed, and return its output."""
        done = await self.run(argv, env)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return bytes(done.stdout)


class Skopeo(Program):
    """Copies images, and looks at them."""

    async def __call__(self, command: str, *args: str) -> CompletedProcess[bytes]:
        """Run a command and return what came of it."""
        return await self.run(self._argv(command, args))

    async def ok(self, command: str, *args: str) -> bytes:
        """Run a command that must succeed, and return its output."""
        return await self.run_ok(self._argv(command, args))

    def _argv(self, command: str, args: Sequence[str]) -> list[str]:
        ends = ("src-tls-verify", "dest-tls-verify") if command == "copy" else ("tls-verify",)
        return [
            *("skopeo", "--policy", str(self.policy), command),
            *(f"--{end}=false" for end in ends),
            *("--authfile", str(self.authfile), *args),
        ]


class Buildah(Program):
    """Keeps images in a storage of its own."""

    async def ok(self, *args: str) -> bytes:
        """Run a command that needs no registry."""
        return await self.run_ok(self._argv(args), {"BUILDAH_ISOLATION": "chroot"})

    async def remote(self, command: str, *args: str) -> bytes:
        """Run a command that talks to the registry."""
        words = command.split(" ")
        options = ["--tls-verify=false", "--authfile", str(self.authfile)]
        return await self.ok(*words, *options, *args)

    def _argv(self, args: Sequence[str]) -> list[str]:
        # The image's policy and the drivers of the host are not the subject.
        (self.home / "containers.conf").touch()
        return [
            *("buildah", "--storage-driver", "vfs"),
            *("--root", str(self.home / "root"), "--runroot", str(self.home / "run"), *args),
        ]


class Umoci(Program):
    """Changes images in a layout; talks to no registry."""

    async def ok(self, *args: str) -> bytes:
        """Run a command that must succeed."""
        return await self.run_ok(["umoci", *args])


class Oras(Program):
    """The Python library, in a process of its own."""

    async def ok(self, verb: str, reference: str, *args: str, cwd: Path) -> bytes:
        """Run a command of tests/registry/oras_client.py in `cwd`."""
        module = "tests.registry.oras_client"
        argv = [sys.executable, "-m", module, verb, f"{self.address}/{reference}", str(cwd), *args]
        return await self.run_ok(argv, {"CONFIG": str(self.authfile)})
