"""A registry for tests: the real actor, database, store and HTTP, without the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from supervisor.actors.registry import RegistryActor
from supervisor.actors.registry_handle import CollectionPolicy, RegistryHandle
from supervisor.api.listeners import serve_registry_to_guest
from supervisor.config import Keys
from supervisor.model.ids import BuildId, Tenant
from supervisor.registry.access import TenantOfBuild
from supervisor.registry.app import Registry
from supervisor.registry.authentication import CALLER_STATE
from supervisor.registry.http import AsgiApp, CountBytes, Receive, Scope, Send, count_nothing
from supervisor.registry.mirror import MirrorConfig
from supervisor.runtime.clock import Clock, wall_clock
from supervisor.runtime.threads import Threads
from supervisor.store.database import Database, open_database
from supervisor.tokens import Caller, Permission, mint_api_token

KEYS = Keys(api=b"a" * 32, registry=b"r" * 32)
TENANT = Tenant("acme")
TOKEN_SECONDS = 3600.0


@dataclass(frozen=True)
class Served:
    """A running registry."""

    address: str
    """host:port"""
    app: AsgiApp
    actor: RegistryActor
    handle: RegistryHandle
    root: Path

    @property
    def url(self) -> str:
        """The base of all routes."""
        return f"http://{self.address}/v2"


async def no_builds(_: BuildId) -> Tenant | None:
    """Look up the tenant of a build where there are none."""
    return None


def api_token(
    tenant: Tenant = TENANT,
    permissions: frozenset[Permission] | None = None,
    *,
    lifetime_seconds: float = TOKEN_SECONDS,
) -> str:
    """Return an API token of a tenant."""
    return mint_api_token(
        KEYS.api,
        subject="tester",
        tenant=tenant,
        permissions=permissions,
        now=wall_clock(),
        lifetime_seconds=lifetime_seconds,
    )


def admin_token() -> str:
    """Return an API token of an administrator."""
    return api_token(Tenant("operator"), frozenset(Permission))


def database_of(served: Served) -> Database:
    """Return the registry's database, for looking at what no client sees, and for breaking it."""
    return served.actor._database


@asynccontextmanager
async def open_registry(
    directory: Path,
    *,
    tenant_of_build: TenantOfBuild = no_builds,
    clock: Clock = wall_clock,
    policy: CollectionPolicy | None = None,
    mirror: MirrorConfig | None = None,
    caller: Caller | None = None,
    count_bytes: CountBytes = count_nothing,
) -> AsyncIterator[Served]:
    """Run the registry below `directory`, without a listener. `caller`: who everybody is."""
    await trio.Path(directory).mkdir(parents=True, exist_ok=True)
    async with open_database(directory / "hypeman.db") as database:
        actor = RegistryActor(database, directory / "registry", Threads(), clock, policy, mirror)
        app = Registry(
            facts=actor.handle,
            mirror=actor.mirror,
            store=actor.store,
            sound=actor.sound,
            uploads=actor.uploads,
            keys=KEYS,
            tenant_of_build=tenant_of_build,
            clock=clock,
            fallback_host=lambda: "registry.test:5000",
            count_bytes=count_bytes,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: actor.run(task_status=task_status))
            try:
                yield Served(
                    "registry.test",
                    app if caller is None else _as(app, caller),
                    actor,
                    actor.handle,
                    directory / "registry",
                )
            finally:
                nursery.cancel_scope.cancel(reason="the test is over")
                actor.close()


@asynccontextmanager
async def serve_registry(
    directory: Path, *, seen: list[tuple[str, str]] | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Run the registry and serve it on a free port of loopback, as the daemon does for guests.

    `seen` gets the method and the target of every request.
    """
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()[:2]
    async with open_registry(directory, **options) as served, trio.open_nursery() as nursery:
        app = served.app if seen is None else _seeing(served.app, seen)
        nursery.start_soon(serve_registry_to_guest, listener, app)
        yield Served(f"{host}:{port}", served.app, served.actor, served.handle, served.root)
        nursery.cancel_scope.cancel(reason="the test is over")
    await listener.aclose()


def _seeing(app: AsgiApp, seen: list[tuple[str, str]]) -> AsgiApp:
    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append((scope["method"], f"{scope['path']}?{scope['query_string'].decode()}"))
        await app(scope, receive, send)

    return note


def _as(app: AsgiApp, caller: Caller) -> AsgiApp:
    async def with_caller(scope: Scope, receive: Receive, send: Send) -> None:
        state = {**scope.get("state", {}), CALLER_STATE: caller}
        await app({**scope, "state": state}, receive, send)

    return with_caller
