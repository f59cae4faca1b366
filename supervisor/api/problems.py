"""How an error becomes an answer: one table from code to status, one JSON shape.

    {"code": "...", "message": "...", "details": ["..."]}

What nobody expected becomes `internal_error` with an id; the log has the traceback under that id,
the client has not.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quart import Quart, g, has_request_context
from quart_trio.wrappers import TrioResponse as Response
from werkzeug.exceptions import HTTPException

from supervisor.errors import (
    DatabaseBusy,
    HostError,
    NotReady,
    QueueFull,
    RecordDamaged,
    ResourceExhausted,
    SupervisorError,
    UserError,
)
from supervisor.runtime.capacity import (
    DATABASE_HELD,
    HELD_RETRY_SECONDS,
    OUT_OF_CAPACITY,
    is_out_of_capacity,
)
from supervisor.runtime.logs import log
from supervisor.runtime.mailbox import ActorGone

STATUS_OF_CODE: Mapping[str, int] = {
    "invalid_request": 400,
    "invalid_source": 400,
    "dockerfile_required": 400,
    "source_hash_mismatch": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "payload_too_large": 413,
    "queue_full": 429,
    "internal_error": 500,
    "builder_not_ready": 503,
}
_CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}
"""For the errors of the HTTP machinery itself; any other of its 4xx is an invalid request."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as the client sees it."""

    status: int
    code: str
    message: str
    details: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """Return the JSON text."""
        shown: dict[str, object] = {"code": self.code, "message": self.message}
        if self.details:
            shown["details"] = list(self.details)
        return json.dumps(shown).encode()

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer with this body, for where there is no Quart."""
        return [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body())),
            *((name.lower().encode(), value.encode()) for name, value in self.headers.items()),
        ]


def problem_of(error: Exception) -> Problem:
    """Return what to tell the client about `error`. Logs what a person must look at."""
    match error:
        case QueueFull(code=code, message=message, retry_after_seconds=seconds):
            return Problem(429, code, message, headers={"Retry-After": str(seconds)})
        case UserError(code=code, message=message, details=details):
            status = STATUS_OF_CODE[code]
            headers = {"WWW-Authenticate": 'Bearer realm="hypeman"'} if status == 401 else {}
            return Problem(status, code, message, details, headers)
        case NotReady(message=message):
            return Problem(503, NotReady.code, message)
        case ActorGone():
            return Problem(503, NotReady.code, "the daemon is stopping or recovering; try again")
        case ResourceExhausted(message=message):
            log.bind(why=message).error("api.host_exhausted")
            return Problem(503, NotReady.code, "the host has no room for this; try again later")
        case HostError() | OSError() if is_out_of_capacity(error):
            log.bind(why=str(error)).error("api.host_exhausted")
            return Problem(503, NotReady.code, OUT_OF_CAPACITY)
        case DatabaseBusy(message=message):
            log.bind(why=message).error("api.database_busy")
            headers = {"Retry-After": str(HELD_RETRY_SECONDS)}
            return Problem(503, NotReady.code, DATABASE_HELD, headers=headers)
        case RecordDamaged(message=message):
            incident = _incident()
            log.bind(why=message, incident=incident).error("api.record_damaged")
            return Problem(
                500, "internal_error", f"{message}; the daemon's log has it as {incident}"
            )
        case HTTPException():
            return _problem_of_http(error)
        case ExceptionGroup(exceptions=(Exception() as only,)):  # of the answer's own nursery
            return problem_of(only)
        case _:
            return _internal(error)


def install(app: Quart) -> None:
    """Answer every error of `app` in the one shape."""

    async def answer(error: Exception) -> Response:
        return respond(problem_of(error))

    app.register_error_handler(Exception, answer)


def respond(problem: Problem) -> Response:
    """Return the answer for a problem."""
    response = Response(problem.body(), problem.status, mimetype="application/json")
    response.headers.update(problem.headers)
    return response


def _problem_of_http(error: HTTPException) -> Problem:
    status = error.code or 500
    if status >= 500:
        return _internal(error)
    code = _CODE_OF_STATUS.get(status, "invalid_request")
    headers = {name: value for name, value in error.get_headers() if name == "Allow"}
    message = {
        404: "there is no such route",
        405: "this route does not answer this method",
    }.get(status, error.name.lower())
    return Problem(STATUS_OF_CODE[code], code, message, headers=headers)


def _internal(error: Exception) -> Problem:
    incident = _incident()
    code = error.code if isinstance(error, SupervisorError) else type(error).__name__
    log.opt(exception=error).bind(incident=incident, error=code).error("api.internal_error")
    return Problem(
        500, "internal_error", f"the daemon failed; its log has the reason under {incident}"
    )


def _incident() -> str:
    """Return the id under which the log has what went wrong: the request's, if there is one."""
    return (g.get("request_id") if has_request_context() else None) or secrets.token_hex(8)
