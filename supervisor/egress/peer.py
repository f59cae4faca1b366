"""One end of an HTTP/1.1 connection over a stream, and which header fields may cross the proxy.

Nothing of a message is copied from one connection to the other as bytes: h11 parses it here and
writes it anew there. So whatever two parsers could read differently is settled in between.
"""

from __future__ import annotations

import h11
import trio

from supervisor.egress.targets import HttpTarget

CHUNK_BYTES = 64 << 10
"""What a connection buffers in each direction."""
MAX_HEAD_BYTES = 32 << 10
"""Of a request or a response, and of a chunk's header or trailers. Signed URLs and cookies fit."""

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"trailers", b"upgrade", b"http2-settings"}
)
"""Meant for the next hop only. With `upgrade`: no server is asked to speak anything but HTTP/1.1.
Without `transfer-encoding`: h11 needs it to frame the body anew."""

Fields = list[tuple[bytes, bytes]]


class HttpPeer:
    """A stream and h11's view of it. The owner of the stream closes it."""

    def __init__(self, stream: trio.abc.Stream, role: type[h11.CLIENT | h11.SERVER]) -> None:
        self.stream = stream
        self.http = h11.Connection(role, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def receive(self) -> h11.Event | type[h11.PAUSED]:
        """Return the next event; PAUSED before a request has been answered.

        Raises h11.RemoteProtocolError, and what the stream raises.
        """
        while True:
            event = self.http.next_event()
            if isinstance(event, h11.Event) or event is h11.PAUSED:
                return event
            self.http.receive_data(bytes(await self.stream.receive_some(CHUNK_BYTES)))

    async def send(self, event: h11.Event) -> None:
        """Send an event. Raises h11.LocalProtocolError if it has no place here."""
        if data := self.http.send(event):
            await self.stream.send_all(data)


def request_head(request: h11.Request, target: HttpTarget) -> h11.Request:
    """Return the request as the server gets it: with a `Host` made from the target, for one use."""
    fields = _end_to_end(request, frozenset({b"host"}))
    return h11.Request(
        method=request.method,
        target=target.path,
        headers=[(b"Host", target.host_header.encode()), *fields, (b"Connection", b"close")],
    )


def response_head(response: h11.Response) -> h11.Response:
    """Return the response as the guest gets it.

    h11 adds what framing its connection needs, and drops a length that a chunked response gave too.
    """
    return h11.Response(
        status_code=response.status_code,
        headers=_end_to_end(response),
        reason=bytes(response.reason),
    )


def has_body(request: h11.Request) -> bool:
    """Say whether a body follows the head."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and int(value) > 0)
        for name, value in request.headers
    )


def is_ambiguous(request: h11.Request) -> bool:
    """Say whether two servers could disagree about where a request ends, as smugglers want them to.

    That is a length given in two ways, or a framing that the request's version does not have.
    """
    names = {name for name, _ in request.headers}
    return b"transfer-encoding" in names and (
        b"content-length" in names or request.http_version < b"1.1"
    )


async def answer(peer: HttpPeer, status: int, sentence: str, *, is_head: bool = False) -> None:
    """Answer a request ourselves.

    The first of its sentences is in the status line as well: apt and pip show only that.
    A request whose body is still on its way is the connection's last.
    """
    data = f"{sentence}\n".encode()
    fields: Fields = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", str(len(data)).encode()),
    ]
    if peer.http.their_state in (h11.SEND_BODY, h11.ERROR):
        fields.append((b"Connection", b"close"))
    reason = sentence.partition(". ")[0].encode("ascii", "replace")
    await peer.send(h11.Response(status_code=status, headers=fields, reason=reason))
    if not is_head:
        await peer.send(h11.Data(data=data))
    await peer.send(h11.EndOfMessage())


def _end_to_end(
    message: h11.Request | h11.Response, leave_out: frozenset[bytes] = frozenset()
) -> Fields:
    """Return the fields that are meant for the other end, in their own spelling."""
    named = {
        word.strip().lower()
        for name, value in message.headers
        if name == b"connection"
        for word in value.split(b",")
    }
    # A sender cannot take away by name what frames the message.
    dropped = _HOP_BY_HOP | leave_out | (named - {b"content-length", b"transfer-encoding"})
    return [
        (name, value)
        for name, value in message.headers.raw_items()
        if name.lower() not in dropped and not name.lower().startswith(b"proxy-")
    ]
