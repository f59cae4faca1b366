"""What a build may find in the network: files, a git repository, a registry; plain and by TLS."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from tests.e2e.bases import BASES_DIR, manifest_digest


def _name_of_this_host() -> str:
    for name in (socket.gethostname(), socket.getfqdn(), "localhost.localdomain"):
        with contextlib.suppress(OSError), socket.socket() as sock:
            if name != "localhost":
                sock.bind((socket.gethostbyname(name), 0))
                return name.lower()
    # Then the test that needs it tells.
    return socket.gethostname()


TLS_NAME = _name_of_this_host()
"""A name that resolves here and is not `localhost`, which no client asks a proxy for."""
TLS_PORT = 18443
IMAGE = "only-here"


@dataclass(frozen=True)
class Certificate:
    """Of `TLS_NAME`; it is its own authority."""

    certificate: bytes
    key: bytes


@functools.cache
def certificate() -> Certificate:
    """Make a certificate, once in this process."""
    with tempfile.TemporaryDirectory() as directory:
        key, made = Path(directory, "key"), Path(directory, "certificate")
        subprocess.run(
            [
                "openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={TLS_NAME}",
                "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                "-addext", f"subjectAltName=DNS:{TLS_NAME}",
                "-keyout", key, "-out", made,
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        return Certificate(made.read_bytes(), key.read_bytes())


class _Handler(BaseHTTPRequestHandler):
    """Says hello under every path but those of a git repository and of a registry."""

    repositories: ClassVar[Path]

    def do_GET(self) -> None:
        if self.path.startswith("/repository.git/"):
            self._git(b"")
        elif self.path.startswith("/v2/"):
            self._registry()
        else:
            self._answer(f"hello from {self.path}\n".encode(), "text/plain")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._git(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes, kind: str, **fields: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _registry(self) -> None:
        """Serve one image, as far as pulling it needs."""
        layout = BASES_DIR / "busybox"
        what, _, reference = self.path.removeprefix(f"/v2/{IMAGE}/").partition("/")
        digest = reference if reference.startswith("sha256:") else manifest_digest("busybox")
        kind = "application/vnd.oci.image.manifest.v1+json"
        if what == "blobs":
            kind = "application/octet-stream"
        blob = (layout / "blobs" / digest.replace(":", "/")).read_bytes()
        self._answer(blob, kind, Docker_Content_Digest=digest)

    def _git(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            capture_output=True,
            check=True,
            env={
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(self.repositories),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            },
        )
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        length = f"Content-Length: {len(answer)}\r\n".encode()
        self.wfile.write(b"HTTP/1.0 200 OK\r\n" + length + head + b"\r\n\r\n" + answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(address: str, port: int, work: Path, *, by_tls: bool = False) -> Iterator[None]:
    """Serve while the block lasts; the repository is made below `work` if it is not there yet."""
    _Handler.repositories = work
    if not (work / "repository.git").exists():
        _make_repository(work / "repository.git")
    with ThreadingHTTPServer((address, port), _Handler) as server:
        if by_tls:
            server.socket = _tls(work).wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _tls(work: Path) -> ssl.SSLContext:
    pair = work / "tls.pem"
    pair.write_bytes(certificate().key + certificate().certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    return context


def _make_repository(path: Path) -> None:
    """Make a bare repository whose branch `main` holds one file."""
    who = {
        f"GIT_{role}_{part}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", "n"), ("EMAIL", "e@example.org"))
    }
    git = ["git", f"--git-dir={path}"]

    def run(*arguments: str, given: str = "") -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(path.parent), **who}
        return subprocess.run(
            [*git, *arguments], input=given, env=env, capture_output=True, text=True, check=True
        ).stdout.strip()

    run("init", "--bare", "--quiet")
    blob = run("hash-object", "-w", "--stdin", given="from git\n")
    tree = run("mktree", given=f"100644 blob {blob}\tfile\n")
    run("update-ref", "refs/heads/main", run("commit-tree", "-m", "first", tree))
