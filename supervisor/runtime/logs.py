"""Logging: one constant message for each event, the facts as bound fields.

On a terminal and in files the facts follow the message as `key=value`. If standard error is the
journal's, each event is an entry of the journal, with its facts as fields besides: `journalctl -u
hypeman BUILD_ID=…` tells a build's story. Guest output is never logged.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import typing
from typing import Any

from loguru import logger as log

from supervisor.runtime.journal import Journal, is_journal

if typing.TYPE_CHECKING:
    from loguru import Message, Record

__all__ = ["log", "setup_logging"]

_PLAIN = re.compile(r"[\w.:/@%+,-]+", re.ASCII)
_PRIORITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7, "TRACE": 7}

_FOR_PEOPLE = "{time:YYYY-MM-DDTHH:mm:ss.SSS} {level: <7} {message}{facts}\n{exception}"
_FOR_JOURNAL = "{message}{facts}\n{exception}"

IDENTIFIER = "hypeman"
_OURS = {"MESSAGE", "PRIORITY", "EVENT", "SYSLOG_IDENTIFIER", "LOST_BEFORE"}
_FIELD = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
"""What journald takes as the name of a field."""


def setup_logging(level: str) -> None:
    """Send the daemon's log to standard error, or to the journal if that is where it goes.

    The standard library's logging included.
    """
    log.remove()
    options: dict[str, Any] = {
        "level": level.upper(),
        "colorize": False,
        "backtrace": False,
        "diagnose": False,  # values of variables may be secrets
    }
    if _stderr_is_journal():
        log.add(_ToJournal(Journal()), format=_format_for_journal, **options)
    else:
        log.add(sys.stderr, format=_format_for_people, **options)
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.WARNING, force=True)


def _stderr_is_journal() -> bool:
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return is_journal(descriptor, os.environ.get("JOURNAL_STREAM"))


class _ToJournal:
    """Makes an entry of each event."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __call__(self, message: Message) -> None:
        record = message.record
        fields = {
            "MESSAGE": str(message).rstrip("\n"),
            "PRIORITY": str(_PRIORITIES.get(record["level"].name, 6)),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "EVENT": record["message"],
        }
        if self._journal.lost:
            fields["LOST_BEFORE"] = str(self._journal.lost)
        for key, value in record["extra"].items():
            name = key.upper()
            if _FIELD.fullmatch(name) and name not in _OURS:
                fields[name] = str(value)
        self._journal.send(fields)


class _ToLoguru(logging.Handler):
    """Routes records of libraries into the one log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = log.level(record.levelname).name
        except ValueError:
            level = record.levelno
        log.opt(exception=record.exc_info).log(
            level, "library.message", logger=record.name, text=record.getMessage()
        )


def _format_for_people(record: Record) -> str:
    return _with_facts(record, _FOR_PEOPLE)


def _format_for_journal(record: Record) -> str:
    return _with_facts(record, _FOR_JOURNAL)


def _with_facts(record: Record, template: str) -> str:
    """Add to the record what the template needs besides, rendered.

    It is not made part of the template, of which loguru takes `{…}` and `<…>` as its own.
    """
    entries = typing.cast("dict[str, Any]", record)
    entries["facts"] = "".join(f" {key}={_quote(value)}" for key, value in record["extra"].items())
    return template


def _quote(value: Any) -> str:
    """Render a value so that nothing of it is a new line, a cursor movement or another field."""
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    if not escaped.isprintable():
        escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in escaped)
    return f'"{escaped}"'
