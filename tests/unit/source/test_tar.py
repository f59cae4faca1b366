"""The judgement of tar streams: what is legal, what is refused, what hostility costs."""

from __future__ import annotations

import io
import struct
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.errors import InvalidSource, PayloadTooLarge, UserError
from supervisor.source.tar import ArchiveFacts, ArchiveLimits, TarReader
from supervisor.source.tree import Dockerfile

LIMITS = ArchiveLimits(max_entries=1000, max_unpacked_bytes=1 << 30)


def read(
    data: bytes, limits: ArchiveLimits = LIMITS, dockerfile: str = "Dockerfile"
) -> ArchiveFacts:
    reader = TarReader(limits, dockerfile, len(data))
    reader.feed(data)
    return reader.finish()


def entry(name: str = "file", **attributes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def archive(
    *members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, errors="surrogateescape") as tar:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            if data:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def raw_header(
    name: bytes, size: bytes, kind: bytes = b"0", magic: bytes = b"ustar\00000", **at: bytes
) -> bytes:
    header = bytearray(512)
    header[: len(name)] = name
    header[124 : 124 + len(size)] = size
    header[156:157] = kind
    header[257 : 257 + len(magic)] = magic
    for offset, value in at.items():
        start = int(offset.removeprefix("at_"))
        header[start : start + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax_header(body: bytes, kind: bytes = b"x") -> bytes:
    return raw_header(b"pax", b"%011o" % len(body), kind) + body + bytes(-len(body) % 512)


def pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("piece", [1, 511, 512, 513, 100_000])
def test_every_format_is_read_in_pieces_of_any_size(format: int, piece: int) -> None:
    long = "d" * 60 + "/" + "f" * 90
    data = archive(
        entry("src", type=tarfile.DIRTYPE),
        (entry("./Dockerfile"), b"FROM scratch\n"),
        (entry(long), b"x" * 1500),
        entry("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("hard", type=tarfile.LNKTYPE, linkname="Dockerfile"),
        format=format,
    )
    reader = TarReader(LIMITS, "Dockerfile", len(data))
    for at in range(0, len(data), piece):
        reader.feed(data[at : at + piece])
    assert reader.finish() == ArchiveFacts(5, 1513, Dockerfile.PRESENT)


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("Dockerfile", "Dockerfile", True),
        ("./Dockerfile", "Dockerfile", True),
        (".//Dockerfile", "./Dockerfile", True),
        ("dockerfile", "Dockerfile", True),
        ("sub/dockerfile", "sub/Dockerfile", True),
        ("DOCKERFILE", "Dockerfile", False),
        ("sub/Dockerfile", "Dockerfile", False),
        ("Dockerfile", "build.dockerfile", False),
        ("déjà/Dockerfile", "déjà/Dockerfile", True),
    ],
)
def test_the_dockerfile_is_found_by_its_normalised_path(
    name: str, wanted: str, found: bool
) -> None:
    assert read(archive((entry(name), b"FROM scratch")), dockerfile=wanted).has_dockerfile is found


FILE = (entry("real"), b"FROM scratch")


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    return entry(name, type=kind, linkname=to)


@pytest.mark.parametrize(
    ("members", "wanted", "found"),
    [
        ([entry("Dockerfile", type=tarfile.DIRTYPE)], "Dockerfile", Dockerfile.DIRECTORY),
        ([entry("Dockerfile/file")], "Dockerfile", Dockerfile.ABSENT),
        ([entry("Dockerfile")], "Dockerfile", Dockerfile.EMPTY),
        ([link("Dockerfile", "real"), FILE], "Dockerfile", Dockerfile.PRESENT),
        ([link("Dockerfile", "/real"), FILE], "Dockerfile", Dockerfile.PRESENT),
        ([link("Dockerfile", "../../real"), FILE], "Dockerfile", Dockerfile.PRESENT),
        ([link("Dockerfile", "./a/../real"), FILE], "Dockerfile", Dockerfile.PRESENT),
        ([link("Dockerfile", "absent"), FILE], "Dockerfile", Dockerfile.DANGLING),
        ([link("Dockerfile", "/etc/passwd"), FILE], "Dockerfile", Dockerfile.DANGLING),
        ([link("Dockerfile", "d"), entry("d", type=tarfile.DIRTYPE)], "Dockerfile",
         Dockerfile.DANGLING),
        ([link("Dockerfile", "second"), link("second", "absent")], "Dockerfile",
         Dockerfile.PRESENT),  # BuildKit's to follow
        ([link("docker", "build"), (entry("build/Dockerfile"), b"x")], "docker/Dockerfile",
         Dockerfile.PRESENT),
        ([link("docker", "build"), FILE], "docker/Dockerfile", Dockerfile.DANGLING),
        ([FILE, link("Dockerfile", "real", tarfile.LNKTYPE)], "Dockerfile", Dockerfile.PRESENT),
        ([entry("dockerfile"), (entry("Dockerfile"), b"x")], "Dockerfile", Dockerfile.PRESENT),
        ([(entry("Dockerfile"), b"x"), entry("Dockerfile")], "Dockerfile", Dockerfile.EMPTY),
        ([link("Dockerfile", "absent"), (entry("Dockerfile"), b"x")], "Dockerfile",
         Dockerfile.PRESENT),
        ([], "Dockerfile", Dockerfile.ABSENT),
    ],
)  # fmt: skip
def test_what_lies_where_the_dockerfile_should_be_is_told(
    members: list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]], wanted: str, found: Dockerfile
) -> None:
    assert read(archive(*members, entry("other")), dockerfile=wanted).dockerfile is found


