"""What can be wrong with an upstream registry, and what a client of the mirror is told of it.

A client learns which upstream it is and what kind of trouble; the details are for the log (`why`).
That an upstream does not have something is no error: the functions that ask return None.
"""

from __future__ import annotations

import math
from http import HTTPStatus

from supervisor.registry.errors import Code, RegistryError
from supervisor.registry.http import header


class UpstreamError(RegistryError):
    """The upstream did not give what was asked for."""

    def __init__(
        self,
        status: HTTPStatus,
        code: Code,
        message: str,
        why: str,
        *,
        pause_seconds: float = 0.0,
        is_general: bool = False,
    ) -> None:
        retry = [header("retry-after", str(math.ceil(pause_seconds)))] if pause_seconds else []
        super().__init__(status, code, message, headers=retry)
        self.why = why
        self.pause_seconds = pause_seconds
        """For how long asking again is pointless."""
        self.is_general = is_general
        """Whether that holds for every repository of the upstream."""

    def paused(self, seconds: float) -> UpstreamError:
        """Return the same error for somebody who comes when only so much of the pause is left."""
        return UpstreamError(
            self.status,
            self.code,
            self.message,
            self.why,
            pause_seconds=seconds,
            is_general=self.is_general,
        )


_UNREACHABLE_PAUSE_SECONDS = 30.0
_FAILING_PAUSE_SECONDS = 2.0


def unreachable(name: str, why: str) -> UpstreamError:
    """Return the error for an upstream that does not answer."""
    return UpstreamError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        Code.UNAVAILABLE,
        f"{name} cannot be reached, and this is not in the mirror",
        why,
        pause_seconds=_UNREACHABLE_PAUSE_SECONDS,
        is_general=True,
    )


def busy(name: str) -> UpstreamError:
    """Return the error for what found no free connection: it says nothing about the upstream."""
    return UpstreamError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        Code.UNAVAILABLE,
        f"{name} is being asked for too much at once, and this is not in the mirror",
        "none of the connections to it became free",
        pause_seconds=_FAILING_PAUSE_SECONDS,
    )


def limited(name: str, pause_seconds: float) -> UpstreamError:
    """Return the error for an upstream that wants to be left alone for a while."""
    return UpstreamError(
        HTTPStatus.TOO_MANY_REQUESTS,
        Code.TOOMANYREQUESTS,
        f"{name} limits how often it is asked, and this is not in the mirror",
        f"it wants to be left alone for {pause_seconds:.0f} s",
        pause_seconds=pause_seconds,
        is_general=True,
    )


def failing(name: str, why: str, pause_seconds: float = 0.0) -> UpstreamError:
    """Return the error for an answer that says or shows that the upstream is broken."""
    return UpstreamError(
        HTTPStatus.BAD_GATEWAY,
        Code.UNAVAILABLE,
        f"{name} gave no usable answer, and this is not in the mirror",
        why,
        pause_seconds=max(_FAILING_PAUSE_SECONDS, pause_seconds),
    )


def refused(name: str, why: str) -> UpstreamError:
    """Return the error for what the upstream does not show to us: there may be nothing at all."""
    return UpstreamError(
        HTTPStatus.NOT_FOUND,
        Code.NAME_UNKNOWN,
        f"{name} has no such repository, or does not show it",
        why,
    )
