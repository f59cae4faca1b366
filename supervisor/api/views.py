"""What the API shows. Answers are made through these models, and so is their description.

Whatever is unknown yet is absent, never null. Times are RFC 3339 in UTC, durations whole
milliseconds.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field, JsonValue
from quart_trio.wrappers import TrioResponse as Response

from supervisor.model.build import (
    Build,
    ErrorReason,
    NetworkMode,
    Phase,
    Provenance,
    Reason,
    Status,
)
from supervisor.model.times import rfc3339

TIME: dict[str, JsonValue] = {"format": "date-time"}


class PolicyView(BaseModel):
    """The limits of one build."""

    timeout_seconds: int
    memory_mb: int
    cpus: int
    network_mode: NetworkMode
    allowed_domains: list[str] | None = None


class ProvenanceView(BaseModel):
    """What went into the image."""

    source_hash: str = Field(description="`sha256:…` of the upload, computed by the host.")
    builder_image_digest: str
    timestamp: str = Field(json_schema_extra=TIME)
    base_image_digest: str | None = None
    lockfile_hashes: dict[str, str]
    buildkit_version: str | None = None
    toolchain_version: str | None = None


class BuildView(BaseModel):
    """A build."""

    id: str = Field(pattern="^[0-9a-z]{24}$")
    status: Status
    tenant: str
    tags: dict[str, str]
    policy: PolicyView
    attempt: int = Field(description="How many attempts have been started.")
    created_at: str = Field(json_schema_extra=TIME)
    started_at: str | None = Field(None, json_schema_extra=TIME)
    completed_at: str | None = Field(None, json_schema_extra=TIME)
    queue_position: int | None = Field(None, ge=1, description="Only while it waits.")
    duration_ms: int | None = Field(
        None, description="From the first start to the end; 0 for a build that never started."
    )
    phases: dict[Phase, int] = Field(description="Milliseconds in each phase.")
    image_digest: str | None = None
    image_ref: str | None = Field(None, description="What to pull.")
    error: str | None = None
    error_code: Reason | None = None
    error_reason: ErrorReason | None = Field(
        None, description="What exactly happened, where `error_code` alone leaves it open."
    )
    provenance: ProvenanceView | None = None


class StepView(BaseModel):
    """A BuildKit step."""

    digest: str
    name: str
    cached: bool
    started_at: str | None = Field(None, json_schema_extra=TIME)
    completed_at: str | None = Field(None, json_schema_extra=TIME)
    error: str | None = None


class ProblemView(BaseModel):
    """An error. `code` is stable, `message` is for people."""

    code: str
    message: str
    details: list[str] | None = None


class TokenView(BaseModel):
    """A new token."""

    token: str


class HealthView(BaseModel):
    """The daemon answers."""

    status: str


def render_build(
    build: Build, *, queue_position: int | None, registry_address: str
) -> dict[str, Any]:
    """Return a build as JSON values."""
    view = BuildView(
        id=build.id,
        status=build.status,
        tenant=build.tenant,
        tags=dict(build.request.tags),
        policy=PolicyView(
            timeout_seconds=build.request.policy.timeout_seconds,
            memory_mb=build.request.policy.memory_mb,
            cpus=build.request.policy.cpus,
            network_mode=build.request.policy.network_mode,
            allowed_domains=_list(build.request.policy.allowed_domains),
        ),
        attempt=build.attempt,
        created_at=rfc3339(build.created_at),
        started_at=_time(build.started_at),
        completed_at=_time(build.completed_at),
        queue_position=queue_position if build.status is Status.QUEUED else None,
        duration_ms=_duration_ms(build),
        phases={phase: _ms(seconds) for phase, seconds in build.phases.items()},
        image_digest=build.image_digest,
        image_ref=_image_ref(build, registry_address),
        error=build.error,
        error_code=build.error_code,
        error_reason=build.error_reason,
        provenance=_provenance(build.provenance),
    )
    return view.model_dump(mode="json", exclude_none=True)


def json_response(value: Any, status: int = 200) -> Response:
    """Return an answer with `value` as its JSON body."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return Response(body, status, mimetype="application/json")


def _image_ref(build: Build, registry_address: str) -> str | None:
    if build.status is not Status.READY:
        return None
    if build.request.image_name is not None:
        return f"{registry_address}/{build.tenant}/{build.request.image_name}"
    return f"{registry_address}/builds/{build.id}"


def _provenance(provenance: Provenance | None) -> ProvenanceView | None:
    if provenance is None:
        return None
    return ProvenanceView(
        source_hash=provenance.source_hash,
        builder_image_digest=provenance.builder_image_digest,
        timestamp=rfc3339(provenance.timestamp),
        base_image_digest=provenance.base_image_digest,
        lockfile_hashes=dict(provenance.lockfile_hashes),
        buildkit_version=provenance.buildkit_version,
        toolchain_version=provenance.toolchain_version,
    )


def _duration_ms(build: Build) -> int | None:
    if build.completed_at is None:
        return None
    return _ms(build.completed_at - (build.started_at or build.completed_at))


def _list(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


def _time(unix_seconds: float | None) -> str | None:
    return None if unix_seconds is None else rfc3339(unix_seconds)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
