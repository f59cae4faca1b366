"""The proxy of one machine: its connections, and the requests on each of them.

A connection of the guest is served until it ends, one request after the other; each request gets a
connection to the outside of its own, so that no two of them can be confused. Everything is owned by
the one nursery of `serve_egress`: cancelling that closes every stream.

The guest is hostile. Connections, bytes and requests are limited per machine, and every wait has an
end: a head must come, an address answer, and a body move.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import h11
import trio

from supervisor.egress.opening import Denied, Ended, Opening
from supervisor.egress.peer import (
    CHUNK_BYTES,
    HttpPeer,
    answer,
    has_body,
    is_ambiguous,
    request_head,
)
from supervisor.egress.policy import Decision, EgressLimits, EgressPolicy, Refusal
from supervisor.egress.relay import GUEST_BROKE_OFF, USED_UP, Exchange, tunnel
from supervisor.egress.resolver import Resolver
from supervisor.egress.targets import (
    BadTarget,
    Destination,
    HttpTarget,
    parse_absolute_target,
    parse_connect_target,
)
from supervisor.egress.way_out import Budget, Connect, Meter, MeteredStream, WayOut, connect_tcp
from supervisor.runtime.accept import accept
from supervisor.runtime.logs import log

OnDecision = Callable[[Decision], Awaitable[None]]
"""Told of each request once, when it is over, also when that is because the proxy is cancelled: it
has `REPORT_SECONDS`, shielded. Called by several tasks at once; must not raise."""

WAITING_CONNECTIONS = 128
"""Accepted beyond those served. The agent forwards 128 at once, so only a guest that goes around it
is ever cut off. None is left in the backlog: a full one may block the vsock device."""
REPORT_SECONDS = 5.0
"""An event is stored in milliseconds; a disk that needs longer must not keep a machine running."""
TUNNEL_OPENED = h11.Response(status_code=200, headers=[], reason=b"Connection established")
_TOO_MANY_REQUESTS = Refusal(403, "the build has made all of its requests")
_SHOWN_TARGET_CHARS = 100
_STREAM_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)


async def serve_egress(
    listener: trio.abc.Listener[trio.abc.Stream],
    policy: EgressPolicy,
    limits: EgressLimits,
    resolver: Resolver,
    on_decision: OnDecision,
    *,
    connect: Connect = connect_tcp,
) -> None:
    """Serve the machine that `listener` accepts connections from, until cancelled.

    The limits hold for all of its connections together. The caller closes the listener.
    """
    proxy = _Proxy(limits, WayOut(policy, limits, resolver, connect), on_decision)
    slots = trio.CapacityLimiter(limits.max_connections)
    async with trio.open_nursery() as nursery:
        while True:
            stream = await accept(listener)
            if len(nursery.child_tasks) >= limits.max_connections + WAITING_CONNECTIONS:
                await trio.aclose_forcefully(stream)
            else:
                nursery.start_soon(_serve_in_turn, proxy, stream, slots)


async def _serve_in_turn(
    proxy: _Proxy, stream: trio.abc.Stream, slots: trio.CapacityLimiter
) -> None:
    try:
        async with slots:
            await proxy.serve(stream)
    finally:
        await trio.aclose_forcefully(stream)


class _Proxy:
    """What all connections of one machine share."""

    def __init__(self, limits: EgressLimits, way_out: WayOut, on_decision: OnDecision) -> None:
        self._limits = limits
        self._way_out = way_out
        self._on_decision = on_decision
        self._budget = Budget(limits)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end. What the guest does wrong ends it, and nothing else."""
        peer = HttpPeer(stream, h11.SERVER)
        try:
            while (request := await self._receive_request(peer)) is not None:
                await self._serve_request(peer, request)
                if peer.http.our_state is not h11.DONE or peer.http.their_state is not h11.DONE:
                    break
                peer.http.start_next_cycle()
            if peer.http.their_state in (h11.SEND_BODY, h11.ERROR):
                await self._linger(stream)
        except _STREAM_ERRORS:
            return

    async def _receive_request(self, peer: HttpPeer) -> h11.Request | None:
        """Return the next request of a connection; None if that was all, or no HTTP/1.1."""
        with trio.move_on_after(self._limits.idle_seconds):
            try:
                request = await peer.receive()
                if not isinstance(request, h11.Request):
                    return None
                if is_ambiguous(request):
                    raise h11.RemoteProtocolError("ambiguous length")
                if not has_body(request):
                    await peer.receive()  # its end, which takes no bytes
                return request
            except h11.RemoteProtocolError as exc:
                if peer.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await answer(peer, exc.error_status_hint, "this is no valid HTTP/1.1 request")
        return None

    async def _serve_request(self, peer: HttpPeer, request: h11.Request) -> None:
        """Serve one request, and report it once it is over, however it ends."""
        report = _Report(_shown(request))
        is_too_many = not self._budget.take_request()
        if is_too_many and self._budget.refused_requests > 1:
            # Only the first is reported: reports without end are what this limit is against.
            await self._refuse(peer, request, report, _TOO_MANY_REQUESTS)
            return
        try:
            if is_too_many:
                await self._refuse(peer, request, report, _TOO_MANY_REQUESTS)
            else:
                await self._attend(peer, request, report)
        except trio.Cancelled:
            report.reason = "cut off when the build ended"
            raise
        finally:
            with trio.move_on_after(REPORT_SECONDS, shield=True) as reporting:
                await self._on_decision(report.decision())
            if reporting.cancelled_caught:
                log.warning("egress.decision_not_reported", target=report.shown)

    async def _attend(self, peer: HttpPeer, request: h11.Request, report: _Report) -> None:
        """Judge a request, connect it, and see it through. Leaves nothing open but the guest."""
        try:
            target = _parse_target(request)
        except BadTarget as exc:
            await self._refuse(peer, request, report, Refusal(403, str(exc)))
            return
        destination = target.destination if isinstance(target, HttpTarget) else target
        report.destination = destination
        if not self._budget.has_bytes:
            await self._refuse(peer, request, report, Refusal(403, USED_UP))
            return
        server = await self._way_out.open(destination)
        if isinstance(server, Refusal):
            await self._refuse(peer, request, report, server)
            return
        report.is_allowed = True
        try:
            metered = MeteredStream(server, report.meter, self._budget)
            if isinstance(target, HttpTarget):
                report.reason = await self._exchange(peer, request, target, metered)
            else:
                report.reason = await self._tunnel(peer, metered, report, target)
        finally:
            await trio.aclose_forcefully(server)

    async def _exchange(
        self, peer: HttpPeer, request: h11.Request, target: HttpTarget, server: MeteredStream
    ) -> str:
        head = request_head(request, target)
        other = HttpPeer(server, h11.CLIENT)
        return await Exchange(peer, other, head, has_body(request), self._limits).run()

    async def _tunnel(
        self, peer: HttpPeer, server: MeteredStream, report: _Report, destination: Destination
    ) -> str:
        policy = self._way_out.policy
        opening: bytes | Denied | Ended = b""
        with trio.move_on_after(self._limits.idle_seconds) as beginning:
            try:
                await peer.send(TUNNEL_OPENED)
                opening, _ = peer.http.trailing_data
                if policy.must_see_hello(destination):
                    beginner = Opening(peer.stream, server, policy, destination)
                    opening = await beginner.carry(opening)
            except _STREAM_ERRORS:
                return GUEST_BROKE_OFF
        if beginning.cancelled_caught:
            return f"it did not begin within {self._limits.idle_seconds:g} s"
        if isinstance(opening, Denied):
            report.is_allowed = False
            return opening.reason
        if isinstance(opening, Ended):
            return opening.reason
        return await tunnel(peer.stream, opening, server, self._limits)

    async def _refuse(
        self, peer: HttpPeer, request: h11.Request, report: _Report, refusal: Refusal
    ) -> None:
        """Answer a request that is not served. A guest that does not take the answer is let go."""
        report.is_allowed = not refusal.is_denial
        report.reason = refusal.reason
        sentence = refusal.sentence(report.shown)
        with trio.move_on_after(self._limits.idle_seconds):
            try:
                is_head = request.method == b"HEAD"
                await answer(peer, refusal.status, sentence, is_head=is_head)
            except _STREAM_ERRORS:
                return

    async def _linger(self, stream: trio.abc.Stream) -> None:
        """Read on for a moment: closing with unread bytes can take the answer back."""
        with trio.move_on_after(self._limits.linger_seconds):
            while await stream.receive_some(CHUNK_BYTES):
                pass


