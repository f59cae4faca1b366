"""What the host refuses the registry for a while: an answer to try again, and no traceback."""

from __future__ import annotations

import errno
import os

import pytest
import trio

from supervisor.errors import DatabaseBusy, HostError
from tests.registry.client import Client
from tests.registry.damage import hearing
from tests.registry.images import digest_of
from tests.registry.serve import Served

HERE = f"/v2/acme/app/blobs/{digest_of(b'any')}"


def from_the_host() -> HostError:
    """Return the error that the store makes of a call that was refused."""
    error = HostError("the blob store cannot be read")
    error.__cause__ = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return error


@pytest.mark.parametrize(
    ("error", "retry_after", "event"),
    [
        (DatabaseBusy("held by another program"), "10", "registry.database_busy"),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), "1", "registry.exhausted"),
        (from_the_host(), "1", "registry.exhausted"),
        (ExceptionGroup("of a nursery", [from_the_host()]), "1", "registry.exhausted"),
    ],
)
async def test_what_the_host_refuses_for_a_while_can_be_asked_for_again(
    client: Client,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    retry_after: str,
    event: str,
) -> None:
    async def refuse(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr(served.handle, "find_blob", refuse)
    with hearing() as heard:
        answer = await client("GET", HERE)
    assert answer.status == 503
    assert answer.headers["retry-after"] == retry_after
    assert answer.code == "UNAVAILABLE"
    assert [(item["message"], item["exception"]) for item in heard] == [(event, None)]
