"""`/metrics`, on its own address."""

from __future__ import annotations

import httpx2
import pytest
import trio

from supervisor.api.metrics import serve_metrics
from supervisor.errors import ConfigError
from supervisor.runtime.metrics import Metrics
from tests.e2e.daemon import free_port


async def test_what_was_counted_is_served_as_prometheus_reads_it() -> None:
    metrics = Metrics()
    metrics.count_registry_bytes("in", 7)
    address = f"127.0.0.1:{free_port()}"
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_metrics, address, metrics.registry)
        async with httpx2.AsyncClient() as client:
            answer = await client.get(f"http://{address}/metrics")
        nursery.cancel_scope.cancel(reason="seen")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    assert 'hypeman_registry_bytes_total{direction="in"} 7.0' in lines
    for status in ("ready", "failed", "cancelled"):
        assert f'hypeman_builds_total{{status="{status}"}} 0.0' in lines


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", "127.0.0.1:x", "no.such.host.:1"])
async def test_an_address_that_is_none_is_the_operators_to_change(address: str) -> None:
    with pytest.raises(ConfigError, match="METRICS_ADDRESS"):
        await serve_metrics(address, Metrics().registry)


async def test_an_address_that_is_taken_is_the_operators_to_change() -> None:
    taken = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = taken[0].socket.getsockname()[1]
    with pytest.raises(ConfigError, match=f"METRICS_ADDRESS 127.0.0.1:{port}: Address already in"):
        await serve_metrics(f"127.0.0.1:{port}", Metrics().registry)
    for listener in taken:
        await listener.aclose()
