"""The two registries that are compared, each a process of its own on the same disk."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from supervisor.config import Keys
from supervisor.model.ids import Tenant
from supervisor.tokens import mint_api_token

KEYS = Keys(api=b"a" * 32, registry=b"r" * 32)
TENANT = Tenant("bench")
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Server:
    """A registry that answers."""

    port: int
    pid: int
    authorization: str
    """What every request must carry; nothing if empty."""

    @property
    def rss_bytes(self) -> int:
        """Resident memory now."""
        return rss_bytes(self.pid)


def authorization() -> str:
    """Return what lets somebody push and pull."""
    token = mint_api_token(
        KEYS.api, subject="bench", tenant=TENANT, now=time.time(), lifetime_seconds=7200
    )
    return f"Bearer {token}"


@contextmanager
def our_registry(directory: Path) -> Iterator[Server]:
    """Serve ours, with tokens, as a daemon does."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    argv = [sys.executable, "-m", "benchmarks.serve", str(directory), str(port)]
    with _running(argv, directory / "log", dict(os.environ), port) as pid:
        yield Server(port, pid, authorization())


@contextmanager
def peer_registry(directory: Path) -> Iterator[Server]:
    """Serve the distribution's, without tokens and with its usual storage."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = directory / "config.yml"
    config.write_text(
        f"""version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {directory / "data"}}}
  cache: {{blobdescriptor: inmemory}}
http: {{addr: "127.0.0.1:{port}"}}
"""
    )
    argv = ["docker-registry", "serve", str(config)]
    with _running(argv, directory / "log", dict(os.environ), port) as pid:
        yield Server(port, pid, "")


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _running(argv: list[str], log: Path, env: dict[str, str], port: int) -> Iterator[int]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        _wait_listening(process, port, log)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{process.args!r} does not listen:\n{said}")
        time.sleep(0.05)
