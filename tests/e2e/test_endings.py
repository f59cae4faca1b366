"""How builds end when they do not succeed, and what is left of them: nothing."""

from __future__ import annotations

from tests.e2e.daemon import Daemon

SLEEP = "FROM busybox\nRUN echo asleep && sleep 600\n"


def test_failing_run_names_step_command_exit_code_and_last_lines(daemon: Daemon) -> None:
    build = daemon.build(
        {"Dockerfile": "FROM busybox\nRUN echo the last words; (exit 42)\nRUN echo n''ever\n"}
    )
    assert build["status"] == "failed"
    assert build["error_code"] == "build_failed"
    assert "echo the last words; (exit 42)" in build["error"]
    assert "42" in build["error"]
    assert "the last words" in build["error"].split("exit 42)", 1)[1]
    assert {"queue", "lease", "boot", "source", "build"} <= build["phases"].keys()
    assert "never" not in daemon.log(build["id"])


def test_missing_dockerfile_is_refused_before_anything_boots(daemon: Daemon) -> None:
    answer = daemon.post({"readme.txt": "no Dockerfile here"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "dockerfile_required"
    assert daemon.leftovers() == []


def test_nobody_else_on_the_host_can_read_what_is_stored(daemon: Daemon) -> None:
    daemon.data_dir.chmod(0o755)  # as a service manager may have made it
    build = daemon.build({"Dockerfile": "FROM scratch\n"}, secrets=[{"id": "no_such_secret"}])
    assert build["error_code"] == "secret_not_found", "its files are there without a machine's time"
    for path in daemon.data_dir.rglob("*"):
        assert path.is_symlink() or path.stat().st_mode & 0o007 == 0, path


def test_dockerfile_that_does_not_parse(daemon: Daemon) -> None:
    build = daemon.build({"Dockerfile": "FROM busybox\nFROBNICATE everything\n"})
    assert build["error_code"] == "dockerfile_invalid"
    assert "FROBNICATE" in build["error"]


def test_base_image_that_does_not_exist(daemon: Daemon) -> None:
    build = daemon.build({"Dockerfile": "FROM busybox:no-such-tag\n"})
    assert build["error_code"] == "base_image_not_found"
    assert "no-such-tag" in build["error"]


def test_cancel_of_a_running_step_leaves_nothing_within_five_seconds(daemon: Daemon) -> None:
    build_id = daemon.submit({"Dockerfile": SLEEP})["id"]
    daemon.wait_for(build_id, "asleep")
    assert any("qemu" in command for command in daemon.descendants().values())
    with daemon.client() as client:
        assert client.delete(f"/builds/{build_id}").status_code == 204
    daemon.wait_clean(5)
    build = daemon.wait(build_id)
    assert build["status"] == "cancelled"
    assert build["error_code"] == "cancelled"
    with daemon.client() as client:
        assert client.delete(f"/builds/{build_id}").status_code == 409


def test_timeout_ends_the_build_and_its_machine(daemon: Daemon) -> None:
    build = daemon.build({"Dockerfile": SLEEP}, timeout_seconds=20)
    assert build["status"] == "failed"
    assert build["error_code"] == "build_timeout"
    assert "20 s" in build["error"]
    daemon.wait_clean(5)
