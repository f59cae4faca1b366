"""journald's protocol, with a socket of the test's in the place of journald's."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.runtime import logs
from supervisor.runtime.journal import Journal, encode, is_journal
from supervisor.runtime.logs import log, setup_logging


class Journald:
    """Takes entries as the real one does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def entry(self) -> dict[str, str]:
        """Return the next entry, which must be there."""
        data, fds, _, _ = socket.recv_fds(self._socket, 1 << 20, 1)
        for fd in fds:
            data = os.pread(fd, 1 << 24, 0)
            with pytest.raises(PermissionError):
                os.write(fd, b"x")  # journald maps it, so it must be sealed
            os.close(fd)
        return decode(data)

    def close(self) -> None:
        self._socket.close()


def decode(data: bytes) -> dict[str, str]:
    fields = {}
    while data:
        name, _, rest = data.partition(b"\n")
        length = int.from_bytes(rest[:8], "little")
        fields[name.decode()] = rest[8 : 8 + length].decode()
        assert rest[8 + length : 9 + length] == b"\n"
        data = rest[9 + length :]
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    journald = Journald(tmp_path / "socket")
    yield journald
    journald.close()


@pytest.fixture
def journal(journald: Journald) -> Iterator[Journal]:
    journal = Journal(journald.path)
    yield journal
    journal.close()


def test_an_entry_has_its_fields_whatever_is_in_them(journald: Journald, journal: Journal) -> None:
    fields = {"MESSAGE": "two\nlines", "PRIORITY": "6", "WHY": "a\nBUILD_ID=forged", "EMPTY": ""}
    journal.send(fields)
    assert journald.entry() == fields


def test_text_that_is_no_text_is_escaped() -> None:
    assert decode(encode({"WHY": "\ud800"})) == {"WHY": "\\ud800"}


def test_an_entry_over_the_size_of_a_datagram_arrives_whole(
    journald: Journald, journal: Journal
) -> None:
    fields = {"MESSAGE": "x" * (9 << 20)}
    journal.send(fields)
    assert journald.entry() == fields


def test_a_journal_that_is_stuck_costs_entries_and_no_more(
    journald: Journald, journal: Journal
) -> None:
    while not journal.lost:  # until its queue is full
        journal.send({"MESSAGE": "before"})
    journal.send({"MESSAGE": "lost"})
    assert journal.lost == 2
    journald.entry()
    journal.send({"MESSAGE": "after"})
    assert journal.lost == 0


def test_a_journal_that_is_not_there_is_no_failure(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "none")
    journal.send({"MESSAGE": "x"})
    assert journal.lost == 1
    journal.close()


def test_the_stream_of_the_journal_is_known_by_its_numbers(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as ours, (tmp_path / "b").open("w") as other:
        found = os.fstat(ours.fileno())
        named = f"{found.st_dev}:{found.st_ino}"
        assert is_journal(ours.fileno(), named)
        assert not is_journal(other.fileno(), named)
        assert not is_journal(ours.fileno(), None)
        assert not is_journal(ours.fileno(), "")
    assert not is_journal(-1, named)


class TestLog:
    """What the daemon's log makes of its events."""

    @pytest.fixture(autouse=True)
    def _under_systemd(self, journald: Journald, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(logs, "_stderr_is_journal", lambda: True)
        journal = Journal(journald.path)
        monkeypatch.setattr(logs, "Journal", lambda: journal)
        setup_logging("info")
        yield
        log.remove()
        journal.close()

    def test_facts_are_fields(self, journald: Journald) -> None:
        log.bind(build_id="b1", tenant="acme").warning("machine.lost", machine_id="m1", seconds=1.5)
        assert journald.entry() == {
            "MESSAGE": "machine.lost build_id=b1 tenant=acme machine_id=m1 seconds=1.5",
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "hypeman",
            "EVENT": "machine.lost",
            "BUILD_ID": "b1",
            "TENANT": "acme",
            "MACHINE_ID": "m1",
            "SECONDS": "1.5",
        }

    @pytest.mark.parametrize(
        ("level", "priority"),
        [("INFO", "6"), ("WARNING", "4"), ("ERROR", "3"), ("CRITICAL", "2")],
    )
    def test_the_priority_is_the_levels(
        self, level: str, priority: str, journald: Journald
    ) -> None:
        log.log(level, "event")
        assert journald.entry()["PRIORITY"] == priority

    def test_a_fact_is_not_taken_for_a_field_of_the_entrys(self, journald: Journald) -> None:
        log.info("event", message="m", priority=0, _pid=1, **{"naïve key": 1})
        entry = journald.entry()
        assert entry.keys() == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "EVENT"}
        assert entry["PRIORITY"] == "6"
        assert entry["EVENT"] == "event"

    def test_a_crash_is_one_entry_with_its_traceback(self, journald: Journald) -> None:
        log.opt(exception=KeyError("gone")).error("actor.crashed", actor="queue")
        entry = journald.entry()
        assert entry["EVENT"] == "actor.crashed"
        assert entry["MESSAGE"].startswith("actor.crashed actor=queue\n")
        assert "KeyError: 'gone'" in entry["MESSAGE"]


def test_what_is_inherited_from_the_manager_does_not_make_a_file_the_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1234")
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    setup_logging("info")
    log.info("readable", x=1)
    log.remove()
    assert "INFO    readable x=1" in stderr.getvalue()
