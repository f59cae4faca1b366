"""Real processes on the real clock: a clock that jumps would jump while a child runs."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import trio
from loguru import logger

from supervisor.errors import ToolFailed
from supervisor.runtime.process import Exit, Process, run_daemon, run_tool
from tests.kit import cancel_at_every_checkpoint
from tests.processes import count_descriptors, find_processes, is_alive, is_reaped, wait_dead

ROOT = Path(__file__).parents[3]


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


class Lines:
    """A sink that hands out whole lines."""

    def __init__(self) -> None:
        self.data = b""
        self._send, self._receive = trio.open_memory_channel[bytes](1000)

    def __call__(self, data: bytes) -> None:
        self.data += data
        *lines, self.data = self.data.split(b"\n")
        for line in lines:
            self._send.send_nowait(line)

    async def next(self) -> str:
        return (await self._receive.receive()).decode()


async def test_a_tool_returns_the_last_of_its_output() -> None:
    assert await run_tool(sh("echo out; echo err >&2")) == "out\nerr\n"


async def test_output_reaches_the_sink_whole_and_the_tail_stays_bounded() -> None:
    got = bytearray()
    tail = await run_tool(["seq", "200000"], sink=got.extend)
    assert got.splitlines()[-1] == b"200000"
    assert len(got.splitlines()) == 200_000
    assert len(tail) <= 4096
    assert tail.endswith("200000\n")


async def test_a_failing_tool_is_one_bare_error_with_status_and_last_words() -> None:
    with pytest.raises(ToolFailed) as caught:
        await run_tool(sh("echo first; echo the disk is full; exit 3"))
    assert caught.value.status == 3
    assert caught.value.tail == "first\nthe disk is full\n"
    assert str(caught.value) == "sh failed: exit status 3: the disk is full"


async def test_a_tool_ended_by_a_signal_is_told_by_name() -> None:
    with pytest.raises(ToolFailed, match="killed by SIGUSR1") as caught:
        await run_tool(sh("kill -USR1 $$"))
    assert caught.value.status == -signal.SIGUSR1


async def test_control_characters_in_output_do_not_reach_the_error() -> None:
    with pytest.raises(ToolFailed) as caught:
        await run_tool(sh(r"printf '\033[31mred\a'; exit 1"))
    assert "\033" not in str(caught.value)
    assert "\a" not in caught.value.tail


async def test_a_missing_program_is_told_with_the_path_searched() -> None:
    with pytest.raises(ToolFailed, match="no-such-program was not found; install it") as caught:
        await run_tool(["no-such-program", "--version"])
    assert caught.value.status is None


async def test_a_program_without_execute_permission_is_told_as_such(tmp_path: Path) -> None:
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(ToolFailed, match="may not be executed; check its permissions"):
        await run_tool([program])


async def test_arguments_too_large_for_the_kernel_are_a_tool_failure() -> None:
    with pytest.raises(ToolFailed, match="it cannot be started: Argument list too long"):
        await run_tool(["true", "x" * 4_000_000])


async def test_the_environment_is_built_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "hunter2")
    output = await run_tool(["env"], env={"LANG": "C", "EXTRA": "1"})
    names = {line.partition("=")[0] for line in output.splitlines()}
    assert names == {"PATH", "LANG", "EXTRA"}
    assert "EXTRA=1" in output


async def test_standard_input_is_empty() -> None:
    assert await run_tool(["cat"]) == ""


async def test_files_that_a_tool_makes_are_private(tmp_path: Path) -> None:
    await run_tool(["touch", "made"], cwd=tmp_path)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600


async def test_a_descriptor_is_passed_on_request_only() -> None:
    receive, send = os.pipe()
    os.set_inheritable(receive, True)
    try:
        os.write(send, b"through the pipe\n")
        argv = ["head", "-n1", f"/dev/fd/{receive}"]
        with pytest.raises(ToolFailed, match="No such file"):
            await run_tool(argv)
        end = await run_daemon(argv, pass_fds=[receive])
        assert end.tail == "through the pipe\n"
    finally:
        os.close(receive)
        os.close(send)


async def test_a_grandchild_that_keeps_the_pipe_does_not_hold_the_caller() -> None:
    output = await run_tool(sh("setsid sleep 3 & echo $!"))
    # It left the group, so it is out of reach; the caller is not made to wait for it.
    os.kill(int(output), signal.SIGKILL)


async def test_a_group_member_that_outlives_its_leader_is_killed() -> None:
    output = await run_tool(sh("(trap '' TERM; sleep 600) & echo $!"))
    await wait_dead(int(output))


async def test_cancel_stops_the_whole_group_politely() -> None:
    lines = Lines()
    script = "trap 'echo bye; exit 0' TERM; sleep 600 & echo $!; wait"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(run_tool, sh(script), sink=lines))
        child = int(await lines.next())
        nursery.cancel_scope.cancel(reason="test")
    assert await lines.next() == "bye"
    await wait_dead(child)


async def test_cancel_kills_a_group_that_ignores_the_polite_signal() -> None:
    lines = Lines()
    script = "trap '' TERM; echo $$; while :; do sleep 600; done"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(run_tool, sh(script), sink=lines, stop_grace=0.05))
        pid = int(await lines.next())
        nursery.cancel_scope.cancel(reason="test")
    assert is_reaped(pid)


async def test_output_is_read_while_a_process_is_being_stopped() -> None:
    lines = Lines()
    # It can only end after it has written more than a pipe holds.
    script = "trap 'head -c 300000 /dev/zero; exit 7' TERM; echo up; sleep 600 & wait"
    ends = []

    async def run() -> None:
        ends.append(await run_daemon(sh(script), sink=lines, stop_grace=20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await lines.next()
        nursery.cancel_scope.cancel(reason="test")
    assert len(lines.data) == 300_000


async def test_a_daemon_is_handed_out_when_it_runs_and_tells_its_end() -> None:
    async with trio.open_nursery() as nursery:
        process: Process = await nursery.start(run_daemon, sh("sleep 600"))
        assert is_alive(process.pid)
        process.signal_group(signal.SIGUSR2)
        end = await process.wait()
    assert end.why == "killed by SIGUSR2"
    process.signal_group(signal.SIGUSR2)  # already gone is fine


async def test_a_polite_stop_of_ones_own_is_used() -> None:
    lines = Lines()
    stopped = []

    def stop(process: Process) -> None:
        stopped.append(process.pid)
        process.signal_group(signal.SIGUSR1)

    async with trio.open_nursery() as nursery:
        start = partial(run_daemon, sh("trap 'exit 0' USR1; echo up; sleep 600 & wait"))
        process: Process = await nursery.start(partial(start, sink=lines, stop=stop, stop_grace=20))
        await lines.next()
        nursery.cancel_scope.cancel(reason="test")
    assert stopped == [process.pid]
    assert (await process.wait()).status == 0


async def test_cancel_anywhere_leaves_no_process_and_no_descriptor(tmp_path: Path) -> None:
    mark = tmp_path.name

    async def operation() -> None:
        await run_tool(["sh", "-c", "sleep 0.02 & wait; exit 0", mark], stop_grace=0.05)

    async def check(n: int) -> None:
        await trio.lowlevel.checkpoint()
        assert find_processes(mark) == [], f"cancelled at {n}"
        assert count_descriptors() == before, f"cancelled at {n}"

    await operation()  # starts the thread that lasts
    before = count_descriptors()
    swept = await cancel_at_every_checkpoint(operation, check)
    assert swept >= 4


async def test_children_do_not_die_with_a_worker_thread() -> None:
    """The thread that forks must not be one of trio's, which end when idle."""
    await run_tool(["true"])
    assert any(thread.name == "spawner" for thread in threading.enumerate())