def test_a_name_that_linux_does_not_take_is_refused() -> None:
    read(archive(entry("d" * 255 + "/" + "f" * 255)))
    with pytest.raises(InvalidSource, match="more than 255 bytes"):
        read(archive(entry("d/" + "é" * 128)))
    with pytest.raises(InvalidSource, match="256 deep"):
        read(archive(entry("/".join("d" * 257))))


@pytest.mark.parametrize("below", ["a/b", "a/b/c", "./a//b"])
def test_an_entry_below_a_regular_file_is_refused(below: str) -> None:
    with pytest.raises(InvalidSource, match="below a regular file"):
        read(archive(entry("a"), entry("other"), entry(below)))


def test_an_entry_below_what_was_a_regular_file_is_legal() -> None:
    directory = entry("a", type=tarfile.DIRTYPE)
    assert read(archive(entry("a"), directory, entry("a/b"))).entries == 3
    assert read(archive(entry("ab"), entry("a"), entry("abc/a"))).entries == 3


@pytest.mark.parametrize("target", ["/etc", "..", "a/../..", "../a"])
def test_nothing_is_written_through_a_symbolic_link_that_leads_out(target: str) -> None:
    with pytest.raises(InvalidSource, match="below a symbolic link"):
        read(archive(link("s", target), entry("s/x")))
    with pytest.raises(InvalidSource, match="below a symbolic link"):
        read(archive(link("d/s", target), entry("d/s/e/x")))
    directory = entry("s", type=tarfile.DIRTYPE)
    assert read(archive(link("s", target), directory, entry("s/x"), entry("st/x"))).entries == 4


def test_a_symbolic_link_to_a_directory_of_the_source_may_be_gone_through() -> None:
    directory = entry("d", type=tarfile.DIRTYPE)
    assert read(archive(directory, link("s", "./d"), entry("s/x"))).entries == 3
    assert read(archive(directory, link("s", "d..d"), entry("s/x"))).entries == 3


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
def test_a_file_whose_name_ends_in_a_slash_is_a_directory(kind: bytes) -> None:
    old = raw_header(b"d/", b"0", kind)
    assert read(old + archive(entry("d/x"))).entries == 2
    assert read(old + archive(entry("x")), dockerfile="d").dockerfile is Dockerfile.DIRECTORY
    with pytest.raises(InvalidSource, match="contents of its own"):
        read(raw_header(b"d/", b"1", kind) + bytes(512))


