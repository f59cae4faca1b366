"""The operator's commands, through pipes and on a terminal, against the real API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from typer.testing import CliRunner

from supervisor.api.ports import ApiDeps
from supervisor.ctl.client import Client
from supervisor.ctl.program import app
from supervisor.model.build import Status
from supervisor.model.ids import BuildId
from tests.ctl.conftest import API_KEY, DIGEST, Daemon, run_ctl, serving
from tests.ctl.test_commands import submit
from tests.ctl.test_pty import CTRL_C, open_terminal
from tests.fakes.operations import FakeImages, stored_image


@pytest.fixture
def stored(daemon: Daemon) -> FakeImages:
    """Some images in the registry."""
    images = daemon.deps.images
    assert isinstance(images, FakeImages)
    images.images = [
        stored_image("local/app", "1", "latest"),
        stored_image("local/app", digest="e"),
        stored_image("team-a/tool", "2"),
    ]
    return images


class TestRetry:
    """retry"""

    async def test_it_follows_the_new_build_to_its_end(
        self, daemon: Daemon, client: Client
    ) -> None:
        first = await submit(client, team="a")
        daemon.play(first, Status.FAILED)
        left = await daemon.run_ctl("retry", "--detach", first)
        second = BuildId(left.out.strip())
        assert (left.code, left.err) == (0, "")
        assert daemon.fake.builds[second].request == daemon.fake.builds[first].request
        daemon.play(second, Status.READY)
        third = await daemon.run_ctl("retry", "--idempotency-key", "k", "-d", second)
        daemon.play(BuildId(third.out.strip()), Status.READY, "some output")
        followed = await daemon.run_ctl("retry", "--idempotency-key", "k", second)
        assert followed.code == 0
        assert followed.out.endswith(f"@{DIGEST}\n")
        assert "some output" in followed.err

    async def test_what_cannot_be_retried_is_said(self, daemon: Daemon, client: Client) -> None:
        build_id = await submit(client)
        result = await daemon.run_ctl("retry", build_id)
        assert (result.code, result.out) == (2, "")
        assert "only what has ended is retried" in result.err


async def test_the_queue_shows_what_runs_and_then_what_waits(
    daemon: Daemon, client: Client
) -> None:
    first, second = await submit(client), await submit(client)
    daemon.fake.start(first)
    result = await daemon.run_ctl("queue")
    head, *rows = result.out.splitlines()
    assert head.split() == ["#", "BUILD", "STATUS", "TENANT", "SINCE"]
    assert [row.split()[:4] for row in rows] == [
        ["-", first, "building", "local"], ["1", second, "queued", "local"],
    ]  # fmt: skip
    quiet = await daemon.run_ctl("queue", "-q")
    assert quiet.out == f"{first}\n{second}\n"
    assert json.loads((await daemon.run_ctl("queue", "--json")).out)["capacity"] == 2
    shown = await daemon.run_ctl("queue", "--format", "{queue_position} {policy.cpus}")
    assert shown.out == " 2\n1 2\n"


async def test_machines_are_listed(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    daemon.fake.start(build_id)
    result = await daemon.run_ctl("machines")
    head, row, idle = result.out.splitlines()
    assert head.split() == [
        "MACHINE",
        "STATE",
        "BUILD",
        "TENANT",
        "CPUS",
        "MEMORY",
        "RSS",
        "PID",
        "SINCE",
    ]
    assert row.split()[:5] == [f"{build_id}-1", "building", build_id, "local", "2"]
    assert row.split()[5:10] == ["2048", "MiB", "512.0", "MiB", "4711"]
    assert idle.split()[:4] == ["warm-1", "idle", "-", "-"]
    assert idle.split()[7:9] == ["-", "-"]
    found = await daemon.run_ctl("machines", "--format", "{pid} {rss_bytes}")
    assert found.out == f"4711 {1 << 29}\n \n"
    assert (await daemon.run_ctl("machines", "-q")).out == f"{build_id}-1\nwarm-1\n"


async def test_top_looks_once_into_a_pipe(daemon: Daemon, client: Client) -> None:
    await submit(client)
    result = await daemon.run_ctl("top")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[:3] == [
        "hypeman 0.1.0, ready",
        "builds: 0 of 2 running, 1 waiting   load: 0.50 on 2 processors",
        "memory: 4.0 GiB of 8.0 GiB available   disk: 40.0 GiB free",
    ]
    assert lines[4].split() == ["#", "BUILD", "STATUS", "TENANT", "SINCE"]


async def test_top_keeps_looking_on_a_terminal_until_ctrl_c(daemon: Daemon, client: Client) -> None:
    async with open_terminal(daemon, "top", "--interval", "0.1") as terminal:
        await terminal.wait_for("0 of 2 running")
        build_id = await submit(client)
        await terminal.wait_for(build_id)
        daemon.fake.start(build_id)
        await terminal.wait_for("1 of 2 running")
        await terminal.type(CTRL_C)
        assert await terminal.wait_end() == 0
    assert b"\x1b[?1049l" in terminal.raw, "the screen is not given back"


async def test_top_writes_a_line_for_each_look(daemon: Daemon, client: Client) -> None:
    once = await daemon.run_ctl("top", "--once", "--json")
    assert (once.code, once.out.count("\n")) == (0, 1)
    looked = json.loads(once.out)
    assert looked["system"]["host"]["cpus"] == 2
    assert looked["queue"]["waiting"] == []
    assert [machine["id"] for machine in looked["machines"]] == ["warm-1"]
    shown = await daemon.run_ctl(
        "top", "--once", "--format", "{system.host.cpus} {queue.capacity} {queue.draining}"
    )
    assert shown.out == "2 2 false\n"

    async with open_terminal(daemon, "top", "--json", "-i", "0.1", columns=20) as terminal:
        await terminal.wait_for("\n")
        build_id = await submit(client)
        await terminal.wait_for(build_id)
        await terminal.type(CTRL_C)
        assert await terminal.wait_end() == 0
    lines = terminal.text.replace("^C", "").splitlines()  # echoed, wherever it was typed
    first, *_, latest = [json.loads(line)["queue"]["waiting"] for line in lines if line]
    assert (first, latest[0]["id"]) == ([], build_id)


async def test_top_goes_on_writing_lines_when_the_daemon_is_back(
    deps: ApiDeps, tmp_path: Path
) -> None:
    async def serve(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with serving(deps):
                task_status.started(scope)
                await trio.sleep_forever()

    args = ("top", "--format", "{queue.capacity} at once", "-i", "0.1")
    async with trio.open_nursery() as nursery:
        up = await nursery.start(serve)
        async with open_terminal(tmp_path / "hypeman.sock", *args) as terminal:
            await terminal.wait_for("2 at once\n")
            up.cancel(reason="the daemon goes away")
            await terminal.wait_for("hypeman-ctl: ")
            before = terminal.text.count("2 at once\n")
            await nursery.start(serve)
            while terminal.text.count("2 at once\n") == before:
                assert await terminal._read()
            await terminal.type(CTRL_C)
            assert await terminal.wait_end() == 0
        nursery.cancel_scope.cancel(reason="the test is over")


class TestImages:
    """images, image inspect, image rm, image prune"""

    async def test_they_are_listed(self, daemon: Daemon, stored: FakeImages) -> None:
        result = await daemon.run_ctl("images")
        lines = [line.rpartition("  ")[0].rstrip() for line in result.out.splitlines()]
        assert lines == [
            "REPOSITORY   TAGS       DIGEST               SIZE",
            f"local/app    1, latest  sha256:{'d' * 12}  1.2 MiB",
            f"local/app    -          sha256:{'e' * 12}  1.2 MiB",
            f"team-a/tool  2          sha256:{'d' * 12}  1.2 MiB",
        ]
        quiet = await daemon.run_ctl("images", "-q", "team-a/tool")
        assert quiet.out == f"team-a/tool@sha256:{'d' * 64}\n"
        formatted = await daemon.run_ctl("images", "--format", "{image_ref} {tags}", "local/app")
        assert formatted.out.splitlines()[0] == (
            'registry.example:5000/local/app:1 ["1", "latest"]'
        )

    async def test_one_is_shown(self, daemon: Daemon, stored: FakeImages) -> None:
        result = await daemon.run_ctl("image", "inspect", "app:1")
        shown = dict(line.split(":", 1) for line in result.out.splitlines())
        assert shown["image"].strip() == "registry.example:5000/local/app:1"
        assert shown["platform"].strip() == "linux/amd64"
        assert f"layers:\n  sha256:{'e' * 64}  1.2 KiB\n" in result.out
        architecture = await daemon.run_ctl(
            "image", "inspect", "--format", "{config.architecture}", "local/app:1"
        )
        assert architecture.out == "amd64\n"
        missing = await daemon.run_ctl("image", "inspect", "local/app:9")
        assert (missing.code, missing.err) == (
            2,
            (
                "hypeman-ctl: there is no image local/app:9\n"
                "  hypeman-ctl images lists those that there are\n"
            ),
        )

    async def test_they_are_removed(self, daemon: Daemon, stored: FakeImages) -> None:
        result = await daemon.run_ctl("image", "rm", "app:1", "app:nope", "team-a/tool:2")
        assert (result.code, result.out) == (2, "app:1\nteam-a/tool:2\n")
        assert "there is no image app:nope\n" in result.err
        assert [(image.repository, image.tags) for image in stored.images] == [
            ("local/app", ()), ("local/app", ("latest",)),
        ]  # fmt: skip

    async def test_what_was_removed_is_told_as_json_and_by_template(
        self, daemon: Daemon, stored: FakeImages
    ) -> None:
        result = await daemon.run_ctl("image", "rm", "--json", "app:1", "app:nope", "team-a/tool:2")
        assert result.code == 2
        assert [json.loads(line) for line in result.out.splitlines()] == [
            {"image": "app:1", "removed": True}, {"image": "team-a/tool:2", "removed": True},
        ]  # fmt: skip
        shown = await daemon.run_ctl("image", "rm", "--format", "{image} {removed}", "app:latest")
        assert shown.out == "app:latest true\n"

    async def test_pruning_without_a_terminal_needs_a_word(
        self, daemon: Daemon, stored: FakeImages
    ) -> None:
        refused = await daemon.run_ctl("image", "prune")
        assert (refused.code, refused.out) == (2, "")
        assert "add --force, or --dry-run" in refused.err
        tried = await daemon.run_ctl("image", "prune", "--dry-run")
        assert tried.out == "would free 1.2 MiB: 1 untagged manifest, 3 blobs\n"
        assert len(stored.images) == 3
        done = await daemon.run_ctl("image", "prune", "--force", "--format", "{freed_bytes}")
        assert (done.out, len(stored.images)) == ("1234567\n", 2)

    async def test_pruning_on_a_terminal_asks(self, daemon: Daemon, stored: FakeImages) -> None:
        for answer, code, left in ((b"\n", 130, 3), (b"y\n", 0, 2)):
            async with open_terminal(daemon, "image", "prune") as terminal:
                await terminal.wait_for("Remove them for good? [y/N]")
                await terminal.type(answer)
                assert await terminal.wait_end() == code
            assert len(stored.images) == left
            assert "1 untagged manifest, 3 blobs would go, 1.2 MiB. Remove" in terminal.text
        async with open_terminal(daemon, "image", "prune") as terminal:
            assert await terminal.wait_end() == 0
        assert terminal.text == "there is nothing to remove\n"

    async def test_ctrl_c_at_the_question_removes_nothing(
        self, daemon: Daemon, stored: FakeImages
    ) -> None:
        for keys in (CTRL_C, b"\x04"):  # and the end of input
            async with open_terminal(daemon, "system", "prune") as terminal:
                await terminal.wait_for("Remove them for good? [y/N]")
                await terminal.type(keys)
                assert await terminal.wait_end() == 130
            assert len(stored.images) == 3


class TestSystem:
    """system info, df, prune; config check"""

    async def test_info_is_a_list_of_facts(self, daemon: Daemon) -> None:
        result = await daemon.run_ctl("system", "info")
        shown = {name: value.strip() for name, _, value in
                 (line.partition(":") for line in result.out.splitlines())}  # fmt: skip
        assert shown["machines"] == "qemu q35/tcg"
        assert shown["with"] == "buildkit v0.32.2"
        assert shown["disk"] == "40.0 GiB of 100.0 GiB free"
        load = await daemon.run_ctl("system", "info", "--format", "{host.cpus} {builds.ready}")
        assert load.out == "2 0\n"

    async def test_df_is_a_table(self, daemon: Daemon, stored: FakeImages) -> None:
        result = await daemon.run_ctl("system", "df")
        assert result.out == (
            "KIND      COUNT  SIZE     RECLAIMABLE\n"
            "images    3      3.5 MiB  0 B\n"
            "registry  9      3.5 MiB  1.0 KiB\n"
        )

    async def test_a_prune_says_what_it_may_take(self, daemon: Daemon, stored: FakeImages) -> None:
        result = await daemon.run_ctl(
            "system", "prune", "--force", "--caches", "--sources", "--older-than", "2d"
        )
        assert result.out == "freed 1.2 MiB: 1 untagged manifest, 3 blobs\n"
        (wish,) = stored.wishes
        assert (wish.caches, wish.sources) == (True, True)
        wrong = await daemon.run_ctl("system", "prune", "--force", "--older-than", "soon")
        assert (wrong.code, wrong.out) == (2, "")

    async def test_the_configuration_is_the_daemons_or_that_of_here(
        self, daemon: Daemon, tmp_path: Path
    ) -> None:
        asked = await daemon.run_ctl("config", "check", "--format", "{name}={value}")
        assert f"DATA_DIR={tmp_path}" in asked.out.splitlines()
        secret = "s" * 40
        local = await run_ctl("config", "check", "--local", env={"JWT_SECRET": secret})
        assert local.code == 0
        assert secret not in local.out
        assert "(hidden)" in local.out
        wrong = await run_ctl("config", "check", "--local", env={"JWT_SECRET": "short"})
        assert (wrong.code, wrong.out) == (2, "")
        assert "openssl rand -hex 32" in wrong.err


async def test_doctor_asks_the_daemon(daemon: Daemon, tmp_path: Path) -> None:
    result = await daemon.run_ctl("doctor", "--no-here")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[:2] for line in result.out.splitlines()[1:]] == [
        ["ok", "daemon"], ["ok", "version"], ["ok", "machines"],
    ]  # fmt: skip
    daemon.fake.why_not_ready = "the disk is full"
    result = await daemon.run_ctl("doctor", "--no-here", "--format", "{state}: {found}")
    assert (result.code, result.out) == (
        3, f"failed: {daemon.socket} is not ready: the disk is full\n",
    )  # fmt: skip
    absent = await run_ctl("--socket", str(tmp_path / "absent"), "doctor", "--no-here")
    assert absent.code == 3
    assert "start it with ./run up" in absent.err


async def test_doctor_looks_at_this_host(daemon: Daemon) -> None:
    result = await daemon.run_ctl("doctor", "--no-boot", "--json")
    names = {check["name"]: check for check in json.loads(result.out)}
    assert names["python"]["state"] == "ok"
    assert {"qemu", "kvm", "daemon"} <= set(names)


class TestContexts:
    """context list, use, add, rm, and what they choose"""

    @pytest.fixture
    def env(self, tmp_path: Path) -> dict[str, str]:
        return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "RUNTIME_DIR": str(tmp_path)}

    async def test_a_context_is_a_daemon_by_name(
        self, daemon: Daemon, client: Client, env: dict[str, str], tmp_path: Path
    ) -> None:
        build_id = await submit(client)
        token = (await daemon.run_ctl("token", "create", "--subject", "local")).out
        assert API_KEY.decode() not in token
        added = await run_ctl(
            "context", "add", "there", "--host", daemon.url, "--token", "-",
            stdin=token.encode(), env=env,
        )  # fmt: skip
        assert (added.code, added.out, added.err) == (0, "", "")
        file = tmp_path / "config" / "hypeman" / "contexts.json"
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700

        once = await run_ctl("--context", "there", "list", "-q", env=env)
        assert once.out == f"{build_id}\n"
        named = await run_ctl("list", "-q", env={**env, "HYPEMAN_CONTEXT": "there"})
        assert named.out == once.out
        await run_ctl("context", "use", "there", env=env)
        assert (await run_ctl("list", "-q", env=env)).out == once.out
        listed = await run_ctl("context", "list", env=env)
        assert listed.out.splitlines()[1:] == [
            f"   local  {daemon.socket}", f"*  there  {daemon.url}",
        ]  # fmt: skip
        assert token.strip() not in (await run_ctl("context", "list", "--json", env=env)).out

        elsewhere = {**env, "HYPEMAN_SOCKET": str(tmp_path / "absent")}
        assert (await run_ctl("list", env=elsewhere)).code == 3
        await run_ctl("context", "rm", "there", env=env)
        forgotten = await run_ctl("--context", "there", "list", env=env)
        assert (forgotten.code, forgotten.out) == (2, "")
        assert "there is no context there" in forgotten.err
        assert (await run_ctl("context", "list", "-q", env=env)).out == "local\n"

    async def test_what_was_done_is_told_as_json_and_by_template(
        self, env: dict[str, str], tmp_path: Path
    ) -> None:
        async def told(*args: str) -> Any:
            result = await run_ctl("context", *args, env=env)
            assert (result.code, result.err) == (0, "")
            return json.loads(result.out)

        there = {"name": "there", "host": "http://a", "current": False}
        added = ("add", "there", "--host", "http://a", "--token", "secret")
        assert await told(*added, "--json") == there
        assert await told("use", "--json", "there") == {**there, "current": True}
        assert await told("rm", "--json", "there") == {**there, "current": True, "removed": True}
        shown = await run_ctl("context", "use", "local", "--format", "{name} {host}", env=env)
        assert shown.out == f"local {tmp_path / 'hypeman.sock'}\n"

    @pytest.mark.parametrize(
        "args",
        [
            ("add", "local", "--host", "http://a"),
            ("add", "../x", "--host", "http://a"),
            ("add", "x", "--host", "ftp://a"),
            ("add", "x", "--host", "http://a", "--token", "a b"),
            ("use", "absent"),
            ("rm", "absent"),
            ("rm", "local"),
            ("add", "x", "--host", "http://a", "--format", "{token}"),
            ("use", "local", "--format", "{token}"),
        ],
    )
    async def test_nonsense_is_refused(
        self, env: dict[str, str], args: tuple[str, ...], tmp_path: Path
    ) -> None:
        result = await run_ctl("context", *args, env=env)
        assert (result.code, result.out) == (2, "")
        assert not (tmp_path / "config").exists()

    async def test_a_broken_file_is_said_to_be_broken(
        self, env: dict[str, str], tmp_path: Path
    ) -> None:
        file = tmp_path / "config" / "hypeman" / "contexts.json"
        file.parent.mkdir(parents=True)
        for content in ("{", "[]", '{"contexts": {"a": 1}}'):
            file.write_text(content)
            result = await run_ctl("list", env=env)
            assert (result.code, result.out) == (2, "")
            assert f"{file} is not a file of contexts" in result.err


async def test_debug_tells_of_each_request_and_its_id(daemon: Daemon) -> None:
    result = await daemon.run_ctl("--debug", "show", "0" * 24)
    assert result.code == 2
    assert f"> GET /builds/{'0' * 24} at {daemon.socket}" in result.err
    assert "404 after" in result.err
    request = result.err.partition(", request ")[2].split()[0]
    assert f"code not_found, HTTP 404, request {request}\n" in result.err
    assert "Traceback" in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    "args",
    [
        ("list",), ("show", "0" * 24), ("steps", "0" * 24), ("wait", "0" * 24), ("queue",),
        ("machines",), ("images",), ("image", "inspect", "a"), ("system", "info"),
        ("system", "df"), ("system", "prune", "--force"), ("image", "prune", "--force"),
        ("config", "check"), ("version",), ("retry", "0" * 24), ("build",), ("doctor",),
        ("context", "list"), ("context", "use", "a"), ("context", "rm", "a"),
        ("context", "add", "a", "--host", "http://a"), ("cancel", "0" * 24), ("rm", "0" * 24),
        ("image", "rm", "a"), ("top",), ("evidence", "0" * 24),
    ],
)  # fmt: skip
def test_a_field_that_does_not_exist_is_a_mistake_everywhere(
    args: tuple[str, ...], tmp_path: Path
) -> None:
    # Before anything is asked for: there is no daemon that could answer.
    absent = str(tmp_path / "absent")
    result = CliRunner().invoke(app, ["--socket", absent, *args, "--format", "{nope}"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("hypeman-ctl: --format: there is no field {nope}\n")


async def test_shapes_exclude_each_other(daemon: Daemon) -> None:
    result = await daemon.run_ctl("list", "--json", "-q")
    assert (result.code, result.out) == (2, "")
    assert "exclude each other" in result.err


async def test_every_command_that_shows_something_knows_json_and_templates(
    daemon: Daemon, client: Client
) -> None:
    assert (await daemon.run_ctl("ready", "--json")).out == '{"ready": true}\n'
    assert (await daemon.run_ctl("ready", "--format", "{ready}")).out == "true\n"
    made = await daemon.run_ctl("token", "create", "--subject", "ci", "--format", "{token}")
    said = await daemon.run_ctl("token", "inspect", "--format", "{sub} {tenant}", made.out.strip())
    assert said.out == "ci ci\n"
    build_id = await submit(client)
    daemon.play(build_id, Status.READY, "a line")
    lines = await daemon.run_ctl("logs", "--format", "{type}:{content}{status}", build_id)
    assert "log:a line\n" in lines.out
    assert lines.out.endswith("status:ready\n")


async def test_attach_ends_with_what_build_ends_with(daemon: Daemon, client: Client) -> None:
    build_id = await submit(client)
    daemon.play(build_id, Status.READY, "a line")
    result = await daemon.run_ctl("attach", build_id)
    assert (result.code, result.out) == (
        0, f"registry.example:5000/builds/{build_id}@{DIGEST}\n",
    )  # fmt: skip
    assert "a line" in result.err
    assert (await daemon.run_ctl("attach", "-q", build_id)).out == f"{build_id}\n"


async def test_lists_also_have_the_names_that_other_programs_give_them(
    daemon: Daemon, client: Client, stored: FakeImages
) -> None:
    build_id = await submit(client)
    for command in (("list",), ("ps",), ("ls",)):
        assert (await daemon.run_ctl(*command, "-q")).out == f"{build_id}\n"
    everything = (await daemon.run_ctl("images", "-q")).out
    for alias in ("list", "ls"):
        assert (await daemon.run_ctl("image", alias, "-q")).out == everything


async def test_a_permission_that_there_is_not_is_answered_with_those_that_there_are(
    daemon: Daemon,
) -> None:
    result = await daemon.run_ctl("token", "create", "--permission", "build:all")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("hypeman-ctl: --permission build:all: expected one of build:read,")
    every = await daemon.run_ctl("token", "create", "--permission", "image:*")
    assert every.code == 0


async def test_images_of_a_repository_are_found_under_every_name_that_it_has(
    daemon: Daemon, stored: FakeImages
) -> None:
    names = ("app", "local/app", "registry.example:5000/local/app")
    found = [(await daemon.run_ctl("images", "-q", name)).out for name in names]
    assert found[0].count("local/app@") == 2
    assert found == [found[0]] * 3


async def test_whoever_has_no_token_is_told_where_they_are_made(daemon: Daemon) -> None:
    result = await run_ctl("--host", daemon.url, "list")
    assert result.code == 2
    assert "hypeman-ctl token create" in result.err.splitlines()[1]


async def test_doctor_asks_a_daemon_elsewhere_alone(daemon: Daemon) -> None:
    made = await daemon.run_ctl("token", "create")
    remote = ("--host", daemon.url, "--token", made.out.strip())
    result = await run_ctl(*remote, "doctor", "--format", "{name}")
    assert (result.code, result.out) == (0, "daemon\n")


async def test_a_wrong_choice_is_answered_with_the_right_ones(daemon: Daemon) -> None:
    result = await daemon.run_ctl("list", "--status", "done")
    assert result.code == 2
    assert "'--status' / '-s': 'done' is not one of 'queued', 'building'" in result.err
