"""`/metrics` on an address of its own, for the operator's Prometheus only."""

from __future__ import annotations

import trio
from prometheus_client import CollectorRegistry, make_asgi_app

from supervisor.api.front import Front
from supervisor.api.listeners import serve_connections
from supervisor.errors import ConfigError

MAX_CONNECTIONS = 16


async def serve_metrics(
    address: str,
    metrics: CollectorRegistry,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the metrics on `address` (host:port) until cancelled. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ConfigError(f"METRICS_ADDRESS {address!r} is not host:port")
    try:
        listener, *others = await trio.open_tcp_listeners(int(port), host=host.strip("[]"))
    except OSError as exc:
        raise ConfigError(f"cannot listen on METRICS_ADDRESS {address}: {exc.strerror}") from exc
    for other in others:
        other.socket.close()
    front = Front(api=make_asgi_app(metrics), registry=None)
    try:
        task_status.started()
        await serve_connections(listener, front, grace_seconds=0, max_connections=MAX_CONNECTIONS)
    finally:
        listener.socket.close()
