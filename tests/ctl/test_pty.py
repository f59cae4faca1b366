"""hypeman-ctl in front of a person: on a real terminal, with a keyboard."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from supervisor.ctl.client import Client
from supervisor.model.build import Status
from tests.ctl.conftest import DIGEST, Daemon, ctl_argv, ctl_env
from tests.ctl.test_commands import submit
from tests.ctl.test_upload import listening

CTRL_C = b"\x03"
_SEQUENCE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A pseudo-terminal with a program in it."""

    def __init__(self, controller: int, process: trio.Process) -> None:
        self._stream = trio.lowlevel.FdStream(controller)
        self._process = process
        self.raw = b""

    @property
    def text(self) -> str:
        """Everything that was shown so far, without what controls the terminal."""
        return _SEQUENCE.sub(b"", self.raw).decode().replace("\r\n", "\n")

    async def type(self, keys: bytes) -> None:
        await self._stream.send_all(keys)

    async def wait_for(self, words: str) -> None:
        """Read until `words` have been shown."""
        while words not in self.text:
            assert await self._read(), f"{words!r} was never shown: {self.text}"

    async def wait_end(self) -> int:
        """Read to the end and return the exit code."""
        while await self._read():
            pass
        return await self._process.wait()

    async def _read(self) -> bool:
        try:
            data = await self._stream.receive_some()
        except trio.BrokenResourceError:  # how Linux tells that the other side is closed
            return False
        self.raw += data
        return bool(data)


@asynccontextmanager
async def open_terminal(
    daemon: Daemon | Path, *args: str, env: dict[str, str] | None = None, columns: int = 80
) -> AsyncIterator[Terminal]:
    """Run `hypeman-ctl` in a terminal of 24 lines; the block has 60 seconds."""
    controller, own = pty.openpty()
    fcntl.ioctl(own, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    path = daemon if isinstance(daemon, Path) else daemon.socket
    argv: Sequence[str] = ctl_argv("--socket", str(path), *args)
    environ = {**ctl_env({"TERM": "xterm-256color"}), **(env or {})}
    environ.pop("COLUMNS")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    ["setsid", "--ctty", *argv],
                    stdin=own,
                    stdout=own,
                    stderr=own,
                    check=False,
                    env=environ,
                )
            )
            os.close(own)
            terminal = Terminal(controller, process)
            try:
                yield terminal
            finally:
                terminal._stream.close()


async def test_a_build_is_drawn_in_place_and_ends_with_the_image(
    daemon: Daemon, context_dir: Path
) -> None:
    async with open_terminal(daemon, "build", str(context_dir)) as terminal:
        build_id = await daemon.wait_submitted()
        await terminal.wait_for("[+] queued")
        daemon.play(build_id, Status.READY, "cc -o hello hello.c")
        assert await terminal.wait_end() == 0
    assert "sent 2 files" in terminal.text
    last = terminal.text.rpartition("[+] ready")[2]
    assert "(1/1)" in last
    assert re.search(r" => \[1/1\] RUN make +1\.5s\n", last)
    assert f"registry.example:5000/builds/{build_id}@{DIGEST}\n" in last
    assert b"\x1b[?25h" in terminal.raw, "the cursor is left hidden"


async def test_plain_progress_can_be_asked_for_and_no_colours_are_none(
    daemon: Daemon, context_dir: Path
) -> None:
    args = ("build", "--progress", "plain", str(context_dir))
    async with open_terminal(daemon, *args, env={"NO_COLOR": "1"}) as terminal:
        daemon.play(await daemon.wait_submitted(), Status.READY, "made by\x1b[2J\x07 make")
        assert await terminal.wait_end() == 0
    assert "\nmade by\\x07 make\n" in terminal.text
    assert b"\x1b[2J" not in terminal.raw


async def test_ctrl_c_asks_and_d_detaches(daemon: Daemon, context_dir: Path) -> None:
    async with open_terminal(daemon, "build", str(context_dir)) as terminal:
        build_id = await daemon.wait_submitted()
        await terminal.wait_for("[+] queued")
        await terminal.type(CTRL_C)
        await terminal.wait_for("d = detach, c = cancel it")
        await terminal.type(b"d\n")
        assert await terminal.wait_end() == 0
    assert f"hypeman-ctl attach {build_id}" in terminal.text
    assert daemon.fake.builds[build_id].status is Status.QUEUED


async def test_ctrl_c_asks_and_enter_goes_on(daemon: Daemon, context_dir: Path) -> None:
    async with open_terminal(daemon, "build", str(context_dir)) as terminal:
        build_id = await daemon.wait_submitted()
        await terminal.wait_for("[+] queued")
        await terminal.type(CTRL_C)
        await terminal.wait_for("d = detach, c = cancel it")
        await terminal.type(b"\n")
        daemon.play(build_id)
        assert await terminal.wait_end() == 0


