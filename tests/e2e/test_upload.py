"""Large uploads."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.daemon import Daemon

GIB = 1 << 30
MIB = 1 << 20
BOUNDARY = "boundary-of-this-test"


def test_upload_of_a_gibibyte_raises_memory_by_less_than_64_mib(
    daemon: Daemon, tmp_path: Path
) -> None:
    archive = tmp_path / "large.tar.gz"
    _write_large_archive(archive)
    assert daemon.process is not None
    small = daemon.submit({"Dockerfile": "FROM busybox\n"})
    daemon.wait(small["id"])
    before = _peak_rss(daemon.process.pid)

    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    with daemon.client() as client:
        answer = client.post("/builds", content=_multipart(archive), headers=headers, timeout=600)
        assert answer.status_code == 202, answer.text
        assert client.delete(f"/builds/{answer.json()['id']}").status_code == 204

    assert _peak_rss(daemon.process.pid) - before < 64 * MIB


def _write_large_archive(path: Path) -> None:
    noise = os.urandom(MIB)
    with (
        gzip.open(path, "wb", compresslevel=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w|") as archive,
    ):
        dockerfile = tarfile.TarInfo("Dockerfile")
        dockerfile.size = 13
        archive.addfile(dockerfile, io.BytesIO(b"FROM busybox\n"))
        large = tarfile.TarInfo("large")
        large.size = GIB
        archive.addfile(large, _Repeated(noise, GIB))


class _Repeated(io.RawIOBase):
    def __init__(self, block: bytes, size: int) -> None:
        self._block = block
        self._left = size

    def read(self, size: int = -1) -> bytes:
        size = min(size if size >= 0 else self._left, self._left, len(self._block))
        self._left -= size
        return self._block[:size]


def _multipart(archive: Path) -> Iterator[bytes]:
    yield (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="source"; filename="s.tar.gz"\r\n'
        "Content-Type: application/gzip\r\n\r\n"
    ).encode()
    with archive.open("rb") as file:
        while block := file.read(MIB):
            yield block
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def _peak_rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")
