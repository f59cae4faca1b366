"""The gzip container, and the whole check of an uploaded file."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from supervisor.errors import HostError, InvalidSource, PayloadTooLarge
from supervisor.runtime.threads import Threads
from supervisor.source import gunzip as gunzip_module
from supervisor.source.check import check_source, check_source_sync
from supervisor.source.gunzip import INPUT_BYTES, OUTPUT_BYTES, gunzip
from supervisor.source.tar import ArchiveFacts, ArchiveLimits
from supervisor.source.tree import Dockerfile

LIMITS = ArchiveLimits(max_entries=1000, max_unpacked_bytes=1 << 30)


def pieces(data: bytes, size: int = INPUT_BYTES) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def unzip(data: bytes, size: int = INPUT_BYTES) -> bytes:
    return b"".join(gunzip(pieces(data, size)))


def tar_gz(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


CONTENT = random.Random(7).randbytes(300_000) + bytes(3 * OUTPUT_BYTES)


@pytest.mark.parametrize("size", [1000, INPUT_BYTES, 10 << 20])
def test_one_member_is_decompressed(size: int) -> None:
    assert unzip(gzip.compress(CONTENT), size) == CONTENT


def test_bytes_arriving_one_by_one_are_enough() -> None:
    assert unzip(gzip.compress(b"content"), 1) == b"content"


@pytest.mark.parametrize("exact", [OUTPUT_BYTES, 2 * OUTPUT_BYTES, OUTPUT_BYTES + 1])
def test_output_that_zlib_holds_back_is_fetched(exact: int) -> None:
    assert len(unzip(gzip.compress(bytes(exact)), 10 << 20)) == exact


def test_concatenated_members_and_padding_are_one_file() -> None:
    data = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two") + bytes(1000)
    assert unzip(data) == b"one two"
    assert unzip(data, 7) == b"one two"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\xfd7zXZ\0rest", "an xz file"),
        (b"\x28\xb5\x2f\xfdrest", "a zstd file"),
        (b"x" * 257 + b"ustar\x0000", "an uncompressed tar"),
        (b"hello", "not a gzip file"),
        (b"\x1f\x8bnonsense", "damaged"),
        (gzip.compress(CONTENT, mtime=0)[:-1], "cut off"),
        (gzip.compress(CONTENT, mtime=0)[:1000], "cut off"),
        (b"\x1f", "cut off"),
        (gzip.compress(b"x", mtime=0) + b"garbage", "something else behind"),
        (gzip.compress(b"x", mtime=0)[:-8] + bytes(8), "damaged"),
    ],
)
def test_what_is_no_whole_gzip_file_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InvalidSource, match=why):
        unzip(data)


def test_the_number_of_members_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gunzip_module, "MAX_MEMBERS", 3)
    unzip(gzip.compress(b"") * 3)
    with pytest.raises(InvalidSource, match="more than 3 gzip members"):
        unzip(gzip.compress(b"") * 4)


def test_a_bomb_never_has_more_than_one_piece_of_output_in_memory() -> None:
    compressor = zlib.compressobj(9, wbits=31)
    bomb = b"".join([compressor.compress(bytes(64 << 20)), compressor.flush()])
    tracemalloc.start()
    try:
        for piece in gunzip(pieces(bomb)):
            assert len(piece) <= OUTPUT_BYTES
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * OUTPUT_BYTES


def test_a_bomb_is_refused_at_the_limit_and_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "source.tar.gz"
    file.write_bytes(tar_gz(zeros=bytes(32 << 20)))
    read = 0

    def count() -> None:
        nonlocal read
        read += 1

    with pytest.raises(PayloadTooLarge, match="1,000,000 bytes"):
        check_source_sync(file, ArchiveLimits(10, 1_000_000), "Dockerfile", count)
    assert read < 5


async def test_the_check_tells_what_a_source_holds(tmp_path: Path) -> None:
    file = tmp_path / "source.tar.gz"
    file.write_bytes(tar_gz(Dockerfile=b"FROM scratch", other=b"12345"))
    facts = await check_source(file, LIMITS, "Dockerfile", Threads())
    assert facts == ArchiveFacts(2, 17, Dockerfile.PRESENT)


async def test_a_cancelled_check_stops_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "source.tar.gz"
    file.write_bytes(tar_gz(big=random.Random(1).randbytes(5 << 20)))
    begun, go_on = trio.Event(), threading.Event()
    fed = 0

    def slow_feed(_self: object, data: bytes) -> None:
        nonlocal fed
        fed += 1
        trio.from_thread.run_sync(begun.set)
        go_on.wait(10)

    monkeypatch.setattr("supervisor.source.check.TarReader.feed", slow_feed)
    async with trio.open_nursery() as nursery:

        async def check() -> None:
            await check_source(file, LIMITS, "Dockerfile", Threads())

        nursery.start_soon(check)
        await begun.wait()
        nursery.cancel_scope.cancel(reason="test")
        go_on.set()
    assert fed == 1


def test_an_upload_that_cannot_be_read_is_the_hosts_trouble(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be read: No such file"):
        check_source_sync(tmp_path / "gone", LIMITS, "Dockerfile")
