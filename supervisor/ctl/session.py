"""One run of the program: options, streams, signals, and how errors become exit codes."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import typer

from supervisor.ctl.client import Client, open_client
from supervisor.ctl.connection import find_endpoint
from supervisor.ctl.errors import EXIT_INTERRUPTED, EXIT_OK, CtlError, OutputFailed
from supervisor.ctl.output import Output
from supervisor.ctl.streams import silence_stdout
from supervisor.ctl.terminal import clean_line

EXIT_BUG = 70
"""EX_SOFTWARE of sysexits(3): a mistake in this program, whose report is wanted."""
_EXIT_BROKEN_PIPE = 141

Command = Callable[["Session", Client], Awaitable[int | None]]
"""What a command does with a connection; returns its exit code, None for success."""


@dataclass
class Session:
    """The options that every command has, and what it talks through."""

    socket: Path | None = None
    host: str | None = None
    token: str | None = None
    context: str | None = None
    debug: bool = False
    out: Output = field(default_factory=Output)
    _on_interrupt: Callable[[], None] | None = None

    @contextmanager
    def on_interrupt(self, handler: Callable[[], None]) -> Iterator[None]:
        """Have SIGINT and SIGTERM call `handler` in the block, instead of ending the command."""
        previous, self._on_interrupt = self._on_interrupt, handler
        try:
            yield
        finally:
            self._on_interrupt = previous

    def run(self, command: Command) -> None:
        """Run a command with a connection to the daemon, and end the program with its exit code."""

        async def connect_and_run() -> int:
            endpoint = find_endpoint(
                socket=self.socket,
                host=self.host,
                token=self.token,
                context=self.context,
                environ=os.environ,
            )
            async with open_client(endpoint, self._trace) as client:
                return await command(self, client) or EXIT_OK

        self.finish(lambda: trio.run(self._run_with_signals, connect_and_run))

    def _trace(self, line: str) -> None:
        if self.debug:
            self.out.note(clean_line(line, colours=False))

    def finish(self, work: Callable[[], int]) -> None:
        """End the program with the exit code of `work`; errors are told in a sentence."""
        try:
            code = work()
            self.out.flush()
        except* CtlError as group:
            if self.debug:
                traceback.print_exception(group)
            errors = _leaves(group)
            for error in errors:
                self.out.error(error, debug=self.debug)
            code = errors[0].exit_code
            if any(isinstance(error, OutputFailed) for error in errors):
                silence_stdout()
        except* KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        except* BrokenPipeError:
            silence_stdout()  # whoever read the output has seen enough
            code = _EXIT_BROKEN_PIPE
        except* Exception as group:
            if self.debug:
                traceback.print_exception(group)
            first = _leaves(group)[0]
            self.out.note(
                f"hypeman-ctl: a mistake of this program: {type(first).__name__}: {first}"
            )
            if not self.debug:
                self.out.note("  run it again with --debug to see where")
            code = EXIT_BUG
        raise typer.Exit(code)

    async def _run_with_signals(self, command: Callable[[], Awaitable[int]]) -> int:
        code = EXIT_INTERRUPTED
        failure: CtlError | None = None
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def watch_signals() -> None:
                    async for _ in signals:
                        if self._on_interrupt is not None:
                            self._on_interrupt()
                        else:
                            nursery.cancel_scope.cancel(reason="interrupted by a signal")

                nursery.start_soon(watch_signals)
                try:
                    code = await command()
                except CtlError as exc:
                    failure = exc
                nursery.cancel_scope.cancel(reason="the command has ended")
        if failure is not None:
            raise failure
        return code


def session_of(context: typer.Context) -> Session:
    """Return the session that the program's own options have made."""
    session = context.find_object(Session)
    assert session is not None
    return session


def _leaves(group: BaseExceptionGroup[CtlError] | BaseExceptionGroup[Exception]) -> list[CtlError]:
    found: list[CtlError] = []
    for exc in group.exceptions:
        found += _leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc]  # type: ignore[list-item]
    return found
