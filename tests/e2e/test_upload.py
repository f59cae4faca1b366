"""Large uploads."""

from __future__ import annotations

import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.daemon import Daemon

GIB = 1 << 30
MIB = 1 << 20
BOUNDARY = "boundary-of-this-test"


def test_upload_of_a_gibibyte_raises_memory_by_less_than_64_mib(daemon: Daemon) -> None:
    assert daemon.process is not None
    # What the way of an upload loads and keeps, before the measurement; no machine boots for it.
    small = daemon.submit({"Dockerfile": "FROM busybox\n"}, secrets=[{"id": "no_such_secret"}])
    assert daemon.wait(small["id"])["error_code"] == "secret_not_found"
    before = _peak_rss(daemon.process.pid)

    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    with daemon.client() as client:
        answer = client.post("/builds", content=_multipart(), headers=headers, timeout=600)
        assert answer.status_code == 202, answer.text
        assert client.delete(f"/builds/{answer.json()['id']}").status_code == 204

    assert _peak_rss(daemon.process.pid) - before < 64 * MIB


def _large_archive() -> Iterator[bytes]:
    """Yield a .tar.gz with a file of a GiB, which does not compress: the same block, stored."""
    small, noise = b"FROM busybox\n", os.urandom(MIB)
    start = _entry("Dockerfile", len(small)) + small.ljust(tarfile.BLOCKSIZE, b"\0")
    pieces = [start + _entry("large", GIB), *[noise] * (GIB // MIB), bytes(tarfile.RECORDSIZE)]
    packed = {piece: _deflate(piece) for piece in set(pieces)}
    checksum = 0
    yield b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        yield packed[piece]
    yield zlib.compressobj(wbits=-15).flush()
    yield struct.pack("<II", checksum, sum(map(len, pieces)) % (1 << 32))


def _entry(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()


def _deflate(data: bytes) -> bytes:
    """Return a part of a deflate stream, which more can follow."""
    packer = zlib.compressobj(level=0, wbits=-15)
    return packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)


def _multipart() -> Iterator[bytes]:
    yield (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="source"; filename="s.tar.gz"\r\n'
        "Content-Type: application/gzip\r\n\r\n"
    ).encode()
    yield from _large_archive()
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def _peak_rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")
