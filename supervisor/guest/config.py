"""From a build to the configuration that its agent gets. Pure."""

from __future__ import annotations

from agent import wire
from supervisor.config import Settings
from supervisor.model.build import Build, NetworkMode
from supervisor.model.cache import CACHE_TAG, global_cache, tenant_cache


def guest_config(
    build: Build,
    settings: Settings,
    *,
    token: str,
    seconds: float,
    now: float,
    ca_certificates: str = "",
) -> wire.Config:
    """Return everything that the guest is told. No secret's value is in it, the token excepted."""
    request = build.request
    is_egress = request.policy.network_mode is NetworkMode.EGRESS
    return wire.Config(
        build_id=build.id,
        registry=settings.registry_url,
        registry_token=token,
        repository=f"builds/{build.id}",
        source_sha256=build.source.sha256,
        source_size=build.source.size_bytes,
        timeout_seconds=seconds,
        dockerfile=request.dockerfile or "",
        dockerfile_path=request.dockerfile_path,
        target=request.target or "",
        build_args=dict(request.build_args),
        secrets=tuple(
            wire.SecretRequest(secret.id, secret.env_var or "") for secret in request.secrets
        ),
        no_cache=request.no_cache,
        mirrors=tuple(upstream.name for upstream in settings.upstreams),
        cache_import=_cache_imports(build),
        cache_export=_cache_export(build),
        egress=is_egress,
        base_image_digest=request.base_image_digest or "",
        ca_certificates=ca_certificates if is_egress else "",
        now=now,
    )


def _cache_imports(build: Build) -> tuple[str, ...]:
    request = build.request
    repositories = []
    if request.cache_scope:
        repositories.append(tenant_cache(build.tenant, request.cache_scope))
    if request.global_cache_key:
        repositories.append(global_cache(request.global_cache_key))
    return tuple(f"{name}:{CACHE_TAG}" for name in repositories)


def _cache_export(build: Build) -> str:
    """One export at most: an administrator's global cache goes before the tenant's."""
    request = build.request
    if request.global_cache_key and request.export_global_cache:
        return f"{global_cache(request.global_cache_key)}:{CACHE_TAG}"
    if request.cache_scope:
        return f"{tenant_cache(build.tenant, request.cache_scope)}:{CACHE_TAG}"
    return ""
