"""A build's way out: the proxy of the host, and nothing else."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bases import debian_mirror
from tests.e2e.daemon import EGRESS_ADDRESS, EGRESS_PORT, Daemon
from tests.e2e.image import pull

HERE = f"{EGRESS_ADDRESS}:{EGRESS_PORT}"
# apt's own downloader: it takes the proxy from the environment, as every program of the field does.
DOWNLOAD = "/usr/lib/apt/apt-helper download-file"
# BuildKit, like every Go program, asks no proxy for loopback addresses; git does.
FETCH = f"""
FROM debian:bookworm
ARG MIRROR
ADD http://$MIRROR/debian/dists/bookworm/Release /added
ADD http://{HERE}/repository.git#main /cloned
RUN {DOWNLOAD} http://{HERE}/hello /fetched
RUN {DOWNLOAD} http://example.net/hello /denied || echo went on
"""
# The lists go, because packing them into a layer takes longer than all the rest.
INSTALL = (
    "RUN apt-get update && apt-get install -y hello && hello > /said"
    " && rm -rf /var/lib/apt/lists /var/cache/apt\n"
)


class _Hello(BaseHTTPRequestHandler):
    """Says hello under every path but those of a git repository, which git itself serves."""

    repositories: Path

    def do_GET(self) -> None:
        if self.path.startswith("/repository.git/"):
            self._git(b"")
            return
        body = f"hello from {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self._git(self.rfile.read(int(self.headers["Content-Length"])))

    def _git(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            capture_output=True,
            check=True,
            env={
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(self.repositories),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            },
        )
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        self.wfile.write(b"HTTP/1.0 200 OK\r\n" + head + b"\r\n\r\n" + answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def decisions(daemon: Daemon, build_id: str, host: str) -> list[dict[str, Any]]:
    """Return what the build's events tell of its requests to a host."""
    told = [event["egress"] for event in daemon.follow(build_id) if event["type"] == "egress"]
    return [each for each in told if each["host"] == host]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HTTPServer]:
    _Hello.repositories = tmp_path
    make_repository(tmp_path / "repository.git")
    with ThreadingHTTPServer((EGRESS_ADDRESS, EGRESS_PORT), _Hello) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def make_repository(path: Path) -> None:
    """Make a bare repository whose branch `main` holds one file."""
    who = {
        f"GIT_{role}_{part}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", "n"), ("EMAIL", "e@example.org"))
    }
    git = ["git", f"--git-dir={path}"]

    def run(*arguments: str, given: str = "") -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(path.parent), **who}
        return subprocess.run(
            [*git, *arguments], input=given, env=env, capture_output=True, text=True, check=True
        ).stdout.strip()

    run("init", "--bare", "--quiet")
    blob = run("hash-object", "-w", "--stdin", given="from git\n")
    tree = run("mktree", given=f"100644 blob {blob}\tfile\n")
    run("update-ref", "refs/heads/main", run("commit-tree", "-m", "first", tree))


@pytest.mark.usefixtures("server")
def test_build_reaches_what_is_allowed_and_nothing_else_and_is_told_of_both(
    daemon: Daemon, tmp_path: Path
) -> None:
    mirror = debian_mirror()
    build = daemon.build_image(
        {"Dockerfile": FETCH + INSTALL},
        build_args={"MIRROR": mirror},
        allowed_domains=[EGRESS_ADDRESS, mirror],
    )
    image = pull(daemon, build["image_ref"], tmp_path)
    assert image.read("fetched") == b"hello from /hello\n"
    assert b"Codename: bookworm" in image.read("added")
    assert image.read("cloned/file") == b"from git\n"
    assert image.read("said") == b"Hello, world!\n"
    assert "denied" not in image.files

    allowed = decisions(daemon, build["id"], EGRESS_ADDRESS) + decisions(
        daemon, build["id"], mirror
    )
    assert {each["allowed"] for each in allowed} == {True}
    # The package lists of a distribution are megabytes.
    assert sum(each["bytes_received"] for each in allowed) > 1 << 20
    denied = decisions(daemon, build["id"], "example.net")
    assert {each["allowed"] for each in denied} == {False}
    log = daemon.log(build["id"])
    assert "[egress] denied example.net:80: it is not in allowed_domains" in log
    assert f"[egress] denied {mirror}" not in log
    assert "went on" in log


def test_packages_of_a_mirror_that_is_not_allowed_are_not_installed(daemon: Daemon) -> None:
    build = daemon.build(
        {"Dockerfile": f"FROM debian:bookworm\n{INSTALL}"}, allowed_domains=["packages.example.org"]
    )
    assert build["error_code"] == "build_failed"
    assert "apt-get install -y hello" in build["error"]
    denied = f"[egress] denied {debian_mirror()}:80: it is not in allowed_domains"
    assert denied in daemon.log(build["id"])
    told = decisions(daemon, build["id"], debian_mirror())
    assert {each["allowed"] for each in told} == {False}


def test_what_buildkit_fetches_itself_obeys_the_same_policy(daemon: Daemon) -> None:
    fetches = {
        "files.example.net": "FROM busybox\nADD https://files.example.net/x /x\n",
        "git.example.net": "FROM busybox\nADD https://git.example.net/x.git#main /x\n",
        "images.example.net": "FROM images.example.net/x:1\nRUN true\n",
    }
    builds = {
        host: daemon.submit({"Dockerfile": text}, allowed_domains=["packages.example.org"])["id"]
        for host, text in fetches.items()
    }
    for host, build_id in builds.items():
        assert daemon.wait(build_id)["status"] == "failed"
        assert {each["allowed"] for each in decisions(daemon, build_id, host)} == {False}
        assert f"[egress] denied {host}:443: it is not in allowed_domains" in daemon.log(build_id)


@pytest.mark.usefixtures("server")
def test_isolated_build_has_no_way_out_at_all(daemon: Daemon) -> None:
    build = daemon.build(
        {"Dockerfile": f"FROM debian:bookworm\nRUN {DOWNLOAD} http://{HERE}/hello /fetched\n"},
        network_mode="isolated",
    )
    assert build["error_code"] == "build_failed"
    assert "[egress]" not in daemon.log(build["id"])
