"""What the operator's routes need from the rest of the daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from supervisor.model.build import Build, Status
from supervisor.model.host import HostFacts, HostLoad, MachineState, QueueState
from supervisor.model.ids import Tenant
from supervisor.model.inventory import ImageDocuments, Pruned, PruneWish, StoredImage, Usage
from supervisor.model.oci import Digest, RepositoryName, Tag
from supervisor.model.registry import Removal


class Images(Protocol):
    """Whole images of the registry; `actors.images.ImageService` in the daemon.

    With a tenant, only that tenant's are there.
    """

    async def list(
        self,
        tenant: Tenant | None,
        *,
        repository: RepositoryName | None,
        after: tuple[str, str],
        limit: int,
    ) -> Sequence[StoredImage]:
        """Return images by repository and digest, from behind `after` on."""
        ...

    async def get(
        self, tenant: Tenant | None, repository: RepositoryName, reference: Tag | Digest
    ) -> StoredImage | None:
        """Return the image that a tag or a digest names."""
        ...

    async def documents(self, image: StoredImage) -> ImageDocuments:
        """Return its manifest and configuration. Raises FileNotFoundError if it has just gone."""
        ...

    async def remove(self, repository: RepositoryName, reference: Tag | Digest) -> Removal:
        """Remove a tag, and the image with its last one; by digest, the image."""
        ...

    async def prune(self, wish: PruneWish, *, is_dry: bool = False) -> Pruned:
        """Remove what nothing can use; or say what that would be."""
        ...

    async def usage(self, wish: PruneWish) -> Sequence[Usage]:
        """Return what takes up room on the disk."""
        ...


class Operator(Protocol):
    """The running daemon, to look at; `actors.operator.OperatorService` in the daemon."""

    @property
    def facts(self) -> HostFacts:
        """What stays the same for this run."""
        ...

    async def queue(self, tenant: Tenant | None) -> QueueState:
        """Return what runs and waits."""
        ...

    def queue_position(self, build: Build) -> int | None:
        """Return the 1-based position of a waiting build."""
        ...

    async def machines(self) -> Sequence[MachineState]:
        """Return the machines that there are."""
        ...

    async def count_builds(self) -> Mapping[Status, int]:
        """Return how many builds there are of each status."""
        ...

    async def load(self) -> HostLoad:
        """Return how busy the host is."""
        ...
