"""A builder image: what a machine boots from. Read-only, shared by all machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BuilderImage:
    """One version of a builder image, every path absolute and checked to exist."""

    reference: str
    """As configured: `hypeman/builder:latest`."""
    digest: str
    """`sha256:…` over everything in it; recorded in provenance."""
    kernel: Path
    kernel_sha256: str
    initramfs: Path
    rootfs: Path
    """A disk image, never written to."""
    scratch: Path
    """The sparse template that each machine's scratch disk is a copy of."""
    cmdline: str
    """The kernel's command line; a driver may append to it."""
    components: Mapping[str, str] = field(default_factory=dict)
    """Version by name, for instance `buildkit`."""