async def test_children_die_with_a_killed_daemon(tmp_path: Path) -> None:
    program = tmp_path / "daemon.py"
    program.write_text(
        "import functools, loguru, trio\n"
        "from supervisor.runtime.process import run_tool\n"
        "loguru.logger.remove()\n"
        "sink = lambda data: print(data.decode(), flush=True)\n"
        "argv = ['sh', '-c', 'echo $$; exec sleep 600']\n"
        "trio.run(functools.partial(run_tool, argv, sink=sink))\n"
    )
    lines = Lines()
    async with trio.open_nursery() as nursery:
        run = partial(run_daemon, [sys.executable, program], sink=lines, stop_grace=0)
        daemon: Process = await nursery.start(partial(run, env={"PYTHONPATH": str(ROOT)}))
        pid = int(await lines.next())
        assert is_alive(pid)
        os.kill(daemon.pid, signal.SIGKILL)
        # Nobody signals the child's group: it is the leader of its own.
        await daemon.wait()
        await wait_dead(pid)


async def test_the_log_has_a_line_that_a_shell_understands(tmp_path: Path) -> None:
    records = []
    handler = logger.add(lambda message: records.append(message.record), level="DEBUG")
    try:
        await run_tool(["printf", "%s", "a b'c"], env={"X": "1 2"}, cwd=tmp_path)
    finally:
        logger.remove(handler)
    [command] = [r["extra"]["command"] for r in records if r["message"] == "process.started"]
    words = shlex.join(["printf", "%s", "a b'c"])
    assert command == f"cd {shlex.quote(str(tmp_path))} && X='1 2' {words}"
    assert await run_tool(sh(command)) == "a b'c"


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (1, "exit status 1"),
        (-9, "killed by SIGKILL"),
        (128 + 11, "killed by SIGSEGV"),  # as a sandbox's monitor tells it
        (128, "exit status 128"),
        (255, "exit status 255"),
        (-200, "killed by signal 200"),
    ],
)
def test_an_end_is_told_in_words(status: int, why: str) -> None:
    assert Exit(("program",), status, "").why == why


@pytest.mark.parametrize("call", ["pipe2", "pidfd_open"])
async def test_process_that_cannot_be_watched_does_not_run(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    before = count_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(ToolFailed, match="Too many open files"):
            await run_tool(sh("sleep 4711 # watched by nobody"))
    assert find_processes("watched by nobody") == []
    assert count_descriptors() == before
