"""The program in the real guests of the contract tests. It runs in the machine, with Python alone.

fake_guest in test_hypervisor.py does the same; what the host sees must not differ.
"""

import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

Handler = Callable[[socket.socket], None]

COMMAND_PORT = 5001
ECHO_PORT = 5002
HOST_CID = 2


def main() -> None:
    threading.Thread(target=serve, args=(ECHO_PORT, echo), daemon=True).start()
    serve(COMMAND_PORT, obey)


def serve(port: int, handle: Handler) -> None:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=handle, args=(connection,), daemon=True).start()


def obey(connection: socket.socket) -> None:
    """Say who we are, in a frame, and do what the one line in answer says."""
    cmdline = Path("/proc/cmdline").read_text()
    name = cmdline.partition("hypeman.machine=")[2].split()[0].encode()
    connection.sendall(struct.pack(">I", len(name)) + name)
    line = b""
    while not line.endswith(b"\n"):
        line += connection.recv(1)
    command = line.decode().split()
    match command:
        case ["connect", port]:
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as to_host:
                to_host.connect((HOST_CID, int(port)))
                to_host.sendall(b"from " + name)
                connection.sendall(to_host.recv(100))
                to_host.recv(1)
        case ["take", count]:
            digest, left = hashlib.sha256(), int(count)
            while left:
                data = connection.recv(min(left, 65536))
                digest.update(data)
                left -= len(data)
            connection.sendall(digest.digest())
        case ["give", count]:
            connection.sendall(bytes(range(256)) * (int(count) // 256))
        case ["power-off"]:
            os.write(1, b"the guest says goodbye\n")
            os._exit(0)
        case ["panic"]:
            Path("/proc/sysrq-trigger").write_text("c")
    connection.close()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()


if __name__ == "__main__":
    main()
    time.sleep(600)
