"""Names of build caches in the registry. Pure.

A scope belongs to a tenant: two tenants that choose the same scope never meet. The global caches
are apart from all of them, since `global` can be neither a tenant nor a scope.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from supervisor.model.ids import Tenant

SCOPE_PATTERN = r"^[a-z0-9][a-z0-9-]{1,62}[a-z0-9]$"
"""What a cache scope looks like, here and in the description of the API."""
_SCOPE = re.compile(SCOPE_PATTERN, re.ASCII)
_RUNTIME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?", re.ASCII)
RESERVED_SCOPES = frozenset({"global"})
CACHE_TAG = "latest"


def parse_scope(text: str) -> str | None:
    """Return the cache scope that `text` is, or None. It becomes a component of a repository."""
    return text if _SCOPE.fullmatch(text) and text not in RESERVED_SCOPES else None


def tenant_cache(tenant: Tenant, scope: str) -> str:
    """Return the repository of a tenant's cache scope."""
    return f"cache/{tenant}/{scope}"


def global_cache(key: str) -> str:
    """Return the repository of a cache that every build may import."""
    return f"cache/global/{key}"


def cache_key(
    registry: str, tenant_scope: str, runtime: str, lockfile_hashes: Mapping[str, str]
) -> str:
    """Return the documented form of a cache reference: the same lock files give the same key.

    `{registry}/cache/{tenant_scope}/{runtime}/{lockfile_hash}`; the hash is over the names and
    hashes of the lock files, in the order of their names. Raises ValueError for a bad component.
    """
    if not _RUNTIME.fullmatch(runtime):
        raise ValueError(f"{runtime!r} cannot be a component of a cache reference")
    if parse_scope(tenant_scope) is None:
        raise ValueError(f"{tenant_scope!r} is not a cache scope")
    listing = "".join(f"{name}\0{lockfile_hashes[name]}\n" for name in sorted(lockfile_hashes))
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return f"{registry}/cache/{tenant_scope}/{runtime}/{digest[:16]}"
