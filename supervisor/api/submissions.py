"""From an upload to a build that is taken in: the same for the form and for the websocket."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import trio

from supervisor.actors.builds import IdempotencyKey, NewBuild
from supervisor.api.fields import BuildFields, parse_fields, to_request
from supervisor.api.ports import ApiDeps
from supervisor.api.uploads import Upload
from supervisor.errors import (
    DockerfileRequired,
    HostError,
    InvalidRequest,
    SourceHashMismatch,
    SupervisorError,
)
from supervisor.model.build import Build, Source
from supervisor.source.check import check_source
from supervisor.source.tar import ArchiveLimits
from supervisor.source.tree import Dockerfile
from supervisor.tokens import Caller

_WHY_NOT = {
    Dockerfile.ABSENT: "the source has no {}",
    Dockerfile.EMPTY: "the {} of the source is empty",
    Dockerfile.DIRECTORY: "the {} of the source is a directory",
    Dockerfile.DANGLING: "the {} of the source is a symbolic link to what is no file of the source",
}
SUBMIT_SECONDS = 30.0
"""For one transaction; a database that needs longer is broken."""
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def parse_key(text: str | None) -> str | None:
    """Return the Idempotency-Key that a request came with. Raises InvalidRequest."""
    if text is not None and not _KEY.fullmatch(text):
        raise InvalidRequest(
            "the header `Idempotency-Key` must be 1 to 255 printable ASCII characters, no spaces"
        )
    return text


async def submit(
    deps: ApiDeps,
    caller: Caller,
    upload: Upload,
    values: Mapping[str, Any],
    idempotency_key: str | None,
) -> Build:
    """Check a whole upload and its fields, and have the build taken in.

    Returns the earlier build if `idempotency_key` has made one: its id is not the upload's then.
    Raises the UserError that says what is wrong. A client that goes away during the checks leaves
    nothing; once they are passed, the build is taken in whether the client still waits or not.
    """
    fields = parse_fields(values)
    request = to_request(fields, deps.settings, caller)
    source = await upload.finish()
    if fields.source_hash is not None and fields.source_hash != source.sha256:
        raise SourceHashMismatch(
            f"the upload has sha256:{source.sha256}, and source_hash says"
            f" sha256:{fields.source_hash}"
        )
    settings = deps.settings
    limits = ArchiveLimits(
        settings.max_source_entries, settings.max_unpacked_bytes, settings.max_source_ratio
    )
    facts = await check_source(upload.path, limits, request.dockerfile_path, deps.threads)
    if request.dockerfile is None and not facts.has_dockerfile:
        raise DockerfileRequired(
            f"{_WHY_NOT[facts.dockerfile].format(request.dockerfile_path)}; put it there, name"
            " another `dockerfile_path`, or send the part `dockerfile`"
        )
    key = None
    if idempotency_key is not None:
        key = IdempotencyKey(idempotency_key, _hash(fields, source))
    new = NewBuild(upload.build_id, caller.tenant, request, source, key)
    return await take_in(deps, upload, new)


async def take_in(deps: ApiDeps, upload: Upload, new: NewBuild) -> Build:
    """Have a checked build taken in, and its files with it. Raises what `submit` raises."""
    # Shielded: with the transaction done or not, exactly one side owns the files.
    upload.is_handed_over = True
    try:
        with trio.move_on_after(SUBMIT_SECONDS, shield=True):
            build = await deps.builds.submit(new)
            upload.is_handed_over = build.id == new.id
            return build
    except SupervisorError:
        upload.is_handed_over = False  # refused: nothing was recorded
        raise
    # As after any other exception, the build may be recorded. If it is not, recovery sweeps it.
    raise HostError(f"the build was not taken in within {SUBMIT_SECONDS:.0f} s; it may be yet")


def _hash(fields: BuildFields, source: Source) -> str:
    """Return the hash of what was asked, by which a repeated request is known."""
    asked = fields.model_dump(mode="json", exclude={"runtime", "source_hash"})
    canonical = json.dumps([asked, source.sha256], sort_keys=True).encode()
    return hashlib.sha256(canonical).hexdigest()
