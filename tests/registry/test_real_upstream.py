"""The mirror before a registry that others wrote, pulled from by a client that others wrote."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from supervisor.model.upstream import Upstream
from supervisor.registry.credentials import Credentials
from supervisor.registry.media import DOCKER_MANIFEST
from supervisor.registry.mirror import MirrorConfig
from tests.registry.clients import Skopeo
from tests.registry.images import Image, digest_of, image, index, write_layout
from tests.registry.mirroring import NAME
from tests.registry.real_registry import open_real_registry
from tests.registry.serve import Served, api_token, serve_registry
from tests.registry.upstream import PASSWORD, open_upstream, token_service

ONE = image({"a": b"1" * 2_000_000}, {"b": b"2"})
TWO = image({"a": b"x"}, architecture="arm64")
BOTH = index({"amd64": ONE, "arm64": TWO})


@asynccontextmanager
async def mirror_of(tmp_path: Path, url: str, credentials: Credentials) -> AsyncIterator[Served]:
    config = MirrorConfig(
        upstreams=(Upstream(NAME, url),), credentials=credentials, tag_ttl=0.0, timeout=30.0
    )
    async with serve_registry(tmp_path / "data", mirror=config) as served:
        yield served


async def seed(tmp_path: Path, address: str, **images: Image) -> Path:
    """Push images to the upstream; return their layout."""
    layout = write_layout(tmp_path / f"layout-{secrets.token_hex(4)}", images)
    skopeo = Skopeo(layout / "skopeo", address, None)
    for name in images:
        await skopeo.ok("copy", "--all", f"oci:{layout}:{name}", skopeo.name(f"acme/app:{name}"))
    return layout


async def pull(skopeo: Skopeo, tag: str, target: Path) -> str:
    """Pull an image through the mirror; return its digest."""
    remote = skopeo.name(f"mirror/{NAME}/acme/app:{tag}")
    await skopeo.ok("copy", "--all", remote, f"oci:{target}:{tag}")
    (entry,) = json.loads((target / "index.json").read_text())["manifests"]
    digest: str = entry["digest"]
    return digest


async def test_an_image_is_pulled_through_confirmed_and_kept(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with open_real_registry(tmp_path / "upstream") as address:
            layout = await seed(tmp_path, address, one=ONE, both=BOTH)
            async with mirror_of(tmp_path, f"http://{address}", Credentials()) as served:
                skopeo = Skopeo(tmp_path / "skopeo", served.address, api_token())
                assert await pull(skopeo, "both", tmp_path / "back") == BOTH.digest
                for blob in (tmp_path / "back/blobs/sha256").iterdir():
                    assert blob.read_bytes() == (layout / "blobs/sha256" / blob.name).read_bytes()
                # The tag moves there, and so it does here.
                await seed(tmp_path, address, both=TWO)
                assert await pull(skopeo, "both", tmp_path / "moved") == TWO.digest
                absent = await skopeo("inspect", skopeo.name(f"mirror/{NAME}/acme/app:absent"))
                assert b"manifest unknown" in absent.stderr


async def test_what_was_pulled_stays_when_the_upstream_goes(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with open_upstream() as front, open_real_registry(tmp_path / "upstream") as address:
            front.behind = address
            await seed(tmp_path, address, one=ONE)
            async with mirror_of(tmp_path, front.url, Credentials()) as served:
                skopeo = Skopeo(tmp_path / "skopeo", served.address, api_token())
                assert await pull(skopeo, "one", tmp_path / "first") == ONE.digest
                await front.stop()
                assert await pull(skopeo, "one", tmp_path / "second") == ONE.digest


async def test_a_registry_behind_tokens_is_pulled_from(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with open_upstream() as front, open_real_registry(tmp_path / "upstream") as address:
            front.behind = address
            token_service(front)
            await seed(tmp_path, address, one=ONE)
            credentials = Credentials({front.address: PASSWORD})
            async with mirror_of(tmp_path, front.url, credentials) as served:
                skopeo = Skopeo(tmp_path / "skopeo", served.address, api_token())
                assert await pull(skopeo, "one", tmp_path / "back") == ONE.digest
                (asked,) = [item for item in front.seen if item.path == "/token"]
                assert asked.headers["authorization"] == f"Basic {PASSWORD}"


async def test_docker_schema_2_is_passed_on_as_it_is(tmp_path: Path) -> None:
    with trio.fail_after(120):
        async with open_real_registry(tmp_path / "upstream") as address:
            layout = write_layout(tmp_path / "layout", {"one": ONE})
            there = Skopeo(tmp_path / "there", address, None)
            await there.ok(
                "copy", "--format", "v2s2", f"oci:{layout}:one", there.name("acme/app:one")
            )
            original = await there.ok("inspect", "--raw", there.name("acme/app:one"))
            async with mirror_of(tmp_path, f"http://{address}", Credentials()) as served:
                here = Skopeo(tmp_path / "here", served.address, api_token())
                name = here.name(f"mirror/{NAME}/acme/app@{digest_of(original)}")
                mirrored = await here.ok("inspect", "--raw", name)
    assert mirrored == original
    assert json.loads(mirrored)["mediaType"] == DOCKER_MANIFEST
