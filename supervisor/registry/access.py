"""Who may use which repository: the contract's table, as one pure function.

| repository            | push and delete            | pull                                  |
|-----------------------|----------------------------|---------------------------------------|
| `builds/{id}`         | the token of that build    | its tenant, and that tenant's builds  |
| `cache/{tenant}/…`    | by grant only              | by grant only                         |
| `cache/global/{key}`  | by grant only              | by grant, and every build             |
| `base/…`, `mirror/…`  | `build:admin`              | every build and tenant                |
| `{tenant}/…`          | that tenant                | that tenant and its builds            |

A registry token's grants are what the daemon signed when it minted the token, so they are believed
as they are. Beyond them, the token of a build may pull what the table gives to "every build" and to
"that tenant's builds". An administrator may do everything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from supervisor.model.ids import BuildId, Tenant, parse_build_id, parse_tenant
from supervisor.model.oci import RepositoryName
from supervisor.tokens import Caller, Permission, RegistryCaller

Principal = Caller | RegistryCaller
TenantOfBuild = Callable[[BuildId], Awaitable[Tenant | None]]
"""Looks up whose a build is; None if there is no such build."""

CATALOG = RepositoryName("_catalog")
"""Stands for the list of repositories in scopes and grants; no repository can have this name."""


class Access(StrEnum):
    """What a request does to a repository. Push implies pull."""

    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"


class Kind(StrEnum):
    """The first component of a name, where it has a meaning of its own."""

    BUILDS = "builds"
    CACHE = "cache"
    BASE = "base"
    MIRROR = "mirror"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a repository lies in the table."""

    kind: Kind
    build: BuildId | None = None
    tenant: Tenant | None = None
    """Of `{tenant}/…`."""
    is_global_cache: bool = False


_PERMISSION = {
    Access.PULL: Permission.IMAGE_READ,
    Access.PUSH: Permission.IMAGE_WRITE,
    Access.DELETE: Permission.IMAGE_DELETE,
}


def place_of(repository: RepositoryName) -> Place:
    """Return the line of the table that a repository belongs to."""
    first, _, rest = repository.partition("/")
    match first:
        case Kind.BUILDS:
            return Place(Kind.BUILDS, build=parse_build_id(rest))
        case Kind.CACHE:
            return Place(Kind.CACHE, is_global_cache=rest.startswith("global/"))
        case Kind.BASE:
            return Place(Kind.BASE)
        case Kind.MIRROR:
            return Place(Kind.MIRROR)
        case _:
            return Place(Kind.TENANT, tenant=parse_tenant(first) if rest else None)


async def may(
    principal: Principal,
    access: Access,
    repository: RepositoryName,
    tenant_of_build: TenantOfBuild,
) -> bool:
    """Say whether `principal` may do that to `repository`."""
    if isinstance(principal, RegistryCaller):
        if _is_granted(principal, access, repository):
            return True
        if access is not Access.PULL or principal.build_id is None:
            return False
        tenant = await tenant_of_build(principal.build_id)
        if tenant is None:
            return False  # the build was removed; its token is worth its grants only
        place = place_of(repository)
        return place.is_global_cache or await _tenant_may_pull(tenant, place, tenant_of_build)
    if principal.is_admin:
        return True
    if not principal.may(_PERMISSION[access]):
        return False
    place = place_of(repository)
    if access is Access.PULL:
        return await _tenant_may_pull(principal.tenant, place, tenant_of_build)
    return place.kind is Kind.TENANT and place.tenant == principal.tenant


async def may_mount_from(
    principal: Principal, source: RepositoryName, tenant_of_build: TenantOfBuild
) -> bool:
    """Say whether a blob that `source` links may be linked elsewhere by `principal`.

    Whoever may pull it may. A token that `/v2/token` limited to one repository may also mount what
    the caller behind it may pull: it could have pushed a copy with the same credentials.
    """
    if await may(principal, Access.PULL, source, tenant_of_build):
        return True
    if not isinstance(principal, RegistryCaller) or principal.mounts_of is None:
        return False
    return await _tenant_may_pull(principal.mounts_of, place_of(source), tenant_of_build)


def may_list_repositories(principal: Principal) -> bool:
    """Say whether `principal` may see the names of all repositories."""
    if isinstance(principal, RegistryCaller):
        return _is_granted(principal, Access.PULL, CATALOG)
    return principal.is_admin


def _is_granted(caller: RegistryCaller, access: Access, repository: RepositoryName) -> bool:
    return any(
        grant.repo == repository
        and (grant.scope == access or (grant.scope == "push" and access is Access.PULL))
        for grant in caller.grants
    )


async def _tenant_may_pull(tenant: Tenant, place: Place, tenant_of_build: TenantOfBuild) -> bool:
    match place.kind:
        case Kind.BASE | Kind.MIRROR:
            return True
        case Kind.BUILDS:
            return place.build is not None and await tenant_of_build(place.build) == tenant
        case Kind.TENANT:
            return place.tenant == tenant
        case Kind.CACHE:
            return False
