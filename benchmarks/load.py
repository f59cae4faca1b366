"""The client of `registry`: raw sockets and prebuilt bytes, so that it is not what is measured.

    echo '{"act": "push", "port": 5000, …}' | python -m benchmarks.load

A process of its own, the same for both registries. Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_PATTERN_BYTES = 1 << 20
_SEND_BYTES = 1 << 20
_CHUNK_BYTES = 32 << 10


class Connection:
    """One HTTP/1.1 connection, blocking."""

    def __init__(self, port: int, authorization: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._authorization = authorization

    def head(
        self, method: str, target: str, length: int | None = None, kind: str = "", accept: str = ""
    ) -> bytes:
        """Return the head of a request."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
        if self._authorization:
            lines.append(f"Authorization: {self._authorization}")
        if length is not None:
            lines.append(f"Content-Length: {length}")
        if kind:
            lines.append(f"Content-Type: {kind}")
        if accept:
            lines.append(f"Accept: {accept}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def ask(
        self, method: str, target: str, body: memoryview | bytes | None = None, kind: str = ""
    ) -> tuple[int, dict[str, str], int]:
        """Send a request; return status, headers and how long the answer's body was."""
        length = 0 if body is None and method in ("POST", "PUT") else None
        head = self.head(method, target, len(body) if body is not None else length, kind)
        self._socket.sendall(head)
        if body is not None:
            view = memoryview(body)
            for start in range(0, len(view), _SEND_BYTES):
                self._socket.sendall(view[start : start + _SEND_BYTES])
        return self.answer()

    def patch_in_chunks(self, target: str, body: bytes) -> tuple[int, dict[str, str], int]:
        """Send a PATCH whose length nobody announces, in the chunks that Go's clients make."""
        head = self.head("PATCH", target)[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
        self._socket.sendall(head)
        view = memoryview(body)
        for start in range(0, len(view), _CHUNK_BYTES):
            piece = view[start : start + _CHUNK_BYTES]
            self._socket.sendmsg([b"%x\r\n" % len(piece), piece, b"\r\n"])
        self._socket.sendall(b"0\r\n\r\n")
        return self.answer()

    def answer(self) -> tuple[int, dict[str, str], int]:
        """Read an answer and drop its body."""
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            piece = self._socket.recv(65536)
            if not piece:
                raise ConnectionError("the registry closed the connection")
            data += piece
        lines = data[:end].decode().split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        status = int(lines[0].split()[1])
        left = int(headers.get("content-length", "0"))
        buffer = bytearray(_SEND_BYTES)
        got = len(data) - end - 4
        while got < left:
            count = self._socket.recv_into(buffer, min(len(buffer), left - got))
            if not count:
                raise ConnectionError("the registry closed the connection")
            got += count
        return status, headers, left


class Blob:
    """Bytes that no other blob has, and their digest."""

    def __init__(self, size: int) -> None:
        pattern = os.urandom(_PATTERN_BYTES)
        self.content = (pattern * (size // _PATTERN_BYTES + 1))[:size]
        self.digest = f"sha256:{hashlib.sha256(self.content).hexdigest()}"


def push(spec: dict[str, Any]) -> dict[str, Any]:
    """Push `parallel` blobs of `size` bytes at once, as BuildKit does: POST, then PUT.

    With `chunked`, as docker and skopeo do: POST, PATCH in chunks, PUT of nothing.
    """
    blobs = [Blob(spec["size"]) for _ in range(spec["parallel"])]

    def one(index: int) -> None:
        connection = Connection(spec["port"], spec["authorization"])
        repository = f"{spec['repository']}{index}"
        status, headers, _ = connection.ask("POST", f"/v2/{repository}/blobs/uploads/")
        _expect(status, 202)
        blob = blobs[index]
        content: bytes | None = blob.content
        if spec.get("chunked"):
            status, headers, _ = connection.patch_in_chunks(_path(headers), blob.content)
            _expect(status, 202)
            content = None
        target = _path(headers)
        mark = "&" if "?" in target else "?"
        status, _, _ = connection.ask("PUT", f"{target}{mark}digest={blob.digest}", content)
        _expect(status, 201)

    seconds = _at_once(one, spec["parallel"])
    return {"seconds": seconds, "digests": [blob.digest for blob in blobs]}


def pull(spec: dict[str, Any]) -> dict[str, Any]:
    """Pull one blob."""
    connection = Connection(spec["port"], spec["authorization"])
    began = time.perf_counter()
    status, _, length = connection.ask("GET", f"/v2/{spec['repository']}/blobs/{spec['digest']}")
    seconds = time.perf_counter() - began
    _expect(status, 200)
    return {"seconds": seconds, "bytes": length}


def manifest(spec: dict[str, Any]) -> dict[str, Any]:
    """Push an image of one small blob, tagged `latest`; return the manifest's digest."""
    small = {**spec, "size": 1024, "parallel": 1}
    digest = push(small)["digests"][0]
    kind = "application/vnd.oci.image.manifest.v1+json"
    descriptor = {"digest": digest, "size": 1024}
    content = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **descriptor},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", **descriptor}
                for _ in range(8)
            ],
        }
    ).encode()
    connection = Connection(spec["port"], spec["authorization"])
    target = f"/v2/{spec['repository']}0/manifests/latest"
    status, _, _ = connection.ask("PUT", target, content, kind)
    _expect(status, 201)
    return {"digest": f"sha256:{hashlib.sha256(content).hexdigest()}"}


