"""JSON Web Tokens: who may use the API, and who may use which repository of the registry.

Two kinds, never valid in each other's place:

* an API token is signed with `JWT_SECRET` and names a tenant and permissions;
* a registry token is signed with `REGISTRY_SECRET`, carries `aud=registry` and names repositories.

HS256 is the only algorithm that is ever accepted, whatever a token's header says (RFC 8725, 3.1).
Source of the claims: the contract's "Rules for all routes" and "Registry".
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import jwt

from supervisor.errors import Unauthorized
from supervisor.model.ids import BuildId, Tenant, parse_build_id, parse_tenant
from supervisor.model.times import MAX_UNIX_SECONDS

ALGORITHM = "HS256"
REGISTRY_AUDIENCE = "registry"
ISSUER = "hypeman"
MIN_SECRET_BYTES = 32
CLOCK_LEEWAY_SECONDS = 5
"""A token is accepted this long after its end: clocks of two hosts are never quite equal."""
_REGISTRY_CLAIMS = frozenset({"build_id", "repos", "repo_access"})


class Permission(StrEnum):
    """What an API token may allow."""

    BUILD_READ = "build:read"
    BUILD_WRITE = "build:write"
    BUILD_DELETE = "build:delete"
    BUILD_ADMIN = "build:admin"
    IMAGE_READ = "image:read"
    IMAGE_WRITE = "image:write"
    IMAGE_DELETE = "image:delete"


ALL_BUT_ADMIN = frozenset(Permission) - {Permission.BUILD_ADMIN}
_PERMISSION_NAMES = frozenset(permission.value for permission in Permission)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request of the API."""

    subject: str
    tenant: Tenant
    permissions: frozenset[Permission]
    expires_at: float | None = field(default=None, compare=False)
    """When the token ends, in Unix seconds; None for a caller without one."""

    @property
    def is_admin(self) -> bool:
        """Say whether the caller sees every tenant's builds."""
        return Permission.BUILD_ADMIN in self.permissions

    def may(self, permission: Permission) -> bool:
        """Say whether the caller has `permission`; an administrator has every one."""
        return self.is_admin or permission in self.permissions


@dataclass(frozen=True, slots=True)
class RepoGrant:
    """The right to one repository. Push implies pull.

    `delete` is only in tokens that `/v2/token` issues to callers with `image:delete`.
    """

    repo: str
    scope: Literal["push", "pull", "delete"]


@dataclass(frozen=True, slots=True)
class RegistryCaller:
    """Who makes a request of the registry with a registry token."""

    subject: str
    build_id: BuildId | None
    grants: tuple[RepoGrant, ...]
    mounts_of: Tenant | None = None
    """Blobs may be mounted from what this tenant may pull, also from repositories not granted."""
    expires_at: float | None = field(default=None, compare=False)
    """When the token ends, in Unix seconds; None for a caller without one."""


LOCAL_ADMIN = Caller("local", Tenant("local"), frozenset(Permission))
"""Whoever can open the UNIX socket: file permissions are the authentication there."""


def derive_registry_secret(jwt_secret: bytes) -> bytes:
    """Return the registry's signing key when the operator gave none of its own.

    The derivation is one-way and bound to a purpose, so neither key helps to forge the other's
    tokens.
    """
    return hmac.new(jwt_secret, b"hypeman registry tokens v1", hashlib.sha256).digest()


def mint_api_token(
    secret: bytes,
    *,
    subject: str,
    tenant: Tenant | None = None,
    permissions: frozenset[Permission] | None = None,
    now: float,
    lifetime_seconds: float,
) -> str:
    """Return an API token. Without `permissions` it has all but `build:admin`."""
    claims: dict[str, Any] = {
        "sub": subject,
        "iat": int(now),
        "exp": int(now + lifetime_seconds),
    }
    if tenant is not None:
        claims["tenant"] = tenant
    if permissions is not None:
        claims["permissions"] = sorted(permissions)
    return jwt.encode(claims, secret, ALGORITHM)


