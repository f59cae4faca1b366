"""What can go wrong in the control program, each with the exit code that it ends with.

CtlError
├── UsageError            2   the command line or the directory must change
├── OutputFailed          2   what was asked for cannot be written: a full disk
├── DaemonUnreachable     3   nobody answers at the socket or URL
├── ApiError            2, 3  the daemon refused (4xx) or could not (5xx); carries its code
│   └── NotFound              there is no such build, or it is another tenant's
└── ProtocolError         3   what answers is not this daemon, or not this version of it
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_OK = 0
EXIT_BUILD_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130


class CtlError(Exception):
    """Base of the errors that are told in one sentence, without a traceback."""

    exit_code: int = EXIT_USAGE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        """What to do next; empty if the message says it."""


class UsageError(CtlError):
    """What the user gave cannot be used; nothing has been sent."""


class OutputFailed(CtlError):
    """Standard output does not take what was asked for."""


class DaemonUnreachable(CtlError):
    """No connection, or it broke and could not be made again."""

    exit_code = EXIT_UNREACHABLE


class ProtocolError(CtlError):
    """The answer is not one that the daemon gives."""

    exit_code = EXIT_UNREACHABLE


class ApiError(CtlError):
    """The daemon answered with an error. `code` is stable; `message` is for people."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Sequence[str] = (),
        retry_after_seconds: int | None = None,
        request_id: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.exit_code = EXIT_UNREACHABLE if status >= 500 else EXIT_USAGE
        self.code = code
        self.details = tuple(details)
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id


class NotFound(ApiError):
    """There is no such thing, or the caller may not know of it."""
