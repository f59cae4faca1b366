"""The commands beside `build`, through pipes, against the real API."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from supervisor import tokens
from supervisor.ctl.client import Client
from supervisor.ctl.upload import BuildOptions
from supervisor.model.build import ErrorReason, Status
from supervisor.model.ids import BuildId
from supervisor.tokens import Permission
from tests.ctl.conftest import API_KEY, DIGEST, Daemon, ctl_argv, ctl_env, run_ctl


class InMemory:
    """A source that is there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        data, self._data = self._data, b""
        return data


async def submit(client: Client, **tags: str) -> BuildId:
    source = InMemory(gzip.compress(bytes(1024)))
    info = await client.submit(BuildOptions(dockerfile="FROM scratch\n", tags=tags), source)
    return BuildId(info.id)


async def test_list_shows_the_newest_first(daemon: Daemon, client: Client) -> None:
    first, second, third = [await submit(client, team=team) for team in "aba"]
    daemon.play(first)
    daemon.play(second, Status.FAILED)
    result = await daemon.run_ctl("list")
    head, *rows = result.out.splitlines()
    assert head.split() == ["BUILD", "STATUS", "CREATED", "TIME", "RESULT"]
    assert [row.split()[:2] for row in rows] == [
        [third, "queued"], [second, "failed"], [first, "ready"],
    ]  # fmt: skip
    assert "number 1 in the queue" in rows[0]
    assert rows[1].endswith("build_failed")
    assert rows[2].endswith(f"registry.example:5000/builds/{first}")

    quiet = await daemon.run_ctl("ps", "-q", "-l", "team=a", "-n", "1")
    assert quiet.out == f"{third}\n"
    some = await daemon.run_ctl("list", "-s", "failed", "--format", "{id} {error_code}")
    assert some.out == f"{second} build_failed\n"
    assert [build["id"] for build in json.loads((await daemon.run_ctl("list", "--json")).out)] == [
        third, second, first,
    ]  # fmt: skip


async def test_all_pages_of_a_long_list_are_read(daemon: Daemon, client: Client) -> None:
    first = await submit(client)
    build = daemon.fake.builds[first]
    for number in range(1, 1500):
        other = BuildId(f"{number:023}0")
        daemon.fake.builds[other] = replace(build, id=other)
    assert len(await client.list_builds(most=10_000)) == 1500
    assert len(await client.list_builds(most=1200)) == 1200
    oldest = BuildId("0" * 24)
    daemon.fake.builds[oldest] = replace(build, id=oldest)
    assert await client.resolve("0" * 23) == oldest  # on the last page


async def test_a_build_is_found_by_any_unique_beginning_of_its_id(
    daemon: Daemon, client: Client
) -> None:
    first, second = await submit(client), await submit(client)
    build = daemon.fake.builds.pop(second)
    second = BuildId("1" + second[1:])
    daemon.fake.builds[second] = replace(build, id=second)
    third = BuildId("1" + "z" * 23)
    daemon.fake.builds[third] = replace(build, id=third)
    result = await daemon.run_ctl("show", "--format", "{id}", first[:3])
    assert result.out == f"{first}\n"
    for name, words in (
        ("1", f"1 fits several builds: {third}, {second}"),
        ("2", "no build's id begins with 2"),
        ("x/y", "is no build id"),
        ("0" * 24, f"there is no build {'0' * 24}"),
    ):
        result = await daemon.run_ctl("show", name)
        assert (result.code, result.out) == (2, "")
        assert words in result.err


async def test_show_tells_all_that_is_known(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client, team="a")
    daemon.play(build_id, Status.FAILED)
    result = await daemon.run_ctl("show", build_id)
    shown = dict(line.split(":", 1) for line in result.out.splitlines() if ":" in line[:17])
    assert shown["id"].strip() == build_id
    assert shown["status"].strip() == "failed"
    assert shown["tags"].strip() == "team=a"
    assert "memory_mb 2048" in shown["limits"]
    assert "error:\n  RUN make: exit code 2\n  last line\n" in result.out
    assert json.loads((await daemon.run_ctl("show", "--json", build_id)).out)["id"] == build_id


