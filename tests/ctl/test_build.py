"""hypeman-ctl build, through pipes, against the real API."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import tarfile
from functools import partial
from pathlib import Path

import pytest
import trio

from supervisor.ctl.source import StreamSource, plan_source_sync
from supervisor.model.build import Status
from tests.ctl.conftest import DIGEST, Daemon, Result, ctl_argv, ctl_env


def sent_names(daemon: Daemon) -> list[str]:
    """Return what the archive of the newest build holds."""
    path = daemon.fake.upload_path(max(daemon.fake.builds))
    with tarfile.open(path) as tar:
        return tar.getnames()


async def build(
    daemon: Daemon, *args: str, status: Status = Status.READY, stdin: bytes = b""
) -> Result:
    """Run `build`, and have the build run as soon as it is there."""
    results = []

    async def run() -> None:
        results.append(await daemon.run_ctl("build", *args, stdin=stdin))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        daemon.play(await daemon.wait_submitted(), status, "cc -o hello hello.c")
    return results[0]


async def test_a_ready_build_exits_0_and_writes_only_its_reference_to_stdout(
    daemon: Daemon, context_dir: Path
) -> None:
    result = await build(daemon, str(context_dir))
    [build_id] = daemon.fake.builds
    assert result.code == 0, result.err
    assert result.out == f"registry.example:5000/builds/{build_id}@{DIGEST}\n"
    assert "#1 [1/1] RUN make\n" in result.err
    assert "cc -o hello hello.c\n" in result.err
    assert "#1 DONE 1.5s\n" in result.err
    assert f"build {build_id} is ready" in result.err
    assert sent_names(daemon) == ["Dockerfile", "hello.txt"]


async def test_a_failed_build_exits_1_and_tells_why(daemon: Daemon, context_dir: Path) -> None:
    result = await build(daemon, str(context_dir), status=Status.FAILED)
    assert result.code == 1
    assert result.out == ""
    assert "has failed: build_failed\n  RUN make: exit code 2\n  last line\n" in result.err


async def test_json_is_the_build_as_the_api_shows_it(daemon: Daemon, context_dir: Path) -> None:
    result = await build(daemon, "--json", str(context_dir))
    shown = json.loads(result.out)
    assert (shown["status"], shown["image_digest"]) == ("ready", DIGEST)


async def test_quiet_writes_the_id_and_nothing_else(daemon: Daemon, context_dir: Path) -> None:
    result = await build(daemon, "-q", str(context_dir))
    [build_id] = daemon.fake.builds
    assert (result.out, result.err) == (f"{build_id}\n", "")


async def test_detach_returns_once_the_build_is_taken_in(daemon: Daemon, context_dir: Path) -> None:
    result = await daemon.run_ctl("build", "--detach", str(context_dir))
    [build_id] = daemon.fake.builds
    assert (result.code, result.out) == (0, f"{build_id}\n")
    assert daemon.fake.builds[build_id].status is Status.QUEUED


async def test_options_reach_the_daemon(daemon: Daemon, context_dir: Path) -> None:
    result = await daemon.run_ctl(
        "build", "-q", "--detach", "--target", "app", "--build-arg", "A=1=2", "--build-arg", "HOME",
        "--build-arg", "ABSENT", "-l", "team=a", "--timeout", "2m", "--memory", "1g", "--cpus", "3",
        "--no-cache", "--network", "isolated", "-t", "app:1", str(context_dir),
        env={"HOME": "/home/me"},
    )  # fmt: skip
    assert result.code == 0, result.err
    [build] = daemon.fake.builds.values()
    asked = build.request
    assert asked.target == "app"
    assert asked.build_args == {"A": "1=2", "HOME": "/home/me"}
    assert asked.tags == {"team": "a"}
    assert (asked.policy.timeout_seconds, asked.policy.memory_mb, asked.policy.cpus) == (
        120,
        1024,
        3,
    )
    assert asked.policy.network_mode == "isolated"
    assert asked.no_cache
    assert asked.image_name == "app:1"


async def test_dockerignore_thins_out_what_is_sent(daemon: Daemon, context_dir: Path) -> None:
    (context_dir / ".dockerignore").write_text("*.txt\nDockerfile\n")
    await daemon.run_ctl("build", "--detach", str(context_dir))
    assert sent_names(daemon) == [".dockerignore", "Dockerfile"]


async def test_a_dockerfile_elsewhere_is_sent_as_text(
    daemon: Daemon, context_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").write_text("FROM busybox\n")
    await daemon.run_ctl("build", "--detach", "-f", str(tmp_path / "other"), str(context_dir))
    [build] = daemon.fake.builds.values()
    assert build.request.dockerfile == "FROM busybox\n"


async def test_a_dockerfile_inside_is_named_by_its_path(daemon: Daemon, context_dir: Path) -> None:
    (context_dir / "sub").mkdir()
    (context_dir / "sub" / "Other").write_text("FROM busybox\n")
    await daemon.run_ctl(
        "build", "--detach", "-f", str(context_dir / "sub" / "Other"), str(context_dir)
    )
    [build] = daemon.fake.builds.values()
    assert (build.request.dockerfile, build.request.dockerfile_path) == (None, "sub/Other")


async def test_a_dockerfile_from_stdin_is_built_alone(daemon: Daemon) -> None:
    result = await daemon.run_ctl("build", "--detach", "-", stdin=b"FROM busybox\nRUN true\n")
    assert result.code == 0, result.err
    [build] = daemon.fake.builds.values()
    assert build.request.dockerfile == "FROM busybox\nRUN true\n"
    assert sent_names(daemon) == []


async def test_archives_are_sent_as_they_are_and_plain_tars_compressed(
    daemon: Daemon, tmp_path: Path
) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        info = tarfile.TarInfo("Dockerfile")
        info.size = 200_000
        tar.addfile(info, io.BytesIO(b"#" * info.size))
    packed = gzip.compress(plain.getvalue())
    (tmp_path / "source.tgz").write_bytes(packed)
    for where, stdin in (
        (str(tmp_path / "source.tgz"), b""),
        ("-", packed),
        ("-", plain.getvalue()),
    ):
        result = await daemon.run_ctl("build", "--detach", where, stdin=stdin)
        assert result.code == 0, result.err
        assert sent_names(daemon) == ["Dockerfile"]
    first, second, third = (
        daemon.fake.upload_path(id).read_bytes() for id in sorted(daemon.fake.builds)
    )
    assert first == second == packed
    assert gzip.decompress(third) == plain.getvalue()


async def test_what_the_daemon_refuses_exits_2_with_its_reason(
    daemon: Daemon, context_dir: Path
) -> None:
    result = await daemon.run_ctl("build", "--memory", "64g", str(context_dir))
    assert result.code == 2
    assert result.out == ""
    assert "hypeman-ctl: --memory is 65536; at most 16384 is allowed\n" in result.err
    assert not daemon.fake.builds


async def test_a_full_queue_says_when_to_try_again(daemon: Daemon, context_dir: Path) -> None:
    daemon.fake.room = 0
    result = await daemon.run_ctl("build", str(context_dir))
    assert result.code == 2
    assert "try again in 30 s" in result.err


async def test_usage_errors_exit_2_before_anything_is_sent(
    daemon: Daemon, context_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note").write_text("no archive")
    for args, words in (
        ([str(tmp_path / "absent")], "does not exist"),
        ([str(tmp_path / "empty")], "has no Dockerfile"),
        ([str(tmp_path / "note")], "neither a directory nor"),
        (["--timeout", "soon", str(context_dir)], "--timeout soon"),
        (["--build-arg", "=x", str(context_dir)], "--build-arg =x"),
        (["--secret", "id=a,src=b", str(context_dir)], "cannot be sent"),
        (["--cpus", "0", str(context_dir)], "--cpus"),
        (["-f", "absent", str(context_dir)], "there is no file absent"),
    ):
        result = await daemon.run_ctl("build", *args)
        assert (result.code, result.out) == (2, ""), args
        assert words in result.err
        assert "Traceback" not in result.err
    assert not daemon.fake.builds


async def test_an_interrupt_without_a_terminal_cancels_the_build_and_exits_130(
    daemon: Daemon, context_dir: Path
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        daemon.fake.builds.clear()
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    ctl_argv("--socket", str(daemon.socket), "build", str(context_dir)),
                    check=False,
                    capture_stderr=True,
                    env=ctl_env(),
                )
            )
            build_id = await daemon.wait_submitted()
            with trio.fail_after(30):
                while not daemon.fake.open_readers:  # noqa: ASYNC110 - the fake has no event
                    await trio.sleep(0.01)
            os.kill(process.pid, number)
            with trio.fail_after(30):
                assert await process.wait() == 130
        assert daemon.fake.builds[build_id].status is Status.CANCELLED


@pytest.mark.parametrize("option", ["--tag", "--target", "--file", "--cache-scope"])
async def test_an_empty_option_is_a_mistake(daemon: Daemon, context_dir: Path, option: str) -> None:
    result = await daemon.run_ctl("build", option, "", str(context_dir))
    assert (result.code, result.out) == (2, "")
    assert result.err == f"hypeman-ctl: {option} is empty; name something, or leave it out\n"
    assert not daemon.fake.builds


async def test_a_key_that_no_header_can_hold_is_refused(daemon: Daemon, context_dir: Path) -> None:
    for key in ("", "a\nb", "ü"):
        result = await daemon.run_ctl("build", "--idempotency-key", key, str(context_dir))
        assert result.code == 2
        assert result.err.startswith("hypeman-ctl: --idempotency-key must be printable")


def test_what_an_archive_is_shows_also_if_it_comes_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tar", mode="w") as tar:
        tar.addfile(tarfile.TarInfo("Dockerfile"))
    read = os.read
    monkeypatch.setattr(os, "read", lambda fd, most: read(fd, min(most, 100)))
    planned = plan_source_sync(str(tmp_path / "a.tar"), None)
    assert isinstance(planned, StreamSource)
    os.close(planned.fd)
    assert len(planned.first) == 512


async def test_without_a_dockerfile_the_option_for_it_is_named(
    daemon: Daemon, context_dir: Path
) -> None:
    (context_dir / "Dockerfile").unlink()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(context_dir, ".")
    result = await daemon.run_ctl("build", "-", stdin=archive.getvalue())
    assert (result.code, result.err) == (
        2,
        "hypeman-ctl: the source has no Dockerfile\n  name another file with --file\n",
    )
    empty = await daemon.run_ctl("build", "--file", "-", str(context_dir))
    assert (empty.code, empty.err) == (
        2, "hypeman-ctl: standard input is empty; send a Dockerfile through it\n",
    )  # fmt: skip
