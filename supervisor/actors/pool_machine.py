"""One machine of the pool, from its boot to its end.

    BOOTING ──the agent answers──▸ IDLE ──┐
       └───────── a build wants it ───────┴──the agent still answers──▸ LEASED ──▸ gone

Until a build owns it, no port of the host is open to it: whatever its guest tries to reach, nobody
listens. The supervisor talks to its agent all the time, so that one that hangs or dies is noticed
before a build meets it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import trio

from agent import wire
from supervisor.actors.contact import Contact, ContactTimes, Dial, make_contact
from supervisor.errors import GuestLost, HostError
from supervisor.guest.link import GuestLink
from supervisor.model.build import ErrorReason
from supervisor.runtime.clock import Clock
from supervisor.runtime.logs import log
from supervisor.vm.machine import Hypervisor, Machine, MachineSpec

PROBE_SECONDS = 2.0
"""An idle agent answers within milliseconds; with one that takes longer, a cold boot is
the better choice."""


class WarmState(Enum):
    """Where a machine of the pool stands."""

    BOOTING = "booting"
    IDLE = "idle"
    LEASED = "leased"


class WarmMachine:
    """A machine that waits for its build. `run` is its task, owned by the pool."""

    def __init__(self, spec: MachineSpec, on_change: Callable[[], None]) -> None:
        self.spec = spec
        self.since = trio.current_time()
        self.state = WarmState.BOOTING
        self.machine: Machine | None = None
        self.why_lost = ""
        """Why it is of no use (any more); empty if nothing is wrong with it."""
        self._on_change = on_change
        self._scope = trio.CancelScope()
        self._contact: Contact | None = None
        self._wanted = trio.Event()
        self._settled = trio.Event()
        self._gone = trio.Event()

    def __repr__(self) -> str:
        return f"<WarmMachine {self.spec.id}: {self.state.value}>"

    # -- for the pool --------------------------------------------------------------------------

    def take_nowait(self) -> None:
        """Give it to a build: from now on it is nobody else's."""
        self.state = WarmState.LEASED
        self._wanted.set()

    async def hand_over(self) -> Contact | None:
        """Wait until the machine is up and has answered; None if it is of no use.

        Bounded by `boot_timeout`, and for one that was idle by PROBE_SECONDS.
        """
        await self._settled.wait()
        return None if self.why_lost else self._contact

    def stop(self, reason: str) -> None:
        """Begin to destroy it. Returns at once."""
        self._scope.cancel(reason=f"machine {self.spec.id}: {reason}")

    async def wait_gone(self) -> None:
        """Wait until nothing of it is left."""
        await self._gone.wait()

    # -- the task ------------------------------------------------------------------------------

    async def run(
        self, hypervisor: Hypervisor, dial: Dial, times: ContactTimes, now: Clock
    ) -> None:
        """Boot it, and keep it until `stop`, or until it ends by itself."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    try:
                        self.machine = await nursery.start(hypervisor.run_machine, self.spec)
                        self._contact = await make_contact(self.machine, dial, times)
                        await self._wait_wanted(self._contact.link, times.boot_timeout, now)
                    except HostError as exc:
                        self._lose(exc.message)
                        nursery.cancel_scope.cancel(reason="it is of no use")
                    self._settled.set()
        finally:
            self._lose("the machine was stopped")
            self._settled.set()
            if self._contact is not None:
                with trio.CancelScope(shield=True):  # takes no time; its user may have done it
                    await self._contact.link.aclose()
            self._gone.set()

    async def _wait_wanted(self, link: GuestLink, warm_seconds: float, now: Clock) -> None:
        """Talk with the agent until a build wants the machine. Raises GuestLost.

        Its first answer may take `warm_seconds`: a BuildKit that hangs as it starts, in a guest
        that is alive, would otherwise keep the place of a machine for ever.
        Leaves the link with nothing half sent, and whatever comes next for the build to read.
        """
        answers = _Answers()
        await link.send(wire.GetStatus())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answers.read, link, self._note_idle, nursery.cancel_scope)
            nursery.start_soon(answers.limit_first, warm_seconds, nursery.cancel_scope)
            try:
                await self._beat(link, now)
                if answers.count > 0:  # else it has only just said hello
                    await _probe(link, answers)
            except GuestLost as exc:
                answers.lost = answers.lost or exc
            nursery.cancel_scope.cancel(reason="a build wants the machine")
        if answers.lost is not None:
            raise answers.lost

    def _note_idle(self) -> None:
        """Note that the agent takes orders: it has loaded all that takes time."""
        if self.state is WarmState.BOOTING:
            self.state = WarmState.IDLE
            seconds = round(trio.current_time() - self.since, 3)
            log.bind(machine_id=self.spec.id, seconds=seconds).info("pool.machine_idle")
            self._on_change()

    async def _beat(self, link: GuestLink, now: Clock) -> None:
        while not self._wanted.is_set():
            with trio.move_on_after(wire.HEARTBEAT_SECONDS):
                await self._wanted.wait()
            if not self._wanted.is_set():
                await link.send(wire.Heartbeat(now()))

    def _lose(self, why: str) -> None:
        self.why_lost = self.why_lost or why


class _Answers:
    """What an idle agent says: heartbeats, and answers to `get_status`."""

    def __init__(self) -> None:
        self.count = 0
        self.lost: GuestLost | None = None
        self._changed = trio.Event()

    async def read(
        self, link: GuestLink, on_first: Callable[[], None], scope: trio.CancelScope
    ) -> None:
        """Read until cancelled; an agent that is lost ends `scope`, and is in `lost`."""
        try:
            while True:
                match await link.receive():
                    case wire.Heartbeat():
                        pass
                    case wire.Status(phase="idle"):
                        self.count += 1
                        on_first()
                        self._changed.set()
                        self._changed = trio.Event()
                    case message:
                        kind = getattr(message, "TYPE", "message of unknown type")
                        raise GuestLost(f"an agent without a build sent a {kind}")
        except GuestLost as exc:
            self._lose(exc, scope)

    async def limit_first(self, seconds: float, scope: trio.CancelScope) -> None:
        """Wait for the first answer; an agent that takes longer is lost, and ends `scope`."""
        with trio.move_on_after(seconds):
            await self.wait_more_than(0)
            return
        why = f"the machine was not fit for a build within {seconds:g} s of its hello"
        self._lose(GuestLost(why, reason=ErrorReason.BOOT_TIMEOUT), scope)

    def _lose(self, exc: GuestLost, scope: trio.CancelScope) -> None:
        self.lost = self.lost or exc
        scope.cancel(reason="the agent is lost")

    async def wait_more_than(self, count: int) -> None:
        """Wait for one answer more."""
        while self.count <= count:
            await self._changed.wait()


async def _probe(link: GuestLink, answers: _Answers) -> None:
    """Have the agent answer once more. Raises GuestLost."""
    before = answers.count
    try:
        with trio.fail_after(PROBE_SECONDS):
            await link.send(wire.GetStatus())
            await answers.wait_more_than(before)
    except trio.TooSlowError as exc:
        raise GuestLost(f"an idle agent did not answer within {PROBE_SECONDS:g} s") from exc
