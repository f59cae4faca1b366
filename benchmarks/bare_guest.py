"""What runs in a bare machine instead of the agent: BuildKit, one buildctl, and nothing more.

It runs in the guest (see bare.py), on the image's Python. How BuildKit is started is the product's,
or the floor would not be one of it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.append("/usr/lib/hypeman")

from agent import paths, rootless

BARE = Path("/run/bare")
HOST_CID = 2
HOST_PORT = 9000
"""Where the host listens: it is told `ready`, says `go`, and reads what buildctl writes."""
ENDED = b"\nbare: ended "
_CHUNK_BYTES = 256 << 10


def main() -> None:
    """Start BuildKit, wait for the word, run buildctl, say how it ended."""
    rootless.prepare_directories()
    started = rootless.start(rootless.DEFAULT_MIRRORS)
    _in_thread(_drain, started.process.stderr)
    _in_thread(_forward)
    task = json.loads((BARE / "task.json").read_text())
    _write_credentials(task["credentials"])
    unpack = ["tar", "-xzf", str(BARE / "source.tar.gz"), "-C", paths.SOURCE_DIR]
    subprocess.run(unpack, check=True)
    notify = socket.socket(fileno=started.notify)
    while b"READY=1" not in notify.recv(4096):
        pass
    link = _connect(HOST_PORT)
    link.sendall(b"ready\n")
    link.recv(16)
    environment = {**rootless.builder_env(), "DOCKER_CONFIG": paths.DOCKER_DIR}
    user = paths.BUILDER_UID
    done = subprocess.run(
        task["argv"], env=environment, user=user, group=user, stderr=link.fileno(), check=False
    )
    link.sendall(ENDED + b"%d\n" % done.returncode)
    time.sleep(60)  # the host ends the machine


def _write_credentials(credentials: object) -> None:
    directory = Path(paths.DOCKER_DIR)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(credentials))
    for path in (directory, directory / "config.json"):
        os.chown(path, paths.BUILDER_UID, paths.BUILDER_UID)


def _forward() -> None:
    host, _, port = rootless.REGISTRY.partition(":")
    with socket.create_server((host, int(port))) as listener:
        while True:
            local, _ = listener.accept()
            remote = _connect(int(port))
            _in_thread(_relay, local, remote)
            _in_thread(_relay, remote, local)


def _connect(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sock.connect((HOST_CID, port))
    return sock


def _relay(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes one way; the machine ends soon, so a side that has ended is left as it is."""
    while data := source.recv(_CHUNK_BYTES):
        target.sendall(data)


def _drain(fd: int) -> None:
    while os.read(fd, _CHUNK_BYTES):
        pass


def _in_thread(work: object, *args: object) -> None:
    threading.Thread(target=work, args=args, daemon=True).start()  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
