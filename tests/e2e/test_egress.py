"""A build's way out: the proxy of the host, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.e2e.daemon import EGRESS_ADDRESS, EGRESS_PORT, Daemon
from tests.e2e.image import pull

FETCH = f"""
FROM busybox
RUN wget -T 60 -O /fetched http://{EGRESS_ADDRESS}:{EGRESS_PORT}/hello
"""


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello from {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer((EGRESS_ADDRESS, EGRESS_PORT), _Hello) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.usefixtures("server")
def test_step_reaches_what_its_policy_allows_and_the_log_tells(
    daemon: Daemon, tmp_path: Path
) -> None:
    build = daemon.build_image({"Dockerfile": FETCH}, allowed_domains=[EGRESS_ADDRESS])
    assert pull(daemon, build["image_ref"], tmp_path).read("fetched") == b"hello from /hello\n"
    assert f"[egress] allowed {EGRESS_ADDRESS}:{EGRESS_PORT}" in daemon.log(build["id"])


@pytest.mark.usefixtures("server")
def test_step_is_denied_what_is_not_in_its_list_and_the_log_tells(daemon: Daemon) -> None:
    build = daemon.build({"Dockerfile": FETCH}, allowed_domains=["*.example.org"])
    assert build["error_code"] == "build_failed"
    assert f"[egress] denied {EGRESS_ADDRESS}:{EGRESS_PORT}" in daemon.log(build["id"])


@pytest.mark.usefixtures("server")
def test_isolated_build_has_no_way_out_at_all(daemon: Daemon) -> None:
    build = daemon.build({"Dockerfile": FETCH}, network_mode="isolated")
    assert build["error_code"] == "build_failed"
    assert "[egress]" not in daemon.log(build["id"])
