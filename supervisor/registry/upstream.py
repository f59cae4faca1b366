"""One upstream registry, as the mirror asks it: for manifests and for blobs.

Nothing that it says is believed: a manifest is read whole and has its digest computed here, a blob
is checked by whoever takes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2

from supervisor.model.oci import Algorithm, Digest, Tag, algorithm_of, parse_digest
from supervisor.model.registry import NewManifest
from supervisor.model.upstream import DOCKER_HUB, Upstream
from supervisor.registry.credentials import HUB_HOST, Credentials, canonical_host
from supervisor.registry.media import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_MANIFEST_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    ManifestError,
    parse_manifest,
)
from supervisor.registry.upstream_errors import failing, refused
from supervisor.registry.upstream_http import Body, UpstreamHttp
from supervisor.registry.upstream_tokens import Tokens

_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
_ACCEPT = {"accept": ", ".join(_TYPES)}
_ABSENT = frozenset({404, 410})
_REFUSED = frozenset({401, 403, 451})


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest as the upstream sent it, read and checked."""

    manifest: NewManifest
    content: bytes


class UpstreamRegistry:
    """Asks one upstream. Every method raises UpstreamError.

    `others` are all upstreams there are; this one may be among them.
    """

    def __init__(
        self,
        upstream: Upstream,
        http: UpstreamHttp,
        credentials: Credentials,
        others: Collection[Upstream],
    ) -> None:
        self._upstream = upstream
        self._http = http
        foreign = {canonical_host(item.url) for item in others} | {HUB_HOST}
        if upstream.name == DOCKER_HUB:
            foreign.discard(HUB_HOST)  # a proxy of it may pass its challenges on
        self._tokens = Tokens(http, credentials, foreign)

    def canonical(self, repository: str) -> str:
        """Return the one name of a repository: Docker Hub's official images have two."""
        is_short = self._upstream.name == DOCKER_HUB and "/" not in repository
        return f"library/{repository}" if is_short else repository

    async def is_current(self, repository: str, tag: Tag, digest: Digest) -> bool | None:
        """Say whether a tag is still at `digest`; None if there is no such tag any more.

        Not being told counts as no. Asking costs nothing where fetching is counted (Docker Hub).
        """
        headers = {**_ACCEPT, "if-none-match": f'"{digest}"'}
        async with self._ask("HEAD", repository, f"manifests/{tag}", headers) as response:
            if response is None:
                return None
            if response.status_code == 304:
                return True
            self._http.require_success(response)
            return response.headers.get("docker-content-digest") == digest

    async def get_manifest(self, repository: str, reference: Tag | Digest) -> Fetched | None:
        """Return a manifest; None if there is none."""
        async with self._ask("GET", repository, f"manifests/{reference}", _ACCEPT) as response:
            if response is None:
                return None
            self._http.require_success(response)
            content = await self._http.read_all(response, MAX_MANIFEST_BYTES)
            announced = parse_digest(response.headers.get("docker-content-digest", ""))
            content_type = response.headers.get("content-type", "").partition(";")[0].strip()
        named = parse_digest(reference)
        digest = _digest_of(content, named or announced)
        for wanted in (named, announced):
            if wanted not in (None, digest) and algorithm_of(wanted) is algorithm_of(digest):
                raise failing(self._upstream.name, f"it sent {digest} as {wanted}")
        try:
            known_type = content_type if content_type in _TYPES else None
            manifest = parse_manifest(content, known_type, digest)
        except ManifestError as exc:
            raise failing(self._upstream.name, f"it sent no manifest: {exc}") from exc
        return Fetched(manifest, content)

    @asynccontextmanager
    async def open_blob(
        self, repository: str, digest: Digest, limit_bytes: int
    ) -> AsyncIterator[Body | None]:
        """Give the body of a blob, unchecked; None if there is none."""
        async with self._ask("GET", repository, f"blobs/{digest}", {}) as response:
            if response is None:
                yield None
                return
            self._http.require_success(response)
            yield self._http.body(response, limit_bytes)

    @asynccontextmanager
    async def _ask(
        self, method: str, repository: str, rest: str, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx2.Response | None]:
        """Ask with a token if one is wanted; gives None for what is not there."""
        name = f"{self._upstream.path}{repository}"
        url = self._http.url(name, rest)
        authorization = self._tokens.known(name)
        for may_be_challenged in (True, False):
            given = {} if authorization is None else {"authorization": authorization}
            async with self._http.ask(method, url, {**headers, **given}) as response:
                status = response.status_code
                challenges = response.headers.get_list("www-authenticate")
                is_challenge = status == 401 and self._http.is_own(response.url)
                if not (is_challenge and may_be_challenged):
                    if status in _REFUSED:
                        raise refused(self._upstream.name, f"it answers {status}")
                    yield None if status in _ABSENT else response
                    return
            authorization = await self._tokens.obtain(name, challenges)


def _digest_of(content: bytes, like: Digest | None) -> Digest:
    """Return the digest of content, with the algorithm of another one."""
    algorithm = Algorithm.SHA256 if like is None else algorithm_of(like)
    digest = parse_digest(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")
    assert digest is not None
    return digest
