"""Manifests: which kinds are taken, and what one needs beside itself.

A manifest is parsed once, when it is pushed, and stored byte for byte. What its fields say is the
client's business except for what the registry relies on: the references, the subject, the artifact
type and the annotations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from supervisor.model.oci import Digest, parse_digest
from supervisor.model.registry import NewManifest, Reference

MAX_MANIFEST_BYTES = 4 << 20
"""What the specification expects every registry to take, and all that this one takes."""

MAX_MANIFEST_ITEMS = 200_000
"""Commas and brackets in one: what makes JSON costly to parse, long before its bytes do."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

_IMAGES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})

_ELSEWHERE = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)
"""Layers of these types are fetched from their own URLs and need not be in the registry."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)


class ManifestError(Exception):
    """Why a manifest is not taken."""


def parse_manifest(content: bytes, content_type: str | None, digest: Digest) -> NewManifest:
    """Read a manifest as a client pushed it. Raises ManifestError.

    `content_type` is the request's; it must agree with the manifest's own `mediaType`, if both are
    there. Every descriptor must be well-formed, at every place that the registry follows.
    """
    fields = _parse_object(content)
    if fields.get("schemaVersion") != 2:
        raise ManifestError("schemaVersion must be 2")
    media_type = _media_type(fields, content_type)
    if media_type in _IMAGES:
        config = _descriptor(fields.get("config"), "config")
        references = [config[1], *_layers(fields)]
        fallback = config[0] if _MEDIA_TYPE.fullmatch(config[0]) else None
    elif media_type in _INDEXES:
        references = [item[1] for item in _descriptors(fields.get("manifests"), "manifests")]
        fallback = None
    else:
        raise ManifestError(
            f"a manifest is one of {', '.join(sorted(_IMAGES | _INDEXES))}; set Content-Type to its"
            " media type"
        )
    subject = fields.get("subject")
    return NewManifest(
        digest=digest,
        media_type=media_type,
        size_bytes=len(content),
        artifact_type=_artifact_type(fields) or fallback,
        subject=None if subject is None else _descriptor(subject, "subject")[1].digest,
        annotations=_annotations(fields),
        references=tuple(references),
    )


def is_index(media_type: str) -> bool:
    """Say whether manifests of this type list manifests."""
    return media_type in _INDEXES


def _parse_object(content: bytes) -> Mapping[str, Any]:
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_MANIFEST_ITEMS:
        raise ManifestError(f"the manifest has more than {MAX_MANIFEST_ITEMS} items")
    try:
        fields = json.loads(content.decode())
    except (ValueError, RecursionError) as exc:
        raise ManifestError("the manifest is not JSON") from exc
    if not isinstance(fields, dict):
        raise ManifestError("the manifest is not a JSON object")
    return fields


def _media_type(fields: Mapping[str, Any], content_type: str | None) -> str:
    declared = fields.get("mediaType")
    if declared is not None and not isinstance(declared, str):
        raise ManifestError("mediaType must be a string")
    named = (content_type or "").partition(";")[0].strip()
    if declared and named and declared != named:
        raise ManifestError("mediaType and the Content-Type of the request differ")
    return declared or named


def _layers(fields: Mapping[str, Any]) -> list[Reference]:
    return [
        reference
        for media_type, reference in _descriptors(fields.get("layers"), "layers")
        if not media_type.startswith(_ELSEWHERE)
    ]


def _descriptors(value: Any, where: str) -> list[tuple[str, Reference]]:
    if not isinstance(value, list):
        raise ManifestError(f"{where} must be an array of descriptors")
    return [_descriptor(item, f"{where}[{index}]") for index, item in enumerate(value)]


def _descriptor(value: Any, where: str) -> tuple[str, Reference]:
    match value:
        case {"mediaType": str() as media_type, "digest": str() as text, "size": int() as size}:
            digest = parse_digest(text)
            # bool is an int in Python, not in JSON
            if digest is not None and size >= 0 and not isinstance(size, bool):
                return media_type, Reference(digest, size)
    raise ManifestError(f"{where} is not a descriptor with mediaType, digest and size")


def _artifact_type(fields: Mapping[str, Any]) -> str | None:
    value = fields.get("artifactType")
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _MEDIA_TYPE.fullmatch(value):
        raise ManifestError("artifactType must be a media type")
    return value


def _annotations(fields: Mapping[str, Any]) -> Mapping[str, str]:
    value = fields.get("annotations")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ManifestError("annotations must be an object of strings")
    return value