def get(spec: dict[str, Any]) -> dict[str, Any]:
    """Ask for `target` on `connections` connections for `seconds`; return rate and latencies."""
    connection = Connection(spec["port"], spec["authorization"])
    request = connection.head("GET", spec["target"], accept=spec["accept"])
    selector = selectors.EpollSelector()
    began = time.perf_counter()
    end = began + spec["seconds"]
    for _ in range(spec["connections"]):
        sock = socket.create_connection(("127.0.0.1", spec["port"]))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(request)
        selector.register(sock, selectors.EVENT_READ, _Asking(sock, time.perf_counter()))
    latencies: list[float] = []
    while time.perf_counter() < end:
        for key, _ in selector.select(timeout=1.0):
            asking: _Asking = key.data
            if asking.take():
                now = time.perf_counter()
                latencies.append(now - asking.since)
                asking.since = now
                asking.socket.sendall(request)
    seconds = time.perf_counter() - began
    latencies.sort()
    return {
        "requests": len(latencies),
        "rate": len(latencies) / seconds,
        "p50": _quantile(latencies, 0.50),
        "p99": _quantile(latencies, 0.99),
    }


class _Asking:
    """One connection of `get` with one request under way."""

    def __init__(self, sock: socket.socket, since: float) -> None:
        self.socket = sock
        self.since = since
        self._data = b""
        self._whole = 0

    def take(self) -> bool:
        """Take what has come; say whether the answer is whole."""
        piece = self.socket.recv(262144)
        if not piece:
            raise ConnectionError("the registry closed the connection")
        self._data += piece
        if not self._whole:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = self._data[:end].lower()
            if not self._data.startswith(b"HTTP/1.1 200"):
                raise ConnectionError(f"the answer was {self._data[:200]!r}")
            at = head.index(b"content-length:") + 15
            self._whole = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
        if len(self._data) < self._whole:
            return False
        self._data, self._whole = b"", 0
        return True


def _at_once(work: Callable[[int], None], count: int) -> float:
    """Run `work(0)` to `work(count - 1)` in threads; return the seconds until all are done."""
    failed: list[BaseException] = []
    barrier = threading.Barrier(count + 1)

    def run(index: int) -> None:
        barrier.wait()
        try:
            work(index)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failed:
        raise failed[0]
    return seconds


def _path(headers: dict[str, str]) -> str:
    target = headers["location"]
    return "/" + target.split("/", 3)[3] if "://" in target else target


def _quantile(ordered: list[float], fraction: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def _expect(status: int, wanted: int) -> None:
    if status != wanted:
        raise ConnectionError(f"the registry answered {status} instead of {wanted}")


ACTS = {"push": push, "pull": pull, "manifest": manifest, "get": get}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps(ACTS[asked["act"]](asked)))
