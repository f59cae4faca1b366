"""Names of the registry."""

from __future__ import annotations

import pytest

from supervisor.model.oci import (
    MAX_REPOSITORY_LENGTH,
    Algorithm,
    Digest,
    algorithm_of,
    encoded_part,
    parse_digest,
    parse_repository,
    parse_tag,
    parse_tag_reference,
    parse_upload_id,
)

SHA256 = "sha256:" + "0a" * 32
SHA512 = "sha512:" + "0a" * 64


@pytest.mark.parametrize("text", ["a", "a/b", "a.b_c__d-e---f/0", "a" * MAX_REPOSITORY_LENGTH])
def test_a_repository_name_is_taken(text: str) -> None:
    assert parse_repository(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "A",
        "a b",
        "a\n",
        "a__",
        "a...b",
        "a___b",
        "é",
        "a:b",
        "a@b",
        "a%2fb",
        "a" * (MAX_REPOSITORY_LENGTH + 1),
    ],
)
def test_what_is_no_repository_name_is_refused(text: str) -> None:
    assert parse_repository(text) is None


@pytest.mark.parametrize("text", ["latest", "1.0", "_x", "A-b.c_d", "a" * 128])
def test_a_tag_is_taken(text: str) -> None:
    assert parse_tag(text) == text


@pytest.mark.parametrize("text", ["", ".a", "-a", "a/b", "a:b", "a\n", "é", "a" * 129])
def test_what_is_no_tag_is_refused(text: str) -> None:
    assert parse_tag(text) is None


@pytest.mark.parametrize(
    ("text", "algorithm"), [(SHA256, Algorithm.SHA256), (SHA512, Algorithm.SHA512)]
)
def test_a_digest_is_taken(text: str, algorithm: Algorithm) -> None:
    digest = parse_digest(text)
    assert digest == text
    assert algorithm_of(Digest(text)) is algorithm
    assert encoded_part(Digest(text)) == text.partition(":")[2]


@pytest.mark.parametrize(
    "text",
    [
        "",
        SHA256.upper(),
        SHA256[:-1],
        SHA256 + "0",
        SHA256 + "\n",
        "sha1:" + "0a" * 20,
        "sha512:" + "0a" * 32,
        "0a" * 32,
        "sha256:../" + "0a" * 30 + "0",
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    assert parse_digest(text) is None


def test_an_upload_id_is_32_hexadecimal_digits() -> None:
    assert parse_upload_id("0f" * 16) == "0f" * 16
    for text in ("", "0F" * 16, "0f" * 15, "0f" * 16 + "\n", "../" + "0" * 29):
        assert parse_upload_id(text) is None


def test_a_reference_without_a_tag_is_the_latest() -> None:
    assert parse_tag_reference("acme/app") == parse_tag_reference("acme/app:latest")
    named = parse_tag_reference("acme/app:1.0")
    assert named is not None
    assert (named.repository, named.tag) == ("acme/app", "1.0")


@pytest.mark.parametrize("text", ["", ":", "a:", ":a", "a:b:c", "a:b/c", "host:5000/a"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    assert parse_tag_reference(text) is None
