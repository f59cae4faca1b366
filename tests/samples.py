"""Builds for tests: complete, and only as unusual as a test asks for."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from supervisor.model.build import Build, BuildRequest, Policy, Provenance, Source
from supervisor.model.ids import BuildId, Tenant

SOURCE_BYTES = b"not really an archive"
SOURCE = Source(hashlib.sha256(SOURCE_BYTES).hexdigest(), len(SOURCE_BYTES))
POLICY = Policy(timeout_seconds=600, memory_mb=512, cpus=1)
CREATED_AT = 1_700_000_000.0
DIGEST = "sha256:" + "ab" * 32
PROVENANCE = Provenance(
    source_hash=f"sha256:{SOURCE.sha256}",
    builder_image_digest="sha256:" + "cd" * 32,
    timestamp=CREATED_AT,
    lockfile_hashes={"go.sum": "ef" * 32},
    buildkit_version="v0.32",
)


def build_id(number: int) -> BuildId:
    """Return an id; a greater number makes a younger one."""
    return BuildId(f"{number:024d}")


def a_build(
    number: int = 1,
    *,
    tenant: str = "acme",
    policy: Policy = POLICY,
    request: BuildRequest | None = None,
    **changes: Any,
) -> Build:
    """Return a queued build with `changes`."""
    build = Build(
        id=build_id(number),
        tenant=Tenant(tenant),
        request=request or BuildRequest(policy),
        source=SOURCE,
        created_at=CREATED_AT,
        queued_at=CREATED_AT,
    )
    return replace(build, **changes)
