"""An image that only an upstream registry has, named as usual, in a guest without any network."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.e2e.daemon import BASES_DIR, Daemon
from tests.e2e.image import pull
from tests.registry.clients import Skopeo
from tests.registry.real_registry import open_real_registry

DOCKERFILE = "FROM upstream-only:1\nRUN echo made > /made\n"
SEEDED = "mirror/docker.io/library/busybox:latest"


async def test_an_isolated_build_gets_its_base_from_an_upstream(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("hm")  # short: sockets lie below it
    async with open_real_registry(tmp_path / "upstream") as address:
        skopeo = Skopeo(tmp_path / "skopeo", address, None)
        target = skopeo.name("library/upstream-only:1")
        await skopeo.ok("copy", f"oci:{BASES_DIR / 'busybox'}:{SEEDED}", target)
        await trio.to_thread.run_sync(build_from, address, root, tmp_path)


def build_from(address: str, root: Path, work: Path) -> None:
    settings = {"MIRRORS": f"docker.io=http://{address}", "SEED_IMAGES_DIR": "", "POOL_SIZE": "0"}
    daemon = Daemon(root, settings)
    daemon.start()
    try:
        build = daemon.build_image({"Dockerfile": DOCKERFILE}, network_mode="isolated")
        assert pull(daemon, build["image_ref"], work).read("made") == b"made\n"
        missing = daemon.build({"Dockerfile": "FROM nobody-has:1\n"}, network_mode="isolated")
        assert missing["error_code"] == "base_image_not_found"
        daemon.wait_clean(10)
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log_tail()
    assert "mirror.fetched" in daemon.log_file.read_text()
