"""RegistryActor: the one that changes the registry's facts. Permanent.

Every change is a message; the actor runs it as one transaction, forgets what the change made old,
and answers. So changes have one order, and a caller that goes away leaves none half known. Blob
bytes are nobody's message.

The facts survive the actor: a restart empties the cache and goes on with the mailbox.
"""

from __future__ import annotations

from pathlib import Path

import trio

from supervisor.actors.registry_cache import FactCache
from supervisor.actors.registry_handle import (
    Change,
    Collected,
    CollectionPolicy,
    Message,
    Prune,
    RegistryHandle,
    RemoveBlob,
)
from supervisor.errors import HostError
from supervisor.model.oci import Digest
from supervisor.registry.blobs import BlobStore
from supervisor.registry.mirror import Mirror, MirrorConfig
from supervisor.registry.sound import SoundBlobs
from supervisor.registry.uploads import Uploads
from supervisor.runtime.clock import Clock
from supervisor.runtime.logs import log
from supervisor.runtime.mailbox import Mailbox, answering
from supervisor.runtime.threads import Threads, run_in_thread
from supervisor.store import registry_upkeep as upkeep
from supervisor.store.database import Database


class RegistryActor:
    """Owns the registry's facts for as long as `run` runs.

    `store`, `uploads`, `handle`, `sound` and `mirror` are good from construction to the end;
    changes asked for while `run` is not running wait for it.
    """

    def __init__(
        self,
        database: Database,
        root: Path,
        threads: Threads,
        clock: Clock,
        policy: CollectionPolicy | None = None,
        mirror: MirrorConfig | None = None,
    ) -> None:
        self._database = database
        self._threads = threads
        self._policy = policy or CollectionPolicy()
        self._mailbox: Mailbox[Message] = Mailbox()
        self._cache = FactCache()
        self.store = BlobStore(root, threads)
        self.uploads = Uploads(self.store, threads)
        self.handle = RegistryHandle(
            mailbox=self._mailbox,
            cache=self._cache,
            database=database,
            store=self.store,
            uploads=self.uploads,
            threads=threads,
            clock=clock,
            policy=self._policy,
        )
        self.sound = SoundBlobs(self.handle, self.store, threads)
        self.mirror = Mirror(
            self.handle, self.store, self.sound, self.uploads, clock, mirror or MirrorConfig()
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handle changes until cancelled. To be supervised: after a failure it may run again."""
        await run_in_thread(self._threads.blobs, self.store.prepare_sync)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.mirror.run)
                nursery.start_soon(self._collect_from_time_to_time)
                task_status.started()
                while True:
                    message = await self._mailbox.receive()
                    with answering(message):
                        await self._handle(message)
        finally:
            self._cache.clear()  # a change may have been committed and not noted

    def close(self) -> None:
        """End the mailbox for good, after the last `run`."""
        self._mailbox.close()

    async def _handle(self, message: Message) -> None:
        try:
            match message:
                case Change(unit, repository, reply):
                    result = await self._database.run(unit)
                    if repository is not None:
                        self._cache.drop(repository)
                    reply.set(result)
                case Prune(unit, reply):
                    changed = await self._database.run(unit)
                    for repository in changed:
                        self._cache.drop(repository)
                    reply.set(changed)
                case RemoveBlob(digest, reply):
                    reply.set(await self._remove_blob(digest))
        except HostError as exc:
            # Nothing was changed, and the next change may go well: the asker decides.
            message.reply.fail(exc)

    async def _remove_blob(self, digest: Digest) -> int | None:
        with self.store.collecting(digest) as is_mine:
            if not is_mine or not await self._database.run(upkeep.forget_blob, digest):
                return None
            # A crash here leaves a file without a row; the next collection finds it.
            return await self.store.remove(digest)

    async def _collect_from_time_to_time(self) -> None:
        while True:
            await trio.sleep(self._policy.interval_seconds)
            try:
                collected = await self.handle.collect()
            except HostError as exc:
                log.warning("registry.collection_failed", error=str(exc))
                continue
            if collected != Collected():
                log.info(
                    "registry.collected",
                    uploads=collected.uploads,
                    manifests=collected.manifests,
                    links=collected.links,
                    blobs=collected.blobs,
                    freed_bytes=collected.freed_bytes,
                )
