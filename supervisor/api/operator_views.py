"""What the operator's routes show; `views.py` has the rules."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, JsonValue

from supervisor.api.views import TIME, BuildView
from supervisor.model.build import Status
from supervisor.model.host import MachinePhase
from supervisor.model.inventory import UsageKind

_BYTES: dict[str, JsonValue] = {"minimum": 0}


class ImageView(BaseModel):
    """An image in the registry. Images share content, so sizes do not add up."""

    repository: str
    digest: str
    tags: list[str] = Field(description="None: nothing but the digest leads to it.")
    media_type: str
    size_bytes: int = Field(description="Of all that it leads to.", json_schema_extra=_BYTES)
    pushed_at: str = Field(json_schema_extra=TIME)
    image_ref: str = Field(description="What to pull.")


class ImageDetailView(ImageView):
    """An image with its documents, as they were pushed."""

    manifest: dict[str, Any]
    config: dict[str, Any] | None = Field(
        None, description="Of an image for one platform: environment, command, labels, history."
    )


class QueueView(BaseModel):
    """What runs, and what waits in the order in which it would start."""

    capacity: int = Field(description="Builds that may run at once.")
    capacity_per_tenant: int
    max_queued: int
    draining: bool = Field(description="The daemon is about to stop, and starts nothing more.")
    running: list[BuildView]
    waiting: list[BuildView]


class MachineView(BaseModel):
    """A machine. One that runs a build has a `build` and its `tenant`."""

    id: str
    state: MachinePhase
    cpus: int
    memory_mb: int
    since: str = Field(
        description="When its boot began, or the build that it runs was started.",
        json_schema_extra=TIME,
    )
    build: str | None = None
    tenant: str | None = None
    pid: int | None = Field(None, description="Of the VMM on the host; absent if there is none.")
    rss_bytes: int | None = Field(
        None,
        description="What the VMM has in memory; of the guest's, what the guest has touched.",
        json_schema_extra=_BYTES,
    )


class UsageView(BaseModel):
    """What one kind of thing takes up. `registry` counts what images and caches share once."""

    kind: UsageKind
    count: int
    size_bytes: int
    reclaimable_bytes: int = Field(description="What a prune would free of it now.")


class PruneView(BaseModel):
    """What was removed, or would be."""

    repositories: int = Field(description="Of builds without a record, of caches, empty ones.")
    manifests: int = Field(description="Without a tag, and part of nothing.")
    blobs: int
    sources: int
    freed_bytes: int = Field(description="The sizes of the files that are gone.")
    dry_run: bool


class BuilderImageView(BaseModel):
    """What machines boot."""

    reference: str
    digest: str
    components: dict[str, str]


class HostView(BaseModel):
    """How busy the host is."""

    cpus: int
    load_average: float = Field(description="Of the last minute.")
    memory_bytes: int
    memory_available_bytes: int
    disk_bytes: int = Field(description="Of the data directory's file system.")
    disk_free_bytes: int


class SystemView(BaseModel):
    """The daemon and its host."""

    version: str
    started_at: str = Field(json_schema_extra=TIME)
    ready: bool
    why_not_ready: str | None = None
    hypervisor: str
    platform: str = Field(description="Machine type and accelerator.")
    builder_image: BuilderImageView
    registry_address: str
    data_dir: str
    runtime_dir: str
    builds: dict[Status, int] = Field(description="How many there are of each status.")
    host: HostView


class SettingView(BaseModel):
    """A setting of the running daemon. Secrets are `(hidden)`."""

    name: str
    value: str | int | float | bool | None = Field(
        None, description="Absent: not set. Lists are comma-separated."
    )
    is_default: bool
