"""The client of `stored`: asks for one thing again and again on one connection.

    python -m benchmarks.ask SOCKET TARGET TIMES

Prints the seconds of each answer as JSON.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def ask(path: str, target: str, times: int) -> list[float]:
    """Ask, and return how long each answer took."""
    connection = _Unix(path)
    took = []
    for _ in range(times):
        began = time.perf_counter()
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read()
        took.append(time.perf_counter() - began)
        if answer.status != 200:
            raise ConnectionError(f"{target} was answered {answer.status}: {body[:200]!r}")
    return took


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