@pytest.mark.parametrize("kind", [b"0", b"1", b"2"])
def test_the_source_itself_is_a_directory(kind: bytes) -> None:
    with pytest.raises(InvalidSource, match="no directory"):
        read(archive(entry("a"))[:512] + raw_header(b".", b"0", kind, at_157=b"a"))


@pytest.mark.parametrize("target", ["absent", "later", "d"])
def test_a_hard_link_to_what_is_no_file_before_it_is_refused(target: str) -> None:
    directory = entry("d", type=tarfile.DIRTYPE)
    with pytest.raises(InvalidSource, match="no file before it"):
        read(archive(directory, link("hard", target, tarfile.LNKTYPE), entry("later")))


@pytest.mark.parametrize("target", ["", "x" * 4096])
def test_a_symbolic_link_that_cannot_be_made_is_refused(target: str) -> None:
    with pytest.raises(InvalidSource, match="has a target of"):
        read(archive(link("soft", target)))


def test_a_source_that_unpacks_to_far_more_than_was_uploaded_is_refused_at_its_header() -> None:
    small = ArchiveLimits(max_entries=10, max_unpacked_bytes=10 << 30, max_ratio=100)
    bomb = raw_header(b"zeros", b"%011o" % (1 << 30))
    for upload_bytes, is_legal in ((8 << 20, True), (7 << 20, False)):
        reader = TarReader(small, "Dockerfile", upload_bytes)
        if is_legal:
            reader.feed(bomb)
            continue
        with pytest.raises(PayloadTooLarge, match=r"100 times.*--sparse"):
            reader.feed(bomb)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/..", "/etc/passwd", "//x"])
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(InvalidSource, match=r"leads out|absolute"):
        read(archive(entry(name)))


def test_a_hard_link_must_point_inside() -> None:
    with pytest.raises(InvalidSource, match="hard link 'h' leads out"):
        read(archive(entry("h", type=tarfile.LNKTYPE, linkname="../../etc/shadow")))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../..", "absent", "x" * 4095])
def test_symlinks_may_point_anywhere(target: str) -> None:
    assert read(archive(entry("s", type=tarfile.SYMTYPE, linkname=target))).entries == 1


@pytest.mark.parametrize(
    "kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"D", b"M", b"Q"]
)
def test_devices_and_unknown_types_are_refused(kind: bytes) -> None:
    with pytest.raises(InvalidSource, match="the source holds"):
        read(archive(entry("dev", type=kind)))


def test_names_that_are_not_utf8_and_duplicates_are_legal() -> None:
    name = b"caf\xe9/\xff".decode("utf-8", "surrogateescape")
    data = archive((entry(name), b"1"), (entry(name), b"2"), format=tarfile.GNU_FORMAT)
    assert read(data) == ArchiveFacts(2, 2, Dockerfile.ABSENT)


def test_the_sum_of_sizes_is_limited_by_the_headers_alone() -> None:
    header = archive((entry("a"), b"x" * 600))[:512]
    limits = ArchiveLimits(max_entries=10, max_unpacked_bytes=599)
    with pytest.raises(PayloadTooLarge, match="more than 599 bytes"):
        read(header, limits)


def test_exactly_the_limits_are_accepted() -> None:
    data = archive((entry("a"), b"x" * 600), entry("b"))
    assert read(data, ArchiveLimits(2, 600)).entries == 2
    with pytest.raises(PayloadTooLarge, match="more than 1 entries"):
        read(data, ArchiveLimits(1, 600))


@pytest.mark.parametrize(
    "header",
    [
        raw_header(b"sparse", b"00000000000", b"S", at_483=b"77777777777\0"),
        raw_header(b"big", struct.pack(">B11s", 0x80, b"\xff" * 11)),
        pax_header(pax_record(b"size", b"9" * 18)) + raw_header(b"big", b"0"),
        pax_header(pax_record(b"GNU.sparse.realsize", b"9" * 18)) + raw_header(b"big", b"0"),
    ],
    ids=["old GNU sparse", "base-256", "pax size", "pax sparse"],
)
def test_giants_count_with_the_size_that_they_unpack_to(header: bytes) -> None:
    with pytest.raises(PayloadTooLarge):
        read(header)