async def test_ctrl_c_asks_and_c_or_ctrl_c_cancels(daemon: Daemon, context_dir: Path) -> None:
    for answer in (b"c\n", CTRL_C):
        daemon.fake.builds.clear()
        async with open_terminal(daemon, "build", str(context_dir)) as terminal:
            build_id = await daemon.wait_submitted()
            await terminal.wait_for("[+] queued")
            await terminal.type(CTRL_C)
            await terminal.wait_for("d = detach, c = cancel it")
            await terminal.type(answer)
            assert await terminal.wait_end() == 130
        assert daemon.fake.builds[build_id].status is Status.CANCELLED


async def test_a_build_that_ends_during_the_question_ends_the_question(
    daemon: Daemon, context_dir: Path
) -> None:
    async with open_terminal(daemon, "build", str(context_dir)) as terminal:
        build_id = await daemon.wait_submitted()
        await terminal.wait_for("[+] queued")
        await terminal.type(CTRL_C)
        await terminal.wait_for("d = detach, c = cancel it")
        daemon.play(build_id, Status.FAILED)
        assert await terminal.wait_end() == 1


async def test_ctrl_c_ends_any_other_command_at_once(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    async with open_terminal(daemon, "wait", build_id) as terminal:
        while not daemon.fake.open_readers:  # noqa: ASYNC110 - the fake has no event for it
            await trio.sleep(0.01)
        await terminal.type(CTRL_C)
        assert await terminal.wait_end() == 130
    assert terminal.text.strip("^C\n") == ""
    assert daemon.fake.builds[build_id].status is Status.QUEUED


async def test_statuses_are_coloured_unless_that_is_not_wanted(
    daemon: Daemon, client: Client
) -> None:
    daemon.play(await submit(client))
    async with open_terminal(daemon, "list") as terminal:
        assert await terminal.wait_end() == 0
    assert b"\x1b[32mready\x1b[0m" in terminal.raw
    async with open_terminal(daemon, "list", env={"NO_COLOR": "1"}) as terminal:
        assert await terminal.wait_end() == 0
    assert b"\x1b" not in terminal.raw


async def test_a_log_cannot_control_the_terminal(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    daemon.play(build_id, Status.READY, "\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b[2Jend")
    async with open_terminal(daemon, "logs", build_id) as terminal:
        assert await terminal.wait_end() == 0
    assert b"\x1b[31mred\x1b[0m end" in terminal.raw
    assert b"title" not in terminal.raw


@pytest.mark.parametrize("columns", [80, 20])
async def test_ctrl_c_during_the_upload_leaves_a_clean_line(
    tmp_path: Path, context_dir: Path, columns: int
) -> None:
    (context_dir / "large").write_bytes(os.urandom(16 << 20))
    received = trio.Event()
    async with listening(tmp_path / "s", received, hang_up=False):
        args = ("build", str(context_dir))
        async with open_terminal(tmp_path / "s", *args, columns=columns) as terminal:
            await received.wait()
            await terminal.wait_for("[+] sending ")
            await terminal.type(CTRL_C)
            assert await terminal.wait_end() == 130
    drawn = terminal.raw.split(b"\r\x1b[K")
    assert drawn[-1] == b"the upload was interrupted\r\n"
    lines = [_SEQUENCE.sub(b"", line) for line in drawn[0].split(b"\r")]
    assert max(map(len, lines)) < columns + len("^C")


async def test_a_narrow_terminal_gets_all_of_a_table_and_a_picture_that_fits(
    daemon: Daemon, client: Client
) -> None:
    build_id = await submit(client)
    async with open_terminal(daemon, "list", columns=20) as terminal:
        assert await terminal.wait_end() == 0
    assert f"{build_id}  queued" in terminal.text
    async with open_terminal(daemon, "top", "-i", "0.1", columns=20) as terminal:
        await terminal.wait_for("builds: 0 of 2 runni")
        await terminal.type(CTRL_C)
        assert await terminal.wait_end() == 0
    assert build_id not in terminal.text


async def test_evidence_cannot_control_the_terminal(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    daemon.fake.evidence_of[build_id] = b"[console]\na \x1b]0;title\x07line\x9b\r\nthe end\n"
    async with open_terminal(daemon, "evidence", build_id) as terminal:
        assert await terminal.wait_end() == 0
    assert b"title" not in terminal.raw
    assert terminal.text.startswith("[console]\na line")
    assert terminal.text.endswith("\nthe end\n")


async def test_a_build_is_drawn_on_a_narrow_terminal(daemon: Daemon, context_dir: Path) -> None:
    async with open_terminal(daemon, "build", str(context_dir), columns=20) as terminal:
        build_id = await daemon.wait_submitted()
        await terminal.wait_for("[+] queued")
        daemon.play(build_id, Status.READY, "a line that is longer than the terminal is wide")
        assert await terminal.wait_end() == 0
    assert f"{build_id}@{DIGEST}\n" in terminal.text
