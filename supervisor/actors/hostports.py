"""What one machine may have of the host: its ports, each served while the machine lasts.

Nothing else of the host answers to a guest. A port whose service ends is closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from agent import wire
from supervisor.egress.proxy import OnDecision
from supervisor.guest.secrets import serve_secrets
from supervisor.guest.source import serve_source
from supervisor.model.build import Build, NetworkMode, Policy
from supervisor.vm.machine import Machine

GuestPort = trio.abc.Listener[trio.abc.Stream]
ServeRegistry = Callable[[GuestPort], Awaitable[None]]
ServeEgress = Callable[[GuestPort, Policy, OnDecision], Awaitable[None]]


@dataclass(frozen=True)
class HostPorts:
    """The ports of one attempt."""

    build: Build
    source_path: Path
    secrets: Mapping[str, bytes]
    serve_registry: ServeRegistry
    serve_egress: ServeEgress
    silence_seconds: float
    tell: OnDecision
    """Tells the build's followers what became of a request of theirs to the network."""

    async def open(self, machine: Machine, nursery: trio.Nursery) -> None:
        """Serve the ports from now on in `nursery`, which owns the machine."""
        mode = self.build.request.policy.network_mode
        await nursery.start(_serve, machine, wire.REGISTRY_PORT, self.serve_registry)
        await nursery.start(_serve, machine, wire.SOURCE_PORT, self._send_source)
        if self.secrets:
            await nursery.start(_serve, machine, wire.SECRETS_PORT, self._send_secrets)
        if mode is NetworkMode.EGRESS:
            await nursery.start(_serve, machine, wire.EGRESS_PORT, self._serve_egress)

    async def _send_source(self, port: GuestPort) -> None:
        await serve_source(port, self.source_path, self.build.source)

    async def _send_secrets(self, port: GuestPort) -> None:
        await serve_secrets(port, self.secrets, silence_seconds=self.silence_seconds)

    async def _serve_egress(self, port: GuestPort) -> None:
        await self.serve_egress(port, self.build.request.policy, self.tell)


async def _serve(
    machine: Machine,
    port: int,
    serve: Callable[[GuestPort], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    async with machine.listen(port) as listener:
        task_status.started()
        await serve(listener)
