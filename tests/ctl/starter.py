"""Starts `hypeman-ctl` from a process that has imported it: imports are most of a short run.

    python -m tests.ctl.starter SOCKET

Each connection to SOCKET is one run, in a process of its own. It brings a JSON object (`args`,
`env`, `cwd`) and three descriptors for the standard streams, and is answered with the exit status.
Who closes it before has the program killed. The end of standard input ends this process, which runs
no threads.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any

from supervisor.ctl import cli

_LATE = ("supervisor.ctl.program", "typer._adapters", "httpcore2._sync", "truststore._openssl")
for _module in _LATE:
    importlib.import_module(_module)  # when it runs, or even later

LARGEST_ORDER = 1 << 20


def main() -> None:
    """Serve until there is nobody to serve."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    _attend(connection)


def _attend(connection: socket.socket) -> None:
    """Run the program once, and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, streams, _, _ = socket.recv_fds(connection, LARGEST_ORDER, 3)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _be_the_program(json.loads(data), streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if ended in ready:
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _be_the_program(order: dict[str, Any], streams: list[int]) -> None:
    status: Any = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww")
        )
        os.environ.clear()
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        sys.argv[1:] = order["args"]
        cli.main()
        status = 0
    except SystemExit as exc:
        status = exc.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    main()
