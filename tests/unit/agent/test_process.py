"""Children end with the block that owns them, whatever they do."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from agent.process import Tail, describe_status, own_child, run_child
from agent.spawn import spawn
from tests.kit import cancel_at_every_checkpoint

ENV = {"PATH": os.environ["PATH"]}
ME = os.getuid()


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def wait_gone(pid: int) -> None:
    """Wait for the end of a process that is not ours to wait for."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(descriptor)
    os.close(descriptor)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def run(script: str) -> tuple[int, str]:
    tail = Tail()
    async with own_child(spawn(shell(script), ENV), tail) as child:
        status = await child.wait()
    return status, tail.text


async def test_the_status_and_all_of_the_output_are_returned() -> None:
    status, text = await run("seq 1 1000 >&2; exit 7")
    assert status == 7
    assert text.endswith("999\n1000")


async def test_a_death_by_signal_is_told() -> None:
    status, _ = await run("kill -TERM $$")
    assert describe_status(status) == "killed by SIGTERM"
    assert describe_status(3) == "exit status 3"
    assert describe_status(-63) == "killed by signal 63"


async def test_a_program_that_does_not_exist_is_told_of() -> None:
    tail = Tail()
    async with own_child(spawn(["no-such-program"], ENV), tail) as child:
        assert await child.wait() == 127
    assert "no-such-program" in tail.text


async def test_an_argument_that_is_too_long_is_an_os_error() -> None:
    with pytest.raises(OSError, match="too long"):
        await run_child(["true", "x" * (1 << 18)], Tail(), ENV, ME)


async def test_arguments_arrive_as_they_are() -> None:
    tail = Tail()
    odd = ["-x", "a b", "\n", "", "$HOME", "é\udcff"]
    code = "import sys, os; os.write(2, b'|'.join(map(os.fsencode, sys.argv[1:])))"
    async with own_child(spawn([sys.executable, "-Sc", code, *odd], ENV), tail) as child:
        await child.wait()
    assert os.fsencode(tail.text).startswith(b"-x|a b|\n||$HOME|\xc3\xa9")


async def test_input_reaches_the_child_and_ends() -> None:
    tail = Tail()
    async with own_child(spawn(shell("cat >&2"), ENV, has_input=True), tail) as child:
        assert child.stdin is not None
        await child.stdin.send_all(b"hello")
        await child.stdin.aclose()
        assert await child.wait() == 0
    assert tail.text == "hello"


async def test_without_input_there_is_none() -> None:
    assert await run("cat >&2") == (0, "")


async def test_the_environment_is_only_what_is_given() -> None:
    _, text = await run("env >&2")
    names = {line.partition("=")[0] for line in text.splitlines()}
    assert names <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD"}


async def test_signals_that_python_ignores_are_not_ignored_in_the_child() -> None:
    _, text = await run("grep SigIgn /proc/self/status >&2")
    ignored = int(text.split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))


async def test_a_child_can_gain_no_privileges_unless_it_may() -> None:
    async def gains(may_gain: bool) -> str:
        tail = Tail()
        started = spawn(shell("grep NoNewPrivs /proc/self/status >&2"), ENV, may_gain=may_gain)
        async with own_child(started, tail) as child:
            await child.wait()
        return tail.text.split()[1]

    assert await gains(may_gain=False) == "1"


@pytest.mark.skipif(ME != 0, reason="only root can become another user")
async def test_a_child_runs_as_the_user_it_is_given_without_capabilities() -> None:
    tail = Tail()
    script = "grep -E '^(Uid|Gid|Groups|CapEff|CapInh)' /proc/self/status >&2"
    await run_child(shell(script), tail, ENV, 1000)
    fields = dict(line.split(":", 1) for line in tail.text.splitlines())
    assert fields["Uid"].split() == ["1000"] * 4
    assert fields["Gid"].split() == ["1000"] * 4
    assert fields["Groups"].split() == []
    assert int(fields["CapEff"], 16) == int(fields["CapInh"], 16) == 0


async def test_a_grandchild_that_holds_the_pipe_does_not_hold_the_block() -> None:
    tail = Tail()
    async with own_child(spawn(shell("sleep 600 & echo $! >&2"), ENV), tail) as child:
        with trio.fail_after(30):
            assert await child.wait() == 0
    await wait_gone(int(tail.text))


async def test_leaving_the_block_kills_the_whole_group() -> None:
    said = trio.Event()
    grandchildren: list[int] = []

    def listen(data: bytes) -> None:
        grandchildren.append(int(data))
        said.set()

    script = "trap '' TERM; sleep 600 & echo $! >&2; wait"
    async with own_child(spawn(shell(script), ENV), listen) as child:
        await said.wait()
    assert not is_running(child.pid)
    await wait_gone(grandchildren[0])


async def test_a_sink_that_waits_holds_the_child_up_and_loses_nothing() -> None:
    got = bytearray()

    async def slow(data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        got.extend(data)

    async with own_child(spawn(shell("head -c 1000000 /dev/zero >&2"), ENV), slow) as child:
        assert await child.wait() == 0
    assert len(got) == 1_000_000


async def test_cancelling_anywhere_leaves_no_process_and_no_descriptor() -> None:
    pids: list[int] = []

    async def operation() -> None:
        async with own_child(spawn(shell("echo x >&2"), ENV), Tail()) as child:
            pids.append(child.pid)
            await child.wait()

    await operation()
    before = descriptors()

    async def check(n: int) -> None:
        assert not is_running(pids[-1])
        assert descriptors() == before

    assert await cancel_at_every_checkpoint(operation, check) > 2


def test_a_tail_keeps_the_end() -> None:
    tail = Tail(limit_bytes=4)
    for piece in (b"ab", b"cdef", b"\xff"):
        tail(piece)
    assert tail.text == "def\ufffd"


def test_a_failed_start_leaves_no_descriptor() -> None:
    before = descriptors()
    with pytest.raises(OSError, match="too long"):
        spawn(["x" * (1 << 18)], ENV, has_input=True)
    assert descriptors() == before
