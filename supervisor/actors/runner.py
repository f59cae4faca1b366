"""Supervises the actors of running builds: each is temporary, and none is restarted.

A build that fails is a verdict of its actor. An actor that crashes is a bug: it is logged, and what
it leaves without a verdict the queue takes back for another attempt, of which there are only so
many.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from supervisor.actors.build import BuildActor, BuildDeps
from supervisor.errors import HostError
from supervisor.model.build import Build
from supervisor.model.ids import BuildId
from supervisor.runtime.logs import log


class BuildRunner:
    """Starts build actors in `builds_nursery`, which must outlive the queue."""

    def __init__(self, builds_nursery: trio.Nursery, deps: BuildDeps) -> None:
        self._nursery = builds_nursery
        self._deps = deps
        self._running: dict[BuildId, BuildActor] = {}
        self._fewer = trio.Event()
        self._is_hurried = False

    @property
    def running(self) -> Mapping[BuildId, BuildActor]:
        """The builds that hold a slot."""
        return self._running

    def start_nowait(self, build: Build, done: Callable[[BuildId], Awaitable[None]]) -> None:
        """Start the actor of `build`; when it has ended and holds no slot, call `done`."""
        assert build.id not in self._running, f"build {build.id} runs already"
        actor = BuildActor(build, self._deps)
        self._running[build.id] = actor
        self._nursery.start_soon(self._run, actor, done, name=f"build:{build.id}")

    async def drain(self, grace_seconds: float) -> None:
        """Let running builds finish for `grace_seconds`, then put the rest back into the queue."""
        if self._running:
            log.info("daemon.draining", builds=len(self._running), seconds=grace_seconds)
        with trio.move_on_after(0 if self._is_hurried else grace_seconds):
            await self._wait_idle()
        self.interrupt()
        await self._wait_idle()

    def interrupt(self) -> None:
        """Begin to put every running build back into the queue, now and later. Returns at once."""
        self._is_hurried = True
        for actor in list(self._running.values()):
            actor.interrupt()

    async def _run(self, actor: BuildActor, done: Callable[[BuildId], Awaitable[None]]) -> None:
        try:
            await actor.run()
        except HostError as exc:
            # The queue takes the build back as soon as the host works again.
            log.error("build.not_begun", build_id=actor.id, why=exc.message)
        except Exception as exc:
            log.opt(exception=exc).error("build.actor_crashed", build_id=actor.id)
        finally:
            self._release(actor)
        await done(actor.id)

    def _release(self, actor: BuildActor) -> None:
        del self._running[actor.id]
        self._fewer.set()
        self._fewer = trio.Event()

    async def _wait_idle(self) -> None:
        while self._running:
            await self._fewer.wait()
