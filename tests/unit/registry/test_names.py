"""Names and digests: what passes is safe in a path, a header and a log line; the rest is None."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.model.oci import (
    MAX_REPOSITORY_LENGTH,
    TagReference,
    parse_digest,
    parse_repository,
    parse_tag,
    parse_tag_reference,
    parse_upload_id,
)

SHA256 = "sha256:" + "0a" * 32
SHA512 = "sha512:" + "0a" * 64


@pytest.mark.parametrize(
    "name",
    ["a", "acme/app", "a.b_c__d-e--f/0", "mirror/docker.io/library/alpine", "a" * 229],
)
def test_a_repository_name_passes(name: str) -> None:
    assert parse_repository(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "A", "a/B", "-a", "a-", "_a", "a_"),
        *("a..b", "a___b", "a._b", "a b", "a\n", "a\nb", "é", "a" * (MAX_REPOSITORY_LENGTH + 1)),
        *("a\x00", "a%2fb", "a:b", "a@b", "_catalog", "\uff41"),
    ],
)
def test_a_name_outside_the_grammar_does_not(name: str) -> None:
    assert parse_repository(name) is None


@given(st.text())
def test_whatever_passes_has_no_dangerous_component(text: str) -> None:
    name = parse_repository(text)
    if name is not None:
        assert name.isascii()
        assert not {"", ".", ".."} & set(name.split("/"))


def test_a_long_hostile_name_is_refused_quickly() -> None:
    assert parse_repository("a-" * 100_000) is None
    assert parse_repository("a" * 228 + "-") is None


@pytest.mark.parametrize("tag", ["1", "latest", "_x", "A.b-c_d", "x" * 128])
def test_a_tag_passes(tag: str) -> None:
    assert parse_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", ".x", "-x", "x" * 129, "a/b", "a:b", "a\n", "é", "a b"])
def test_what_is_no_tag_does_not(tag: str) -> None:
    assert parse_tag(tag) is None


@pytest.mark.parametrize("digest", [SHA256, SHA512])
def test_a_digest_passes(digest: str) -> None:
    assert parse_digest(digest) == digest


@pytest.mark.parametrize(
    "digest",
    [
        *("", "sha256", "sha256:", SHA256[:-1], SHA256 + "0", SHA256.upper(), SHA256 + "\n"),
        *("sha512:" + "0a" * 32, "sha384:" + "0a" * 48, "sha256:" + "g" * 64, " " + SHA256),
        *("../" + SHA256, "sha256:../../" + "a" * 58),
    ],
)
def test_what_is_no_digest_does_not(digest: str) -> None:
    assert parse_digest(digest) is None


def test_an_upload_id_is_a_plain_file_name() -> None:
    assert parse_upload_id("0a" * 16) == "0a" * 16
    for text in ("", "0a" * 15, "0A" * 16, "../" + "0a" * 16, "0a" * 16 + "\n"):
        assert parse_upload_id(text) is None


def test_a_reference_has_a_tag_or_means_latest() -> None:
    repository = parse_repository("base/debian")
    assert repository is not None
    for text, tag in (("base/debian:13", "13"), ("base/debian", "latest")):
        parsed = parse_tag(tag)
        assert parsed is not None
        assert parse_tag_reference(text) == TagReference(repository, parsed)
    for text in ("", ":", "a:", ":1", "A:1", "a:b:c", "a:1/b"):
        assert parse_tag_reference(text) is None
