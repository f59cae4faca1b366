"""Identifiers. An id from outside is parsed here once and is a type from then on."""

from __future__ import annotations

import re
import secrets
import string
from typing import NewType

BuildId = NewType("BuildId", str)
MachineId = NewType("MachineId", str)
Tenant = NewType("Tenant", str)

ID_LENGTH = 24
_TIME_DIGITS = 10  # 36**10 milliseconds reach past the year 115,000
_LATEST_MS = 36**_TIME_DIGITS // 2
_ALPHABET = string.digits + string.ascii_lowercase
_ID = re.compile(rf"[0-9a-z]{{{ID_LENGTH}}}", re.ASCII)
RESERVED_TENANTS = frozenset({"base", "builds", "cache", "global", "mirror"})
"""First components of repository names that mean something else than a tenant."""
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


class IdSource:
    """Hands out 24-character ids that sort by the time of making, also within a millisecond."""

    def __init__(self, newest: BuildId | None = None) -> None:
        """Hand out ids behind `newest`, however far the clock has gone back since it was made."""
        self._last_ms = 0
        if newest is not None:
            # An id of an absurd time is a damaged one: there would be no room behind it.
            self._last_ms = min(int(newest[:_TIME_DIGITS], 36), _LATEST_MS)

    def build_id(self, now: float) -> BuildId:
        """Return an id greater than every earlier one of this source. `now` is in Unix seconds."""
        self._last_ms = max(int(now * 1000), self._last_ms + 1)
        noise = "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTH - _TIME_DIGITS))
        return BuildId(_base36(self._last_ms, _TIME_DIGITS) + noise)


def parse_build_id(text: str) -> BuildId | None:
    """Return the build id that `text` is, or None if it cannot be one."""
    return BuildId(text) if _ID.fullmatch(text) else None


def parse_tenant(text: str) -> Tenant | None:
    """Return the tenant that `text` names, or None.

    A tenant becomes a directory and a path component of a repository, so it is a DNS label:
    nothing of it needs quoting anywhere.
    """
    if text in RESERVED_TENANTS or not _TENANT.fullmatch(text):
        return None
    return Tenant(text)


def machine_id(build: BuildId, attempt: int) -> MachineId:
    """Return the id of the machine that runs one attempt: unique, and recognisable in `ps`."""
    return MachineId(f"{build}-{attempt}")


def _base36(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 36)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
