"""Facts of the registry kept in memory, so that a manifest asked for often costs no query.

An entry is what the database said. A change of a repository drops all its entries; a reading that
began before the change is not kept (`Reading` says so), so the cache never brings old facts back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from supervisor.model.oci import RepositoryName

_MOST_ENTRIES = 65_536
_MOST_IN_ONE = 8_192


class Reading:
    """A look into the database that is under way."""

    def __init__(self, cache: FactCache, repository: RepositoryName) -> None:
        self._cache = cache
        self._repository = repository
        self._is_outdated = False

    def __enter__(self) -> Reading:
        self._cache.readings.setdefault(self._repository, set()).add(self)
        return self

    def __exit__(self, *_: object) -> None:
        under_way = self._cache.readings.get(self._repository)
        if under_way is not None:
            under_way.discard(self)
            if not under_way:
                del self._cache.readings[self._repository]

    def outdate(self) -> None:
        """Say that the repository changed: what is being read may be old."""
        self._is_outdated = True

    def keep(self, key: Hashable, value: object) -> None:
        """Remember what was read, if nothing changed meanwhile."""
        if not self._is_outdated:
            self._cache.store(self._repository, key, value)


class FactCache:
    """Entries by repository, the least recently read repositories dropped first."""

    def __init__(self) -> None:
        self.readings: dict[RepositoryName, set[Reading]] = {}
        self._entries = OrderedDict[RepositoryName, dict[Hashable, object]]()
        self._count = 0

    def get(self, repository: RepositoryName, key: Hashable) -> Any:
        """Return an entry, or None."""
        entries = self._entries.get(repository)
        if entries is None:
            return None
        self._entries.move_to_end(repository)
        return entries.get(key)

    def reading(self, repository: RepositoryName) -> Reading:
        """Enter this before the database is asked."""
        return Reading(self, repository)

    def store(self, repository: RepositoryName, key: Hashable, value: object) -> None:
        """Remember an entry."""
        entries = self._entries.setdefault(repository, {})
        if len(entries) >= _MOST_IN_ONE:
            self._count -= len(entries)
            entries.clear()
        self._count += key not in entries
        entries[key] = value
        while self._count > _MOST_ENTRIES:
            _, dropped = self._entries.popitem(last=False)
            self._count -= len(dropped)

    def clear(self) -> None:
        """Forget everything, and outdate every reading that is under way."""
        for repository in [*self._entries, *self.readings]:
            self.drop(repository)

    def drop(self, repository: RepositoryName) -> None:
        """Forget a repository, and outdate the readings of it that are under way."""
        self._count -= len(self._entries.pop(repository, ()))
        for reading in self.readings.get(repository, ()):
            reading.outdate()
