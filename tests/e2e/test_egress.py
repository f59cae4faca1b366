"""A build's way out: the proxy of the host, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bases import debian_mirror
from tests.e2e.daemon import EGRESS_ADDRESS, EGRESS_PORT, Daemon
from tests.e2e.image import pull
from tests.e2e.servers import IMAGE, TLS_NAME, TLS_PORT, serving

HERE = f"{EGRESS_ADDRESS}:{EGRESS_PORT}"
BY_TLS = f"{TLS_NAME}:{TLS_PORT}"
# apt's own downloader: it takes the proxy from the environment, as every program of the field does.
DOWNLOAD = "/usr/lib/apt/apt-helper download-file"
# BuildKit, like every Go program, asks no proxy for loopback addresses; git does.
FETCH = f"""
FROM {BY_TLS}/{IMAGE}:1 AS pulled
FROM debian:bookworm
ARG MIRROR
ADD http://$MIRROR/debian/dists/bookworm/Release /added
ADD http://{HERE}/repository.git#main /cloned
ADD https://{BY_TLS}/hello /added-by-tls
ADD https://{BY_TLS}/repository.git#main /cloned-by-tls
COPY --from=pulled /bin/busybox /pulled
RUN {DOWNLOAD} http://{HERE}/hello /fetched && \
    ({DOWNLOAD} http://example.net/hello /denied || echo went o''n) && \
    . /etc/os-release && echo $VERSION_CODENAME > /codename && dpkg --version > /dpkg
"""
# One suite is enough, and has megabytes of lists. They go again, because packing them into a layer
# takes longer than all the rest.
INSTALL = (
    "RUN sed -i '/ bookworm main/!d' $(find /etc/apt -name '*.list')"
    " && apt-get update && apt-get install -y hello && hello > /said"
    " && rm -rf /var/lib/apt/lists /var/cache/apt\n"
)


def decisions(daemon: Daemon, build_id: str, host: str) -> list[dict[str, Any]]:
    """Return what the build's events tell of its requests to a host."""
    told = [event["egress"] for event in daemon.follow(build_id) if event["type"] == "egress"]
    return [each for each in told if each["host"] == host]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[None]:
    where = socket.gethostbyname(TLS_NAME)
    with (
        serving(EGRESS_ADDRESS, EGRESS_PORT, tmp_path),
        serving(where, TLS_PORT, tmp_path, by_tls=True),
    ):
        yield


@pytest.mark.usefixtures("servers")
def test_build_reaches_what_is_allowed_and_nothing_else_and_is_told_of_both(
    daemon: Daemon, tmp_path: Path
) -> None:
    mirror = debian_mirror()
    build = daemon.build_image(
        {"Dockerfile": FETCH + INSTALL},
        build_args={"MIRROR": mirror},
        allowed_domains=[EGRESS_ADDRESS, mirror, TLS_NAME],
    )
    image = pull(daemon, build["image_ref"], tmp_path)
    assert image.read("fetched") == b"hello from /hello\n"
    assert b"Codename: bookworm" in image.read("added")
    assert image.read("cloned/file") == b"from git\n"
    assert image.read("added-by-tls") == b"hello from /hello\n"
    assert image.read("cloned-by-tls/file") == b"from git\n"
    assert image.read("pulled").startswith(b"\x7fELF")
    assert image.read("said") == b"Hello, world!\n"
    assert "denied" not in image.files
    assert image.read("codename") == b"bookworm\n"
    assert b"dpkg" in image.read("dpkg")

    # The image, the file, and what git asks for: each in a tunnel that was judged by its name.
    tunnels = decisions(daemon, build["id"], TLS_NAME)
    assert {(each["allowed"], each["port"]) for each in tunnels} == {(True, TLS_PORT)}
    assert len(tunnels) >= 3
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
        "files.example.net": "FROM scratch\nADD https://files.example.net/x /x\n",
        "git.example.net": "FROM scratch\nADD https://git.example.net/x.git#main /x\n",
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
