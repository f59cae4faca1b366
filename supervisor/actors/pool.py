"""The pool: machines booted ahead of need, and the one door through which builds get machines.

`Pool.lease` is to a build what `run_machine` is to the pool: a task that lasts as long as the lease
does, and when it has returned nothing of the machine is left. A machine waits for one build, is
given to one, and is destroyed with it.

The machines are tasks of a nursery that outlives the builds, and `Pool` knows them all. The
PoolActor only decides and keeps nothing, so its crash loses no machine, leased or not. Who leases
does not ask it: taking a machine is one step in which nothing waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from supervisor.actors.contact import Contact, ContactTimes, Dial
from supervisor.actors.pool_machine import WarmMachine, WarmState
from supervisor.actors.pool_plan import PoolLimits, PoolState, Waiting, plan_pool
from supervisor.actors.turns import Turn, Turns
from supervisor.model.ids import MachineId
from supervisor.runtime.clock import Clock
from supervisor.runtime.logs import log
from supervisor.vm.machine import Hypervisor, Machine, MachineSpec

Waits = Callable[[], AbstractContextManager[None]]
"""Is entered by whoever waits for nothing of his own: for the host."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A machine that is one build's own."""

    machine: Machine
    contact: Contact | None
    """The agent of a machine that came from the pool; None: it has yet to be greeted."""
    turn: Turn | None = None
    """Of a machine that was booted for this build, which ends it when BuildKit serves."""


@dataclass(frozen=True, slots=True)
class MachineCounts:
    """How many machines there are, by state."""

    booting: int
    idle: int
    leased: int
    """Those of builds, wherever they came from."""


@dataclass(frozen=True)
class PoolDeps:
    """What the pool is given."""

    hypervisor: Hypervisor
    dial: Dial
    times: ContactTimes
    limits: PoolLimits
    memory_mb: int
    """Of each machine of the pool."""
    clock: Clock


