"""A process that serves the registry as the daemon does, with a token: the subject of `registry`.

    python -m benchmarks.serve DIRECTORY PORT

Prints a line when it listens, and serves until it is killed.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from benchmarks.servers import KEYS
from supervisor.actors.registry import RegistryActor
from supervisor.api.front import Front
from supervisor.api.listeners import MAX_CONNECTIONS, serve_connections
from supervisor.model.ids import BuildId, Tenant
from supervisor.registry.app import Registry
from supervisor.runtime.clock import wall_clock
from supervisor.runtime.threads import Threads
from supervisor.store.database import open_database


async def serve(directory: Path, port: int) -> None:
    """Serve until cancelled."""
    (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
    async with open_registry(directory) as app:
        print("listening", flush=True)
        await serve_connections(
            listener,
            Front(api=None, registry=app),
            grace_seconds=0,
            max_connections=MAX_CONNECTIONS,
        )


@asynccontextmanager
async def open_registry(directory: Path) -> AsyncIterator[Registry]:
    """Run the registry that keeps its things in `directory`; cancelled with the block."""
    async with open_database(directory / "hypeman.db") as database, trio.open_nursery() as nursery:
        actor = RegistryActor(database, directory / "registry", Threads(), wall_clock)
        await nursery.start(lambda task_status: actor.run(task_status=task_status))
        yield Registry(
            facts=actor.handle,
            mirror=actor.mirror,
            store=actor.store,
            sound=actor.sound,
            uploads=actor.uploads,
            keys=KEYS,
            tenant_of_build=_no_builds,
            clock=wall_clock,
            fallback_host=lambda: "localhost",
        )
        nursery.cancel_scope.cancel(reason="the benchmark is over")


async def _no_builds(_: BuildId) -> Tenant | None:
    return None


if __name__ == "__main__":
    trio.run(serve, Path(sys.argv[1]), int(sys.argv[2]))
