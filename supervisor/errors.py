"""Every error of the supervisor, partitioned by who must act.

SupervisorError
├── UserError            the caller must change the request (HTTP 4xx, CLI exit 2)
│   ├── InvalidRequest · InvalidSource · DockerfileRequired · SourceHashMismatch
│   ├── Unauthorized · Forbidden · NotFound · MethodNotAllowed · Conflict
│   └── PayloadTooLarge · QueueFull
├── NotReady             the caller may try again later (HTTP 503)
├── HostError            a tool, device or disk failed: retry, or fail the build and alert
│   ├── ToolFailed · VmBootFailed · GuestLost · ResourceExhausted
│   └── DatabaseBusy · RecordDamaged
└── ConfigError          the operator must change the configuration (exit 2)

``code`` is stable: the API, the CLI and tests use it. The text may change. A broken promise inside
the program is an AssertionError: it crashes the task and supervision decides.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import ClassVar


class SupervisorError(Exception):
    """Base of all errors that the supervisor raises on purpose."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)


class UserError(SupervisorError):
    """The request is at fault; the message says what to change."""

    code = "invalid_request"


class InvalidRequest(UserError):
    """A field of the request is unknown, missing or of the wrong type."""


class InvalidSource(UserError):
    """The uploaded archive cannot be used as a source."""

    code = "invalid_source"


class DockerfileRequired(UserError):
    """Neither the archive nor the request holds a Dockerfile."""

    code = "dockerfile_required"


class SourceHashMismatch(UserError):
    """The uploaded bytes do not have the digest that the caller named."""

    code = "source_hash_mismatch"


class PayloadTooLarge(UserError):
    """The upload is larger than the operator allows."""

    code = "payload_too_large"


class Unauthorized(UserError):
    """No valid token came with the request."""

    code = "unauthorized"


class Forbidden(UserError):
    """The token is valid, and does not carry the permission."""

    code = "forbidden"


class NotFound(UserError):
    """There is no such thing, or the caller may not know of it."""

    code = "not_found"


class MethodNotAllowed(UserError):
    """The route exists, and does not answer this method."""

    code = "method_not_allowed"


class Conflict(UserError):
    """The request contradicts the present state."""

    code = "conflict"


class QueueFull(UserError):
    """``MAX_QUEUED_BUILDS`` builds are waiting already."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotReady(SupervisorError):
    """Builds cannot start now; the message says why."""

    code = "builder_not_ready"


class HostError(SupervisorError):
    """Something of the host failed, not the caller's work."""


class ToolFailed(HostError):
    """An external program could not be started, or ended badly.

    ``status`` is the exit status, negative for a signal, None if it never started.
    """

    code = "tool-failed"

    def __init__(self, argv: Sequence[str], status: int | None, tail: str, why: str) -> None:
        super().__init__(f"{shlex.join(argv[:1])} failed: {why}")
        self.argv = tuple(argv)
        self.status = status
        self.tail = tail


class VmBootFailed(HostError):
    """The machine did not come up; ``evidence`` is the tail of its console and of its VMM."""

    code = "vm-boot-failed"

    def __init__(self, message: str, *, evidence: str = "") -> None:
        super().__init__(message)
        self.evidence = evidence


class GuestLost(HostError):
    """The guest went away, fell silent, or broke the protocol; ``reason`` says which.

    It is a value of ``model.build.ErrorReason``.
    """

    code = "builder_lost"

    def __init__(self, message: str, *, reason: str = "protocol_broken") -> None:
        super().__init__(message)
        self.reason = reason


class ResourceExhausted(HostError):
    """A disk, a table or a limit of the host is full."""

    code = "resource-exhausted"


class DatabaseBusy(HostError):
    """Another program holds the database for longer than we wait."""

    code = "database-busy"


class RecordDamaged(HostError):
    """What is stored of one thing cannot be read; the others are not at fault."""

    code = "record-damaged"


class ConfigError(SupervisorError):
    """The configuration cannot be used; the message names the setting."""

    code = "config-invalid"
