"""The one place that starts other programs.

`run_tool` runs a program to its end. `run_daemon` runs one that lasts, as a task of its owner:

    process = await nursery.start(partial(run_daemon, argv, stop_grace=2))

Both promise the same. When they have returned, for whatever reason, the process is gone and reaped,
and so is its whole process group. Its output is read all the time, so it never blocks on a full
pipe, and only a bounded tail of it is kept. And no child outlives this program, not even `kill -9`
of it: the kernel kills the children (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import shutil
import signal
import subprocess  # noqa: TID251 - this is the place that everybody else is told to use
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import outcome
import trio

from supervisor.errors import ToolFailed
from supervisor.runtime.logs import log
from supervisor.runtime.tail import Tail

TAIL_BYTES = 4096
"""How much of a program's last output is kept for an error."""
READ_BYTES = 65536
DRAIN_SECONDS = 2.0
"""How long output is still read after the end of the leader. Its end means that of the whole group,
of which a large member takes a moment; a process that left the group may hold the pipe for ever."""
_SIGNAL_STATUS = 128
REAP_SECONDS = 5.0
"""How long SIGKILL may take. Only a process stuck in the kernel needs more; it is then given up."""

TIED_TO_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Prefix of every command. Whatever changes credentials after it (`unshare --user`) must repeat it,
because the kernel then forgets the setting."""

Sink = Callable[[bytes], None]
"""Receives output as it arrives, in the event loop: quick, and never raising."""
Stop = Callable[["Process"], None]
"""Asks a process to end, without waiting for it, and never raising."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended."""

    argv: tuple[str, ...]
    status: int
    """The exit status, or the negative number of the signal."""
    tail: str
    """The last of what it printed."""

    @property
    def why(self) -> str:
        """The end as a phrase: `exit status 1`, `killed by SIGKILL`.

        What runs others, a shell or a sandbox, says by a status over 128 that a signal ended them.
        """
        number = -self.status if self.status < 0 else self.status - _SIGNAL_STATUS
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            pass
        return f"exit status {self.status}" if self.status >= 0 else f"killed by signal {number}"


class Process:
    """A process that `run_daemon` owns, as others see it."""

    def __init__(self, argv: Sequence[str], popen: subprocess.Popen[bytes], output: int) -> None:
        self.argv = tuple(argv)
        self.pid = popen.pid
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)  # may fail, and then `output` is still the caller's
        self._output = trio.lowlevel.FdStream(output)
        self._tail = Tail(TAIL_BYTES)
        self._exit: Exit | None = None
        self._ended = trio.Event()

    def __repr__(self) -> str:
        state = "running" if self._exit is None else self._exit.why
        return f"<Process {self.pid} {self.argv[0]}: {state}>"

    def tail(self) -> str:
        """Return the last of what it printed so far."""
        return self._tail.text()

    @property
    def exit(self) -> Exit | None:
        """How it ended; None while it runs."""
        return self._exit

    async def wait(self) -> Exit:
        """Wait until it has ended, by itself or not."""
        await self._ended.wait()
        assert self._exit is not None
        return self._exit

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process and all that it started; already ended is fine."""
        # The leader is reaped last (`_reap`), so that until then its id cannot be another's.
        if self._exit is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def _wait_leader(self) -> None:
        await trio.lowlevel.wait_readable(self._pidfd)

    async def _pump(self, sink: Sink | None, scope: trio.CancelScope) -> None:
        with scope:
            while data := await self._output.receive_some(READ_BYTES):
                self._tail.add(data)
                if sink is not None:
                    sink(data)
        await trio.aclose_forcefully(self._output)

    async def _end(self, stop: Stop, stop_grace: float) -> None:
        """Have the process and its group gone; called under a shield."""
        if stop_grace > 0:
            stop(self)
            with trio.move_on_after(stop_grace):
                await self._wait_leader()
        # Also when the leader has ended: others of its group may go on.
        self.signal_group(signal.SIGKILL)
        with trio.move_on_after(REAP_SECONDS) as scope:
            await self._wait_leader()
        if scope.cancelled_caught:
            log.bind(pid=self.pid, command=shlex.join(self.argv)).error("process.unkillable")

    def _reap(self) -> Exit:
        status = self._popen.poll()
        os.close(self._pidfd)
        # A process that SIGKILL did not end is None here; its owner has to go on without it.
        self._exit = Exit(self.argv, -signal.SIGKILL if status is None else status, self.tail())
        self._ended.set()
        return self._exit


def terminate(process: Process) -> None:
    """Ask in the usual way."""
    process.signal_group(signal.SIGTERM)


async def run_tool(
    argv: Sequence[str | os.PathLike[str]],
    *,
    sink: Sink | None = None,
    stop_grace: float = 2.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program to its end and return the last of its output.

    Raises ToolFailed if it cannot be started, or ends with anything but status 0. When cancelled,
    its process group gets SIGTERM, `stop_grace` seconds, then SIGKILL.
    """
    end = await run_daemon(argv, sink=sink, stop_grace=stop_grace, env=env, cwd=cwd)
    if end.status:
        last = end.tail.rstrip().rpartition("\n")[2]
        raise ToolFailed(end.argv, end.status, end.tail, f"{end.why}: {last}" if last else end.why)
    return end.tail


