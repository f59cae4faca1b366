"""All that a registry has below a tag, for comparing it with what a client pulls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.model.oci import Digest, parse_digest
from tests.registry.client import Client
from tests.registry.images import digest_of

Contents = Mapping[str, bytes]
"""By digest."""


@dataclass
class Held:
    """Manifests and blobs below the one with this digest."""

    digest: Digest
    manifests: dict[str, bytes] = field(default_factory=dict)
    configs: dict[str, bytes] = field(default_factory=dict)
    layers: dict[str, bytes] = field(default_factory=dict)

    @property
    def blobs(self) -> Contents:
        """What is uploaded before a manifest is."""
        return {**self.configs, **self.layers}

    @property
    def everything(self) -> Contents:
        """Manifests and blobs."""
        return {**self.manifests, **self.blobs}


async def read_held(client: Client, repository: str, tag: str) -> Held:
    """Read everything below a tag; fails if it is not what its digests say."""
    answer = await client("HEAD", f"/v2/{repository}/manifests/{tag}")
    assert answer.status == 200, answer
    held = Held(known_digest(answer.headers["docker-content-digest"]))
    await _read_manifest(client, repository, held.digest, held)
    for digest, content in held.everything.items():
        assert digest == digest_of(content)
    return held


def known_digest(text: str) -> Digest:
    """Return the digest that a text is; fails if it is none."""
    digest = parse_digest(text.strip())
    assert digest is not None, text
    return digest


async def _read_manifest(client: Client, repository: str, digest: str, held: Held) -> None:
    async def blob(descriptor: Mapping[str, Any]) -> bytes:
        answer = await client("GET", f"/v2/{repository}/blobs/{descriptor['digest']}")
        assert answer.status == 200, answer
        return answer.body

    answer = await client("GET", f"/v2/{repository}/manifests/{digest}")
    assert answer.status == 200, answer
    held.manifests[digest] = answer.body
    for child in answer.json.get("manifests", ()):
        await _read_manifest(client, repository, child["digest"], held)
    if config := answer.json.get("config"):
        held.configs[config["digest"]] = await blob(config)
    for layer in answer.json.get("layers", ()):
        held.layers[layer["digest"]] = await blob(layer)
