"""Times as text."""

from __future__ import annotations

from datetime import UTC, datetime

MAX_UNIX_SECONDS = 253_402_300_799.0
"""The last second that RFC 3339 can write."""


def rfc3339(unix_seconds: float) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds: `2026-03-01T12:00:00.123Z`."""
    moment = datetime.fromtimestamp(unix_seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
