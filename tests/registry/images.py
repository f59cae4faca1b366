"""Small images made here: OCI layouts of several layers, of an index, of an artifact."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supervisor.model.oci import Digest, parse_digest
from supervisor.registry.media import OCI_INDEX, OCI_MANIFEST

CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"


def digest_of(content: bytes, algorithm: str = "sha256") -> Digest:
    """Return the digest of some bytes."""
    digest = parse_digest(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")
    assert digest is not None
    return digest


def descriptor(media_type: str, content: bytes, **more: Any) -> dict[str, Any]:
    """Return the descriptor of some bytes."""
    size = len(content)
    return {"mediaType": media_type, "digest": digest_of(content), "size": size, **more}


@dataclass
class Image:
    """A manifest and the blobs that it needs."""

    manifest: bytes
    blobs: Sequence[bytes] = ()
    children: Sequence[Image] = field(default_factory=list)

    @property
    def digest(self) -> Digest:
        """The digest of the manifest."""
        return digest_of(self.manifest)

    @property
    def media_type(self) -> str:
        """What the manifest calls itself."""
        value: str = json.loads(self.manifest)["mediaType"]
        return value


def layer(files: Mapping[str, bytes]) -> tuple[bytes, str]:
    """Return a gzip layer with some files, and the digest of what it unpacks to."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0), digest_of(raw.getvalue())


def image(*layers: Mapping[str, bytes], architecture: str = "amd64", **more: Any) -> Image:
    """Return an image of some layers."""
    packed = [layer(files) for files in layers]
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in packed]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, config),
        "layers": [descriptor(LAYER, content) for content, _ in packed],
        **more,
    }
    return Image(json.dumps(manifest).encode(), [config, *(content for content, _ in packed)])


def index(children: Mapping[str, Image]) -> Image:
    """Return a multi-platform index: images by architecture.

    What is `unknown` is no image for a platform: builders list an image's attestations like that.
    """
    manifests = [
        descriptor(
            child.media_type,
            child.manifest,
            platform={
                "os": "unknown" if architecture == "unknown" else "linux",
                "architecture": architecture,
            },
        )
        for architecture, child in children.items()
    ]
    content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return Image(json.dumps(content).encode(), children=list(children.values()))


def artifact(
    content: bytes, artifact_type: str, subject: Image | None = None, **annotations: str
) -> Image:
    """Return an artifact of one file, about a subject if there is one."""
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": descriptor(EMPTY, b"{}"),
        "layers": [descriptor("application/octet-stream", content)],
        "annotations": annotations,
    }
    if subject is not None:
        manifest["subject"] = descriptor(subject.media_type, subject.manifest)
    return Image(json.dumps(manifest).encode(), [b"{}", content])


def write_layout(directory: Path, images: Mapping[str, Image]) -> Path:
    """Write an OCI layout with images by their ref.name; return the directory."""
    directory.mkdir(parents=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_bytes(index({}).manifest)
    for name, item in images.items():
        add_to_layout(directory, name, item)
    return directory


def add_to_layout(directory: Path, name: str, item: Image) -> None:
    """Add an image to an OCI layout, by its ref.name."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    _write_blobs(blobs, item)
    content = json.loads((directory / "index.json").read_text())
    annotations = {"org.opencontainers.image.ref.name": name}
    added = descriptor(item.media_type, item.manifest, annotations=annotations)
    content["manifests"] = [*(content["manifests"] or ()), added]
    (directory / "index.json").write_text(json.dumps(content))


def read_layout(directory: Path) -> dict[str, bytes]:
    """Return what is in an OCI layout, by digest."""
    blobs = directory / "blobs" / "sha256"
    return {f"sha256:{path.name}": path.read_bytes() for path in blobs.iterdir()}


def _write_blobs(blobs: Path, item: Image) -> None:
    for content in (item.manifest, *item.blobs):
        (blobs / digest_of(content).partition(":")[2]).write_bytes(content)
    for child in item.children:
        _write_blobs(blobs, child)
