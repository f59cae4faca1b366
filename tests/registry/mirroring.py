"""A registry that mirrors a fake upstream, for the tests of the mirror."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supervisor.model.upstream import Upstream
from supervisor.registry.credentials import Credentials
from supervisor.registry.mirror import MirrorConfig
from supervisor.runtime.clock import wall_clock
from tests.registry.client import Client
from tests.registry.serve import Served, api_token, open_registry
from tests.registry.upstream import PASSWORD, FakeUpstream, open_upstream

NAME = "up.example"
TTL = 300.0


class ManualClock:
    """A wall clock that the test moves."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return wall_clock() + self.ahead


@dataclass
class Mirrored:
    """The registry, its upstream, and a client of it."""

    upstream: FakeUpstream
    served: Served
    client: Client
    clock: ManualClock


@asynccontextmanager
async def open_mirror(
    directory: Path, *, with_password: bool = False, policy: Any = None, **changes: Any
) -> AsyncIterator[Mirrored]:
    """Run both. `changes` are of the mirror's configuration."""
    clock = ManualClock()
    async with open_upstream() as upstream:
        credentials = {upstream.address: PASSWORD} if with_password else {}
        config = MirrorConfig(
            upstreams=(Upstream(NAME, upstream.url), Upstream("docker.io", upstream.url)),
            credentials=Credentials(credentials),
            tag_ttl=TTL,
            timeout=20.0,
        )
        async with open_registry(
            directory, mirror=replace(config, **changes), clock=clock, policy=policy
        ) as served:
            client = Client(served.app, api_token(lifetime_seconds=1e7))
            yield Mirrored(upstream, served, client, clock)
