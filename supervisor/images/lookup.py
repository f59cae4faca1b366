"""From the name of a builder image to its files.

    IMAGES_DIR/hypeman/builder/latest/manifest.json   ← hypeman/builder:latest

A tag is usually a link to a directory that never changes. It is followed once, here, so that a
daemon keeps the version that it started with.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from supervisor.errors import ConfigError, NotReady
from supervisor.model.image import BuilderImage

MANIFEST = "manifest.json"
SCHEMA = 1
MAX_MANIFEST_BYTES = 1 << 20
DEFAULT_TAG = "latest"

_PART = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"({_PART}(?:/{_PART})*)(?::([A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?", re.ASCII
)
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def find_builder_image(images_dir: Path, reference: str) -> BuilderImage:
    """Return the image that `reference` (`name:tag`, the tag `latest` if absent) names.

    Blocks for a few small reads. Raises ConfigError if the reference or the image's manifest cannot
    be used, and NotReady if there is no such image yet.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(
            f"BUILDER_IMAGE {reference!r} is not a name with an optional tag, as in"
            " hypeman/builder:latest"
        )
    name, tag = match[1], match[2] or DEFAULT_TAG
    link = images_dir / name / tag
    try:
        directory = link.resolve(strict=True)
        text = _read_limited(directory / MANIFEST)
    except FileNotFoundError as exc:
        raise NotReady(
            f"there is no builder image {reference} in {images_dir}; make it, or set BUILDER_IMAGE"
            " and IMAGES_DIR to one that exists"
        ) from exc
    except OSError as exc:
        raise ConfigError(f"the builder image at {link} cannot be read: {exc.strerror}") from exc
    try:
        return _parse(reference, directory, json.loads(text))
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(
            f"the manifest of the builder image at {directory} cannot be used: {_say(exc)};"
            " make the image again"
        ) from exc


def _read_limited(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_MANIFEST_BYTES)


def _parse(reference: str, directory: Path, manifest: dict[str, Any]) -> BuilderImage:
    if manifest["schema"] != SCHEMA:
        raise ValueError(f"its schema is {manifest['schema']!r}, and {SCHEMA} is understood")
    return BuilderImage(
        reference=reference,
        digest=_text(manifest["digest"], _DIGEST, "digest"),
        kernel=_file(directory, manifest["kernel"]),
        kernel_sha256=_text(manifest["kernel"]["sha256"], _SHA256, "kernel.sha256"),
        initramfs=_file(directory, manifest["initramfs"]),
        rootfs=_file(directory, manifest["rootfs"]),
        scratch=_file(directory, manifest["scratch"]),
        cmdline=_text(manifest["cmdline"], re.compile(r"[ -~]*"), "cmdline"),
        components={str(k): str(v) for k, v in dict(manifest.get("components", {})).items()},
    )


def _file(directory: Path, entry: dict[str, Any]) -> Path:
    path = directory / _text(entry["path"], _FILE, "path")
    if not path.is_file():
        raise ValueError(f"the file {path.name} is missing")
    return path


def _text(value: Any, pattern: re.Pattern[str], name: str) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError(f"{name} is {value!r}")
    return value


def _say(exc: Exception) -> str:
    return f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
