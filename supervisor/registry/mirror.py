"""The mirror: `mirror/<upstream>/…` is filled from the upstream when somebody asks for it.

* By digest, what is here is served for ever, without asking. By tag, it is served for
  `MIRROR_TAG_TTL`, and then only after the upstream confirmed it, or because that does not answer.
* A blob is served when it is whole and its digest is right, never while it arrives: what a client
  gets from here is verified, a client sees an error instead of half a layer, and all who wait for
  one blob share one fetch.
* A fetch belongs to the registry, not to who asked (`Flights`).
* A tag that an operator pushed stands: no upstream is asked about it.

Names that belong to no configured upstream are repositories like any other. Nothing of a build but
the names it asks for reaches an upstream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import trio

from supervisor.errors import HostError
from supervisor.model.oci import Digest, RepositoryName, Tag, algorithm_of, parse_repository
from supervisor.model.registry import BlobInfo, ManifestInfo, MirroredTag
from supervisor.model.upstream import Upstream
from supervisor.registry.blobs import BlobStore
from supervisor.registry.credentials import Credentials
from supervisor.registry.facts import MirrorFacts
from supervisor.registry.flights import Flights
from supervisor.registry.intake import finish_upload
from supervisor.registry.pauses import Pauses
from supervisor.registry.sound import SoundBlobs
from supervisor.registry.uploads import DigestMismatch, Uploads
from supervisor.registry.upstream import Fetched, UpstreamRegistry
from supervisor.registry.upstream_errors import UpstreamError, failing
from supervisor.registry.upstream_http import Connections, FindAddress, UpstreamHttp
from supervisor.runtime.clock import Clock
from supervisor.runtime.logs import log

T = TypeVar("T")

_PREFIX = "mirror/"
_MOST_BLOBS_AT_ONCE = 16
"""Fetched at the same time, of one upstream; the next one waits."""


_CLOSE_SECONDS = 1.0


async def nowhere(_: str) -> str | None:
    """Find no address: a `FindAddress` for who lets upstreams name no other host."""
    await trio.lowlevel.checkpoint()
    return None


@dataclass(frozen=True)
class MirrorConfig:
    """What the mirror is told by the operator. Times in seconds."""

    upstreams: Sequence[Upstream] = ()
    credentials: Credentials = field(default_factory=Credentials)
    find_address: FindAddress = nowhere
    tag_ttl: float = 300.0
    timeout: float = 60.0
    max_blob_bytes: int = 10 << 30


@dataclass(frozen=True, slots=True)
class _Place:
    """A repository of the mirror: here, and there."""

    upstream: UpstreamRegistry
    upstream_name: str
    blobs: trio.CapacityLimiter
    local: RepositoryName
    remote: str


class Mirror:
    """Finds content below `mirror/`, here or upstream. `run` must run for the latter."""

    def __init__(
        self,
        facts: MirrorFacts,
        store: BlobStore,
        sound: SoundBlobs,
        uploads: Uploads,
        clock: Clock,
        config: MirrorConfig,
    ) -> None:
        self._facts = facts
        self._store = store
        self._sound = sound
        self._uploads = uploads
        self._clock = clock
        self._config = config
        self._by_component = {item.component: item for item in config.upstreams}
        self._registries: dict[str, UpstreamRegistry] = {}
        self._flights = Flights()
        self._pauses = Pauses()
        self._blobs = {
            component: trio.CapacityLimiter(_MOST_BLOBS_AT_ONCE) for component in self._by_component
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the fetches and the connections until cancelled."""
        config = self._config
        async with AsyncExitStack() as stack:
            if config.upstreams:
                opened = {item.component: Connections(config.timeout) for item in config.upstreams}
                stack.push_async_callback(_close, list(opened.values()))
                self._registries = {
                    item.component: self._registry(item, opened[item.component])
                    for item in config.upstreams
                }
            async with trio.open_nursery() as nursery:
                await nursery.start(self._flights.run)
                task_status.started()

    def _registry(self, upstream: Upstream, connections: Connections) -> UpstreamRegistry:
        config = self._config
        http = UpstreamHttp(upstream, connections, config.find_address, config.timeout, self._clock)
        return UpstreamRegistry(upstream, http, config.credentials, config.upstreams)

    def covers(self, repository: RepositoryName) -> bool:
        """Say whether the repository is one of a configured upstream."""
        return self._place(repository) is not None

    async def find_blob(self, repository: RepositoryName, digest: Digest) -> BlobInfo | None:
        """Return a blob of a covered repository; None if there is none upstream either.

        Raises UpstreamError, and what storing raises.
        """
        place = self._require(repository)
        found = await self._facts.find_blob(place.local, digest)
        if found is None or not await self._sound.is_sound(place.local, found):
            work = partial(self._fetch_blob, place, digest)
            found = await self._flights.join((place.local, "blob", digest), work)
        return found

    async def find_manifest(
        self, repository: RepositoryName, digest: Digest
    ) -> ManifestInfo | None:
        """Return a manifest of a covered repository, as `find_blob` does."""
        place = self._require(repository)
        found = await self._facts.find_manifest(place.local, digest)
        if found is None or not await self._is_readable(digest):
            work = partial(self._fetch_manifest, place, digest)
            found = await self._flights.join((place.local, "manifest", digest), work)
        return found

    async def find_tagged(self, repository: RepositoryName, tag: Tag) -> ManifestInfo | None:
        """Return the manifest of a tag, confirmed by the upstream if that was long ago.

        An upstream that does not answer changes nothing. Raises UpstreamError if the tag is not
        here.
        """
        place = self._require(repository)
        known = await self._find_usable_tag(place, tag)
        if known is not None and self._is_fresh(known):
            return known.manifest
        work = partial(self._refresh, place, tag)
        return await self._flights.join((place.local, "tag", tag), work)

    async def _find_usable_tag(self, place: _Place, tag: Tag) -> MirroredTag | None:
        """Return what is known of a tag; None also if its manifest must be fetched again.

        A pushed one stands even so: the upstream's tag of that name may be something else.
        """
        known = await self._facts.find_mirrored_tag(place.local, tag)
        if known is None or known.checked_at is None:
            return known
        return known if await self._is_readable(known.manifest.digest) else None

    async def _is_readable(self, digest: Digest) -> bool:
        """Say whether a manifest's bytes are here, and right."""
        try:
            await self._store.read_whole(digest)
        except FileNotFoundError:
            return False
        return True

    def _is_fresh(self, known: MirroredTag) -> bool:
        if known.checked_at is None:
            return True
        # A clock that was set back makes nothing fresh for longer.
        return 0 <= self._clock() - known.checked_at < self._config.tag_ttl

    # Fetching: each of these runs once for all who wait

    async def _fetch_blob(self, place: _Place, digest: Digest) -> BlobInfo | None:
        async with place.blobs:
            return await self._ask(place, partial(self._take_blob, place, digest))

    async def _take_blob(self, place: _Place, digest: Digest) -> BlobInfo | None:
        limit = self._config.max_blob_bytes
        async with place.upstream.open_blob(place.remote, digest, limit) as body:
            if body is None:
                return None
            upload = self._uploads.create(place.local)
            try:
                async with upload.lock:
                    upload.expect(algorithm_of(digest))
                    await upload.append(body)
                    blob = await finish_upload(
                        self._facts, self._store, place.local, upload, digest
                    )
            except DigestMismatch as exc:
                raise failing(place.upstream_name, f"it sent something else as {digest}") from exc
            finally:
                self._uploads.discard(upload.id)
        log.info(
            "mirror.fetched", repository=place.local, digest=digest, size_bytes=blob.size_bytes
        )
        return replace(blob, used_at=self._clock())

    async def _fetch_manifest(self, place: _Place, digest: Digest) -> ManifestInfo | None:
        fetched = await self._ask(place, lambda: place.upstream.get_manifest(place.remote, digest))
        return None if fetched is None else await self._keep(place, fetched, [])

    async def _refresh(self, place: _Place, tag: Tag) -> ManifestInfo | None:
        known = await self._find_usable_tag(place, tag)
        if known is not None and self._is_fresh(known):
            return known.manifest  # somebody else's refresh has just ended, or a push
        try:
            return await self._ask(place, partial(self._revalidate, place, tag, known), known)
        except UpstreamError:
            if known is None:
                raise
            return known.manifest

    async def _revalidate(
        self, place: _Place, tag: Tag, known: MirroredTag | None
    ) -> ManifestInfo | None:
        if known is not None:
            digest = known.manifest.digest
            is_current = await place.upstream.is_current(place.remote, tag, digest)
            if is_current:
                await self._facts.confirm_tag(place.local, tag, digest)
                return known.manifest
            if is_current is None:
                await self._facts.drop_mirrored_tag(place.local, tag, digest)
                return None
        fetched = await place.upstream.get_manifest(place.remote, tag)
        return None if fetched is None else await self._keep(place, fetched, [tag])

    async def _keep(self, place: _Place, fetched: Fetched, tags: Sequence[Tag]) -> ManifestInfo:
        manifest = fetched.manifest
        async with self._store.keeping(manifest.digest):
            await self._store.put(manifest.digest, fetched.content)
            await self._facts.put_mirrored_manifest(place.local, manifest, tags)
        log.info(
            "mirror.fetched", repository=place.local, digest=manifest.digest, tag=",".join(tags)
        )
        return ManifestInfo(manifest.digest, manifest.media_type, manifest.size_bytes)

    async def _ask(
        self,
        place: _Place,
        work: Callable[[], Awaitable[T]],
        instead: MirroredTag | None = None,
    ) -> T:
        """Ask the upstream, unless it is to be left alone. Raises UpstreamError.

        It is logged once for each time that the upstream was asked. `instead`: what is served then.
        """
        trouble = self._pauses.current(place.upstream_name, place.remote)
        if trouble is not None:
            raise trouble
        try:
            return await work()
        except UpstreamError as exc:
            self._pauses.note(place.upstream_name, place.remote, exc)
            log.warning(
                "mirror.upstream_failed" if instead is None else "mirror.stale_served",
                upstream=place.upstream_name,
                repository=place.remote,
                why=exc.why,
                served=int(exc.status) if instead is None else instead.manifest.digest,
                pause_seconds=round(exc.pause_seconds),
            )
            raise
        except HostError as exc:
            log.error("mirror.not_stored", repository=place.local, error=str(exc))
            raise

    # Names

    def _require(self, repository: RepositoryName) -> _Place:
        place = self._place(repository)
        assert place is not None, f"{repository} is no mirrored repository"
        return place

    def _place(self, repository: RepositoryName) -> _Place | None:
        if not repository.startswith(_PREFIX):
            return None
        component, _, rest = repository.removeprefix(_PREFIX).partition("/")
        upstream = self._registries.get(component)
        if upstream is None or not rest:
            return None
        remote = upstream.canonical(rest)
        local = parse_repository(f"{_PREFIX}{component}/{remote}")
        if local is None:
            return None  # too long with `library/`
        name, blobs = self._by_component[component].name, self._blobs[component]
        return _Place(upstream, name, blobs, local, remote)


async def _close(connections: Sequence[Connections]) -> None:
    with trio.move_on_after(_CLOSE_SECONDS, shield=True):
        async with trio.open_nursery() as nursery:
            for item in connections:
                nursery.start_soon(item.aclose)
