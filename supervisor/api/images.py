"""The routes about images of the registry, whole: `/v2` has their parts, for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
from urllib.parse import urlencode

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from quart import g, request
from quart_trio.wrappers import TrioResponse as Response

from supervisor.api.bodies import receive_json
from supervisor.api.operator_views import ImageView, PruneView
from supervisor.api.ports import ApiDeps
from supervisor.api.queries import check_names, parse_limit
from supervisor.api.views import json_response
from supervisor.errors import Conflict, InvalidRequest, NotFound
from supervisor.model.ids import Tenant
from supervisor.model.inventory import Pruned, PruneWish, StoredImage
from supervisor.model.oci import (
    Digest,
    RepositoryName,
    Tag,
    parse_digest,
    parse_repository,
    parse_tag,
)
from supervisor.model.registry import Removal
from supervisor.model.times import rfc3339
from supervisor.tokens import Caller

DEFAULT_AGE_SECONDS = 3600
"""A push may count on what it has asked for: longer than anything but a very slow one takes."""
MAX_AGE_SECONDS = 10 * 366 * 24 * 3600


def _whole(value: Any) -> Any:
    """In JSON, 60.0 is a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class PruneRequest(BaseModel):
    """What may go."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)

    older_than_seconds: Annotated[int, BeforeValidator(_whole)] = Field(
        DEFAULT_AGE_SECONDS,
        ge=0,
        le=MAX_AGE_SECONDS,
        description="Only what was last pushed or asked for before. Under an hour, a push of which"
        " the daemon does not know yet may have to be repeated.",
    )
    dry_run: bool = Field(False, description="Only say what would go.")


@dataclass(frozen=True, slots=True)
class ImageName:
    """A parsed name: `repository:tag` or `repository@digest`."""

    repository: RepositoryName
    reference: Tag | Digest


class ImageRoutes:
    """Handlers, named as in the table of routes."""

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps
        self._images = deps.images

    async def list_images(self) -> Response:
        """Show a page of images."""
        check_names(request.args, ("repository", "limit", "cursor"))
        limit = parse_limit(request.args)
        repository = None
        if (text := request.args.get("repository")) is not None:
            repository = self._parse_repository(text)
            if repository is None:
                raise InvalidRequest("the parameter `repository` is not the name of a repository")
        found = await self._images.list(
            owner_of(g.caller),
            repository=repository,
            after=_parse_cursor(request.args.get("cursor")),
            limit=limit + 1,
        )
        page = found[:limit]
        response = json_response([self._render(image) for image in page])
        if len(found) > len(page):
            query = {name: value for name, value in request.args.items() if name != "cursor"}
            query["cursor"] = f"{page[-1].repository}@{page[-1].digest}"
            response.headers["Link"] = f'<{request.path}?{urlencode(query)}>; rel="next"'
        return response

    async def get_image(self, name: str) -> Response:
        """Show one image with its documents."""
        check_names(request.args, ())
        image = await self._find(self._parse(name))
        try:
            documents = await self._images.documents(image)
        except FileNotFoundError:
            raise _not_found() from None  # collected since
        shown = self._render(image)
        shown["manifest"] = _parse_document(documents.manifest) or {}
        if documents.config is not None and (config := _parse_document(documents.config)):
            shown["config"] = config
        # Somebody else's documents: lone surrogates have no UTF-8, and no model is that deep.
        return Response(json.dumps(shown), mimetype="application/json")

    async def delete_image(self, name: str) -> Response:
        """Remove a tag, and the image with its last one; by digest, the image."""
        check_names(request.args, ())
        wanted = self._parse(name)
        await self._find(wanted)
        match await self._images.remove(wanted.repository, wanted.reference):
            case Removal.NOT_FOUND:
                raise _not_found()
            case Removal.IN_USE:
                raise Conflict("an image for several platforms is made of it; remove that one")
            case Removal.DONE:
                return Response(status=204)

    async def prune_images(self) -> Response:
        """Remove the caller's images without a tag."""
        check_names(request.args, ())
        wanted = await receive_json(PruneRequest, "the images cannot be pruned")
        wish = PruneWish(
            before=self._deps.clock() - wanted.older_than_seconds,
            images_only=True,
            tenant=owner_of(g.caller),
        )
        pruned = await self._images.prune(wish, is_dry=wanted.dry_run)
        return json_response(render_pruned(pruned, is_dry=wanted.dry_run))

    async def _find(self, wanted: ImageName) -> StoredImage:
        image = await self._images.get(owner_of(g.caller), wanted.repository, wanted.reference)
        if image is None:
            raise _not_found()
        return image

    def _parse(self, name: str) -> ImageName:
        """Return what a name means: as it is pulled, or without the registry and the tenant."""
        name = self._without_registry(name)
        rest, at, text = name.partition("@")
        head, slash, last = rest.rpartition("/")
        last, colon, tag = last.partition(":")
        repository = self._parse_repository(f"{head}{slash}{last}")
        reference: Tag | Digest | None = parse_digest(text) if at else parse_tag(tag or "latest")
        if repository is None or reference is None or (colon and not parse_tag(tag)):
            raise NotFound("that is no name of an image: repository:tag or repository@digest")
        return ImageName(repository, reference)

    def _parse_repository(self, text: str) -> RepositoryName | None:
        """Return what a repository's name means: without a slash it is the caller's tenant's."""
        text = self._without_registry(text)
        return parse_repository(text if "/" in text else f"{g.caller.tenant}/{text}")

    def _without_registry(self, name: str) -> str:
        return name.removeprefix(f"{self._deps.registry_address}/")

    def _render(self, image: StoredImage) -> dict[str, Any]:
        place = f"{self._deps.registry_address}/{image.repository}"
        view = ImageView(
            repository=image.repository,
            digest=image.digest,
            tags=list(image.tags),
            media_type=image.media_type,
            size_bytes=image.size_bytes,
            pushed_at=rfc3339(image.pushed_at),
            image_ref=f"{place}:{image.tags[0]}" if image.tags else f"{place}@{image.digest}",
        )
        return view.model_dump(mode="json")


def owner_of(caller: Caller) -> Tenant | None:
    """Return whose images a caller sees: its tenant's, or, None, everybody's."""
    return None if caller.is_admin else caller.tenant


def render_pruned(pruned: Pruned, *, is_dry: bool) -> Mapping[str, Any]:
    """Return what a prune did as JSON values."""
    return PruneView(
        repositories=pruned.repositories,
        manifests=pruned.manifests,
        blobs=pruned.blobs,
        sources=pruned.sources,
        freed_bytes=pruned.freed_bytes,
        dry_run=is_dry,
    ).model_dump(mode="json")


def _not_found() -> NotFound:
    return NotFound("there is no such image")


def _parse_cursor(text: str | None) -> tuple[str, str]:
    if text is None:
        return "", ""
    repository, _, digest = text.partition("@")
    if parse_repository(repository) is None or parse_digest(digest) is None:
        raise InvalidRequest("the parameter `cursor` is not one that this API gave out")
    return repository, digest


def _parse_document(data: bytes) -> dict[str, Any] | None:
    """Return a document that somebody pushed, if it is an object that can be written again."""
    try:
        value = json.loads(data)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
