"""A build as the rest of the program sees it: what was asked, and what has come of it.

Everything here is frozen. A build changes by `lifecycle.step`, which returns a new one.
Times are Unix seconds; durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from supervisor.model.ids import BuildId, Tenant


class Status(StrEnum):
    """Where a build stands. `queued → building → pushing → ready`, or failed, or cancelled."""

    QUEUED = "queued"
    BUILDING = "building"
    PUSHING = "pushing"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Say whether nothing can follow."""
        return self in FINAL


FINAL = frozenset({Status.READY, Status.FAILED, Status.CANCELLED})
RUNNING = frozenset({Status.BUILDING, Status.PUSHING})


class Reason(StrEnum):
    """Why a build ended without an image: the contract's `error_code`."""

    BUILD_FAILED = "build_failed"
    BUILD_TIMEOUT = "build_timeout"
    DOCKERFILE_INVALID = "dockerfile_invalid"
    BASE_IMAGE_NOT_FOUND = "base_image_not_found"
    BASE_IMAGE_MISMATCH = "base_image_mismatch"
    SECRET_NOT_FOUND = "secret_not_found"
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_DISK = "out_of_disk"
    PUSH_FAILED = "push_failed"
    BUILDER_LOST = "builder_lost"
    DAEMON_STOPPED = "daemon_stopped"
    CANCELLED = "cancelled"


class ErrorReason(StrEnum):
    """What exactly ended a build, where `error_code` only says what kind of end it was.

    Not every end has one: a step that fails needs no more words. More of them may come.
    """

    BOOT_FAILED = "boot_failed"
    BOOT_TIMEOUT = "boot_timeout"
    VMM_EXITED = "vmm_exited"
    VMM_UNRESPONSIVE = "vmm_unresponsive"
    VSOCK_DEVICE_EXITED = "vsock_device_exited"
    GUEST_STOPPED = "guest_stopped"
    GUEST_SILENT = "guest_silent"
    LINK_LOST = "link_lost"
    PROTOCOL_BROKEN = "protocol_broken"
    GUEST_OUT_OF_MEMORY = "guest_out_of_memory"
    GUEST_OUT_OF_DISK = "guest_out_of_disk"
    BUILDKIT_FAILED = "buildkit_failed"
    HOST_OUT_OF_DISK = "host_out_of_disk"
    HOST_FAILED = "host_failed"
    ATTEMPTS_LOST = "attempts_lost"
    RECORD_DAMAGED = "record_damaged"


class Phase(StrEnum):
    """The parts of a build's time that are measured apart."""

    QUEUE = "queue"
    LEASE = "lease"
    BOOT = "boot"
    SOURCE = "source"
    BUILD = "build"
    PUSH = "push"


class NetworkMode(StrEnum):
    """What a build may reach beside the registry."""

    ISOLATED = "isolated"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of one build."""

    timeout_seconds: int
    memory_mb: int
    cpus: int
    network_mode: NetworkMode = NetworkMode.EGRESS
    allowed_domains: tuple[str, ...] | None = None
    """None: any public address."""


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A secret that a build asks for by name. The value is never here."""

    id: str
    env_var: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """The uploaded archive, as the host received it."""

    sha256: str
    """Lower-case hexadecimal, of the bytes as uploaded."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What the caller asked for, checked and complete."""

    policy: Policy
    dockerfile: str | None = None
    """Text that replaces the Dockerfile in the source."""
    dockerfile_path: str = "Dockerfile"
    target: str | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretRef, ...] = ()
    base_image_digest: str | None = None
    cache_scope: str | None = None
    global_cache_key: str | None = None
    export_global_cache: bool = False
    no_cache: bool = False
    image_name: str | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What went into the image, as far as the host knows it or the guest reports it."""

    source_hash: str
    """`sha256:…` of the upload, computed by the host."""
    builder_image_digest: str
    timestamp: float
    base_image_digest: str | None = None
    lockfile_hashes: Mapping[str, str] = field(default_factory=dict)
    buildkit_version: str | None = None
    toolchain_version: str | None = None


@dataclass(frozen=True, slots=True)
class Build:
    """One request to turn a source into an image, and what has come of it so far."""

    id: BuildId
    tenant: Tenant
    request: BuildRequest
    source: Source
    created_at: float
    status: Status = Status.QUEUED
    attempt: int = 0
    """How many attempts have been started."""
    lost_attempts: int = 0
    """How many of them the host lost, by a crash; a planned stop is none."""
    queued_at: float = 0.0
    """When it last entered the queue: at first `created_at`, later the time it was put back."""
    started_at: float | None = None
    completed_at: float | None = None
    cancel_requested: bool = False
    error_code: Reason | None = None
    error_reason: ErrorReason | None = None
    error: str | None = None
    image_digest: str | None = None
    provenance: Provenance | None = None
    phases: Mapping[Phase, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One BuildKit vertex as last reported."""

    digest: str
    name: str
    started_at: float | None = None
    completed_at: float | None = None
    cached: bool = False
    error: str | None = None
