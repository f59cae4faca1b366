"""What an operator sees of the running daemon. Frozen records; times are Unix seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from supervisor.model.build import Build
from supervisor.model.ids import BuildId, MachineId, Tenant


@dataclass(frozen=True, slots=True)
class QueueState:
    """What runs and what waits, in the order in which it would start."""

    capacity: int
    tenant_capacity: int
    max_queued: int
    is_draining: bool
    running: Sequence[Build]
    waiting: Sequence[Build]


class MachinePhase(StrEnum):
    """What a machine does."""

    BOOTING = "booting"
    IDLE = "idle"
    """It waits for a build."""
    BUILDING = "building"
    PUSHING = "pushing"


@dataclass(frozen=True, slots=True)
class MachineState:
    """A machine: one of the pool, or one that runs a build."""

    id: MachineId
    phase: MachinePhase
    cpus: int
    memory_mb: int
    since: float
    """When its boot began; of one that runs a build, when that build started."""
    build_id: BuildId | None = None
    tenant: Tenant | None = None
    pid: int | None = None
    """The VMM's on the host; None of one that has none (yet), such as one that is about to boot."""
    rss_bytes: int | None = None
    """What is in memory of the VMM, the guest's memory included as far as it was touched."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What stays the same for a whole run of the daemon."""

    started_at: float
    hypervisor: str
    platform: str
    """Machine type and accelerator: `q35/tcg`."""
    builder_image: str
    builder_image_digest: str
    components: Mapping[str, str]
    """What is in the builder image, by name: versions."""


@dataclass(frozen=True, slots=True)
class HostLoad:
    """How busy the host is now. Bytes."""

    cpus: int
    load_average: float
    """Of the last minute."""
    memory_bytes: int
    memory_available_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    """Of the data directory's file system, for the daemon's user."""
