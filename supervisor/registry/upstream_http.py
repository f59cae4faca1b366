"""HTTP towards one upstream registry, in bounds.

Three kinds of places are contacted: the upstream itself, its token service, and where it redirects
to (a blob store). The last two are the upstream's word, so:

* they are https, unless they are of the upstream's own host and the operator wrote http:// for it;
* a place on another host is one that a build with egress might reach as well (`FindAddress`), and
  the address that was judged is the one that is connected to;
* the upstream's Authorization goes to the upstream alone.

Every wait has an end, every body a limit and a least speed; an answer is never stored as it is.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2
import trio

from supervisor.model.upstream import Upstream
from supervisor.registry.upstream_errors import busy, failing, limited, unreachable
from supervisor.runtime.clock import Clock

FindAddress = Callable[[str], Awaitable[str | None]]
"""Returns an address (a literal) of a host that may be connected to; None if there is none."""

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_CONNECTIONS = 32
_PIECE_BYTES = 1 << 20
"""What must arrive within the timeout once an answer has begun."""
_DEFAULT_PAUSE_SECONDS = 60.0
_MAX_PAUSE_SECONDS = 3600.0
_USER_AGENT = "hypeman-mirror"
_MAX_CONNECT_SECONDS = 10.0
_CLOSED_MEANWHILE = (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)
"""What becomes of a request on a kept connection that its server closes at that moment."""


class Connections:
    """The connections to one upstream and to where it sends us.

    Each upstream has its own, so that one that hangs takes none from another one. The clients are
    made when they are needed: what they load would be a tenth of the daemon's start.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._made: list[httpx2.AsyncClient] = []

    @cached_property
    def upstream(self) -> httpx2.AsyncClient:
        """The client for the upstream itself."""
        return self._client(keep=_MAX_CONNECTIONS)

    @cached_property
    def elsewhere(self) -> httpx2.AsyncClient:
        """The client for other hosts. It keeps no connection: those are found by address, and
        another host may have the same one.
        """
        return self._client(keep=0)

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._made:
            await client.aclose()

    def _client(self, *, keep: int) -> httpx2.AsyncClient:
        client = _client(_certificates(), self._timeout_seconds, keep=keep)
        self._made.append(client)
        return client


@cache
def _certificates() -> ssl.SSLContext:
    """Return whom to trust: the host's certificates, not a package's. Reading them takes time."""
    return ssl.create_default_context()


def _client(context: ssl.SSLContext, timeout_seconds: float, *, keep: int) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        verify=context,
        timeout=httpx2.Timeout(timeout_seconds, connect=min(timeout_seconds, _MAX_CONNECT_SECONDS)),
        limits=httpx2.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=keep),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"user-agent": _USER_AGENT, "accept-encoding": "identity"},
        follow_redirects=False,
        trust_env=False,
    )


