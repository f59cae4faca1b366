"""The readers of `followers`: many followers of one build, in a process of their own.

    python -m benchmarks.follow SOCKET BUILD COUNT

Prints `following` when all have been sent their first event, and one JSON object at the end of the
streams: how many lines were delivered, how late those were that say when they were written, and in
how many seconds the rest came, from the last of these on.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

RECEIVE_BYTES = 1 << 20
_WRITTEN = re.compile(rb'"content":"at ([0-9.]+)')
_LINE = b'"type":"log"'


def follow(path: Path, build: str, count: int) -> dict[str, Any]:
    """Follow until every stream has ended."""
    selector = selectors.EpollSelector()
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        sock.sendall(f"GET /builds/{build}/logs HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        selector.register(sock, selectors.EVENT_READ, [b""])
    first = last = 0.0
    lines = 0
    waiting = {key.fd for key in selector.get_map().values()}
    late: list[float] = []
    while selector.get_map():
        for key, _ in selector.select():
            reader, rest = key.fileobj, key.data
            assert isinstance(reader, socket.socket)
            piece = reader.recv(RECEIVE_BYTES)
            now = time.time()
            if key.fd in waiting and b"data:" in piece:
                waiting.remove(key.fd)
                if not waiting:
                    print("following", flush=True)
            data = rest[0] + piece
            # An event that is not whole yet is looked at with the next piece.
            whole, _, rest[0] = data.rpartition(b"\n\n")
            found = whole.count(_LINE)
            timed = [now - float(text) for text in _WRITTEN.findall(whole)]
            if timed:
                first = now
            if found:
                last = now
            lines += found
            late += timed
            if not piece or b"0\r\n\r\n" in data[-16:]:
                selector.unregister(reader)
                reader.close()
    return {"lines": lines, "seconds": last - first, "late": sorted(late)}


if __name__ == "__main__":
    print(json.dumps(follow(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
