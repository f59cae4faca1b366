"""The first contact with the agent of a machine: whoever boots one, waits for this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from agent import wire
from supervisor.errors import GuestLost
from supervisor.guest.link import GuestLink
from supervisor.model.build import ErrorReason
from supervisor.vm.machine import Machine

Dial = Callable[[Machine, int], Awaitable[trio.abc.Stream]]
"""Waits until a port of the guest answers, and connects to it."""


@dataclass(frozen=True, slots=True)
class Contact:
    """An agent that has said hello. Who is given this closes the link."""

    link: GuestLink
    hello: wire.Hello


@dataclass(frozen=True, slots=True)
class ContactTimes:
    """How long a guest may take. Seconds."""

    boot_timeout: float
    link_silence: float


async def make_contact(machine: Machine, dial: Dial, times: ContactTimes) -> Contact:
    """Wait for the agent of a machine that boots, and take its hello.

    Raises GuestLost: after `boot_timeout`, and for an agent that says something else.
    """
    try:
        with trio.fail_after(times.boot_timeout):
            stream = await dial(machine, wire.CONTROL_PORT)
    except trio.TooSlowError as exc:
        why = f"the machine did not boot within {times.boot_timeout:g} s"
        raise GuestLost(why, reason=ErrorReason.BOOT_TIMEOUT) from exc
    link = GuestLink(stream, silence_seconds=times.link_silence)
    try:
        return Contact(link, await link.receive_hello())
    except BaseException:
        await link.aclose()
        raise
