"""Small JSON bodies, parsed into a model."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from quart import request

from supervisor.api.mistakes import describe, parse_json
from supervisor.errors import InvalidRequest, PayloadTooLarge

MAX_BODY_BYTES = 64 << 10

M = TypeVar("M", bound=BaseModel)


async def receive_json(model: type[M], what_fails: str) -> M:
    """Return the request's body as `model`. Raises InvalidRequest with `what_fails` and why."""
    if request.mimetype != "application/json":
        raise InvalidRequest("the body must be application/json")
    body = bytearray()
    async for piece in request.body:
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"the body is larger than {MAX_BODY_BYTES:,} bytes")
    try:
        return model.model_validate(parse_json(bytes(body), "the body"))
    except ValidationError as exc:
        mistakes = describe(exc, kind="field", grammars={})
        raise InvalidRequest(f"{what_fails}: {mistakes[0]}", details=mistakes) from exc
