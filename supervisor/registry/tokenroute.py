"""`/v2/token`: exchanges a credential for a registry token that is good for what was asked.

The answer is the docker registry token protocol's (GET, Basic) and its OAuth2 variant (POST, form).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from urllib.parse import parse_qs

from supervisor.errors import Unauthorized
from supervisor.model.ids import Tenant
from supervisor.model.oci import RepositoryName, parse_repository
from supervisor.model.times import rfc3339
from supervisor.registry.access import (
    CATALOG,
    Access,
    Principal,
    TenantOfBuild,
    may,
    may_list_repositories,
)
from supervisor.registry.authentication import Authenticator
from supervisor.registry.errors import Code, RegistryError, bad_parameter, unsupported
from supervisor.registry.http import JSON, Request, header
from supervisor.runtime.clock import Clock
from supervisor.tokens import Caller, Permission, RepoGrant, mint_registry_token

ISSUED_LIFETIME_SECONDS = 1800
"""Long enough for a push over a slow line; never past the end of the credential it came from."""

_MAX_FORM_BYTES = 64 << 10
_MAX_SCOPES = 32
_SCOPE = re.compile(r"([a-z]+)(?:\([a-z]+\))?:([^:\s]+):([a-z*,]*)", re.ASCII)
_GRANT_TYPES = frozenset({"password", "refresh_token"})


class TokenRoute:
    """Issues registry tokens."""

    def __init__(
        self,
        authenticator: Authenticator,
        secret: bytes | None,
        tenant_of_build: TenantOfBuild,
        clock: Clock,
    ) -> None:
        self._authenticator = authenticator
        self._secret = secret
        self._tenant_of_build = tenant_of_build
        self._clock = clock

    async def handle(self, request: Request) -> None:
        """Answer one request for a token."""
        if request.method not in ("GET", "POST"):
            raise unsupported("tokens are had by GET or POST")
        form = await _read_form(request) if request.method == "POST" else {}
        try:
            principal = self._principal(request, form)
        except Unauthorized as exc:
            raise _refused(exc.message) from exc
        if self._secret is None:
            raise _refused("this daemon has no JWT_SECRET, so it issues no tokens")
        scopes = [
            text
            for value in form.get("scope", request.query.get("scope", []))
            for text in value.split()
        ]
        if len(scopes) > _MAX_SCOPES:
            raise bad_parameter("scope", f"more than {_MAX_SCOPES} scopes in one request")
        grants = await self._grants(principal, scopes)
        await request.answer(
            HTTPStatus.OK,
            self._issue(principal, grants),
            [JSON, header("cache-control", "no-store")],
        )

    def _principal(self, request: Request, form: dict[str, list[str]]) -> Principal:
        principal = self._authenticator.authenticate(request)
        if principal is None and form:
            if form.get("grant_type", [""])[0] not in _GRANT_TYPES:
                raise Unauthorized("grant_type must be password or refresh_token")
            given = form.get("password") or form.get("refresh_token") or [""]
            principal = self._authenticator.verify(given[0])
        if principal is None:
            raise Unauthorized("give a token as Basic password, as Basic user name, or as Bearer")
        return principal

    async def _grants(self, principal: Principal, scopes: Iterable[str]) -> Sequence[RepoGrant]:
        grants = []
        for text in scopes:
            match = _SCOPE.fullmatch(text)
            if match is None:
                continue  # a kind of scope that we know nothing of grants nothing
            kind, name, actions = match.groups()
            if kind == "registry" and name == "catalog" and may_list_repositories(principal):
                grants.append(RepoGrant(CATALOG, "pull"))
            repository = parse_repository(name) if kind == "repository" else None
            if repository is not None:
                grants += await self._grants_for(principal, repository, actions.split(","))
        return grants

    async def _grants_for(
        self, principal: Principal, repository: RepositoryName, actions: Sequence[str]
    ) -> list[RepoGrant]:
        wanted = [item for item in Access if "*" in actions or item in actions]
        return [
            RepoGrant(repository, item.value)
            for item in wanted
            if await may(principal, item, repository, self._tenant_of_build)
        ]

    def _issue(self, principal: Principal, grants: Sequence[RepoGrant]) -> bytes:
        assert self._secret is not None
        now = self._clock()
        lifetime = float(ISSUED_LIFETIME_SECONDS)
        if principal.expires_at is not None:
            lifetime = max(1.0, min(lifetime, principal.expires_at - now))
        token = mint_registry_token(
            self._secret,
            subject=principal.subject,
            grants=grants,
            mounts_of=_mounts_of(principal),
            now=now,
            lifetime_seconds=lifetime,
        )
        answer = {
            "token": token,
            "access_token": token,
            "expires_in": int(lifetime),
            "issued_at": rfc3339(now),
        }
        return json.dumps(answer).encode()


def _mounts_of(principal: Principal) -> Tenant | None:
    if isinstance(principal, Caller):
        return principal.tenant if principal.may(Permission.IMAGE_READ) else None
    return principal.mounts_of


async def _read_form(request: Request) -> dict[str, list[str]]:
    body = await request.read_all(_MAX_FORM_BYTES)
    try:
        return parse_qs(body.decode(), max_num_fields=64)
    except ValueError as exc:
        raise bad_parameter("body", "not a form") from exc


def _refused(why: str) -> RegistryError:
    return RegistryError(
        HTTPStatus.UNAUTHORIZED,
        Code.UNAUTHORIZED,
        why,
        headers=[header("www-authenticate", 'Basic realm="hypeman"')],
    )
