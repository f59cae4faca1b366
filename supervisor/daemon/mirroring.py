"""What the mirror is told: the operator's settings, and which hosts an upstream may send it to."""

from __future__ import annotations

from ipaddress import ip_address

from supervisor.config import Settings
from supervisor.egress.addresses import AddressRule
from supervisor.egress.resolver import Resolver, host_resolver
from supervisor.egress.routes import host_address_rule
from supervisor.registry.credentials import load_credentials
from supervisor.registry.mirror import MirrorConfig
from supervisor.registry.upstream_http import FindAddress
from supervisor.runtime.threads import Threads


def mirror_config(settings: Settings, threads: Threads) -> MirrorConfig:
    """Return the mirror's configuration. Raises ConfigError if its credentials cannot be used."""
    return MirrorConfig(
        upstreams=settings.upstreams,
        credentials=load_credentials(settings.mirror_credentials_file),
        find_address=address_finder(
            host_resolver(threads.mirror_names), host_address_rule(settings.egress_allowed_networks)
        ),
        tag_ttl=settings.mirror_tag_ttl,
        timeout=settings.mirror_timeout,
        max_blob_bytes=settings.mirror_max_blob_bytes,
    )


def address_finder(resolve: Resolver, rule: AddressRule) -> FindAddress:
    """Return what finds the first address of a host that a build with egress might reach too."""

    async def find(host: str) -> str | None:
        try:
            addresses = [ip_address(host)]
        except ValueError:
            addresses = list(await resolve(host))
        return next((str(item) for item in addresses if rule(item) is None), None)

    return find
