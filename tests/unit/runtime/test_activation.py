"""Sockets from the service manager, as a child of the test's finds them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.runtime.activation import NONE_PASSED, take_sockets

CHILD = """
import os, sys
from supervisor.errors import ConfigError
from supervisor.runtime.activation import take_sockets
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    passed = take_sockets()
except ConfigError as exc:
    sys.exit(exc.message)
print(*(sock.getsockname() for sock in passed.tcp), *(sock.getsockname() for sock in passed.unix))
print(any(os.get_inheritable(sock.fileno()) for sock in passed.tcp + passed.unix))
print([name for name in os.environ if name.startswith("LISTEN_")])
"""


def child_with(*sockets: socket.socket) -> subprocess.CompletedProcess[str]:
    """Run the child with sockets at 3, 4, … as systemd starts a service."""
    moves = "; ".join(f"os.dup2({sock.fileno()}, {100 + at})" for at, sock in enumerate(sockets))
    moves += "; " + "; ".join(f"os.dup2({100 + at}, {3 + at})" for at in range(len(sockets)))
    start = f"import os, sys; {moves}; os.execv(sys.executable, [sys.executable, '-c', {CHILD!r}])"
    return subprocess.run(
        [sys.executable, "-c", start],
        pass_fds=[sock.fileno() for sock in sockets],
        env={**os.environ, "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": "a:b"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_sockets_of_either_kind_are_taken_and_kept_from_children(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        done = child_with(unix, tcp)
        assert done.stderr == ""
        assert done.stdout.splitlines() == [
            f"{tcp.getsockname()} {tmp_path / 's'}",
            "False",
            "[]",
        ]


def test_what_nobody_can_connect_to_is_refused(tmp_path: Path) -> None:
    with socket.socket() as silent, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        for sock in (silent, datagrams):
            done = child_with(sock)
            assert done.returncode == 1
            assert "descriptor 3 of the service manager is no stream socket" in done.stderr


def test_a_descriptor_that_is_no_socket_is_refused() -> None:
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as stand_in:
        os.dup2(reader, stand_in.fileno())
        done = child_with(stand_in)
    os.close(reader)
    os.close(writer)
    assert "descriptor 3 of the service manager is no socket" in done.stderr


@pytest.mark.parametrize("environ", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}], ids=str)
def test_what_was_meant_for_another_process_is_not_taken(environ: dict[str, str]) -> None:
    assert take_sockets(environ) == NONE_PASSED
    assert environ == {}, "children would think it theirs"
