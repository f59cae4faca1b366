"""Standard streams that are closed, full or read no further."""

from __future__ import annotations

import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from supervisor.ctl.client import Client
from supervisor.model.build import Status
from tests.ctl.conftest import Daemon, Result, ctl_argv, ctl_env
from tests.ctl.test_commands import submit

CANNOT = "hypeman-ctl: standard output cannot be written: "


async def run_in_shell(daemon: Daemon, args: str, redirections: str) -> Result:
    """Run `hypeman-ctl` as a shell does, its streams led elsewhere."""
    argv = [*ctl_argv("--socket", str(daemon.socket)), *args.split()]
    with trio.fail_after(60):
        done = await trio.run_process(
            ["sh", "-c", f'exec "$@" {redirections}', "sh", *argv],
            stdin=b"",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=ctl_env(),
        )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize("args", ["list", "logs {id}", "--help", "completion bash"])
async def test_a_full_disk_is_said_to_be_full(daemon: Daemon, client: Client, args: str) -> None:
    build_id = await submit(client)
    daemon.play(build_id, Status.READY, "a line")
    for redirection, why in ((">/dev/full", "No space left on device"), (">&-", "Bad file")):
        result = await run_in_shell(daemon, args.format(id=build_id), redirection)
        assert (result.code, result.out) == (2, ""), result.err
        assert result.err.startswith(CANNOT + why)
        assert result.err.count("\n") == 1


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
async def test_that_nobody_can_read_messages_changes_nothing(
    daemon: Daemon, client: Client, redirection: str
) -> None:
    build_id = await submit(client)
    daemon.play(build_id)
    followed = await run_in_shell(daemon, f"attach {build_id}", redirection)
    assert (followed.code, followed.err) == (0, "")
    assert f"builds/{build_id}@sha256:" in followed.out
    assert (await run_in_shell(daemon, "show zz", redirection)).code == 2
    assert (await run_in_shell(daemon, "no-such-command", redirection)).code == 2


async def test_all_streams_may_be_closed(daemon: Daemon) -> None:
    result = await run_in_shell(daemon, "ready", "<&- >&- 2>&-")
    assert (result.code, result.out, result.err) == (2, "", "")
    result = await run_in_shell(daemon, "token inspect", "<&-")
    assert result.code == 2
    assert result.err.startswith("hypeman-ctl: that is no token")


async def test_ctrl_c_while_the_program_is_loaded_is_no_traceback(tmp_path: Path) -> None:
    loading = "import sys, time; sys.stdout.write('up'); sys.stdout.flush(); time.sleep(600)"
    (tmp_path / "typer.py").write_text(loading)
    start = partial(
        trio.run_process,
        ctl_argv("list"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
        env=ctl_env({"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}),
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(start)
            assert process.stdout is not None
            assert process.stderr is not None
            assert await process.stdout.receive_some() == b"up"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == -signal.SIGINT
            assert await process.stderr.receive_some() == b""
