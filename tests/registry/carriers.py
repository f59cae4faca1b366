"""Clients that others wrote, each doing the same: push a kind of manifest, and pull it again.

Kinds: an `image` of several layers, a multi-platform `index`, an `artifact`. What each client can
make of a kind, and what can be seen of it when it has pulled it, is said at its class; the table in
docs/registry.md says it to users.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from supervisor.model.oci import Digest
from supervisor.registry.media import OCI_INDEX
from tests.registry.buildkit import PLATFORMS, BuildKit, open_buildkit
from tests.registry.clients import Buildah, Oras, Skopeo, Umoci
from tests.registry.held import Contents, Held, known_digest
from tests.registry.images import (
    Image,
    add_to_layout,
    artifact,
    digest_of,
    image,
    index,
    read_layout,
    write_layout,
)

CLIENTS = ("skopeo", "umoci", "buildah", "oras", "BuildKit")
MOUNTING = ("skopeo", "buildah", "BuildKit")
"""Those that mount. umoci has skopeo do it, and oras for Python never does."""
KINDS = ("image", "index", "artifact")

_IMAGE = image({"a": os.urandom(300_000)}, {"b": b"2"}, {"c": b"3"})
_ARTIFACT = artifact(b"a file", "application/vnd.test.file")
_MADE = {
    "image": _IMAGE,
    "index": index({"amd64": _IMAGE, "arm64": image({"a": b"x"}, architecture="arm64")}),
    "artifact": _ARTIFACT,
}
_LISTED = {**_MADE, "artifact": index({"amd64": _IMAGE, "unknown": _ARTIFACT})}

_COPIED = {name: os.urandom(1000) for name in ("a", "b", "amd64", "arm64")}
_DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY a /a
COPY b /b
COPY $TARGETARCH /c
"""


class Carrier(Protocol):
    """A client with a home and with credentials of its own."""

    async def push(self, kind: str, reference: str) -> Digest:
        """Push the kind; return the digest that the client says. Pushes the same when repeated."""

    async def push_also(self, pushed: str, reference: str) -> None:
        """Push an image that this client has pushed to another repository."""

    async def pull(self, kind: str, reference: str) -> Contents:
        """Pull everything there is at the reference; return what can be seen of it."""

    def seen_of(self, kind: str, held: Held) -> Contents:
        """Return what can be seen of something once it is pulled."""


@asynccontextmanager
async def open_carrier(client: str, home: Path, address: str, token: str) -> AsyncIterator[Carrier]:
    """Have a client ready, with a new directory `home` for all that it keeps."""
    match client:
        case "skopeo":
            yield BySkopeo(Skopeo(home, address, token), _make_by_hand)
        case "umoci":
            yield BySkopeo(Skopeo(home, address, token), _make_with_umoci)
        case "buildah":
            yield ByBuildah(Buildah(home, address, token))
        case "oras":
            yield ByOras(Oras(home, address, token))
        case "BuildKit":
            async with open_buildkit(home, address, token) as buildkit:
                yield ByBuildKit(buildkit)


class BySkopeo:
    """Carries any manifest between layouts and registries, as it is. `make` makes the layout."""

    def __init__(self, skopeo: Skopeo, make: Callable[[Path, str], Awaitable[Path]]) -> None:
        self.skopeo = skopeo
        self.make = make
        self.layout: Path | None = None

    async def push(self, kind: str, reference: str) -> Digest:
        said = self.skopeo.home / "digest"
        self.layout = self.layout or await self.make(self.skopeo.home, kind)
        source, target = f"oci:{self.layout}:{kind}", self.skopeo.name(reference)
        await self.skopeo.ok("copy", "--all", "--digestfile", str(said), source, target)
        return known_digest(said.read_text())

    async def push_also(self, pushed: str, reference: str) -> None:
        await self.skopeo.ok("copy", self.skopeo.name(pushed), self.skopeo.name(reference))

    async def pull(self, kind: str, reference: str) -> Contents:
        back = self.skopeo.home / "back"
        await self.skopeo.ok("copy", "--all", self.skopeo.name(reference), f"oci:{back}:{kind}")
        return read_layout(back)

    def seen_of(self, kind: str, held: Held) -> Contents:
        return held.everything


