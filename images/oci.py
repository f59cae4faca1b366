"""Write an OCI image layout with one image of one layer, under any number of names.

https://specs.opencontainers.org/image-spec/image-layout/
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from images import files
from images.tool import run

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
REFERENCE = "org.opencontainers.image.ref.name"

# Unpacking is what a layer costs in emulation, and zstd is several times faster at it than gzip.
# One thread, because the number of threads changes the bytes.
COMPRESS = ["zstd", "-q", "-f", "-9", "--single-thread"]


def write_layout(
    target: Path,
    layer: Path,
    *,
    references: Iterable[str],
    config: Mapping[str, Any],
    epoch: int,
) -> None:
    """Replace `target` by a layout of the image with this layer (a plain tar) and this config."""
    temporary = target.with_name(f"{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "blobs" / "sha256").mkdir(parents=True)
    packed = temporary / "layer"
    run([*COMPRESS, layer, "-o", packed])
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
    image = {
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{files.digest(layer)}"]},
        "history": [{"created": created, "created_by": "hypeman images.bases"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _add(temporary, CONFIG, _json(image)),
        "layers": [_add_file(temporary, LAYER, packed)],
    }
    described = _add(temporary, MANIFEST, _json(manifest))
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {**described, "annotations": {REFERENCE: reference}} for reference in references
        ],
    }
    (temporary / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    (temporary / "index.json").write_bytes(_json(index))
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def _add(layout: Path, media_type: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _add_file(layout: Path, media_type: str, path: Path) -> dict[str, Any]:
    digest, size = files.digest(path), path.stat().st_size
    path.rename(layout / "blobs" / "sha256" / digest)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
