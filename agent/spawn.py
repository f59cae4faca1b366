"""Starts a process. This module starts all of them, the first before trio is loaded.

A child gets an environment made from nothing, no input but what it is given, and a session of its
own, so that it can be killed with everything that it starts. Python's descriptors are closed in it.
"""

from __future__ import annotations

import os
import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_PROCESSES = 4096
"""Of one user, threads included: more than builds use, and few enough to go on beside them."""
_SETPRIV = "/usr/bin/setpriv"
_IGNORED_BY_PYTHON = (13, 25)  # SIGPIPE and SIGXFSZ, which a child shall not inherit as ignored


class Spawned:
    """A child that runs; what holds this owns it, and has to wait for it."""

    def __init__(self, pid: int, stderr: int, stdin: int) -> None:
        self.pid = pid
        self.stderr = stderr
        """Read end of the pipe that is its standard error."""
        self.stdin = stdin
        """Write end of the pipe that is its standard input, or -1."""


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    user: int | None = None,
    may_gain: bool = False,
    has_input: bool = False,
) -> Spawned:
    """Start `argv`, as `user` (and the group of that number) if given.

    Without `may_gain` the child can gain no privileges by starting set-uid programs. Raises
    OSError; a program that does not exist is setpriv's to complain about, and exit status 127.
    """
    command = [_SETPRIV]
    if user is not None:
        command += [f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all"]
    if not may_gain:
        command += ["--no-new-privs"]
    command += ["--", *argv]
    read_error, write_error = os.pipe()
    read_input, write_input = os.pipe() if has_input else (-1, -1)
    try:
        standard_input = (
            (os.POSIX_SPAWN_DUP2, read_input, 0)
            if has_input
            else (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        )
        pid = os.posix_spawn(
            _SETPRIV,
            command,
            env,
            file_actions=[
                standard_input,
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, write_error, 2),
            ],
            setsid=True,
            setsigdef=_IGNORED_BY_PYTHON,
        )
    except BaseException:
        os.close(read_error)
        if has_input:
            os.close(write_input)
        raise
    finally:
        os.close(write_error)
        if has_input:
            os.close(read_input)
    _make_ordinary(pid)
    return Spawned(pid, read_error, write_input)


def _make_ordinary(pid: int) -> None:
    """Undo what the agent has arranged for itself, and bound how much the child can start."""
    try:
        resource.prlimit(pid, resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write("0")
    except OSError:
        pass  # it has ended already
