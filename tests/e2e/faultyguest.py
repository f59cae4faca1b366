"""The agent of machines with faults: greets as the real one, and goes wrong as the build asks.

It runs in the machine, with Python alone. The build argument FAULT says what shall happen. A
machine with one processor does not even come to greet.
"""

import os
import signal
import socket
import struct
import time
from pathlib import Path

CONTROL_PORT = 5001
HEARTBEAT_SECONDS = 1.0
READY = b"it may happen now\n"


def main() -> None:
    if os.cpu_count() == 1:
        Path("/proc/sysrq-trigger").write_text("c")
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, CONTROL_PORT))
    listener.listen()
    host, _ = listener.accept()
    say(host, type="hello", protocol=1, agent="faulty")
    fault = hear_fault(host)
    say(host, type="log", seq=1, time=0.5, step="", stream=1, data=READY)
    match fault:
        case "cut":
            host.sendall(struct.pack(">I", 100) + b"half a message")
            host.close()
            time.sleep(600)
        case "wedge":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "panic":
            Path("/proc/sysrq-trigger").write_text("c")
    while True:
        time.sleep(HEARTBEAT_SECONDS)
        say(host, type="heartbeat", time=time.time())


def hear_fault(host: socket.socket) -> str:
    """Return the build argument of the configuration; what lies around it is of no interest."""
    name, heard = b"\x65FAULT", b""
    while b"host_ready" not in heard:
        heard += host.recv(65536)
    value = heard.partition(name)[2]
    return value[1 : 1 + (value[0] - 0x60)].decode()


def say(host: socket.socket, **fields: str | int | float | bytes) -> None:
    """Send a message."""
    body = bytes([0xA0 + len(fields)]) + b"".join(
        cbor(item) for field in fields.items() for item in field
    )
    host.sendall(struct.pack(">I", len(body)) + body)


def cbor(value: str | int | float | bytes) -> bytes:
    """Return a small value as CBOR."""
    match value:
        case str():
            return bytes([0x60 + len(value)]) + value.encode()
        case bytes():
            return bytes([0x40 + len(value)]) + value
        case int():
            return bytes([value])
        case float():
            return b"\xfb" + struct.pack(">d", value)


if __name__ == "__main__":
    main()
