"""Images and the operator's view in memory, for the API and the control program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import trio

from supervisor.model.build import RUNNING, Build, Status
from supervisor.model.host import HostFacts, HostLoad, MachinePhase, MachineState, QueueState
from supervisor.model.ids import MachineId, Tenant, machine_id
from supervisor.model.inventory import (
    ImageDocuments,
    Pruned,
    PruneWish,
    StoredImage,
    Usage,
    UsageKind,
)
from supervisor.model.oci import Digest, RepositoryName, Tag
from supervisor.model.registry import Removal
from tests.fakes.build_service import FakeBuilds

MANIFEST = {
    "schemaVersion": 2,
    "config": {"digest": f"sha256:{'c' * 64}", "size": 2},
    "layers": [{"digest": f"sha256:{'e' * 64}", "size": 1200}],
}
CONFIG = {
    "os": "linux", "architecture": "amd64", "created": None, "config": {"Cmd": ["hello", "\ud800"]},
}  # fmt: skip


def stored_image(
    repository: str, *tags: str, digest: str = "d", pushed_at: float = 1.7e9
) -> StoredImage:
    return StoredImage(
        repository=RepositoryName(repository),
        digest=Digest(f"sha256:{digest * 64}"),
        media_type="application/vnd.oci.image.manifest.v1+json",
        tags=tuple(map(Tag, tags)),
        size_bytes=1_234_567,
        pushed_at=pushed_at,
    )


class FakeImages:
    """Images below a tenant's name belong to it; nothing knows of builds here."""

    def __init__(self) -> None:
        self.images: list[StoredImage] = []
        self.parts: set[Digest] = set()
        """Images that an index needs."""
        self.wishes: list[PruneWish] = []
        self.documents_are_gone = False
        self.manifest: bytes = json.dumps(MANIFEST).encode()
        self.config: bytes | None = json.dumps(CONFIG).encode()

    async def list(
        self,
        tenant: Tenant | None,
        *,
        repository: RepositoryName | None,
        after: tuple[str, str],
        limit: int,
    ) -> Sequence[StoredImage]:
        await trio.lowlevel.checkpoint()
        found = [
            image
            for image in sorted(self.images, key=lambda image: (image.repository, image.digest))
            if self._is_seen(image, tenant)
            and repository in (None, image.repository)
            and (image.repository, image.digest) > after
        ]
        return found[:limit]

    async def get(
        self, tenant: Tenant | None, repository: RepositoryName, reference: Tag | Digest
    ) -> StoredImage | None:
        await trio.lowlevel.checkpoint()
        for image in self.images:
            is_it = reference == image.digest or reference in image.tags
            if is_it and image.repository == repository and self._is_seen(image, tenant):
                return image
        return None

    async def documents(self, image: StoredImage) -> ImageDocuments:
        await trio.lowlevel.checkpoint()
        if self.documents_are_gone:
            raise FileNotFoundError(image.digest)
        return ImageDocuments(image, self.manifest, self.config)

    async def remove(self, repository: RepositoryName, reference: Tag | Digest) -> Removal:
        image = await self.get(None, repository, reference)
        if image is None:
            return Removal.NOT_FOUND
        if image.digest in self.parts:
            return Removal.IN_USE
        self.images.remove(image)
        tags = tuple(tag for tag in image.tags if tag != reference)
        if tags and reference != image.digest:
            self.images.append(replace(image, tags=tags))
        return Removal.DONE

    async def prune(self, wish: PruneWish, *, is_dry: bool = False) -> Pruned:
        await trio.lowlevel.checkpoint()
        self.wishes.append(wish)
        doomed = [
            image for image in self.images if not image.tags and self._is_seen(image, wish.tenant)
        ]
        if not is_dry:
            self.images = [image for image in self.images if image not in doomed]
        freed = sum(image.size_bytes for image in doomed)
        return Pruned(manifests=len(doomed), blobs=3 * len(doomed), freed_bytes=freed)

    async def usage(self, wish: PruneWish) -> Sequence[Usage]:
        await trio.lowlevel.checkpoint()
        size = sum(image.size_bytes for image in self.images)
        return [
            Usage(UsageKind.IMAGES, len(self.images), size),
            Usage(UsageKind.REGISTRY, 3 * len(self.images), size, 1024),
        ]

    def _is_seen(self, image: StoredImage, tenant: Tenant | None) -> bool:
        return tenant is None or image.repository.startswith(f"{tenant}/")


class FakeOperator:
    """Sees what the fake build service has."""

    def __init__(self, builds: FakeBuilds) -> None:
        self._fake = builds
        self.facts = HostFacts(
            started_at=1.8e9,
            hypervisor="qemu",
            platform="q35/tcg",
            builder_image="hypeman/builder:latest",
            builder_image_digest=f"sha256:{'b' * 64}",
            components={"buildkit": "v0.32.2"},
        )

    async def queue(self, tenant: Tenant | None) -> QueueState:
        await trio.lowlevel.checkpoint()
        seen = [
            build
            for _, build in sorted(self._fake.builds.items())
            if tenant in (None, build.tenant)
        ]
        return QueueState(
            capacity=2,
            tenant_capacity=2,
            max_queued=1000,
            is_draining=False,
            running=[build for build in seen if build.status in RUNNING],
            waiting=[build for build in seen if build.status is Status.QUEUED],
        )

    def queue_position(self, build: Build) -> int | None:
        return self._fake.queue_position(build.id)

    async def machines(self) -> Sequence[MachineState]:
        running = [
            MachineState(
                id=machine_id(build.id, build.attempt),
                phase=MachinePhase(build.status),
                cpus=build.request.policy.cpus,
                memory_mb=build.request.policy.memory_mb,
                since=build.started_at or 0.0,
                build_id=build.id,
                tenant=build.tenant,
                pid=4711,
                rss_bytes=1 << 29,
            )
            for build in (await self.queue(None)).running
        ]
        return [*running, MachineState(MachineId("warm-1"), MachinePhase.IDLE, 2, 2048, 1.7e9)]

    async def count_builds(self) -> Mapping[Status, int]:
        await trio.lowlevel.checkpoint()
        statuses = [build.status for build in self._fake.builds.values()]
        return {status: statuses.count(status) for status in Status}

    async def load(self) -> HostLoad:
        await trio.lowlevel.checkpoint()
        return HostLoad(2, 0.5, 8 << 30, 4 << 30, 100 << 30, 40 << 30)
