"""What the token of a build allows in the registry. Pure."""

from __future__ import annotations

from supervisor.model.build import Build
from supervisor.model.cache import global_cache, tenant_cache
from supervisor.tokens import RepoGrant


def grants_of(build: Build) -> list[RepoGrant]:
    """Return the repositories that a build may use beyond what every build may (base, mirror)."""
    request = build.request
    grants = [RepoGrant(f"builds/{build.id}", "push")]
    if request.cache_scope:
        grants.append(RepoGrant(tenant_cache(build.tenant, request.cache_scope), "push"))
    if request.global_cache_key:
        repository = global_cache(request.global_cache_key)
        grants.append(RepoGrant(repository, "push" if request.export_global_cache else "pull"))
    return grants
