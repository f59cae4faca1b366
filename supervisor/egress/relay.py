"""What goes on between a guest and a server once they are connected.

Both kinds of it (a tunnel, one HTTP exchange) are two tasks in one nursery. Each says by a value
how its direction ended; nothing that a peer does leaves here as an exception. The nursery's
deadline is the idle limit, put off by every byte that is passed on, whichever way. So a peer that
never reads and one that never writes come to the same end.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import h11
import trio

from supervisor.egress.peer import CHUNK_BYTES, HttpPeer, answer, response_head
from supervisor.egress.policy import EgressLimits
from supervisor.egress.way_out import OverBudget

USED_UP = "the build has used up its bytes"
GUEST_BROKE_OFF = "the build broke off"
SERVER_BROKE_OFF = "the server broke off"
_STREAM_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)


class _Idle:
    """The idle limit of a nursery, and after `finish_within` its last deadline."""

    def __init__(self, scope: trio.CancelScope, seconds: float) -> None:
        self._scope = scope
        self._seconds = seconds
        self._is_final = False
        self.touch()

    def touch(self) -> None:
        """Begin to count anew: something was passed on."""
        if not self._is_final:
            self._scope.deadline = trio.current_time() + self._seconds

    def finish_within(self, seconds: float) -> None:
        """End the nursery in `seconds`, whatever is passed on until then."""
        self._is_final = True
        self._scope.deadline = trio.current_time() + seconds


# -- a tunnel ----------------------------------------------------------------------------------


async def tunnel(
    guest: trio.abc.Stream,
    first: bytes,
    server: trio.abc.HalfCloseableStream,
    limits: EgressLimits,
) -> str:
    """Carry bytes both ways until one has ended and the other had `linger_seconds` more.

    `first` is what of the guest's bytes has been read already. Returns why it ended, if not because
    a side closed. The caller closes both streams. The guest's is never half-closed: on a vsock that
    loses the other direction.
    """
    ends: list[str] = []
    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        idle = _Idle(scope, limits.idle_seconds)

        async def upward() -> None:
            end(await _carry(guest, first, server, (GUEST_BROKE_OFF, SERVER_BROKE_OFF), idle))
            with suppress(*_STREAM_ERRORS):
                await server.send_eof()  # so that it need not be waited for

        async def downward() -> None:
            end(await _carry(server, b"", guest, (SERVER_BROKE_OFF, GUEST_BROKE_OFF), idle))

        def end(why: str) -> None:
            ends.append(why)
            if why or len(ends) == 2:
                scope.cancel(reason="the tunnel is over")
            else:
                idle.finish_within(limits.linger_seconds)

        nursery.start_soon(upward)
        nursery.start_soon(downward)
    if not ends:
        return f"idle for {limits.idle_seconds:g} s"
    return next((why for why in ends if why), "")


async def _carry(
    source: trio.abc.ReceiveStream,
    first: bytes,
    sink: trio.abc.SendStream,
    names: tuple[str, str],
    idle: _Idle,
) -> str:
    """Copy until `source` ends; return why it could not go on, else nothing."""
    source_name, sink_name = names
    who = sink_name
    data: bytes | bytearray = first
    try:
        while True:
            if data:
                who = sink_name
                await sink.send_all(data)
                idle.touch()
            who = source_name
            data = await source.receive_some(CHUNK_BYTES)
            if not data:
                return ""
            idle.touch()
    except _STREAM_ERRORS:
        return who
    except OverBudget:
        return USED_UP


# -- an exchange -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request of a guest to one server, on a connection that is theirs alone."""

    guest: HttpPeer
    server: HttpPeer
    request: h11.Request
    """As the server is to get it."""
    has_body: bool
    limits: EgressLimits

    async def run(self) -> str:
        """Forward the request and its response. Returns why it ended, if not in the usual way.

        The guest's connection may be used again only if h11 finds both of its sides done.
        """
        endings: list[str] = []
        # Before anything is read: what a server says ahead of the request must not be its response.
        head = self.server.http.send(self.request)
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            idle = _Idle(scope, self.limits.idle_seconds)

            async def forward() -> None:
                if why := await self._send_request(head, idle):
                    endings.append(why)
                    scope.cancel(reason="the request cannot be completed")

            async def back() -> None:
                endings.append(await self._send_response(idle))
                scope.cancel(reason="the response is complete")

            nursery.start_soon(forward)
            nursery.start_soon(back)
        why = endings[0] if endings else f"idle for {self.limits.idle_seconds:g} s"
        if why and self.guest.http.our_state is h11.SEND_RESPONSE:
            await self._answer_failure(why, is_timeout=not endings)
        return why

    async def _send_request(self, head: bytes, idle: _Idle) -> str:
        """Send the request. Returns why the exchange must end; nothing if the response decides.

        A server may answer before it has read everything, so that its not reading is no failure.
        """
        try:
            await self.server.stream.send_all(head)
            while self.has_body:
                event = await _receive(self.guest)
                if isinstance(event, str | h11.ConnectionClosed):
                    return GUEST_BROKE_OFF
                idle.touch()
                if not isinstance(event, h11.Data):
                    break
                await self.server.send(event)
            await self.server.send(h11.EndOfMessage())
        except OverBudget:
            return USED_UP
        except (*_STREAM_ERRORS, h11.LocalProtocolError):
            return ""
        idle.touch()
        return ""

    async def _send_response(self, idle: _Idle) -> str:
        """Pass the response on. Returns why it is incomplete, else nothing."""
        while True:
            event = await _receive(self.server)
            if isinstance(event, str):
                return event
            idle.touch()
            try:
                match event:
                    case h11.InformationalResponse():
                        await self._send_interim(event)
                    case h11.Response():
                        await self.guest.send(response_head(event))
                    case h11.Data():
                        await self.guest.send(h11.Data(data=event.data))
                    case h11.EndOfMessage():
                        await self.guest.send(h11.EndOfMessage())
                        return ""
                    case _:
                        return SERVER_BROKE_OFF
            except _STREAM_ERRORS:
                return GUEST_BROKE_OFF
            except h11.LocalProtocolError:
                return "the server's response cannot be passed on"
            idle.touch()

    async def _send_interim(self, event: h11.InformationalResponse) -> None:
        """Pass on the `100 Continue` that a guest waits for; any other is left out."""
        if event.status_code == 100 and self.guest.http.they_are_waiting_for_100_continue:
            await self.guest.send(h11.InformationalResponse(status_code=100, headers=[]))

    async def _answer_failure(self, why: str, *, is_timeout: bool) -> None:
        """Say so to a guest that has got nothing yet. Errors just end it."""
        status = 504 if is_timeout else 403 if why == USED_UP else 502
        is_head = self.request.method == b"HEAD"
        with trio.move_on_after(self.limits.idle_seconds):
            try:
                await answer(self.guest, status, why, is_head=is_head)
            except (*_STREAM_ERRORS, h11.LocalProtocolError):
                return


async def _receive(peer: HttpPeer) -> h11.Event | type[h11.PAUSED] | str:
    """Return the next event, or why there will be none."""
    try:
        return await peer.receive()
    except _STREAM_ERRORS:
        return SERVER_BROKE_OFF
    except OverBudget:
        return USED_UP
    except h11.RemoteProtocolError:
        return "the server's response is no valid HTTP/1.1, or incomplete"