class UpstreamHttp:
    """Makes requests for one upstream."""

    def __init__(
        self,
        upstream: Upstream,
        connections: Connections,
        find_address: FindAddress,
        timeout_seconds: float,
        clock: Clock,
    ) -> None:
        self.name = upstream.name
        self._base = httpx2.URL(upstream.url)
        self._path = upstream.path
        self._connections = connections
        self._find_address = find_address
        self._timeout_seconds = timeout_seconds
        self._clock = clock

    @property
    def host(self) -> str:
        """The upstream's host[:port]."""
        return self._base.netloc.decode("ascii")

    def url(self, repository: str, rest: str) -> httpx2.URL:
        """Return the address of something in a repository. Both have passed their grammars."""
        return self._base.copy_with(path=f"/v2/{repository}/{rest}")

    def is_own(self, url: httpx2.URL) -> bool:
        """Say whether `url` is the upstream itself."""
        return (url.scheme, url.netloc) == (self._base.scheme, self._base.netloc)

    def parse_realm(self, text: str) -> httpx2.URL:
        """Return where a challenge sends for a token. Raises UpstreamError."""
        try:
            url = httpx2.URL(text)
        except httpx2.InvalidURL:
            url = httpx2.URL()
        self._require_safe(url, "a token service")
        return url

    @asynccontextmanager
    async def ask(
        self, method: str, url: httpx2.URL, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx2.Response]:
        """Make a request, follow redirects, and give the answer with its body still to be read.

        An Authorization header goes no further than the first host. Raises UpstreamError, also for
        what goes wrong while the body is read.
        """
        with self._translating():
            response = await self._follow(method, url, headers)
            async with aclosing(response):
                yield response

    async def read_all(self, response: httpx2.Response, limit_bytes: int) -> bytes:
        """Return the body. Raises UpstreamError if it is larger than the limit."""
        content = bytearray()
        body = Body(self.name, response, limit_bytes, self._timeout_seconds)
        while batch := await body.read_batch(_PIECE_BYTES):
            for piece in batch:
                content += piece
        return bytes(content)

    def body(self, response: httpx2.Response, limit_bytes: int) -> Body:
        """Return the body, for reading piece by piece. Raises UpstreamError if it is too large."""
        return Body(self.name, response, limit_bytes, self._timeout_seconds)

    def require_success(self, response: httpx2.Response) -> None:
        """Raise UpstreamError unless the status is 200."""
        status = response.status_code
        if status == 200:
            return
        pause = self._parse_pause(response.headers.get("retry-after"))
        if status == 429:
            raise limited(self.name, _DEFAULT_PAUSE_SECONDS if pause is None else pause)
        raise failing(self.name, f"it answers {status}", pause or 0.0)

    async def _follow(
        self, method: str, url: httpx2.URL, headers: Mapping[str, str]
    ) -> httpx2.Response:
        first = (url.scheme, url.netloc)
        response = await self._send(method, url, headers)
        for _ in range(MAX_REDIRECTS):
            if not _is_redirect(response):
                return response
            await response.aclose()
            url = url.join(response.headers["location"])
            self._require_safe(url, "a redirection")
            if (url.scheme, url.netloc) != first:
                headers = {key: headers[key] for key in headers if key != "authorization"}
            try:
                response = await self._send(method, url, headers)
            except (httpx2.TimeoutException, httpx2.NetworkError) as exc:
                # Somebody else does not answer: that is no reason to leave the upstream alone.
                raise failing(self.name, f"{url.host}: {type(exc).__name__}: {exc}") from exc
        if _is_redirect(response):
            await response.aclose()
            raise failing(self.name, f"it redirects more than {MAX_REDIRECTS} times")
        return response

    async def _send(
        self, method: str, url: httpx2.URL, headers: Mapping[str, str]
    ) -> httpx2.Response:
        host = _host_of(url)
        is_elsewhere = host != _host_of(self._base)
        client, extensions = self._connections.upstream, {}
        with trio.move_on_after(2 * self._timeout_seconds):  # the client's own are for each read
            if is_elsewhere:
                client = self._connections.elsewhere
                address = await self._find_address(host)
                if address is None:
                    raise failing(self.name, f"it sends to {host}, which has no public address")
                headers = {**headers, "host": url.netloc.decode("ascii")}
                extensions = {"sni_hostname": host}
                url = url.copy_with(host=address)
            request = client.build_request(method, url, headers=headers)
            request.extensions = {**request.extensions, **extensions}
            try:
                return await client.send(request, stream=True)
            except _CLOSED_MEANWHILE:
                return await client.send(request, stream=True)
        if is_elsewhere:
            raise failing(self.name, f"{host}, where it sends to, does not begin to answer")
        raise unreachable(self.name, "it does not begin to answer")

    def _require_safe(self, url: httpx2.URL, what: str) -> None:
        is_plain_allowed = self._base.scheme == "http" and _host_of(url) == _host_of(self._base)
        if not url.host or url.userinfo or url.scheme not in ("https", "http"):
            raise failing(self.name, f"it names {what} that is no address")
        if url.scheme == "http" and not is_plain_allowed:
            raise failing(self.name, f"it names {what} at {url.host} without https")

    def _parse_pause(self, text: str | None) -> float | None:
        if text is None:
            return None
        if text.isascii() and text.isdecimal() and len(text) < 12:
            seconds = float(text)
        else:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - self._clock()
            except (ValueError, OverflowError):
                return None
        return max(1.0, min(seconds, _MAX_PAUSE_SECONDS))

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except httpx2.PoolTimeout as exc:
            raise busy(self.name) from exc
        except (httpx2.TimeoutException, httpx2.NetworkError) as exc:
            raise unreachable(self.name, f"{type(exc).__name__}: {exc}") from exc
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as exc:
            raise failing(self.name, f"{type(exc).__name__}: {exc}") from exc


def _host_of(url: httpx2.URL) -> str:
    """Return the host as it is looked up and compared: `URL.host` has it in Unicode."""
    return url.raw_host.decode("ascii")


def _is_redirect(response: httpx2.Response) -> bool:
    return response.status_code in _REDIRECTS and "location" in response.headers


class Body:
    """The body of an answer, held to a limit and a least speed. Read by one task."""

    def __init__(
        self, name: str, response: httpx2.Response, limit_bytes: int, timeout_seconds: float
    ) -> None:
        self._name = name
        self._chunks = response.aiter_raw()
        self._left = limit_bytes
        self._timeout_seconds = timeout_seconds
        announced = response.headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > limit_bytes:
            raise failing(name, f"its answer is larger than {limit_bytes} bytes")

    async def read_batch(self, at_least: int) -> list[bytes]:
        """Return the next piece; an empty list at the end. Raises UpstreamError."""
        piece = bytearray()
        is_in_time = False
        with trio.move_on_after(self._timeout_seconds), suppress(httpx2.TimeoutException):
            # In one piece, since an upstream may send a body byte by byte.
            while len(piece) < min(at_least, _PIECE_BYTES):
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    break
                piece += chunk
            is_in_time = True
        if not is_in_time:
            raise failing(self._name, f"it sent {len(piece)} bytes in {self._timeout_seconds:g} s")
        self._left -= len(piece)
        if self._left < 0:
            raise failing(self._name, "its answer does not end")
        return [bytes(piece)] if piece else []
