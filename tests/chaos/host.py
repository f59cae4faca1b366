"""A host for daemons that are killed: starts them, ends them, and asks them from outside."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx2
import trio

from supervisor.model.ids import Tenant
from supervisor.runtime.clock import wall_clock
from supervisor.tokens import Permission, mint_api_token
from tests.chaos.faults import Fault
from tests.e2e.daemon import free_port

START_SECONDS = 30.0
"""Bounds a hang; a start takes a fraction of a second."""
TOKEN_SECONDS = 7200.0

_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Everything here is HTTP; reading the certificates of the world for each client takes a while."""


class Host:
    """One data directory, and one daemon at a time. Made by `open_host`."""

    def __init__(self, root: Path, settings: Mapping[str, str], zygote: trio.Process) -> None:
        self.root = root
        self.settings = dict(settings)
        self.port = free_port()
        self.metrics_port = free_port()
        self.calls_are_points = False
        """Of daemons that are started from now on: see `Points.install_calls`."""
        self.lives = 0
        self.pid = 0
        self.status: int | None = None
        """How the last daemon ended."""
        self._secret = secrets.token_hex(32)
        self._zygote = zygote
        self._pidfd = -1
        self._answers = b""

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def runtime_dir(self) -> Path:
        return self.root / "run"

    @property
    def log(self) -> Path:
        return self.root / "daemon.log"

    @property
    def journal(self) -> list[dict[str, Any]]:
        """What the daemons' fake machines and faults have noted."""
        path = self.root / "journal"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    @property
    def passed(self) -> dict[str, int]:
        """How often the last daemon that ended gracefully has passed each point."""
        found: dict[str, int] = json.loads((self.root / "passed").read_text())
        return found

    def log_tail(self, size: int = 6000) -> str:
        return self.log.read_text(errors="replace")[-size:]

    # -- one daemon after the other ------------------------------------------------------------

    async def start(self, *faults: Fault) -> bool:
        """Start a daemon; say whether it came up, before it ended by a fault."""
        self.lives += 1
        self.status = None
        order = {
            "life": self.lives,
            "environment": self._environment(),
            "log": os.fspath(self.log),
            "journal": os.fspath(self.root / "journal"),
            "passed": os.fspath(self.root / "passed"),
            "vitals": os.fspath(self.root / "vitals"),
            "calls": self.calls_are_points,
            "faults": [asdict(fault) for fault in faults],
        }
        assert self._zygote.stdin is not None
        await self._zygote.stdin.send_all(json.dumps(order).encode() + b"\n")
        self.pid = (await self._answer())["pid"]
        self._pidfd = os.pidfd_open(self.pid)
        with trio.fail_after(START_SECONDS):
            while not await self._is_up():
                if _has_ended(self._pidfd):
                    await self.wait_ended()
                    return False
                await trio.sleep(0.01)
        return True

    async def kill(self) -> None:
        """End the daemon with SIGKILL, if it has not ended, and wait for that."""
        self.signal(signal.SIGKILL)
        await self.wait_ended()

    async def stop(self) -> int:
        """End it as a service manager does; return the exit status."""
        self.signal(signal.SIGTERM)
        with trio.fail_after(60):
            return await self.wait_ended()

    def signal(self, number: signal.Signals) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait_ended(self) -> int:
        """Wait until the daemon has ended; return its exit status, negative for a signal."""
        if self.status is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            if self.status is None:
                status = (await self._answer())["status"]
                self.status = status
                os.close(self._pidfd)
        return self.status

    @property
    def is_running(self) -> bool:
        return self.status is None and not _has_ended(self._pidfd)

    async def vitals(self) -> dict[str, int]:
        """Ask the daemon what it is made of."""
        path = self.root / "vitals"
        path.unlink(missing_ok=True)
        self.signal(signal.SIGUSR1)
        with trio.fail_after(10):
            while not path.exists():  # noqa: ASYNC110 - another process writes it
                await trio.sleep(0.01)
        found: dict[str, int] = json.loads(path.read_text())
        return found

    # -- from outside --------------------------------------------------------------------------

    @asynccontextmanager
    async def client(self, tenant: str = "operator") -> AsyncIterator[httpx2.AsyncClient]:
        """A client of a tenant; the operator may do everything."""
        permissions = frozenset(Permission) if tenant == "operator" else None
        token = mint_api_token(
            self._secret.encode(),
            subject="chaos",
            tenant=Tenant(tenant),
            permissions=permissions,
            now=wall_clock(),
            lifetime_seconds=TOKEN_SECONDS,
        )
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
            verify=_NO_TLS,
        ) as client:
            yield client

    async def metrics(self) -> str:
        async with httpx2.AsyncClient(verify=_NO_TLS) as client:
            return (await client.get(f"http://127.0.0.1:{self.metrics_port}/metrics")).text

    async def _is_up(self) -> bool:
        try:
            stream = await trio.open_unix_socket(os.fspath(self.runtime_dir / "hypeman.sock"))
        except OSError:
            return False
        await trio.aclose_forcefully(stream)
        return True

    async def _answer(self) -> dict[str, int]:
        assert self._zygote.stdout is not None
        while b"\n" not in self._answers:
            data = await self._zygote.stdout.receive_some()
            assert data, "the process that starts the daemons has ended"
            self._answers += data
        line, _, self._answers = self._answers.partition(b"\n")
        answer: dict[str, int] = json.loads(line)
        return answer

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.root),
            "DATA_DIR": str(self.data_dir),
            "RUNTIME_DIR": str(self.runtime_dir),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "METRICS_ADDRESS": f"127.0.0.1:{self.metrics_port}",
            "JWT_SECRET": self._secret,
            "BOOT_TIMEOUT": "10",
            "DRAIN_GRACE": "1",
            "HTTP_GRACE": "0.5",
            **self.settings,
        }


@asynccontextmanager
async def open_host(root: Path, *wrapper: str, **settings: str) -> AsyncIterator[Host]:
    """Be a host for the length of the block. `wrapper`: a command to run the daemons under."""
    async with trio.open_nursery() as nursery:
        argv = [*wrapper, sys.executable, "-m", "tests.chaos.daemon"]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        zygote: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                argv,
                stdin=PIPE,
                stdout=PIPE,
                check=False,
                cwd=Path(__file__).parents[2],
                env=environment,
            )
        )
        try:
            yield Host(root, settings, zygote)
        finally:
            nursery.cancel_scope.cancel(reason="no more daemons")


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))
