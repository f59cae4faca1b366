"""Mailboxes and one-shot replies: how actors talk.

An actor owns one `Mailbox` and is the only one that receives from it. Others hold a typed handle
that wraps it. The mailbox belongs to whoever supervises the actor, not to the actor, so it outlives
a restart: a caller that asks while the actor is being restarted waits for the new one.

Nobody waits for ever. A reply is failed with `ActorGone` when the actor dies while it handles the
message, and when the mailbox is closed for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import outcome
import trio

T = TypeVar("T")

MAILBOX_SIZE = 256
"""Messages that may wait. Senders past it wait too: that is the back-pressure of an actor."""


class ActorGone(Exception):
    """The actor ended before it answered. Whether the request took effect is unknown."""


class Reply(Generic[T]):
    """A one-shot answer. Setting it never blocks the actor; the first writer wins."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._outcome: outcome.Outcome[T] | None = None

    def set(self, value: T) -> None:
        """Answer with a value."""
        self._settle(outcome.Value(value))

    def fail(self, exc: Exception) -> None:
        """Answer with an exception, raised in the caller."""
        self._settle(outcome.Error(exc))

    async def wait(self) -> T:
        """Wait for the answer. A caller that is cancelled here does not undo its request."""
        await self._done.wait()
        assert self._outcome is not None
        return self._outcome.unwrap()

    def _settle(self, result: outcome.Outcome[T]) -> None:
        if self._outcome is None:
            self._outcome = result
            self._done.set()


M = TypeVar("M")


class Mailbox(Generic[M]):
    """A bounded queue of messages to one actor."""

    def __init__(self, size: int = MAILBOX_SIZE) -> None:
        self._send, self._receive = trio.open_memory_channel[M](size)

    async def ask(self, make: Callable[[Reply[T]], M]) -> T:
        """Send the message that `make` builds around a fresh reply, and return the answer.

        Raises whatever the actor answers with, or ActorGone.
        """
        reply: Reply[T] = Reply()
        await self.tell(make(reply))
        return await reply.wait()

    async def tell(self, message: M) -> None:
        """Send a message that has no answer. Waits for room; raises ActorGone if closed."""
        try:
            await self._send.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ActorGone("the actor has stopped") from exc

    async def receive(self) -> M:
        """Wait for the next message."""
        return await self._receive.receive()

    def close(self) -> None:
        """End the mailbox for good: every waiting and every later request fails with ActorGone."""
        while True:
            try:
                message = self._receive.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
            _fail(message, ActorGone("the actor has stopped"))
        self._receive.close()

    @property
    def depth(self) -> int:
        """How many messages wait."""
        return self._send.statistics().current_buffer_used


@contextmanager
def answering(message: object) -> Iterator[None]:
    """Guard the handling of a message: if it raises, the asker learns so before the actor dies."""
    try:
        yield
    except BaseException:
        _fail(message, ActorGone("the actor failed while handling the request"))
        raise


def _fail(message: object, exc: Exception) -> None:
    reply = getattr(message, "reply", None)
    if isinstance(reply, Reply):
        reply.fail(exc)
