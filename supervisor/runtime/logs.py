"""Logging: one constant message for each event, the facts as bound fields.

On a terminal and in files the fields follow the message as `key=value`. Under systemd the lines go
to standard error, from where journald takes them with the priority that the `<N>` prefix names
(sd-daemon(3)). Guest output is never logged.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import typing
from typing import Any

from loguru import logger as log

if typing.TYPE_CHECKING:
    from loguru import Record

__all__ = ["log", "setup_logging"]

_PLAIN = re.compile(r"[\w.:/@%+,-]+", re.ASCII)
_PRIORITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7, "TRACE": 7}

_FOR_PEOPLE = "{time:YYYY-MM-DDTHH:mm:ss.SSS} {level: <7} {message}{facts}\n{exception}"
_FOR_JOURNAL = "{priority}{message}{facts}\n{exception}"


def setup_logging(level: str) -> None:
    """Send the daemon's log to standard error, the standard library's logging included."""
    log.remove()
    under_systemd = "JOURNAL_STREAM" in os.environ
    log.add(
        sys.stderr,
        level=level.upper(),
        format=_format_for_journal if under_systemd else _format_for_people,
        colorize=False,
        backtrace=False,
        diagnose=False,  # values of variables may be secrets
    )
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.WARNING, force=True)


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
    entries["priority"] = f"<{_PRIORITIES.get(record['level'].name, 6)}>"
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
