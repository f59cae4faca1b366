"""Where an upstream may send the mirror, and what goes there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_address

import httpx2
import pytest
import trio
import trio.testing

from supervisor.daemon.mirroring import address_finder
from supervisor.egress.addresses import address_rule
from supervisor.model.oci import Tag
from supervisor.model.upstream import Upstream, parse_upstream
from supervisor.registry.credentials import Credentials
from supervisor.registry.pauses import Pauses
from supervisor.registry.upstream import UpstreamRegistry
from supervisor.registry.upstream_errors import UpstreamError
from supervisor.registry.upstream_http import Connections, UpstreamHttp
from supervisor.runtime.clock import wall_clock

UP = Upstream("up.example", "https://up.example")
AUTHORIZATION = {"authorization": "Bearer secret"}
ADDRESSES = {
    "xn--bcher-kva.example": ["8.8.4.4"],
    "auth.docker.io": ["8.8.8.1"],
    "ghcr.io": ["8.8.8.2"],
    "example": ["8.8.8.3"],
    "parent.example": ["8.8.8.3"],
    "third.example": ["8.8.8.4"],
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
        self.challenge = ""
        """Not empty: what it asks of everybody who wants a manifest."""
        self.content = b"content"
        self.failure: Exception | None = None
        self.client = httpx2.AsyncClient(transport=httpx2.MockTransport(self._handle))

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        if self.failure is not None:
            raise self.failure
        if self.challenge and "/manifests/" in request.url.path:
            return httpx2.Response(401, headers={"www-authenticate": self.challenge})
        if self.location:
            return httpx2.Response(307, headers={"location": self.location})
        return httpx2.Response(200, content=_pieces(self.content))


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture
def upstream() -> Place:
    return Place()


@pytest.fixture
def elsewhere() -> Place:
    return Place()


async def connections_to(upstream: Place, elsewhere: Place) -> Connections:
    connections = Connections(5.0)
    await connections.aclose()
    connections.upstream, connections.elsewhere = upstream.client, elsewhere.client
    return connections


@pytest.fixture
async def http(upstream: Place, elsewhere: Place) -> AsyncIterator[UpstreamHttp]:
    connections = await connections_to(upstream, elsewhere)
    find = address_finder(resolve, address_rule())
    yield UpstreamHttp(UP, connections, find, 5.0, wall_clock)
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


async def test_a_host_that_is_no_ascii_is_looked_up_and_named_in_ascii(
    http: UpstreamHttp, upstream: Place, elsewhere: Place
) -> None:
    upstream.location = "https://xn--bcher-kva.example/x"
    assert await get(http) == b"content"
    (request,) = elsewhere.seen
    assert str(request.url) == "https://8.8.4.4/x"
    assert request.extensions["sni_hostname"] == "xn--bcher-kva.example"


async def test_a_lookup_that_hangs_is_given_up_and_only_that_answer_is_lost(
    upstream: Place, elsewhere: Place, autojump_clock: trio.testing.MockClock
) -> None:
    async def hang(_: str) -> str | None:
        await trio.sleep_forever()
        raise AssertionError

    upstream.location = "https://store.example/x"
    connections = await connections_to(upstream, elsewhere)
    http = UpstreamHttp(UP, connections, hang, 5.0, wall_clock)
    with trio.fail_after(60), pytest.raises(UpstreamError) as caught:
        await get(http)
    assert not caught.value.is_general
    assert elsewhere.seen == []


async def test_no_free_connection_is_no_reason_to_leave_the_upstream_alone(
    http: UpstreamHttp, upstream: Place
) -> None:
    upstream.failure = httpx2.PoolTimeout("busy")
    with pytest.raises(UpstreamError) as caught:
        await get(http)
    pauses = Pauses()
    pauses.note("up.example", "acme/app", caught.value)
    assert pauses.current("up.example", "acme/other") is None


# Token services


def credentials() -> Credentials:
    hosts = ("up.parent.example", "registry-1.docker.io", "ghcr.io", "third.example")
    return Credentials({host: f"of-{host}" for host in hosts})


async def challenged_by(
    upstream: Place, elsewhere: Place, name: str, realm: str
) -> list[httpx2.Request]:
    """Let an upstream name that token service; return what arrives anywhere but at a manifest."""
    upstream.challenge = f'Bearer realm="{realm}",service="registry.docker.io"'
    elsewhere.content = b'{"token": "t0ken"}'
    connections = await connections_to(upstream, elsewhere)
    find = address_finder(resolve, address_rule())
    mine = parse_upstream(name)
    others = [mine, parse_upstream("docker.io"), parse_upstream("ghcr.io")]
    http = UpstreamHttp(mine, connections, find, 5.0, wall_clock)
    registry = UpstreamRegistry(mine, http, credentials(), others)
    with pytest.raises(UpstreamError):  # it challenges everybody, for ever
        await registry.get_manifest("acme/app", Tag("1"))
    own = [item for item in upstream.seen if "/manifests/" not in item.url.path]
    return [*own, *elsewhere.seen]


@pytest.mark.parametrize(
    "realm",
    [
        "https://auth.docker.io/token",
        "https://AUTH.docker.io./token",
        "https://auth.docker.io:443/token",
        "https://auth.docker.io:8443/token",
        "https://registry-1.docker.io/token",
        "https://ghcr.io/token",
        "https://ghcr.io:8443/token",
    ],
)
async def test_the_token_service_of_another_upstream_is_not_asked(
    upstream: Place, elsewhere: Place, realm: str
) -> None:
    assert await challenged_by(upstream, elsewhere, "up.parent.example", realm) == []
    sent = [item.headers.get("authorization") for item in upstream.seen]
    assert sent == [None]  # it gets no token, and nothing is asked again


@pytest.mark.parametrize(
    ("name", "realm", "sent"),
    [
        ("up.parent.example", "https://up.parent.example/token", "Basic of-up.parent.example"),
        ("up.parent.example", "https://parent.example/token", "Basic of-up.parent.example"),
        ("docker.io", "https://auth.docker.io/token", "Basic of-registry-1.docker.io"),
        ("up.parent.example", "https://example/token", None),
        ("up.parent.example", "https://third.example/token", None),
        ("ghcr.io", "https://third.example/token", None),
    ],
)
async def test_a_token_service_is_given_the_credentials_of_its_own_upstream_or_none(
    upstream: Place, elsewhere: Place, name: str, realm: str, sent: str | None
) -> None:
    (asked,) = await challenged_by(upstream, elsewhere, name, realm)
    assert asked.headers.get("authorization") == sent