async def test_steps_are_listed(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    daemon.play(build_id)
    result = await daemon.run_ctl("steps", build_id)
    assert result.out == "STATE  TIME  STEP\ndone   1.5s  [1/1] RUN make\n"
    assert json.loads((await daemon.run_ctl("steps", "--json", build_id)).out)[0]["cached"] is False


async def test_a_log_goes_to_a_pipe_byte_for_byte(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    daemon.play(build_id, Status.READY, "a \x1b[2J line", "☺")
    result = await daemon.run_ctl("logs", build_id)
    assert result.out == "a \x1b[2J line\n☺\n"
    followed = await daemon.run_ctl("logs", "-f", build_id)
    assert followed.out == result.out
    stamped = await daemon.run_ctl("logs", "-t", build_id)
    assert stamped.out.startswith("2027-01-15T08:00:00.000Z a ")
    later = await daemon.run_ctl("logs", "--since", "2030-01-01T00:00:00Z", build_id)
    assert later.out == ""
    events = await daemon.run_ctl("logs", "--json", build_id)
    assert [json.loads(line)["type"] for line in events.out.splitlines()] == [
        "status", "step", "log", "log", "step", "status",
    ]  # fmt: skip


async def test_events_of_other_kinds_are_in_the_json_and_nowhere_else(
    daemon: Daemon, client: Client
) -> None:
    build_id = await submit(client)
    for event in (
        b'{"type": "egress", "timestamp": "2027-01-15T08:00:00Z", "egress": {"host": "a"}}',
        b'{"type": "heartbeat", "timestamp": "2027-01-15T08:00:00Z"}',
    ):
        daemon.put_event(build_id, event)
    daemon.play(build_id, Status.READY, "a line")
    events = await daemon.run_ctl("logs", "--json", build_id)
    kinds = [json.loads(line)["type"] for line in events.out.splitlines()]
    assert kinds.count("egress") == 1
    assert "heartbeat" not in kinds
    assert (await daemon.run_ctl("logs", "-t", build_id)).out.endswith(" a line\n")
    attached = await daemon.run_ctl("attach", build_id)
    assert (attached.code, "egress" in attached.err) == (0, False)


async def test_a_log_is_followed_while_it_grows(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    daemon.fake.start(build_id)
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                ctl_argv("--socket", str(daemon.socket), "logs", "-f", build_id),
                stdout=-1,
                env=ctl_env(),
            )
        )
        assert process.stdout is not None
        with trio.fail_after(30):
            for line in ("one", "two"):
                daemon.fake.log(build_id, line)
                assert await process.stdout.receive_some() == f"{line}\n".encode()
            daemon.fake.finish(build_id, Status.READY)
            assert await process.stdout.receive_some() == b""


async def test_cancel_rm_and_wait(daemon: Daemon, client: Client) -> None:
    running, ready = await submit(client), await submit(client)
    daemon.play(ready)
    result = await daemon.run_ctl("cancel", running, "0" * 24, ready)
    assert (result.code, result.out) == (2, f"{running}\n")
    assert f"there is no build {'0' * 24}" in result.err
    assert f"build {ready} has ended" in result.err
    assert daemon.fake.builds[running].status is Status.CANCELLED

    waited = await daemon.run_ctl("wait", ready)
    assert (waited.code, waited.out) == (0, f"{ready} ready\n")
    waited = await daemon.run_ctl("wait", "-q", ready, running)
    assert (waited.code, waited.out) == (1, f"{ready}\n{running}\n")

    other = await submit(client)
    refused = await daemon.run_ctl("rm", other)
    assert (refused.code, refused.out) == (2, "")
    removed = await daemon.run_ctl("rm", "--force", ready, running, other)
    assert (removed.code, removed.err) == (0, "")
    assert not daemon.fake.builds


async def test_what_was_done_to_each_build_is_told_as_json_and_by_template(
    daemon: Daemon, client: Client
) -> None:
    first, second, third = [await submit(client) for _ in range(3)]
    cancelled = await daemon.run_ctl("cancel", "--json", first, "0" * 24, second)
    assert cancelled.code == 2
    assert [json.loads(line) for line in cancelled.out.splitlines()] == [
        {"id": first, "status": "cancelled"}, {"id": second, "status": "cancelled"},
    ]  # fmt: skip
    assert f"there is no build {'0' * 24}" in cancelled.err
    shown = await daemon.run_ctl("cancel", "--format", "{id} is {status}", third[:24])
    assert shown.out == f"{third} is cancelled\n"

    removed = await daemon.run_ctl("rm", "--json", first)
    assert json.loads(removed.out) == {"id": first, "removed": True}
    shown = await daemon.run_ctl("rm", "--format", "{id} {removed}", second, third)
    assert shown.out == f"{second} true\n{third} true\n"


async def test_show_tells_what_exactly_ended_a_build(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    daemon.play(build_id, Status.FAILED)
    assert "exact reason:" not in (await daemon.run_ctl("show", build_id)).out
    ended = replace(daemon.fake.builds[build_id], error_reason=ErrorReason.BOOT_FAILED)
    daemon.fake.builds[build_id] = ended
    lines = (await daemon.run_ctl("show", build_id)).out.splitlines()
    at = lines.index("reason:         build_failed")
    assert lines[at + 1] == "exact reason:   boot_failed"


async def test_evidence_is_for_administrators_and_goes_to_a_pipe_as_it_is(
    daemon: Daemon, client: Client
) -> None:
    build_id = await submit(client)
    none = await daemon.run_ctl("evidence", build_id)
    assert (none.code, none.out) == (2, "")
    assert f"build {build_id} has left no evidence" in none.err
    text = "attempt 1\n[console]\na \x1b[2J line\r\nthe end\n"
    daemon.fake.evidence_of[build_id] = text.encode() + b"\xff\n"
    shown = await daemon.run_ctl("evidence", build_id[:24])
    assert (shown.code, shown.out, shown.err) == (0, f"{text}\ufffd\n", "")
    as_json = await daemon.run_ctl("evidence", "--json", build_id)
    assert json.loads(as_json.out) == {"id": build_id, "evidence": f"{text}\ufffd\n"}

    token = await daemon.run_ctl("token", "create", "--tenant", "local")
    refused = await run_ctl(
        "--host", daemon.url, "--token", token.out.strip(), "evidence", build_id
    )
    assert (refused.code, refused.out) == (2, "")
    assert "permission build:admin" in refused.err


async def test_attach_follows_a_build_that_somebody_has_submitted(
    daemon: Daemon, client: Client
) -> None:
    build_id = await submit(client)
    daemon.play(build_id, Status.FAILED, "some output")
    result = await daemon.run_ctl("attach", build_id)
    assert (result.code, result.out) == (1, "")
    assert "some output" in result.err


async def test_a_remote_daemon_is_used_with_a_token(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    made = await daemon.run_ctl(
        "token", "create", "--subject", "ci", "--tenant", "local", "--permission", "build:read",
        "--lifetime", "2h",
    )  # fmt: skip
    token = made.out.strip()
    caller = tokens.parse_api_token(API_KEY, token)
    assert (caller.subject, caller.tenant) == ("ci", "local")
    assert caller.permissions == {Permission.BUILD_READ}

    result = await run_ctl("--host", daemon.url, "--token", token, "list", "-q")
    assert result.out == f"{build_id}\n"
    environment = {"HYPEMAN_HOST": daemon.url, "HYPEMAN_TOKEN": token}
    result = await run_ctl("cancel", build_id, env=environment)
    assert (result.code, result.out) == (2, "")
    assert "permission build:delete" in result.err
    result = await run_ctl("list", env={"HYPEMAN_HOST": daemon.url})
    assert result.code == 2
    assert "a token is needed" in result.err

    inspected = await run_ctl("token", "inspect", "-", stdin=made.out.encode())
    assert "sub:         ci\n" in inspected.out
    assert 'permissions: ["build:read"]\n' in inspected.out
    assert json.loads((await run_ctl("token", "inspect", "--json", token)).out)["tenant"] == "local"
    for nonsense in ("a.b", "a.!.c", "a.W10.c"):
        assert (await run_ctl("token", "inspect", nonsense)).code == 2


async def test_version_and_readiness(daemon: Daemon) -> None:
    result = await daemon.run_ctl("version", "--json")
    assert json.loads(result.out) == {"client": "0.1.0", "api": "1"}
    assert (await daemon.run_ctl("ready")).code == 0
    daemon.fake.why_not_ready = "the builder image is missing"
    result = await daemon.run_ctl("ready")
    assert (result.code, result.out) == (3, "not ready: the builder image is missing\n")


async def test_without_a_daemon_every_command_exits_3_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    socket = str(tmp_path / "absent")
    for command in (["list"], ["build", str(tmp_path)], ["logs", "0" * 24]):
        result = await run_ctl("--socket", socket, *command)
        assert (result.code, result.out) == (3, "")
        assert result.err.startswith(f"hypeman-ctl: there is no daemon: {socket} does not exist\n")
        assert "./run up" in result.err
    version = await run_ctl("--socket", socket, "version")
    assert (version.code, version.out.splitlines()[1]) == (3, "api     unknown")
    debugged = await run_ctl("--debug", "--socket", socket, "list")
    assert "Traceback" in debugged.err


async def test_something_else_that_answers_is_no_daemon(tmp_path: Path) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhey!")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        port = listeners[0].socket.getsockname()[1]
        result = await run_ctl("--host", f"http://localhost:{port}", "list")
        nursery.cancel_scope.cancel(reason="the test is over")
    assert (result.code, result.out) == (3, "")
    assert "something else than the daemon" in result.err


async def test_a_reader_that_has_seen_enough_is_no_error(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    daemon.play(build_id, Status.READY, *(["x" * 1000] * 1000))
    command = " ".join(ctl_argv("--socket", str(daemon.socket), "logs", build_id)) + " | head -c 10"
    done = await trio.run_process(
        ["sh", "-c", command], capture_stdout=True, capture_stderr=True, env=ctl_env()
    )
    assert (done.stdout, done.stderr) == (b"x" * 10, b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion_scripts_name_the_program(shell: str) -> None:
    result = await run_ctl("completion", shell)
    assert result.code == 0
    assert "_HYPEMAN_CTL_COMPLETE" in result.out
    assert "hypeman-ctl" in result.out


async def test_a_long_context_is_sent_and_received_whole(daemon: Daemon, context_dir: Path) -> None:
    for number in range(300):
        directory = context_dir / f"d{number % 7}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").write_bytes(b"%d" % number * 1000)
    result = await daemon.run_ctl("build", "-d", str(context_dir))
    assert result.code == 0, result.err
    assert "sent 302 files" in result.err
    assert DIGEST not in result.out
