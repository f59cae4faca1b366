"""Looking into a pushed image with a client of the field, layer by layer."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.daemon import Daemon

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


@dataclass
class Image:
    """An image as it was pulled: its configuration, and the file system that its layers make."""

    digest: str
    config: dict[str, Any]
    files: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)

    def read(self, name: str) -> bytes:
        """Return a file's content, hard links followed."""
        member = self.files[name]
        return self.read(member.linkname.lstrip("./")) if member.islnk() else self.contents[name]


def inspect(daemon: Daemon, reference: str, tenant: str = "acme") -> dict[str, Any]:
    """Return what `skopeo inspect` says of an image."""
    answer = _skopeo(daemon, tenant, "inspect", "--tls-verify=false", f"docker://{reference}")
    shown: dict[str, Any] = json.loads(answer)
    return shown


def pull(daemon: Daemon, reference: str, work: Path, tenant: str = "acme") -> Image:
    """Pull an image with skopeo into an OCI layout below `work`, and read it."""
    layout = work / "layout"
    _skopeo(
        daemon, tenant,
        "copy", "--all", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}:pulled",
    )  # fmt: skip
    index = json.loads((layout / "index.json").read_bytes())
    digest = index["manifests"][0]["digest"]
    manifest = json.loads(_blob(layout, digest))
    if "manifests" in manifest:  # an index: the image, and what is attested of it
        [inside] = [m for m in manifest["manifests"] if m["platform"]["os"] != "unknown"]
        manifest = json.loads(_blob(layout, inside["digest"]))
    image = Image(digest, json.loads(_blob(layout, manifest["config"]["digest"])))
    for layer in manifest["layers"]:
        _apply(image, _decompress(_blob(layout, layer["digest"]), layer["mediaType"]))
    return image


def _skopeo(daemon: Daemon, tenant: str, verb: str, *args: str) -> str:
    credentials = f"{tenant}:{daemon.token(tenant)}"
    option = "--creds" if verb == "inspect" else "--src-creds"
    done = subprocess.run(
        ["skopeo", verb, option, credentials, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def _decompress(data: bytes, media_type: str) -> bytes:
    if media_type.endswith("zstd"):
        return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
    if media_type.endswith("gzip"):
        return subprocess.run(["gzip", "-dc"], input=data, capture_output=True, check=True).stdout
    return data


def _apply(image: Image, layer: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        for member in archive:
            name = member.name.removeprefix("./").strip("/")
            directory, _, base = name.rpartition("/")
            prefix = f"{directory}/" if directory else ""
            if base == _OPAQUE:
                _remove(image, prefix)
            elif base.startswith(_WHITEOUT):
                hidden = prefix + base.removeprefix(_WHITEOUT)
                _remove(image, f"{hidden}/")
                image.files.pop(hidden, None)
            else:
                image.files[name] = member
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None:
                    image.contents[name] = content.read()


def _remove(image: Image, prefix: str) -> None:
    for name in [name for name in image.files if name.startswith(prefix)]:
        del image.files[name]
