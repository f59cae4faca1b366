"""A build's way out: the proxy of the host, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.e2e.daemon import EGRESS_ADDRESS, EGRESS_PORT, Daemon
from tests.e2e.image import pull

HERE = f"{EGRESS_ADDRESS}:{EGRESS_PORT}"
# apt's own downloader: it takes the proxy from the environment, as every program of the field does.
FETCH = f"""
FROM debian:bookworm
RUN /usr/lib/apt/apt-helper download-file http://{HERE}/hello /fetched
RUN /usr/lib/apt/apt-helper download-file http://example.net/hello /denied || echo went on
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
def test_step_reaches_what_is_allowed_and_nothing_else_and_the_log_tells(
    daemon: Daemon, tmp_path: Path
) -> None:
    build = daemon.build_image({"Dockerfile": FETCH}, allowed_domains=[EGRESS_ADDRESS])
    image = pull(daemon, build["image_ref"], tmp_path)
    assert image.read("fetched") == b"hello from /hello\n"
    assert "denied" not in image.files
    log = daemon.log(build["id"])
    assert f"[egress] allowed {HERE}: " in log
    assert "[egress] denied example.net:80: " in log
    assert "went on" in log


@pytest.mark.usefixtures("server")
def test_isolated_build_has_no_way_out_at_all(daemon: Daemon) -> None:
    build = daemon.build({"Dockerfile": FETCH}, network_mode="isolated")
    assert build["error_code"] == "build_failed"
    assert "[egress]" not in daemon.log(build["id"])
