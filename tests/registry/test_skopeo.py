"""skopeo against the registry over HTTP on loopback: a client that others wrote."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from supervisor.model.ids import Tenant
from supervisor.registry.media import DOCKER_MANIFEST
from tests.registry.clients import Skopeo
from tests.registry.images import digest_of, image, write_layout
from tests.registry.serve import Served, admin_token, api_token, serve_registry

ONE = image({"a": os.urandom(3_000_000)}, {"b": b"2"}, {"c": b"3"})


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    with trio.fail_after(120):
        async with serve_registry(tmp_path / "data") as registry:
            yield registry


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "layout", {"one": ONE})


@pytest.fixture
def skopeo(served: Served, tmp_path: Path) -> Skopeo:
    return Skopeo(tmp_path / "skopeo", served.address, api_token())


async def test_skopeo_lists_inspects_and_deletes(skopeo: Skopeo, layout: Path) -> None:
    for tag in ("1", "latest"):
        await skopeo.ok("copy", f"oci:{layout}:one", skopeo.name(f"acme/app:{tag}"))
    listed = json.loads(await skopeo.ok("list-tags", skopeo.name("acme/app")))
    assert listed["Tags"] == ["1", "latest"]
    inspected = json.loads(await skopeo.ok("inspect", skopeo.name("acme/app:1")))
    assert inspected["Digest"] == ONE.digest
    assert inspected["Layers"] == [digest_of(content) for content in ONE.blobs[1:]]
    await skopeo.ok("delete", skopeo.name("acme/app:1"))
    done = await skopeo("inspect", skopeo.name("acme/app:latest"))
    assert done.returncode != 0
    assert b"manifest unknown" in done.stderr


async def test_docker_schema_2_keeps_its_form(skopeo: Skopeo, layout: Path) -> None:
    remote = skopeo.name("acme/app:1")
    await skopeo.ok("copy", "--format", "v2s2", f"oci:{layout}:one", remote)
    manifest = json.loads(await skopeo.ok("inspect", "--raw", remote))
    assert manifest["mediaType"] == DOCKER_MANIFEST


async def test_strangers_see_nothing(
    skopeo: Skopeo, served: Served, layout: Path, tmp_path: Path
) -> None:
    remote = skopeo.name("acme/app:1")
    await skopeo.ok("copy", f"oci:{layout}:one", remote)
    stranger = Skopeo(tmp_path / "stranger", served.address, api_token(Tenant("evil")))
    done = await stranger("inspect", remote)
    assert b"name unknown" in done.stderr
    done = await stranger("copy", f"oci:{layout}:one", remote)
    assert done.returncode != 0
    nobody = Skopeo(tmp_path / "nobody", served.address, None)
    assert (await nobody("inspect", remote)).returncode != 0
    admin = Skopeo(tmp_path / "admin", served.address, admin_token())
    await admin.ok("inspect", remote)
    await admin.ok("copy", remote, admin.name("base/app:1"))
    await stranger.ok("inspect", skopeo.name("base/app:1"))
