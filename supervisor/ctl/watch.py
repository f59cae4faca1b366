"""Follow a build to its end in front of a user: progress, interruptions, and what came of it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import trio

from supervisor.ctl.client import Client
from supervisor.ctl.errors import (
    EXIT_BUILD_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    ApiError,
    CtlError,
    UsageError,
)
from supervisor.ctl.live import LiveView
from supervisor.ctl.model import Event, StatusChange
from supervisor.ctl.plain import PlainView
from supervisor.ctl.session import Session
from supervisor.model.build import Status

_REDRAW_SECONDS = 0.1
_CANCEL_SECONDS = 15.0
"""How long the end of a cancelled build is waited for; the daemon needs five at most."""
_QUESTION = "\nThe build goes on. d = detach, c = cancel it, Enter = keep following: "


class View(Protocol):
    """Shows the progress of one build."""

    def show(self, event: Event) -> None:
        """Take the next event."""

    def note(self, text: str) -> None:
        """Say a sentence of our own."""

    def refresh(self) -> None:
        """Called often, so that times can move."""

    def pause(self) -> None:
        """Make room for a question."""

    def close(self) -> None:
        """Nothing more will come."""


class Progress(Enum):
    """How progress is shown."""

    AUTO = "auto"
    PLAIN = "plain"
    TTY = "tty"
    QUIET = "quiet"


class Ending(Enum):
    """Why the following ended."""

    FINAL = auto()
    DETACHED = auto()
    CANCELLED = auto()
    """We had it cancelled."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What came of following a build."""

    ending: Ending
    last: StatusChange | None
    """The last status that was seen."""

    @property
    def exit_code(self) -> int:
        """The exit code that the contract of the command line gives to it."""
        if self.ending is Ending.DETACHED:
            return EXIT_OK
        if self.ending is Ending.CANCELLED:
            return EXIT_INTERRUPTED
        match self.last:
            case StatusChange(status=Status.READY):
                return EXIT_OK
            case StatusChange(status=Status.CANCELLED):
                return EXIT_INTERRUPTED
            case _:
                return EXIT_BUILD_FAILED


def open_view(session: Session, progress: Progress) -> View:
    """Return the view that fits the option and the terminal."""
    out = session.out
    if progress is Progress.TTY and not out.has_terminal:
        raise UsageError("--progress tty needs a terminal; use plain")
    if progress is Progress.QUIET:
        return _NoView()
    if progress is Progress.TTY or (progress is Progress.AUTO and out.has_terminal):
        return LiveView(out.messages, trio.current_time)
    return PlainView(out.note, trio.current_time)


async def watch(session: Session, client: Client, build_id: str, view: View) -> Watched:
    """Show a build's events until its final status.

    An interruption asks what to do where there is a terminal, and cancels the build where there is
    none, since then nobody is left who would want it. A second one cancels it in any case.
    """
    watcher = _Watcher(session, client, build_id, view)
    return await watcher.run()


class _Watcher:
    def __init__(self, session: Session, client: Client, build_id: str, view: View) -> None:
        self._session = session
        self._client = client
        self._id = build_id
        self._view = view
        self._last: StatusChange | None = None
        self._ending = Ending.FINAL
        self._interrupts = 0
        self._interrupted = trio.Event()
        self._is_asking = False

    async def run(self) -> Watched:
        failure: CtlError | None = None
        with self._session.on_interrupt(self._on_interrupt):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._redraw)
                nursery.start_soon(self._answer_interrupts, nursery.cancel_scope)
                try:
                    await self._read()
                except CtlError as exc:
                    failure = exc
                nursery.cancel_scope.cancel(reason="the build has ended")
        self._view.close()
        if failure is not None:
            raise failure
        return Watched(self._ending, self._last)

    def _on_interrupt(self) -> None:
        self._interrupts += 1
        self._interrupted.set()

    async def _read(self) -> None:
        async with self._client.open_events(self._id, on_interruption=self._tell) as events:
            async for event in events:
                if isinstance(event.data, StatusChange):
                    self._last = event.data
                self._view.show(event)

    def _tell(self, problem: str) -> None:
        self._view.note(f"{problem}; connecting again")

    async def _redraw(self) -> None:
        while True:
            if not self._is_asking:
                self._view.refresh()
            await trio.sleep(_REDRAW_SECONDS)

    async def _answer_interrupts(self, scope: trio.CancelScope) -> None:
        while True:
            await self._interrupted.wait()
            self._interrupted = trio.Event()
            if self._interrupts == 1 and self._session.out.has_terminal and sys.stdin.isatty():
                answer = await self._ask()
            else:
                answer = "c"
            if answer.startswith("d"):
                self._ending = Ending.DETACHED
                scope.cancel(reason="detached")
                return
            if answer.startswith("c"):
                await self._cancel(scope)
                return
            self._interrupts = 0

    async def _ask(self) -> str:
        """Return what the user types; a second interrupt means to cancel."""
        self._is_asking = True
        self._view.pause()
        self._session.out.messages.write(_QUESTION)
        self._session.out.messages.flush()
        answer = "c"
        async with trio.open_nursery() as nursery:

            async def read_answer() -> None:
                nonlocal answer
                await trio.lowlevel.wait_readable(sys.stdin.fileno())
                answer = os.read(sys.stdin.fileno(), 1024).decode(errors="replace").strip() or "k"
                nursery.cancel_scope.cancel(reason="answered")

            nursery.start_soon(read_answer)
            await self._interrupted.wait()
            nursery.cancel_scope.cancel(reason="interrupted again")
        self._is_asking = False
        return answer.lower()

    async def _cancel(self, scope: trio.CancelScope) -> None:
        """Have the build cancelled; its last events still come, for a bounded time.

        Yet another interrupt ends the waiting, not the cancellation.
        """
        self._interrupted = trio.Event()
        self._view.note(f"cancelling build {self._id}")
        try:
            await self._client.cancel(self._id)
        except ApiError as exc:
            if exc.status != 409:  # it has ended meanwhile
                self._view.note(f"it could not be cancelled: {exc.message}")
        except CtlError as exc:
            self._view.note(f"it could not be cancelled: {exc.message}")
            self._ending = Ending.CANCELLED
            scope.cancel(reason="interrupted, and the daemon is gone")
            return
        else:
            self._ending = Ending.CANCELLED
        with trio.move_on_after(_CANCEL_SECONDS):
            await self._interrupted.wait()
        scope.cancel(reason="the cancelled build's end is not waited for any longer")


class _NoView:
    def show(self, event: Event) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def refresh(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def close(self) -> None:
        pass