class ByBuildah:
    """Unpacks an image into its storage and packs it anew; carries lists with all that they list.

    So of an image that it has pulled the configuration is the same, and the layers once they are
    unpacked; of a list everything but the list itself, which it writes in a way of its own. It puts
    no artifact into its storage: it carries one in a list, as builders attach attestations.
    """

    def __init__(self, buildah: Buildah) -> None:
        self.buildah = buildah
        self.made = ""

    async def push(self, kind: str, reference: str) -> Digest:
        said = self.buildah.home / "digest"
        self.made = self.made or await self._make(kind)
        argv = ("--digestfile", str(said), self.made, self.buildah.name(reference))
        if kind == "image":
            await self.buildah.remote("push", *argv)
        else:
            await self.buildah.remote("manifest push", "--all", *argv)
        return known_digest(said.read_text())

    async def push_also(self, pushed: str, reference: str) -> None:
        await self.buildah.remote("push", self.made, self.buildah.name(reference))

    async def pull(self, kind: str, reference: str) -> Contents:
        back = self.buildah.home / "back"
        source, target = self.buildah.name(reference), f"oci:{back}:{kind}"
        if kind == "image":
            pulled = await self.buildah.remote("pull", source)
            await self.buildah.ok("push", pulled.decode().strip(), target)
        else:
            await self.buildah.ok("manifest", "create", "back")
            await self.buildah.remote("manifest add", "--all", "back", source)
            await self.buildah.remote("manifest push", "--all", "back", target)
        contents = read_layout(back)
        [top] = json.loads((back / "index.json").read_text())["manifests"]
        del contents[top["digest"]]
        return _unpacked(contents) if kind == "image" else contents

    def seen_of(self, kind: str, held: Held) -> Contents:
        if kind == "image":
            return {**held.configs, **_unpacked(held.layers)}
        return {digest: data for digest, data in held.everything.items() if digest != held.digest}

    async def _make(self, kind: str) -> str:
        layout = write_layout(self.buildah.home / "layout", {kind: _LISTED[kind]})
        if kind == "image":
            return (await self.buildah.ok("pull", f"oci:{layout}:{kind}")).decode().strip()
        await self.buildah.ok("manifest", "create", "made")
        await self.buildah.ok("manifest", "add", "--all", "made", f"oci:{layout}:{kind}")
        return "made"


class ByOras:
    """Carries any manifest between layouts and a registry, as it is."""

    def __init__(self, oras: Oras) -> None:
        self.oras = oras

    async def push(self, kind: str, reference: str) -> Digest:
        layout = self.oras.home / "layout"
        if not layout.exists():
            write_layout(layout, {kind: _MADE[kind]})
        said = await self.oras.ok("push-layout", reference, kind, cwd=layout)
        return known_digest(said.decode())

    async def push_also(self, pushed: str, reference: str) -> None:
        await self.push("image", reference)

    async def pull(self, kind: str, reference: str) -> Contents:
        back = self.oras.home / "back"
        back.mkdir()
        await self.oras.ok("pull-layout", reference, kind, cwd=back)
        return read_layout(back)

    def seen_of(self, kind: str, held: Held) -> Contents:
        return held.everything


