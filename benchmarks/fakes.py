"""A daemon without machines, served on a UNIX socket: the fakes of the tests below the real API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from supervisor.api.listeners import serve_api
from supervisor.api.ports import ApiDeps
from supervisor.runtime.clock import wall_clock
from tests.actors.world import World, open_world
from tests.fakes.hypervisor import FakeHypervisor


@asynccontextmanager
async def serving(
    work: Path, hypervisor: FakeHypervisor, **settings: Any
) -> AsyncIterator[tuple[World, Path]]:
    """Yield the actors, and the socket at which the API serves them."""
    nobody: Any = None  # of images and of the operator, no route is asked here
    async with (
        open_world(work, hypervisor=hypervisor, runtime_dir=work, host="none", **settings) as world,
        trio.open_nursery() as nursery,
    ):
        deps = ApiDeps(
            builds=world.builds,
            images=nobody,
            operator=nobody,
            settings=world.settings,
            keys=None,
            threads=world.ledger.threads,
            name_registry=lambda: "localhost",
            clock=wall_clock,
        )
        addresses = await nursery.start(serve_api, deps, _no_registry)
        yield world, addresses.unix
        nursery.cancel_scope.cancel(reason="the benchmark is over")


async def _no_registry(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nobody asks the registry")
