"""The program in the guest of `guest_link`, in the place of the agent, with the agent's forward.

Obeys JSON lines from the supervisor's side, one for each connection, and answers with one.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from typing import Any

COMMAND_PORT = 5001
HOST_CID = 2
_PIECE = 1 << 20


def main() -> None:
    """Serve until the machine ends."""
    sys.path.append("/usr/lib/hypeman")
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, COMMAND_PORT))
    listener.listen(8)
    if not os.fork():
        _forward()
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as lines:
            command = json.loads(lines.readline())
            answer = {"sent": send, "received": receive, "push": push, "pull": pull}
            lines.write(json.dumps(answer[command["act"]](command)) + "\n")


def _forward() -> None:
    import trio

    from agent import vsock, wire
    from agent.forward import forward

    trio.run(forward, wire.GUEST_ADDRESS, wire.REGISTRY_PORT, vsock.connect, wire.REGISTRY_PORT)


def send(command: dict[str, Any]) -> dict[str, Any]:
    """Send bytes over a bare stream; the other side says when it has them."""
    content = os.urandom(_PIECE)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.connect((HOST_CID, command["port"]))
        began = time.perf_counter()
        for _ in range(command["mib"]):
            sock.sendall(content)
        sock.recv(1)
        return {"seconds": time.perf_counter() - began}


def receive(command: dict[str, Any]) -> dict[str, Any]:
    """Receive bytes over a bare stream."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.connect((HOST_CID, command["port"]))
        began = time.perf_counter()
        sock.sendall(b"!")
        _take(sock, command["mib"] * _PIECE)
        return {"seconds": time.perf_counter() - began}


def push(command: dict[str, Any]) -> dict[str, Any]:
    """Push a blob through the forward, as BuildKit does."""
    content = os.urandom(_PIECE)
    digest = hashlib.sha256()
    for _ in range(command["mib"]):
        digest.update(content)
    name = f"sha256:{digest.hexdigest()}"
    with _connect(command) as sock:
        began = time.perf_counter()
        head = _ask(sock, command, "POST", f"/v2/{command['repository']}/blobs/uploads/", 0)
        target = head.split(b"location: ")[1].split(b"\r\n")[0].decode()
        sock.sendall(_head(command, "PUT", f"{target}?digest={name}", command["mib"] * _PIECE))
        for _ in range(command["mib"]):
            sock.sendall(content)
        head, _ = _answer(sock)
        assert b" 201 " in head, head
        return {"seconds": time.perf_counter() - began, "digest": name}


def pull(command: dict[str, Any]) -> dict[str, Any]:
    """Pull that blob through the forward."""
    with _connect(command) as sock:
        began = time.perf_counter()
        target = f"/v2/{command['repository']}/blobs/{command['digest']}"
        sock.sendall(_head(command, "GET", target))
        head, early = _answer(sock)
        assert b" 200 " in head, head
        _take(sock, command["mib"] * _PIECE - len(early))
        return {"seconds": time.perf_counter() - began}


def _connect(command: dict[str, Any]) -> socket.socket:
    # The forward may not listen yet.
    while True:
        try:
            return socket.create_connection((command["host"], command["port"]))
        except ConnectionRefusedError:
            time.sleep(0.05)


def _head(command: dict[str, Any], method: str, target: str, length: int | None = None) -> bytes:
    text = f"{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {command['authorization']}\r\n"
    if length is not None:
        text += f"Content-Length: {length}\r\n"
    return (text + "\r\n").encode()


def _ask(
    sock: socket.socket, command: dict[str, Any], method: str, target: str, size: int
) -> bytes:
    sock.sendall(_head(command, method, target, size))
    return _answer(sock)[0]


def _answer(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    head, _, early = data.partition(b"\r\n\r\n")
    return head, early


def _take(sock: socket.socket, count: int) -> None:
    buffer = bytearray(_PIECE)
    while count > 0:
        got = sock.recv_into(buffer, min(len(buffer), count))
        assert got, "the stream ended early"
        count -= got


if __name__ == "__main__":
    main()