class Pool:
    """All machines of the daemon. `machines_nursery` must outlive the builds."""

    def __init__(self, machines_nursery: trio.Nursery, deps: PoolDeps) -> None:
        self._nursery = machines_nursery
        self._deps = deps
        self._waiting: dict[MachineId, WarmMachine] = {}
        self._leased: dict[MachineId, MachineSpec] = {}
        """By the id that the build asked for: the machine that it has, or waits for."""
        self._failures = 0
        self._failed_at = 0.0
        self._is_draining = False
        self._changed = trio.Event()
        self._numbers = itertools.count(1)
        self._turns = Turns(deps.limits.host_cpus)

    def __repr__(self) -> str:
        return f"<Pool {self.counts}>"

    @property
    def counts(self) -> MachineCounts:
        """How many machines there are now."""
        idle = sum(warm.state is WarmState.IDLE for warm in self._waiting.values())
        return MachineCounts(len(self._waiting) - idle, idle, len(self._leased))

    def machine_of(self, asked: MachineId) -> MachineId:
        """Return the id of the machine that a build has which asked for `asked`."""
        spec = self._leased.get(asked)
        return spec.id if spec is not None else asked

    # -- for builds ----------------------------------------------------------------------------

    async def lease(
        self,
        spec: MachineSpec,
        waiting: Waits,
        *,
        task_status: trio.TaskStatus[Lease] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hand out a machine of that shape by `task_status.started`, and keep it until cancelled.

        It is a warm one, if one of exactly this shape waits and still answers; one that is booting
        is waited for. Else a new one, under the id of `spec`, when it is its turn; `waiting` is
        entered while it is not. Returns early if the machine ends by itself. Raises VmBootFailed.
        When this has ended, nothing of the machine is left.
        """
        with self._holding(spec):
            while (warm := self._take_nowait(spec)) is not None:
                try:
                    if (lease := await self._prepare(warm)) is not None:
                        task_status.started(lease)
                        await warm.wait_gone()
                        return
                finally:
                    warm.stop("its lease is over")
                    # As long as any machine's end takes: the driver bounds it.
                    with trio.CancelScope(shield=True):
                        await warm.wait_gone()
            self._leased[spec.id] = spec
            with waiting():
                turn = await self._turns.take(spec.cpus)
            try:
                run = self._deps.hypervisor.run_machine
                await run(spec, task_status=_AsLease(task_status, turn))
            finally:
                turn.end()

    async def _prepare(self, warm: WarmMachine) -> Lease | None:
        """Wait until a machine that was taken is ready for its build; None if it is of no use."""
        contact = await warm.hand_over()
        if contact is None or warm.machine is None:
            log.bind(machine_id=warm.spec.id, why=warm.why_lost).warning("pool.machine_unfit")
            self._note_failure()
            return None
        self._failures = 0
        return Lease(warm.machine, contact)

    def _take_nowait(self, spec: MachineSpec) -> WarmMachine | None:
        """Take a machine of this shape out of the pool: one that is up, or else is soonest to be.

        Exactly this shape, because processors and memory are limits that a build can see.
        """
        fits = [
            warm
            for warm in self._waiting.values()
            if (warm.spec.cpus, warm.spec.memory_mb) == (spec.cpus, spec.memory_mb)
        ]
        if not fits:
            return None
        warm = min(fits, key=lambda warm: (warm.state is not WarmState.IDLE, warm.since))
        del self._waiting[warm.spec.id]
        warm.take_nowait()
        self._leased[spec.id] = warm.spec
        self._note_change()
        return warm

    @contextmanager
    def _holding(self, spec: MachineSpec) -> Iterator[None]:
        """Count a build's machine among the leased."""
        self._leased[spec.id] = spec
        self._note_change()
        try:
            yield
        finally:
            del self._leased[spec.id]
            self._note_change()

    # -- for the actor -------------------------------------------------------------------------

    @property
    def state(self) -> PoolState:
        """What the rules look at."""
        return PoolState(
            waiting=[
                Waiting(warm.spec.id, warm.state is WarmState.IDLE, warm.since)
                for warm in self._waiting.values()
            ],
            leased_cpus=[spec.cpus for spec in self._leased.values()],
            failures=self._failures,
            failed_at=self._failed_at,
            is_draining=self._is_draining,
        )

    async def wait_change(self) -> None:
        """Wait until `state` is another one than at the call."""
        await self._changed.wait()

    def boot_nowait(self) -> None:
        """Begin to boot one machine more."""
        number = next(self._numbers)
        limits = self._deps.limits
        spec = MachineSpec(MachineId(f"warm-{number}"), limits.machine_cpus, self._deps.memory_mb)
        warm = WarmMachine(spec, self._note_change)
        self._waiting[spec.id] = warm
        self._nursery.start_soon(self._run, warm, name=f"machine:{spec.id}")

    def retire_nowait(self, id: MachineId) -> None:
        """Begin to destroy a machine that waits; one that a build has taken meanwhile is its."""
        if (warm := self._waiting.pop(id, None)) is not None:
            log.bind(machine_id=id).info("pool.machine_retired")
            warm.stop("retired")
            self._note_change()

    def drain(self) -> None:
        """Give up every machine that waits, now and later. Returns at once."""
        self._is_draining = True
        for id in list(self._waiting):
            self.retire_nowait(id)
        self._note_change()

    async def _run(self, warm: WarmMachine) -> None:
        deps = self._deps
        try:
            # Without a turn: there is one at a time, and only while its processors are idle.
            await warm.run(deps.hypervisor, deps.dial, deps.times, deps.clock)
        except Exception as exc:
            log.opt(exception=exc).error("pool.machine_crashed", machine_id=warm.spec.id)
        if self._waiting.pop(warm.spec.id, None) is not None:
            log.bind(machine_id=warm.spec.id, why=warm.why_lost).warning("pool.machine_lost")
            self._note_failure()

    def _note_failure(self) -> None:
        self._failures += 1
        self._failed_at = trio.current_time()
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class PoolActor:
    """Does what the plan says, after every change. Permanent; run it under `supervise`."""

    def __init__(self, pool: Pool, limits: PoolLimits) -> None:
        self._pool = pool
        self._limits = limits

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the pool as the plan wants it, until cancelled."""
        task_status.started()
        while True:
            plan = plan_pool(self._pool.state, self._limits, trio.current_time())
            for id in plan.retire:
                self._pool.retire_nowait(id)
            if plan.boot:
                self._pool.boot_nowait()
            # Nothing awaits between the look at the state and this, so no change is missed.
            with trio.move_on_at(plan.look_again_at):
                await self._pool.wait_change()


class _AsLease:
    """Tells of a machine that was booted for a build as of its lease."""

    def __init__(self, task_status: trio.TaskStatus[Lease], turn: Turn) -> None:
        self._task_status = task_status
        self._turn = turn

    def started(self, value: Any = None) -> None:
        self._task_status.started(Lease(value, None, self._turn))