class _Report:
    """What is known of a request so far, and will be its Decision."""

    def __init__(self, shown_target: str) -> None:
        self._shown_target = shown_target
        self.destination: Destination | None = None
        self.is_allowed = False
        self.reason = ""
        self.meter = Meter()

    @property
    def shown(self) -> str:
        """What was asked for, as printable ASCII of bounded length."""
        return self._shown_target if self.destination is None else str(self.destination)

    def decision(self) -> Decision:
        """Return it as it stands."""
        where = self.destination
        return Decision(
            allowed=self.is_allowed,
            host=self._shown_target if where is None else where.name,
            port=0 if where is None else where.port,
            reason=self.reason,
            bytes_sent=self.meter.sent,
            bytes_received=self.meter.received,
        )


def _parse_target(request: h11.Request) -> Destination | HttpTarget:
    """Read what a request asks for. Raises BadTarget."""
    target = request.target.decode("ascii")
    if request.method != b"CONNECT":
        return parse_absolute_target(target)
    if has_body(request):
        raise BadTarget("a CONNECT request has no body")
    return parse_connect_target(target)


def _shown(request: h11.Request) -> str:
    """Return the target for people; h11 lets only visible ASCII through."""
    return request.target[:_SHOWN_TARGET_CHARS].decode("ascii")
