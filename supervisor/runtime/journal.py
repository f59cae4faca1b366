"""journald's own socket: a log entry with fields (systemd.io/JOURNAL_NATIVE_PROTOCOL).

A datagram is an entry, so this is all of the protocol that the daemon needs. The usual binding,
systemd-python, is compiled against headers of the host; a file of ours is less to go wrong.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from array import array
from collections.abc import Mapping
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")
WAIT_SECONDS = 0.1
"""For a journal that is behind. Longer, and a stuck one would hold up the event loop."""
SEND_BUFFER_BYTES = 8 << 20
"""What sd_journal_send(3) asks for; entries beyond what the kernel grants go as a file."""

_TOO_LARGE = {errno.EMSGSIZE, errno.ENOBUFS}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def is_journal(stream_fd: int, journal_stream: str | None) -> bool:
    """Say whether `stream_fd` is the journal's, by `$JOURNAL_STREAM` (systemd.exec(5)).

    The variable alone says little: it is inherited by those whose output goes elsewhere.
    """
    if not journal_stream:
        return False
    try:
        found = os.fstat(stream_fd)
    except OSError:
        return False
    return journal_stream == f"{found.st_dev}:{found.st_ino}"


class Journal:
    """Sends entries. Never waits for long, and never fails: what cannot be sent is counted."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.lost = 0
        """Entries since the last one that could be sent."""

    def send(self, fields: Mapping[str, str]) -> None:
        """Send an entry. Names are upper case letters, digits and `_`; values may be anything."""
        entry = encode(fields)
        # One that is stuck is waited for once, not once for each entry.
        self._socket.settimeout(0 if self.lost else WAIT_SECONDS)
        try:
            try:
                self._socket.sendto(entry, self._path)
            except OSError as exc:
                if exc.errno not in _TOO_LARGE:
                    raise
                self._send_as_file(entry)
        except OSError:
            self.lost += 1
        else:
            self.lost = 0

    def close(self) -> None:
        """Send nothing more."""
        self._socket.close()

    def _send_as_file(self, entry: bytes) -> None:
        fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(entry)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))
            self._socket.sendmsg([], [rights], 0, self._path)  # 3.11's send_fds drops the address
        finally:
            os.close(fd)


def encode(fields: Mapping[str, str]) -> bytes:
    """Return an entry as its bytes."""
    return b"".join(_encode(name, value) for name, value in fields.items())


def _encode(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    # With the length in front, no value is another field.
    return b"%s\n%s%s\n" % (name.encode("ascii"), len(data).to_bytes(8, "little"), data)
