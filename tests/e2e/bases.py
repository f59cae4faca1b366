"""What the prepared base images say of themselves, read from their layouts."""

from __future__ import annotations

import functools
import io
import ipaddress
import json
import re
import socket
import subprocess
import tarfile
from pathlib import Path

BASES_DIR = Path(__file__).parents[2] / "build" / "bases"


@functools.cache
def debian_mirror() -> str:
    """Return the host that apt fetches packages from in the Debian base."""
    layout = BASES_DIR / "debian"
    [layer] = json.loads(_blob(layout, manifest_digest("debian")).read_bytes())["layers"]
    assert layer["mediaType"].endswith("+zstd")
    unpacked = subprocess.run(
        ["zstd", "-dc", _blob(layout, layer["digest"])], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        for member in archive:
            if re.search(r"etc/apt/sources\.list(\.d/.+)?$", member.name) and member.isreg():
                file = archive.extractfile(member)
                assert file is not None
                if match := re.search(rb"http://([^/\s]+)/", file.read()):
                    return match[1].decode()
    raise AssertionError("the Debian base names no mirror")


def manifest_digest(base: str) -> str:
    """Return the digest of a base's manifest."""
    index = json.loads((BASES_DIR / base / "index.json").read_text())
    digest: str = index["manifests"][0]["digest"]
    return digest


@functools.cache
def networks_of(host: str) -> tuple[str, ...]:
    """Return what an operator opens for builds to reach `host`, should it have no public address.

    Some hosts are behind a mirror of their own, which answers for the public one's name.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:  # the test that needs it tells
        return ()
    addresses = {ipaddress.ip_address(entry[4][0]) for entry in found}
    return tuple(f"{address}/{address.max_prefixlen}" for address in addresses)


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")