def test_a_sparse_file_with_a_continued_map_is_skipped_rightly() -> None:
    more = bytearray(512)
    more[504] = 1
    data = (
        raw_header(
            b"sparse",
            b"00000001000",
            b"S",
            magic=b"ustar  \0",
            at_482=b"\1",
            at_483=b"00000004000\0",
        )
        + bytes(more)
        + bytes(512)
        + b"x" * 512
        + raw_header(b"Dockerfile", b"0")
    )
    assert read(data) == ArchiveFacts(2, 0o4000, Dockerfile.EMPTY)


@pytest.mark.parametrize(
    "data",
    [
        raw_header(b"neg", b"\xff" * 12),
        raw_header(b"bad", b"12x"),
        raw_header(b"", b"0"),
        pax_header(b"x" * 10) + raw_header(b"f", b"0"),
        pax_header(b"999 path=f\n") + raw_header(b"f", b"0"),
        pax_header(b"3 =") + raw_header(b"f", b"0"),
        pax_header(pax_record(b"size", b"-1")) + raw_header(b"f", b"0"),
        pax_header(pax_record(b"path", b"a\0b")) + raw_header(b"f", b"0"),
        pax_header(pax_record(b"path", b"/abs")) + raw_header(b"f", b"0"),
        pax_header(pax_record(b"path", b"p" * 5000)) + raw_header(b"f", b"0"),
        pax_header(pax_record(b"path", b"p"), kind=b"g") + raw_header(b"f", b"0"),
        raw_header(b"pax", b"%011o" % ((1 << 20) + 1), b"x"),
        raw_header(b"long", b"0", b"L"),
        raw_header(b"file", b"0", at_345=b".."),
        b"not a tar archive" * 100,
        b"\0" * 100,
        b"",
        archive((entry("a"), b"x" * 600))[:1000],
    ],
)
def test_malformed_archives_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidSource):
        read(data)


def test_the_gnu_prefix_field_is_no_path() -> None:
    assert read(raw_header(b"file", b"0", magic=b"ustar  \0", at_345=b"..")).entries == 1


def test_extended_headers_without_end_are_limited() -> None:
    one = pax_header(pax_record(b"comment", b"x"), kind=b"g")
    with pytest.raises(PayloadTooLarge, match="entries"):
        read(one * 50, ArchiveLimits(max_entries=10, max_unpacked_bytes=1 << 20))


def test_what_follows_the_end_marker_is_ignored_but_limited() -> None:
    data = archive(entry("a")) + b"garbage"
    assert read(data).entries == 1
    reader = TarReader(ArchiveLimits(1, 1), "Dockerfile", len(data))
    reader.feed(data)
    reader.feed(bytes(15 << 20))
    with pytest.raises(PayloadTooLarge):
        reader.feed(bytes(2 << 20))


def test_names_in_messages_are_one_short_line_of_ascii() -> None:
    with pytest.raises(InvalidSource) as caught:
        read(archive(entry("/\x1b[31m\n☃" + "x" * 500)))
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


_names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=120
)


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.tuples(_names, st.binary(max_size=2000)), max_size=8),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_it_counts_what_tarfile_wrote(files: list[tuple[str, bytes]], format: int) -> None:
    files = [(name, data) for name, data in files if name not in (".", "..")]
    facts = read(archive(*((entry(name), data) for name, data in files), format=format))
    assert facts.entries == len(files)
    assert facts.unpacked_bytes == sum(len(data) for _, data in files)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever is flipped in the archive, the answer is facts or an error for the caller."""
    blob = bytearray(
        pax_header(pax_record(b"path", b"Dockerfile"))
        + archive((entry("f"), b"x" * 700), entry("l" * 150))
    )
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    # A right checksum lets the damage through to what is behind it.
    for at in range(0, len(blob), 512):
        header = blob[at : at + 512]
        header[148:156] = b" " * 8
        blob[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    try:
        facts = read(bytes(blob))
    except UserError:
        return
    assert facts.unpacked_bytes <= LIMITS.max_unpacked_bytes