def parse_api_token(secret: bytes, token: str) -> Caller:
    """Return the caller that `token` speaks for.

    Raises Unauthorized for anything but a well-formed, unexpired API token. Malformed permissions
    give no permission at all rather than the default.
    """
    claims = _decode(secret, token)
    if "aud" in claims or _REGISTRY_CLAIMS & claims.keys():
        raise Unauthorized("a registry token is not valid here; use an API token")
    subject = claims["sub"]
    named = claims.get("tenant", subject)
    tenant = parse_tenant(named) if isinstance(named, str) else None
    if tenant is None:
        raise Unauthorized(
            "the token names no valid tenant: lower-case letters, digits and dashes, at most 63"
        )
    return Caller(subject, tenant, _parse_permissions(claims), float(claims["exp"]))


def mint_registry_token(
    secret: bytes,
    *,
    subject: str,
    build_id: BuildId | None = None,
    grants: Sequence[RepoGrant],
    mounts_of: Tenant | None = None,
    now: float,
    lifetime_seconds: float,
) -> str:
    """Return a token for exactly the repositories in `grants`."""
    claims: dict[str, Any] = {
        "aud": REGISTRY_AUDIENCE,
        "iss": ISSUER,
        "sub": subject,
        "iat": int(now),
        "exp": int(now + lifetime_seconds),
        "repo_access": [{"repo": grant.repo, "scope": grant.scope} for grant in grants],
    }
    if build_id is not None:
        claims["build_id"] = build_id
    if mounts_of is not None:
        claims["mounts_of"] = mounts_of
    return jwt.encode(claims, secret, ALGORITHM)


def parse_registry_token(secret: bytes, token: str) -> RegistryCaller:
    """Return the caller that a registry token speaks for, or raise Unauthorized."""
    claims = _decode(secret, token, audience=REGISTRY_AUDIENCE, issuer=ISSUER)
    build_id = claims.get("build_id")
    parsed = parse_build_id(build_id) if isinstance(build_id, str) else None
    if build_id is not None and parsed is None:
        raise Unauthorized("the registry token names no valid build")
    mounts_of = claims.get("mounts_of")
    return RegistryCaller(
        claims["sub"],
        parsed,
        _parse_grants(claims),
        mounts_of=parse_tenant(mounts_of) if isinstance(mounts_of, str) else None,
        expires_at=float(claims["exp"]),
    )


def _decode(
    secret: bytes, token: str, *, audience: str | None = None, issuer: str | None = None
) -> Mapping[str, Any]:
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            secret,
            algorithms=[ALGORITHM],
            audience=audience,
            issuer=issuer,
            leeway=CLOCK_LEEWAY_SECONDS,
            # Whether an audience may be there at all is the caller's question, asked on the claims.
            options={"require": ["exp", "sub"], "verify_aud": audience is not None},
        )
    except jwt.ExpiredSignatureError as exc:
        raise Unauthorized("the token has expired; get a new one") from exc
    except (jwt.PyJWTError, UnicodeError) as exc:
        raise Unauthorized("the token is not valid here") from exc
    if not claims["sub"]:
        raise Unauthorized("the token has no subject")
    expiry = claims["exp"]
    if not isinstance(expiry, int | float) or not 0 < expiry <= MAX_UNIX_SECONDS:
        raise Unauthorized("the token's `exp` is not a time in Unix seconds")
    return claims


def _parse_permissions(claims: Mapping[str, Any]) -> frozenset[Permission]:
    if "permissions" not in claims:
        return ALL_BUT_ADMIN
    named = claims["permissions"]
    if not isinstance(named, list) or not all(isinstance(item, str) for item in named):
        return frozenset()
    permissions: set[Permission] = set()
    for item in named:
        if item == "image:*":
            permissions |= {p for p in Permission if p.startswith("image:")}
        elif item in _PERMISSION_NAMES:
            permissions.add(Permission(item))
        else:
            return frozenset()
    return frozenset(permissions)


def _parse_grants(claims: Mapping[str, Any]) -> tuple[RepoGrant, ...]:
    """Read `repo_access`, or the older `repos` + `scope`; anything malformed grants nothing."""
    access = claims.get("repo_access")
    if access is None and isinstance(claims.get("repos"), list):
        access = [{"repo": repo, "scope": claims.get("scope")} for repo in claims["repos"]]
    if not isinstance(access, list):
        return ()
    grants = []
    for item in access:
        match item:
            case {"repo": str() as repo, "scope": "push" | "pull" | "delete" as scope}:
                grants.append(RepoGrant(repo, scope))
            case _:
                return ()
    return tuple(grants)