class ByBuildKit:
    """Builds images, for one platform or for several, and pulls them as the base of another build,
    into which their layers go as they are.

    Its artifact is its cache: a manifest with a configuration of its own kind, which nothing else
    reads. A BuildKit that has never built anything fetches the layers of its build from there.
    """

    def __init__(self, buildkit: BuildKit) -> None:
        self.buildkit = buildkit
        self.back = buildkit.home / "back"

    async def push(self, kind: str, reference: str) -> Digest:
        if kind == "artifact":
            log = await self._build(_DOCKERFILE, "--export-cache", self._cache(reference))
            return known_digest(log.partition("writing cache image manifest ")[2].split()[0])
        said = self.buildkit.home / "metadata"
        output = ("--output", self._image(reference), "--metadata-file", str(said))
        await self._build(_DOCKERFILE, *output, platforms=_platforms(kind))
        return known_digest(json.loads(said.read_text())["containerimage.digest"])

    async def push_also(self, pushed: str, reference: str) -> None:
        dockerfile = f"FROM {self.buildkit.address}/{pushed}\n"
        await self._build(dockerfile, "--output", self._image(reference))

    async def pull(self, kind: str, reference: str) -> Contents:
        output = ("--output", f"type=oci,tar=false,dest={self.back}")
        if kind == "artifact":
            await self._build(_DOCKERFILE, "--import-cache", self._cache(reference), *output)
        else:
            dockerfile = f"FROM {self.buildkit.address}/{reference}\n"
            await self._build(dockerfile, *output, platforms=_platforms(kind))
        contents = read_layout(self.back)
        return {digest: data for digest, data in contents.items() if _is_packed(data)}

    def seen_of(self, kind: str, held: Held) -> Contents:
        return held.layers

    async def _build(
        self, dockerfile: str, *options: str, platforms: Sequence[str] = PLATFORMS[:1]
    ) -> str:
        context = self.buildkit.home / "context"
        context.mkdir(exist_ok=True)
        for name, content in {**_COPIED, "Dockerfile": dockerfile.encode()}.items():
            (context / name).write_bytes(content)
        return await self.buildkit.build(context, *options, platforms=platforms)

    def _image(self, reference: str) -> str:
        name = f"{self.buildkit.address}/{reference}"
        return f"type=image,name={name},push=true,oci-mediatypes=true"

    def _cache(self, reference: str) -> str:
        ref = f"{self.buildkit.address}/{reference}"
        return f"type=registry,ref={ref},mode=max,image-manifest=true,oci-mediatypes=true"


async def _make_by_hand(home: Path, kind: str) -> Path:
    return write_layout(home / "layout", {kind: _MADE[kind]})


async def _make_with_umoci(home: Path, kind: str) -> Path:
    """Make a layout with umoci, for another program to push.

    umoci makes no index and no artifact, but keeps both in a layout: an index here lists two images
    of its own, and all that nothing needs it has collected.
    """
    umoci = Umoci(home / "umoci", "", None)
    layout, bundle = home / "layout", home / "bundle"
    await umoci.ok("init", "--layout", str(layout))
    if kind == "artifact":
        add_to_layout(layout, kind, _ARTIFACT)
    else:
        name = ("--image", f"{layout}:image")
        await umoci.ok("new", *name)
        await umoci.ok("unpack", "--rootless", *name, str(bundle))
        for file in ("a", "b", "c"):
            (bundle / "rootfs" / file).write_bytes(os.urandom(1000))
            await umoci.ok("repack", "--refresh-bundle", *name, str(bundle))
        if kind == "index":
            await umoci.ok("config", *name, "--tag", "arm64", "--architecture", "arm64")
            _list_images(layout, {"amd64": "image", "arm64": "arm64"}, kind)
            await umoci.ok("rm", *name)
    await umoci.ok("gc", "--layout", str(layout))
    return layout


def _list_images(layout: Path, names: Mapping[str, str], name: str) -> None:
    """Add an index to a layout, of images that are there: their names by architecture."""
    there: dict[str, Any] = {
        item["annotations"]["org.opencontainers.image.ref.name"]: item
        for item in json.loads((layout / "index.json").read_text())["manifests"]
    }
    manifests = []
    for architecture, tag in names.items():
        item = {key: there[tag][key] for key in ("mediaType", "digest", "size")}
        manifests.append({**item, "platform": {"os": "linux", "architecture": architecture}})
    listed = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    add_to_layout(layout, name, Image(json.dumps(listed).encode()))


def _platforms(kind: str) -> Sequence[str]:
    return PLATFORMS if kind == "index" else PLATFORMS[:1]


def _is_packed(data: bytes) -> bool:
    return data.startswith(b"\x1f\x8b")


def _unpacked(contents: Contents) -> Contents:
    """Return the same with its layers unpacked."""
    plain = [gzip.decompress(data) if _is_packed(data) else data for data in contents.values()]
    return {digest_of(data): data for data in plain}
