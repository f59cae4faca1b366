"""A build without any network: the mirror and the registry are all there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from agent import wire
from tests.e2e.daemon import BASES_DIR, EGRESS_ADDRESS, EGRESS_PORT, Daemon
from tests.e2e.image import pull
from tests.e2e.servers import serving
from tests.registry.clients import Skopeo
from tests.registry.real_registry import open_real_registry

HERE = f"{EGRESS_ADDRESS}:{EGRESS_PORT}"
# An image that only an upstream registry has, named as usual.
BASE = "upstream-only:1"
SEEDED = "mirror/docker.io/library/busybox:latest"
ASK = f"printf 'GET http://{HERE}/hello HTTP/1.0\\r\\n\\r\\n' | nc -w 20 10.102.0.1"
DOCKERFILE = f"""
FROM {BASE}
RUN {ASK} 8083; {ASK} {wire.EGRESS_PORT} || echo no-''proxy
RUN echo made > /made
"""


async def test_isolated_build_gets_its_base_from_an_upstream_and_has_no_way_out_at_all(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("hm")  # short: sockets lie below it
    async with open_real_registry(tmp_path / "upstream") as address:
        skopeo = Skopeo(tmp_path / "skopeo", address, None)
        await skopeo.ok(
            "copy", f"oci:{BASES_DIR / 'busybox'}:{SEEDED}", skopeo.name(f"library/{BASE}")
        )
        with serving(EGRESS_ADDRESS, EGRESS_PORT, tmp_path):
            await trio.to_thread.run_sync(build_from, address, root, tmp_path)


def build_from(address: str, root: Path, work: Path) -> None:
    settings = {"MIRRORS": f"docker.io=http://{address}", "SEED_IMAGES_DIR": "", "POOL_SIZE": "0"}
    daemon = Daemon(root, settings)
    daemon.start()
    try:
        # Both at once: the second has little to do.
        missing = daemon.submit({"Dockerfile": "FROM nobody-has:1\n"}, network_mode="isolated")
        build = daemon.build_image({"Dockerfile": DOCKERFILE}, network_mode="isolated")
        assert pull(daemon, build["image_ref"], work).read("made") == b"made\n"
        log = daemon.log(build["id"])
        assert "HTTP/1.1 4" in log, "the registry refuses it, so nc works"
        assert "no-proxy" in log
        assert "hello from" not in log
        assert "[egress]" not in log
        assert daemon.wait(missing["id"])["error_code"] == "base_image_not_found"
        daemon.wait_clean(10)
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log_tail()
    assert "mirror.fetched" in daemon.log_file.read_text()
