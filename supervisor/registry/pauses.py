"""Which upstreams are left alone for a while, so that trouble there is not asked for again and
again."""

from __future__ import annotations

from collections import OrderedDict

import trio

from supervisor.registry.upstream_errors import UpstreamError

_MOST = 4096
_WHOLE = ""
"""Stands for every repository of an upstream."""


class Pauses:
    """The last trouble of each repository, for as long as it says."""

    def __init__(self) -> None:
        self._pauses = OrderedDict[tuple[str, str], tuple[float, UpstreamError]]()

    def note(self, upstream: str, repository: str, error: UpstreamError) -> None:
        """Leave the repository, or the whole upstream, alone for as long as the error says."""
        if error.pause_seconds <= 0:
            return
        key = (upstream, _WHOLE if error.is_general else repository)
        self._pauses[key] = (trio.current_time() + error.pause_seconds, error)
        self._pauses.move_to_end(key)
        while len(self._pauses) > _MOST:
            self._pauses.popitem(last=False)

    def current(self, upstream: str, repository: str) -> UpstreamError | None:
        """Return why the repository is left alone just now, with the time that is left of it."""
        for key in ((upstream, _WHOLE), (upstream, repository)):
            ends_at, error = self._pauses.get(key, (0.0, None))
            left = ends_at - trio.current_time()
            if error is not None and left > 0:
                return error.paused(left)
        return None
