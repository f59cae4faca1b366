"""A real daemon as its user runs it: a process of its own, reached from outside only."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import jwt

from tests.e2e.bases import debian_mirror, networks_of
from tests.e2e.servers import TLS_NAME, TLS_PORT, certificate

REPOSITORY_ROOT = Path(__file__).parents[2]
IMAGES_DIR = REPOSITORY_ROOT / "build" / "images"
BASES_DIR = REPOSITORY_ROOT / "build" / "bases"
TOOLS_DIR = REPOSITORY_ROOT / "build" / "tools" / "bin"

EGRESS_ADDRESS = "127.0.0.2"
"""Stands for an internal mirror: an address of this host, opened to builds by the operator."""
EGRESS_PORT = 18080

START_SECONDS = 120
"""Probing the accelerator and importing the base images take most of it."""
BUILD_SECONDS = 600
"""Emulation on a busy host is slow; this bounds a hang, it judges no speed."""
FINAL = {"ready", "failed", "cancelled"}


@dataclass
class Daemon:
    """A running `hypeman-supervisor`, and a client for it."""

    root: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    jwt_secret: str = field(default_factory=lambda: secrets.token_hex(32))
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def runtime_dir(self) -> Path:
        return self.root / "run"

    @property
    def log_file(self) -> Path:
        return self.root / "daemon.log"

    @property
    def ca_file(self) -> Path:
        return self.root / "ca.pem"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:{TOOLS_DIR}",
            "LANG": "C.UTF-8",
            "HOME": str(self.root),
            "DATA_DIR": str(self.data_dir),
            "RUNTIME_DIR": str(self.runtime_dir),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "JWT_SECRET": self.jwt_secret,
            "IMAGES_DIR": str(IMAGES_DIR),
            "SEED_IMAGES_DIR": str(BASES_DIR),
            "METRICS_ADDRESS": "none",
            # Where the pool is not the subject, it would only take processors from the tests.
            "POOL_SIZE": "0",
            "EGRESS_ALLOWED_NETWORKS": ",".join(
                [f"{EGRESS_ADDRESS}/32", *networks_of(TLS_NAME), *networks_of(debian_mirror())]
            ),
            "EGRESS_PORTS": f"80,443,{EGRESS_PORT},{TLS_PORT}",
            "EGRESS_CA_FILE": str(self.ca_file),
            "BUILD_SECRETS_DIR": str(self.root / "secrets"),
            **self.settings,
        }

    def start(self) -> None:
        """Start the daemon and wait until it says that builds can start."""
        self.port = self.port or free_port()
        self.ca_file.write_bytes(certificate().certificate)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.daemon", "run"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx2.TransportError), self.client() as client:
                if client.get("/ready").status_code == 200:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the daemon did not start:\n{self.log_tail()}")
            time.sleep(0.1)

    def stop(self) -> int:
        """Stop it as a service manager does; return the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon did not stop:\n{self.log_tail()}") from None

    def kill(self) -> None:
        """End it without any chance to clean up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def log_tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-5000:]

    # -- as a client ---------------------------------------------------------------------------

    def token(self, tenant: str = "acme", **claims: Any) -> str:
        """A token for everything but administration."""
        claims = {"sub": tenant, "exp": int(time.time()) + 7200, **claims}
        return jwt.encode(claims, self.jwt_secret, "HS256")

    def client(self, tenant: str = "acme", **claims: Any) -> httpx2.Client:
        """A client of one tenant, or (permissions=["build:admin"]) of the administrator."""
        return httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {self.token(tenant, **claims)}"},
            verify=False,  # there is no TLS, and to load whom to trust takes 20 ms each time
            timeout=60,
        )

    def _admin(self) -> httpx2.Client:
        return self.client(permissions=["build:admin"])

    def submit(self, context: bytes | Path | Mapping[str, str], **fields: Any) -> dict[str, Any]:
        """Submit a build that must be accepted; return it."""
        answer = self.post(context, **fields)
        assert answer.status_code == 202, answer.text
        build: dict[str, Any] = answer.json()
        return build

    def post(
        self, context: bytes | Path | Mapping[str, str], *, tenant: str = "acme", **fields: Any
    ) -> httpx2.Response:
        data = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in fields.items()
        }
        files = {"source": ("source.tar.gz", pack(context), "application/gzip")}
        with self.client(tenant) as client:
            return client.post("/builds", data=data, files=files)

    def get(self, build_id: str) -> dict[str, Any]:
        with self._admin() as client:
            answer = client.get(f"/builds/{build_id}")
        assert answer.status_code == 200, answer.text
        build: dict[str, Any] = answer.json()
        return build

    def wait(self, build_id: str) -> dict[str, Any]:
        """Follow the build to its end, and return it with its final status."""
        for event in self.follow(build_id):
            if event.get("status") in FINAL:
                return self.get(build_id)
        raise AssertionError(f"the events of {build_id} ended without a final status")

    def wait_for(self, build_id: str, text: str) -> None:
        """Follow the build until a line of its output contains `text`."""
        seen = []
        for event in self.follow(build_id):
            if event["type"] == "log":
                seen.append(event["content"])
                if text in event["content"]:
                    return
        raise AssertionError(f"{text!r} never came; the log was {seen}")

    def follow(self, build_id: str) -> Iterator[dict[str, Any]]:
        """Yield the events of a build as they come."""
        with (
            self._admin() as client,
            client.stream("GET", f"/builds/{build_id}/logs", timeout=BUILD_SECONDS) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))

    def log(self, build_id: str) -> str:
        with self._admin() as client:
            answer = client.get(f"/builds/{build_id}/logs", headers={"Accept": "text/plain"})
        assert answer.status_code == 200, answer.text
        return answer.text

    def evidence(self, build_id: str) -> str:
        """What the machine of a build has left, as the operator sees it."""
        with self._admin() as client:
            answer = client.get(f"/builds/{build_id}/evidence")
        assert answer.status_code == 200, answer.text
        return answer.text

    def build(self, context: bytes | Path | Mapping[str, str], **fields: Any) -> dict[str, Any]:
        """Submit a build and wait for its end."""
        return self.wait(self.submit(context, **fields)["id"])

    def build_image(
        self, context: bytes | Path | Mapping[str, str], **fields: Any
    ) -> dict[str, Any]:
        """Submit a build that must succeed."""
        build = self.build(context, **fields)
        assert build["status"] == "ready", f"{build}\n{self.log(build['id'])}\n{self.log_tail()}"
        return build

    # -- what it owns on the host --------------------------------------------------------------

    def descendants(self) -> dict[int, str]:
        """Every process that the daemon has started and that lives: pid → command line."""
        assert self.process is not None
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    if stat[0] != "Z":
                        parents[int(entry.name)] = int(stat[1])
        found: dict[int, str] = {}
        frontier = [self.process.pid]
        while frontier:
            parent = frontier.pop()
            for pid in [pid for pid, ppid in parents.items() if ppid == parent]:
                frontier.append(pid)
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    found[pid] = command.replace(b"\0", b" ").decode(errors="replace")
        return found

    def machine_directories(self) -> list[Path]:
        return sorted((self.runtime_dir / "machines").iterdir())

    def leftovers(self) -> list[str]:
        """Whatever a machine could have left: processes, sockets, disks, directories."""
        return [*self.descendants().values(), *map(str, self.machine_directories())]

    def wait_clean(self, seconds: float) -> None:
        """Fail unless nothing of a machine is left within `seconds`: a bound of the contract."""
        deadline = time.monotonic() + seconds
        while left := self.leftovers():
            assert time.monotonic() < deadline, f"left after {seconds} s: {left}"
            time.sleep(0.05)


def pack(context: bytes | Path | Mapping[str, str]) -> bytes:
    """Return a source archive: of a directory, or of file names and contents."""
    if isinstance(context, bytes):
        return context
    buffer = io.BytesIO()
    # Fast, not small: it goes through a socket of this host.
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        if isinstance(context, Path):
            for path in sorted(context.iterdir()):
                if path.name != "expect.toml":
                    archive.add(path, path.name)
        else:
            for name, text in context.items():
                member = tarfile.TarInfo(name)
                data = text.encode()
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