async def run_daemon(
    argv: Sequence[str | os.PathLike[str]],
    *,
    sink: Sink | None = None,
    stop: Stop = terminate,
    stop_grace: float = 2.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    task_status: trio.TaskStatus[Process] = trio.TASK_STATUS_IGNORED,
) -> Exit:
    """Keep a program running until it ends by itself or this is cancelled, and say how it ended.

    `stop` asks it politely to end; after `stop_grace` seconds the group gets SIGKILL, with 0 at
    once. The environment is PATH, LANG and `env`, nothing else. The descriptors in `pass_fds` keep
    their numbers in the child; the caller closes its own.
    Raises ToolFailed if the program cannot be started.
    """
    process = await _start([os.fspath(word) for word in argv], env or {}, cwd, pass_fds)
    drain = trio.CancelScope(shield=True)  # its deadline is set when the process has ended
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process._pump, sink, drain)
            try:
                task_status.started(process)
                await process._wait_leader()
                stop_grace = 0
            finally:
                with trio.move_on_after(stop_grace + REAP_SECONDS + 1, shield=True):
                    await process._end(stop, stop_grace)
                drain.deadline = trio.current_time() + DRAIN_SECONDS
    finally:
        end = process._reap()
    return end


async def _start(
    argv: list[str], env: Mapping[str, str], cwd: Path | None, pass_fds: Sequence[int]
) -> Process:
    full_env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", **env}
    _check_runnable(argv, full_env["PATH"])
    try:
        receive, send = os.pipe2(os.O_CLOEXEC)
    except OSError as exc:
        raise ToolFailed(argv, None, "", f"it cannot be started: {exc.strerror}") from exc
    try:
        popen = await _SPAWNER.spawn(
            [*TIED_TO_PARENT, *argv], env=full_env, cwd=cwd, pass_fds=pass_fds, output=send
        )
    except (OSError, ValueError) as exc:  # ValueError: a NUL in an argument
        os.close(receive)
        why = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
        raise ToolFailed(argv, None, "", f"it cannot be started: {why}") from exc
    finally:
        os.close(send)
    try:
        process = Process(argv, popen, receive)
    except OSError as exc:  # no descriptor is left to watch it by: then it must not run
        os.close(receive)
        popen.kill()
        popen.wait()  # SIGKILL: a moment
        raise ToolFailed(argv, None, "", f"it cannot be watched: {exc.strerror}") from exc
    log.bind(pid=popen.pid, command=_pasteable(argv, env, cwd)).debug("process.started")
    return process


def _check_runnable(argv: Sequence[str], path: str) -> None:
    """Raise ToolFailed with a sentence of its own for what is missing or may not be run."""
    for program in (TIED_TO_PARENT[0], argv[0]):
        if shutil.which(program, path=path) is not None:
            continue
        if shutil.which(program, mode=os.F_OK, path=path) is not None:
            raise ToolFailed(
                argv, None, "", f"{program} may not be executed; check its permissions"
            )
        raise ToolFailed(argv, None, "", f"{program} was not found; install it, or fix PATH={path}")


def _pasteable(argv: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> str:
    """Return a line that does the same in a shell."""
    words = [f"{name}={shlex.quote(value)}" for name, value in env.items()]
    line = " ".join([*words, shlex.join(argv)])
    return line if cwd is None else f"cd {shlex.quote(str(cwd))} && {line}"


class _Spawner:
    """A thread that forks all children and lives as long as the program.

    The kernel's "parent death" is the death of the *thread* that forked. Trio's own worker threads
    end after ten idle seconds, and would take the children with them. Starting one here also never
    waits for a free worker thread.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None,
        pass_fds: Sequence[int],
        output: int,
    ) -> subprocess.Popen[bytes]:
        """Start a process that leads a new session. Not cancellable: it starts, or it does not."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="spawner", daemon=True)
            self._thread.start()
        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()

        def job() -> None:
            result = outcome.capture(
                subprocess.Popen,
                argv,
                env=env,
                cwd=cwd,
                pass_fds=pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )
            token.run_sync_soon(trio.lowlevel.reschedule, task, result)

        self._jobs.put(job)
        popen: subprocess.Popen[bytes] = await trio.lowlevel.wait_task_rescheduled(
            lambda _: trio.lowlevel.Abort.FAILED
        )
        return popen

    def _work(self) -> None:
        while True:
            self._jobs.get()()


_SPAWNER = _Spawner()
