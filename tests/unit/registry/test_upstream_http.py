"""Where an upstream may send the mirror, and what goes there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_address

import httpx2
import pytest

from supervisor.daemon.mirroring import address_finder
from supervisor.egress.addresses import address_rule
from supervisor.model.upstream import Upstream
from supervisor.registry.upstream_errors import UpstreamError
from supervisor.registry.upstream_http import Connections, UpstreamHttp
from supervisor.runtime.clock import wall_clock

AUTHORIZATION = {"authorization": "Bearer secret"}
ADDRESSES = {
    "store.example": ["10.0.0.1", "203.0.113.7", "8.8.8.8", "9.9.9.9"],
    "inside.example": ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1"],
}


async def resolve(name: str) -> list[object]:
    return [ip_address(item) for item in ADDRESSES.get(name, [])]


class Place:
    """One side that answers without a network."""

    def __init__(self) -> None:
        self.seen: list[httpx2.Request] = []
        self.location = ""
        """Not empty: where it sends everybody."""
        self.client = httpx2.AsyncClient(transport=httpx2.MockTransport(self._handle))

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        if self.location:
            return httpx2.Response(307, headers={"location": self.location})
        return httpx2.Response(200, content=_pieces())


async def _pieces() -> AsyncIterator[bytes]:
    yield b"content"


@pytest.fixture
def upstream() -> Place:
    return Place()


@pytest.fixture
def elsewhere() -> Place:
    return Place()


@pytest.fixture
async def http(upstream: Place, elsewhere: Place) -> AsyncIterator[UpstreamHttp]:
    connections = Connections(5.0)
    await connections.aclose()
    connections.upstreams, connections.elsewhere = upstream.client, elsewhere.client
    find = address_finder(resolve, address_rule())
    yield UpstreamHttp(
        Upstream("up.example", "https://up.example"), connections, find, 5.0, wall_clock
    )
    await connections.aclose()


async def get(http: UpstreamHttp) -> bytes:
    async with http.ask("GET", http.url("acme/app", "blobs/x"), AUTHORIZATION) as response:
        return await http.read_all(response, 100)


async def test_what_is_connected_to_is_the_address_that_was_judged(
    http: UpstreamHttp, upstream: Place, elsewhere: Place
) -> None:
    upstream.location = "https://store.example:8443/x?y=z"
    assert await get(http) == b"content"
    (request,) = elsewhere.seen
    assert str(request.url) == "https://8.8.8.8:8443/x?y=z"
    assert request.headers["host"] == "store.example:8443"
    assert request.extensions["sni_hostname"] == "store.example"
    assert "authorization" not in request.headers
    assert upstream.seen[0].headers["authorization"] == AUTHORIZATION["authorization"]


@pytest.mark.parametrize(
    "location",
    [
        "https://inside.example/x",
        "https://unknown.example/x",
        "https://10.0.0.1/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://2130706433/x",
        "http://store.example/x",
        "http://up.example/x",
    ],
)
async def test_no_other_place_is_contacted(
    http: UpstreamHttp, upstream: Place, elsewhere: Place, location: str
) -> None:
    upstream.location = location
    with pytest.raises(UpstreamError):
        await get(http)
    assert elsewhere.seen == []
    assert len(upstream.seen) == 1


async def test_the_way_back_is_without_the_token_too(
    http: UpstreamHttp, upstream: Place, elsewhere: Place
) -> None:
    upstream.location = "https://store.example/x"
    elsewhere.location = "https://up.example/y"
    with pytest.raises(UpstreamError, match="no usable answer"):
        await get(http)
    assert ["authorization" in item.headers for item in upstream.seen] == [True, False, False]
