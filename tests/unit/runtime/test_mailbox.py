"""Mailboxes: everybody who asks gets an answer, or is told that there will be none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio
import trio.testing

from supervisor.runtime.mailbox import ActorGone, Mailbox, Reply, answering


@dataclass(frozen=True)
class Double:
    number: int
    reply: Reply[int]


@dataclass(frozen=True)
class Note:
    text: str


Message = Double | Note


async def doubler(mailbox: Mailbox[Message]) -> None:
    """An actor that cannot handle 13."""
    while True:
        message = await mailbox.receive()
        with answering(message):
            if isinstance(message, Double):
                if message.number == 13:
                    raise KeyError(13)
                message.reply.set(2 * message.number)


async def ask(mailbox: Mailbox[Message], number: int) -> int:
    return await mailbox.ask(lambda reply: Double(number, reply))


async def test_an_answer_comes_back() -> None:
    mailbox: Mailbox[Message] = Mailbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(doubler, mailbox)
        assert await ask(mailbox, 21) == 42
        nursery.cancel_scope.cancel(reason="answered")


async def test_messages_are_handled_in_the_order_they_came_in() -> None:
    mailbox: Mailbox[Message] = Mailbox()
    for text in "abc":
        await mailbox.tell(Note(text))
    assert mailbox.depth == 3
    assert [await mailbox.receive() for _ in "abc"] == [Note(text) for text in "abc"]


async def test_an_error_is_an_answer() -> None:
    reply: Reply[int] = Reply()
    reply.fail(KeyError("no"))
    with pytest.raises(KeyError, match="no"):
        await reply.wait()


async def test_the_first_answer_stands() -> None:
    reply: Reply[int] = Reply()
    reply.set(1)
    reply.set(2)
    reply.fail(KeyError("late"))
    assert await reply.wait() == 1


async def test_answering_somebody_who_has_left_does_nothing() -> None:
    mailbox: Mailbox[Message] = Mailbox()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, mailbox, 1)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel(reason="the client went away")
    message = await mailbox.receive()
    assert isinstance(message, Double)
    message.reply.set(2)


async def test_who_is_being_answered_when_the_actor_dies_learns_it() -> None:
    mailbox: Mailbox[Message] = Mailbox()
    gone = False
    with pytest.RaisesGroup(KeyError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(doubler, mailbox)
            with pytest.raises(ActorGone), trio.CancelScope(shield=True):
                await ask(mailbox, 13)
            gone = True
            await trio.lowlevel.checkpoint()
    assert gone


async def test_who_is_being_answered_when_the_actor_is_cancelled_learns_it() -> None:
    reply: Reply[int] = Reply()
    with trio.CancelScope() as scope:
        scope.cancel(reason="shutdown")
        with answering(Double(1, reply)):
            await trio.sleep_forever()
    with pytest.raises(ActorGone):
        await reply.wait()


async def test_a_message_without_a_reply_may_fail_as_well() -> None:
    with pytest.raises(KeyError), answering(Note("a")):
        raise KeyError


async def test_who_waits_while_the_actor_restarts_is_answered_by_the_next_one() -> None:
    mailbox: Mailbox[Message] = Mailbox()
    with pytest.RaisesGroup(KeyError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(doubler, mailbox)
            await mailbox.tell(Double(13, Reply()))
    answers: list[int] = []

    async def keep() -> None:
        answers.append(await ask(mailbox, 4))
        outer.cancel_scope.cancel(reason="answered")

    async with trio.open_nursery() as outer:
        outer.start_soon(keep)
        await trio.testing.wait_all_tasks_blocked()
        assert answers == []
        outer.start_soon(doubler, mailbox)
    assert answers == [8]


async def test_closing_fails_every_request_that_waits_and_every_later_one() -> None:
    mailbox: Mailbox[Message] = Mailbox(2)
    failed = 0

    async def be_refused(number: int) -> None:
        nonlocal failed
        with pytest.raises(ActorGone):
            await ask(mailbox, number)
        failed += 1

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for number in range(5):  # two fit, three wait for room
                nursery.start_soon(be_refused, number)
            await trio.testing.wait_all_tasks_blocked()
            mailbox.close()
        await be_refused(9)
    assert failed == 6
    with pytest.raises(ActorGone):
        await mailbox.tell(Note("a"))
    mailbox.close()


async def test_a_full_mailbox_makes_the_sender_wait() -> None:
    mailbox: Mailbox[Message] = Mailbox(1)
    await mailbox.tell(Note("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox.tell, Note("b"))
        await trio.testing.wait_all_tasks_blocked()
        assert mailbox.depth == 1
        assert await mailbox.receive() == Note("a")
        assert await mailbox.receive() == Note("b")


async def test_a_sender_that_gives_up_waiting_has_sent_nothing() -> None:
    mailbox: Mailbox[Message] = Mailbox(1)
    await mailbox.tell(Note("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox.tell, Note("b"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="gave up")
    assert await mailbox.receive() == Note("a")
    assert mailbox.depth == 0
