"""Manifests: what is read out of them, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.registry.media import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    ManifestError,
    parse_manifest,
)
from tests.registry.images import CONFIG, LAYER, descriptor, digest_of

CONFIG_DESCRIPTOR = descriptor(CONFIG, b"config")
LAYER_DESCRIPTOR = descriptor(LAYER, b"layer")
SUBJECT = descriptor(OCI_MANIFEST, b"subject")


def manifest(**changes: Any) -> bytes:
    fields = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": CONFIG_DESCRIPTOR,
        "layers": [LAYER_DESCRIPTOR],
        **changes,
    }
    return json.dumps({key: value for key, value in fields.items() if value is not None}).encode()


def parse(content: bytes, content_type: str | None = None) -> Any:
    return parse_manifest(content, content_type, digest_of(content))


def test_an_image_needs_its_config_and_layers() -> None:
    parsed = parse(manifest())
    assert [item.digest for item in parsed.references] == [
        digest_of(b"config"),
        digest_of(b"layer"),
    ]
    assert parsed.media_type == OCI_MANIFEST
    assert parsed.artifact_type == CONFIG
    assert parsed.subject is None


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_an_index_needs_its_manifests(media_type: str) -> None:
    content = json.dumps(
        {"schemaVersion": 2, "mediaType": media_type, "manifests": [SUBJECT]}
    ).encode()
    parsed = parse(content)
    assert [item.digest for item in parsed.references] == [digest_of(b"subject")]
    assert parsed.artifact_type is None


def test_a_subject_is_no_reference() -> None:
    parsed = parse(manifest(subject=SUBJECT, artifactType="application/vnd.test", annotations={}))
    assert parsed.subject == digest_of(b"subject")
    assert parsed.artifact_type == "application/vnd.test"
    assert digest_of(b"subject") not in [item.digest for item in parsed.references]


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_layers_that_live_elsewhere_are_not_needed(media_type: str) -> None:
    foreign = descriptor(media_type, b"elsewhere", urls=["https://example.org/x"])
    parsed = parse(manifest(layers=[foreign, LAYER_DESCRIPTOR]))
    assert [item.digest for item in parsed.references] == [
        digest_of(b"config"),
        digest_of(b"layer"),
    ]


def test_the_media_type_comes_from_the_manifest_or_from_the_request() -> None:
    bare = manifest(mediaType=None)
    assert parse(bare, DOCKER_MANIFEST).media_type == DOCKER_MANIFEST
    assert parse(bare, f"{OCI_MANIFEST}; charset=utf-8").media_type == OCI_MANIFEST
    assert parse(manifest()).media_type == OCI_MANIFEST
    for content, content_type in (
        (manifest(), DOCKER_MANIFEST),
        (bare, None),
        (bare, "application/json"),
        (manifest(mediaType="application/vnd.docker.distribution.manifest.v1+json"), None),
    ):
        with pytest.raises(ManifestError):
            parse(content, content_type)


def test_a_config_of_an_odd_type_makes_no_artifact_type() -> None:
    odd = {**CONFIG_DESCRIPTOR, "mediaType": "no type\ud800"}
    assert parse(manifest(config=odd)).artifact_type is None


@pytest.mark.parametrize(
    "changes",
    [
        {"schemaVersion": 1},
        {"schemaVersion": "2"},
        {"config": None},
        {"layers": None},
        {"layers": {}},
        {"layers": [None]},
        {"config": {**CONFIG_DESCRIPTOR, "size": -1}},
        {"config": {**CONFIG_DESCRIPTOR, "size": True}},
        {"config": {**CONFIG_DESCRIPTOR, "size": "5"}},
        {"config": {**CONFIG_DESCRIPTOR, "size": 1.5}},
        {"config": {**CONFIG_DESCRIPTOR, "digest": "sha256:x"}},
        {"config": {**CONFIG_DESCRIPTOR, "digest": None}},
        {"config": {**CONFIG_DESCRIPTOR, "mediaType": None}},
        {"subject": {}},
        {"subject": "x"},
        {"artifactType": 5},
        {"artifactType": "no type"},
        {"artifactType": "a/" + "b" * 200},
        {"annotations": []},
        {"annotations": {"a": 1}},
    ],
)
def test_a_malformed_field_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        parse(manifest(**changes))


def test_json_that_costs_more_than_its_bytes_is_refused_unparsed() -> None:
    with pytest.raises(ManifestError, match="items"):
        parse(b'{"schemaVersion":2,"x":[' + b"[]," * 1_000_000 + b"[]]}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "schemaVersion": st.just(2) | JSON,
            "mediaType": st.sampled_from([OCI_MANIFEST, OCI_INDEX]) | JSON,
            "config": st.just(CONFIG_DESCRIPTOR) | JSON,
            "layers": st.lists(st.just(LAYER_DESCRIPTOR) | JSON) | JSON,
            "manifests": st.lists(st.just(SUBJECT) | JSON) | JSON,
            "subject": JSON,
            "artifactType": JSON,
            "annotations": JSON,
        },
    )
)
def test_any_json_is_a_manifest_or_refused(fields: dict[str, Any]) -> None:
    content = json.dumps(fields).encode()
    try:
        parsed = parse(content)
    except ManifestError:
        return
    assert parsed.size_bytes == len(content)


@given(st.binary())
def test_any_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ManifestError):
        parse(content)
