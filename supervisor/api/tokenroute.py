"""Make API tokens: for administrators, and so for whoever can open the UNIX socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from quart import request
from quart_trio.wrappers import TrioResponse as Response

from supervisor import tokens
from supervisor.api.bodies import receive_json
from supervisor.api.ports import ApiDeps
from supervisor.api.queries import check_names
from supervisor.api.views import TokenView, json_response
from supervisor.errors import InvalidRequest, NotReady
from supervisor.model.ids import parse_tenant
from supervisor.tokens import Permission

DEFAULT_LIFETIME_SECONDS = 24 * 3600
MAX_LIFETIME_SECONDS = 366 * 24 * 3600
_ALL_OF_IMAGES = frozenset(name for name in Permission if name.startswith("image:"))


Allowed = Annotated[Permission, Field(strict=False)] | Literal["image:*"]


class TokenRequest(BaseModel):
    """Whom a token speaks for, what it allows and for how long."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)

    subject: str = Field(min_length=1, max_length=256)
    tenant: str | None = Field(None, description="The subject, if absent.")
    permissions: list[Allowed] | None = Field(
        None, description="All but build:admin, if absent.", max_length=32, strict=False
    )
    lifetime_seconds: int = Field(DEFAULT_LIFETIME_SECONDS, ge=1, le=MAX_LIFETIME_SECONDS)


class TokenRoutes:
    """Handlers, named as in the table of routes."""

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps

    async def create_token(self) -> Response:
        """Sign a token."""
        check_names(request.args, ())
        wanted = await receive_json(TokenRequest, "the token cannot be made")
        if self._deps.keys is None:
            raise NotReady("this daemon has no JWT_SECRET, so it can make no tokens")
        tenant = parse_tenant(wanted.subject if wanted.tenant is None else wanted.tenant)
        if tenant is None:
            raise InvalidRequest(
                "the tenant (the subject, if absent) must be lower-case letters, digits and dashes,"
                " at most 63"
            )
        token = tokens.mint_api_token(
            self._deps.keys.api,
            subject=wanted.subject,
            tenant=tenant,
            permissions=_expand(wanted.permissions),
            now=self._deps.clock(),
            lifetime_seconds=wanted.lifetime_seconds,
        )
        return json_response(TokenView(token=token).model_dump(), 201)


def _expand(names: Sequence[Permission | str] | None) -> frozenset[Permission] | None:
    """Replace `image:*` by what it stands for."""
    if names is None:
        return None
    return frozenset(name for name in names if isinstance(name, Permission)) | (
        _ALL_OF_IMAGES if "image:*" in names else frozenset()
    )
