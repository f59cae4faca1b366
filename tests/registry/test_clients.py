"""Clients that others wrote against the registry, with tokens, over HTTP on loopback.

Each client with each kind of manifest; what a second push sends; mounts; what is one client's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import trio

from supervisor.tokens import Permission
from tests.registry.carriers import CLIENTS, KINDS, MOUNTING, open_carrier
from tests.registry.client import Client
from tests.registry.clients import Buildah, Oras, Skopeo, Umoci
from tests.registry.held import read_held
from tests.registry.images import image, index, write_layout
from tests.registry.serve import Served, api_token, serve_registry

ONE = image({"a": os.urandom(300_000)}, {"b": b"2"}, {"c": b"3"})
TWO = image({"a": b"x"}, architecture="arm64")
BOTH = index({"amd64": ONE, "arm64": TWO})
IMAGES = {"one": ONE, "both": BOTH}

Requests = list[tuple[str, str]]


@pytest.fixture
def seen() -> Requests:
    """Every request that the registry got."""
    return []


@pytest.fixture
async def served(tmp_path: Path, seen: Requests) -> AsyncIterator[Served]:
    with trio.fail_after(120):
        async with serve_registry(tmp_path / "data", seen=seen) as registry:
            yield registry


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "layout", IMAGES)


@pytest.fixture
def skopeo(served: Served, tmp_path: Path) -> Skopeo:
    return Skopeo(tmp_path / "skopeo", served.address, api_token())


@pytest.fixture
def buildah(served: Served, tmp_path: Path) -> Buildah:
    return Buildah(tmp_path / "buildah", served.address, api_token())


@pytest.fixture
def oras(served: Served, tmp_path: Path) -> Oras:
    return Oras(tmp_path / "oras", served.address, api_token())


def uploads(seen: Requests) -> Requests:
    """Return the method and the query of all requests that begin or carry an upload."""
    split = [(method, *target.split("?")) for method, target in seen]
    return [(method, query) for method, path, query in split if "/blobs/uploads" in path]


def uploaded(seen: Requests) -> list[dict[str, list[str]]]:
    """Return the queries of all requests that end an upload."""
    return [parse_qs(query) for method, query in uploads(seen) if method == "PUT"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_what_a_client_pushes_it_pushes_once_and_pulls_again(
    client: str, kind: str, served: Served, tmp_path: Path, seen: Requests
) -> None:
    tag, address = f"acme/{kind}:1", served.address
    async with open_carrier(client, tmp_path / "pusher", address, api_token()) as pusher:
        digest = await pusher.push(kind, tag)
        held = await read_held(Client(served.app, api_token()), f"acme/{kind}", "1")
        assert held.digest == digest
        assert {query["digest"][0] for query in uploaded(seen)} == set(held.blobs)
        seen.clear()
        assert await pusher.push(kind, tag) == digest
        assert seen
        assert not uploads(seen)
    seen.clear()
    may_read = api_token(permissions=frozenset({Permission.IMAGE_READ}))
    async with open_carrier(client, tmp_path / "puller", address, may_read) as puller:
        assert await puller.pull(kind, tag) == puller.seen_of(kind, held)
    # From here and from nowhere else: nothing is left out, and nothing is made again.
    got = {target.strip("?").rpartition("/")[2] for method, target in seen if method == "GET"}
    assert set(held.everything) <= {digest, *got}


@pytest.mark.parametrize("client", MOUNTING)
async def test_layers_of_another_repository_are_mounted(
    client: str, served: Served, tmp_path: Path, seen: Requests
) -> None:
    async with open_carrier(client, tmp_path / "home", served.address, api_token()) as carrier:
        await carrier.push("image", "acme/app:1")
        seen.clear()
        await carrier.push_also("acme/app:1", "acme/other:1")
    held = await read_held(Client(served.app, api_token()), "acme/other", "1")
    began = [parse_qs(query) for method, query in uploads(seen) if method == "POST"]
    assert len(held.layers) == 3
    for layer in held.layers:
        assert {"from": ["acme/app"], "mount": [layer]} in began
    # Whether the configuration is mounted too is the client's choice.
    assert {query["digest"][0] for query in uploaded(seen)} <= set(held.configs)


async def test_what_buildah_pulls_changes_and_pushes(
    buildah: Buildah, skopeo: Skopeo, served: Served, layout: Path, tmp_path: Path, seen: Requests
) -> None:
    await skopeo.ok("copy", "--all", f"oci:{layout}:both", skopeo.name("acme/both:1"))
    pulled = await buildah.remote("pull", buildah.name("acme/both:1"))
    (tmp_path / "new").write_text("new")
    container = (await buildah.ok("from", pulled.decode().strip())).decode().strip()
    await buildah.ok("copy", container, str(tmp_path / "new"), "/new")
    await buildah.ok("commit", "--format", "oci", container, "changed")
    digest_file = tmp_path / "digest"
    push = ("push", "--digestfile", str(digest_file), "changed", buildah.name("acme/changed:1"))
    await buildah.remote(*push)
    assert await served.handle.holds_image("acme/changed", digest_file.read_text())
    seen.clear()
    await buildah.remote(*push)
    assert seen
    assert not uploads(seen)


async def test_what_buildah_pushes_as_a_list_it_pulls_again(
    buildah: Buildah, skopeo: Skopeo, served: Served, layout: Path, tmp_path: Path
) -> None:
    await skopeo.ok("copy", f"oci:{layout}:one", skopeo.name("acme/one:1"))
    await skopeo.ok("copy", "--all", f"oci:{layout}:both", skopeo.name("acme/both:1"))
    await buildah.ok("manifest", "create", "list")
    await buildah.remote("manifest add", "--all", "list", buildah.name("acme/both:1"))
    await buildah.remote("manifest push", "--all", "list", buildah.name("acme/list:1"))
    shown = json.loads(await skopeo.ok("inspect", "--raw", skopeo.name("acme/list:1")))
    assert [item["digest"] for item in shown["manifests"]] == [ONE.digest, TWO.digest]
    pulled = await buildah.remote("pull", buildah.name("acme/list:1"))
    container = (await buildah.ok("from", pulled.decode().strip())).decode().strip()
    mounted = Path((await buildah.ok("mount", container)).decode().strip())
    assert (mounted / "b").read_bytes() == b"2"
    await buildah.ok("umount", container)


async def test_what_umoci_makes_of_a_pulled_image_is_pushed_and_pulled(
    skopeo: Skopeo, served: Served, layout: Path, tmp_path: Path, seen: Requests
) -> None:
    await skopeo.ok("copy", f"oci:{layout}:one", skopeo.name("acme/app:1"))
    work = tmp_path / "work"
    await skopeo.ok("copy", skopeo.name("acme/app:1"), f"oci:{work}:app")
    umoci = Umoci(tmp_path / "umoci", served.address, None)
    (tmp_path / "new").write_text("new")
    image_name = f"{work}:app"
    await umoci.ok("insert", "--rootless", "--image", image_name, str(tmp_path / "new"), "/new")
    seen.clear()
    await skopeo.ok("copy", f"oci:{work}:app", skopeo.name("acme/app:2"))
    assert len([item for item in uploads(seen) if item[0] == "POST"]) == 2  # a layer, a config
    await skopeo.ok("copy", skopeo.name("acme/app:2"), f"oci:{tmp_path / 'back'}:app")
    bundle = tmp_path / "bundle"
    await umoci.ok("unpack", "--rootless", "--image", f"{tmp_path / 'back'}:app", str(bundle))
    assert (bundle / "rootfs/new").read_text() == "new"
    assert (bundle / "rootfs/c").read_bytes() == b"3"


async def test_an_artifact_of_oras_comes_back(
    oras: Oras, served: Served, tmp_path: Path, seen: Requests
) -> None:
    work, back = tmp_path / "work", tmp_path / "back"
    work.mkdir()
    back.mkdir()
    (work / "big").write_bytes(os.urandom(500_000))
    (work / "small").write_text("hello")
    await oras.ok("push", "acme/artifact:1", "big", "small", cwd=work)
    names = (await oras.ok("pull", "acme/artifact:1", cwd=back)).decode().split()
    assert sorted(names) == ["big", "small"]
    for name in names:
        assert (back / name).read_bytes() == (work / name).read_bytes()
    seen.clear()
    await oras.ok("push", "acme/artifact:1", "big", "small", cwd=work)
    assert not uploads(seen)
