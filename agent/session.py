"""The conversation with one supervisor, and with it the machine's purpose: one build."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import trio

from agent import control, wire
from agent.failure import CANCELLED, Failure, failed
from agent.link import Link, LinkLost

Send = Callable[[Iterable[wire.Message]], Awaitable[None]]
"""Sends messages to the supervisor, in order."""
Build = Callable[[wire.Config, Send], Awaitable[wire.BuildResult]]
"""Runs a build to its end. Cancelling it leaves no process behind."""

READ_RESULT_SECONDS = 60.0
"""How long the supervisor has to read the rest of the log and the result, and to close: a power-off
loses what it has not read."""
READ_CANCELLED_SECONDS = 0.5
"""The same after a cancel, when nobody may be waiting for a result."""


class Session:
    """One supervisor's connection. `is_over` says whether the machine's work is done with it."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        build: Build,
        hello: wire.Hello | None,
        warm: trio.Event | None = None,
    ) -> None:
        self._stream = stream
        self._link = Link(stream)
        self._build = build
        self._hello = hello
        self._warm = warm
        """Until this is set, nobody is told that the machine is idle."""
        self._owes_status = False
        self._state = control.State.IDLE
        self._phase = "idle"
        self._config: wire.Config | None = None
        self._begun = trio.Event()
        self._work = trio.CancelScope()
        self._farewell = trio.CancelScope()
        self._stopped = ""

    @property
    def is_over(self) -> bool:
        """Say whether a build was given to this machine, or its end ordered: it takes no other."""
        return self._config is not None or bool(self._stopped)

    async def run(self) -> str:
        """Talk until the result is read, the end ordered or the connection lost; return which."""
        end = ""
        try:
            async with self._stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._link.write)
                nursery.start_soon(self._link.beat)
                nursery.start_soon(self._listen)
                nursery.start_soon(self._wait_warm)
                if self._hello is not None:
                    await self._link.send(self._hello)
                await self._begun.wait()
                result = await self._work_until_stopped()
                if not self._stopped:
                    self._farewell.deadline = trio.current_time() + READ_RESULT_SECONDS
                with self._farewell:
                    await self._send([control.status("done"), result])
                    self._link.finish()
                    # Usually the supervisor closes first, and that ends all of this.
                    await trio.sleep_forever()
                nursery.cancel_scope.cancel(reason="the supervisor did not close in time")
        except* LinkLost as lost:
            end = str(lost.exceptions[0])
        return self._stopped or end

    async def _work_until_stopped(self) -> wire.BuildResult:
        with self._work:
            assert self._config is not None or self._stopped
            if self._config is not None and not self._stopped:
                return await self._build(self._config, self._send)
        return failed(Failure(CANCELLED, f"cancelled: {self._stopped}"))

    async def _send(self, messages: Iterable[wire.Message]) -> None:
        for message in messages:
            if isinstance(message, wire.Status):
                self._phase = message.phase
            await self._link.send(message)

    def _tell_status(self) -> None:
        is_idle = self._config is None and not self._stopped
        is_warming = is_idle and self._warm is not None and not self._warm.is_set()
        self._owes_status = is_warming
        if not is_warming:
            self._link.answer_nowait(control.status(self._phase))

    async def _wait_warm(self) -> None:
        if self._warm is not None:
            await self._warm.wait()
            if self._owes_status:
                self._tell_status()

    async def _listen(self) -> None:
        async for message in self._link.messages():
            self._state, effect = control.step(self._state, message)
            match effect:
                case None:
                    pass
                case control.Configure(config):
                    self._config = config
                case control.Begin():
                    self._begun.set()
                case control.Stop(reason):
                    self._stopped = reason or "no reason given"
                    self._begun.set()
                    self._work.cancel(reason=self._stopped)
                    self._farewell.deadline = trio.current_time() + READ_CANCELLED_SECONDS
                case control.TellStatus():
                    self._tell_status()
                case control.Refuse(why):
                    self._link.answer_nowait(wire.Error(why))
