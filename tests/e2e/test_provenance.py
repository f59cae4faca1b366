"""What an image says of itself, and what happens to one that is made of something else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.image import inspect

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARGUMENT = "value-of-an-argument-that-holds-a-password"
SECRET = "value-of-a-secret-of-acme"
LOCK, SUM = '{"lockfileVersion": 3}\n', "golang.org/x/sys v0.1.0 h1:x\n"
CONTEXT = {
    "Dockerfile": "FROM busybox AS tools\n"
    "ARG PASSWORD\n"
    'RUN --mount=type=secret,id=attested,env=T [ -n "$T" ] && echo $PASSWORD | wc -c > /made\n'
    "FROM busybox\n"
    "COPY --from=tools /made /made\n",
    "package-lock.json": LOCK,
    "service/go.sum": SUM,
}


def get(daemon: Daemon, repository: str, kind: str, reference: str) -> Any:
    """Return what the registry answers, checked to be what its digest says."""
    with daemon.client() as client:
        answer = client.get(
            f"/v2/{repository}/{kind}/{reference}", headers={"Accept": f"{INDEX}, {MANIFEST}"}
        )
    assert answer.status_code == 200, answer.text
    if reference.startswith("sha256:"):
        assert f"sha256:{hashlib.sha256(answer.content).hexdigest()}" == reference
    return answer.json()


@pytest.fixture
def busybox(daemon: Daemon) -> str:
    """The digest that `FROM busybox` resolves to."""
    with daemon.client() as client:
        answer = client.head(
            "/v2/mirror/docker.io/library/busybox/manifests/latest", headers={"Accept": MANIFEST}
        )
    digest: str = answer.headers["Docker-Content-Digest"]
    return digest


def test_image_carries_an_attestation_of_how_it_was_made_without_anybodys_secrets(
    daemon: Daemon, busybox: str
) -> None:
    secrets_dir = Path(daemon.environment["BUILD_SECRETS_DIR"]) / "acme"
    secrets_dir.mkdir(parents=True, exist_ok=True)
    (secrets_dir / "attested").write_text(SECRET)
    build = daemon.build_image(
        CONTEXT,
        build_args={"PASSWORD": ARGUMENT},
        secrets=[{"id": "attested"}],
        base_image_digest=busybox,
        image_name="attested:1",
    )

    digest, repository = build["image_digest"], f"builds/{build['id']}"
    assert inspect(daemon, build["image_ref"])["Digest"] == digest
    for name, reference in ((repository, digest), (repository, "latest"), ("acme/attested", "1")):
        index = get(daemon, name, "manifests", reference)
        assert index["mediaType"] == INDEX
        image, attestation = index["manifests"]
        assert image["platform"] == {"architecture": "amd64", "os": "linux"}
        assert attestation["annotations"] == {
            "vnd.docker.reference.digest": image["digest"],
            "vnd.docker.reference.type": "attestation-manifest",
        }
        manifest = get(daemon, name, "manifests", attestation["digest"])
        [layer] = manifest["layers"]
        assert layer["mediaType"] == "application/vnd.in-toto+json"
        statement = get(daemon, name, "blobs", layer["digest"])

    assert layer["annotations"]["in-toto.io/predicate-type"] == statement["predicateType"]
    assert statement["predicateType"].startswith("https://slsa.dev/provenance/")
    [subject] = statement["subject"]
    assert f"sha256:{subject['digest']['sha256']}" == image["digest"]
    definition = statement["predicate"]["buildDefinition"]
    [base] = definition["resolvedDependencies"]
    assert f"sha256:{base['digest']['sha256']}" == busybox
    for said in (json.dumps(statement), json.dumps(build["provenance"])):
        assert ARGUMENT not in said
        assert SECRET not in said

    provenance = build["provenance"]
    assert provenance["base_image_digest"] == busybox
    assert provenance["lockfile_hashes"] == {
        "package-lock.json": hashlib.sha256(LOCK.encode()).hexdigest(),
        "service/go.sum": hashlib.sha256(SUM.encode()).hexdigest(),
    }
    parts = dict(part.split(" ", 1) for part in provenance["toolchain_version"].split(", "))
    assert parts.keys() == {"agent", "kernel", "rootlesskit", "runc"}
    assert provenance["buildkit_version"].startswith("v0.")


def test_image_on_another_base_than_asked_for_is_not_pushed(daemon: Daemon, busybox: str) -> None:
    wanted = "sha256:" + "0" * 64
    build = daemon.build(
        {"Dockerfile": "FROM busybox\nRUN echo made > /made\n"},
        base_image_digest=wanted,
        image_name="mismatched:1",
    )
    assert (build["status"], build["error_code"]) == ("failed", "base_image_mismatch")
    assert wanted in build["error"]
    assert busybox in build["error"]
    assert "image_digest" not in build
    events = list(daemon.follow(build["id"]))
    assert "pushing" not in [event.get("status") for event in events]
    with daemon.client() as client:
        for name in (f"builds/{build['id']}/manifests/latest", "acme/mismatched/manifests/1"):
            assert client.get(f"/v2/{name}", headers={"Accept": INDEX}).status_code == 404
