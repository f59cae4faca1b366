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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BASES_DIR = Path(__file__).parents[2] / "build" / "bases"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
PERL = {
    "usr/bin/perl": "bin/perl",
    f"{_LIBRARIES}/ld-linux-x86-64.so.2": "lib64/ld-linux-x86-64.so.2",
    **{
        f"{_LIBRARIES}/{name}": f"lib/{name}"
        for name in ("libc.so.6", "libm.so.6", "libcrypt.so.1")
    },
}
"""Where the files of a Perl are in the Debian base, and where they go."""


@functools.cache
def debian_mirror() -> str:
    """Return the host that apt fetches packages from in the Debian base."""
    with _open_debian() as archive:
        for member in archive:
            if re.search(r"etc/apt/sources\.list(\.d/.+)?$", member.name) and member.isreg():
                file = archive.extractfile(member)
                assert file is not None
                if match := re.search(rb"http://([^/\s]+)/", file.read()):
                    return match[1].decode()
    raise AssertionError("the Debian base names no mirror")


def put_perl(directory: Path) -> None:
    """Put the Perl of the Debian base, without its modules, below a directory that becomes a root.

    A step that calls the kernel needs no more of that base, which takes a guest long to unpack.
    """
    with _open_debian() as archive:
        for source, target in PERL.items():
            file = archive.extractfile(f"./{source}")
            assert file is not None, source
            path = directory / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read())
            path.chmod(0o755)


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


@contextmanager
def _open_debian() -> Iterator[tarfile.TarFile]:
    """Open the one layer of the Debian base."""
    layout = BASES_DIR / "debian"
    [layer] = json.loads(_blob(layout, manifest_digest("debian")).read_bytes())["layers"]
    assert layer["mediaType"].endswith("+zstd")
    unpacked = subprocess.run(
        ["zstd", "-dc", _blob(layout, layer["digest"])], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        yield archive


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")
