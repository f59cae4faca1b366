"""Lists: tags, referrers, repositories. Each in pages, with a Link to the next one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from supervisor.model.registry import Referrer
from supervisor.registry.call import Call
from supervisor.registry.errors import Header, bad_parameter, name_unknown
from supervisor.registry.facts import Facts
from supervisor.registry.http import JSON, Request, header
from supervisor.registry.media import MAX_MANIFEST_BYTES, OCI_INDEX

MOST_NAMES = 10_000
"""On one page, whatever a client asks for; it follows the Link to the rest."""
_MOST_REFERRERS = 200
_MAX_LAST_LENGTH = 255


class DiscoveryRoutes:
    """Answers what is there."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    async def tags(self, call: Call) -> None:
        """List the tags of a repository, in ASCII order."""
        limit, last = _parse_page(call.request)
        page = await self._facts.list_tags(call.repository, max(limit, 1), last)
        if page is None:
            raise name_unknown()
        names = page.items[:limit]
        headers = _link(call.request, names, more=page.more, limit=limit)
        await _answer(call.request, {"name": call.repository, "tags": names}, headers)

    async def repositories(self, request: Request) -> None:
        """List all repositories."""
        limit, last = _parse_page(request)
        page = await self._facts.list_repositories(max(limit, 1), last)
        names = page.items[:limit]
        headers = _link(request, names, more=page.more, limit=limit)
        await _answer(request, {"repositories": names}, headers)

    async def referrers(self, call: Call) -> None:
        """List the manifests that have a subject, as an image index."""
        digest = call.digest
        request = call.request
        artifact_type = request.parameter("artifactType")
        page = await self._facts.list_referrers(
            call.repository, digest, artifact_type, _MOST_REFERRERS, _parse_last(request)
        )
        descriptors, fitting = _fit(page.items)
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}
        headers: list[Header] = []
        if page.more or fitting < len(page.items):
            headers = _next(request, {"last": page.items[fitting - 1].digest})
        if artifact_type is not None:
            headers.append(header("oci-filters-applied", "artifactType"))
        content = json.dumps(index).encode()
        headers.append(header("content-type", OCI_INDEX))
        await request.answer(HTTPStatus.OK, content, headers)


def _parse_page(request: Request) -> tuple[int, str]:
    """Return how many entries are wanted, and after which."""
    limit = MOST_NAMES
    if (text := request.parameter("n")) is not None:
        if not (text.isascii() and text.isdecimal() and len(text) <= 18):
            raise bad_parameter("n", "must be a number of entries, 0 or more")
        limit = min(int(text), MOST_NAMES)
    return limit, _parse_last(request)


def _parse_last(request: Request) -> str:
    last = request.parameter("last") or ""
    if len(last) > _MAX_LAST_LENGTH or not last.isascii():
        raise bad_parameter("last", "must be an entry of the list")
    return last


def _link(request: Request, names: Sequence[str], *, more: bool, limit: int) -> list[Header]:
    if not more or not names:
        return []
    return _next(request, {"n": str(limit), "last": names[-1]})


def _next(request: Request, parameters: Mapping[str, str]) -> list[Header]:
    kept = {key: values[0] for key, values in request.query.items() if key == "artifactType"}
    query = urlencode({**kept, **parameters})
    # The path was matched against names and digests: it has nothing to quote.
    return [header("link", f'<{request.path}?{query}>; rel="next"')]


def _fit(referrers: Sequence[Referrer]) -> tuple[list[dict[str, Any]], int]:
    """Return descriptors for as many referrers as an index may hold, at least one, and how many."""
    descriptors: list[dict[str, Any]] = []
    size = 0
    for referrer in referrers:
        descriptor: dict[str, Any] = {
            "mediaType": referrer.media_type,
            "digest": referrer.digest,
            "size": referrer.size_bytes,
        }
        if referrer.artifact_type is not None:
            descriptor["artifactType"] = referrer.artifact_type
        if referrer.annotations:
            descriptor["annotations"] = referrer.annotations
        size += len(json.dumps(descriptor)) + 2
        if descriptors and size > MAX_MANIFEST_BYTES - 1024:
            break
        descriptors.append(descriptor)
    return descriptors, len(descriptors)


async def _answer(request: Request, value: Any, headers: Sequence[Header]) -> None:
    await request.answer(HTTPStatus.OK, json.dumps(value).encode(), [JSON, *headers])
