"""What one build may reach and how much of it, and what is reported about it. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from supervisor.config import Settings
from supervisor.egress.addresses import AddressRule, IPAddress
from supervisor.egress.targets import BadTarget, Destination, matches, parse_domain
from supervisor.model.build import NetworkMode, Policy

DEFAULT_PORTS = frozenset({80, 443})


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one request. It is reported once, when it is over."""

    allowed: bool
    """Whether the policy let it pass; it may have failed all the same, as `reason` then says."""
    host: str
    """The name or address as it was checked; what was refused unread is cut to printable ASCII."""
    port: int
    """0 if the target could not be read."""
    reason: str
    """Why it was denied, or how it ended if not in the usual way; else empty."""
    bytes_sent: int = 0
    """Towards the network, heads of requests included, TCP's own bytes not."""
    bytes_received: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served, and the answer that says so."""

    status: int
    """Of the answer. 403 for what the policy denies; others for what failed without its doing."""
    reason: str
    hint: str = ""
    """What to do about it, as a sentence."""

    @property
    def is_denial(self) -> bool:
        """Say whether it is the policy that refuses."""
        return self.status == 403

    def sentence(self, target: str) -> str:
        """Return the body of the answer. `target` is printable ASCII."""
        verb = "is denied" if self.is_denial else "failed"
        return f"{target} {verb}: {self.reason}. {self.hint}".rstrip()


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """How much one machine may ask of the network. Counts are per machine, not per connection."""

    max_bytes: int = 20 << 30
    """Both directions together. At the limit open connections are cut and new ones denied."""
    max_connections: int = 64
    """Served at once; the others wait for one of them to end."""
    max_requests: int = 20_000
    """Each makes an event of the build: the limit keeps a loop of denials from filling its log."""
    connect_seconds: float = 20.0
    """For resolving a name and connecting to one of its addresses."""
    idle_seconds: float = 300.0
    """Without a byte in either direction. A git server may count objects for minutes."""
    linger_seconds: float = 2.0
    """What one direction of a tunnel gets once the other has ended: there is no half-close."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Take the operator's numbers."""
        return cls(
            max_bytes=settings.egress_max_bytes,
            max_connections=settings.egress_max_connections,
            connect_seconds=settings.egress_connect_timeout,
            idle_seconds=settings.egress_idle_timeout,
        )


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Where one build may connect to."""

    address_rule: AddressRule
    allowed_domains: tuple[str, ...] | None = None
    """Normal forms (`parse_domain`). None: any host whose address passes. Empty: none at all.
    With a list, an address is allowed only if it is an entry itself."""
    ports: frozenset[int] = DEFAULT_PORTS

    @classmethod
    def from_build(
        cls, policy: Policy, address_rule: AddressRule, ports: Collection[int] = DEFAULT_PORTS
    ) -> Self:
        """Return the policy of a build. One that is isolated may reach nothing.

        An entry of `allowed_domains` that is no name and no address matches nothing: leaving it out
        can only narrow what is allowed.
        """
        domains: tuple[str, ...] | None = None
        if policy.network_mode is not NetworkMode.EGRESS:
            domains = ()
        elif policy.allowed_domains is not None:
            domains = tuple(_normal_forms(policy.allowed_domains))
        return cls(address_rule, domains, frozenset(ports))

    def why_denied(self, destination: Destination) -> Refusal | None:
        """Judge a host and a port by themselves, before any name is resolved."""
        if destination.port not in self.ports:
            ports = ", ".join(str(port) for port in sorted(self.ports))
            return Refusal(
                403, f"its port is not one of {ports}", "The operator can add it to EGRESS_PORTS."
            )
        domains = self.allowed_domains
        if domains is not None and not any(matches(entry, destination) for entry in domains):
            return Refusal(
                403, "it is not in allowed_domains", "Add it to allowed_domains of the build."
            )
        return None

    def must_see_hello(self, destination: Destination) -> bool:
        """Say whether a tunnel has to begin with a TLS hello that names an allowed server.

        On the ports of HTTP only: what an operator opens others for may begin in any way.
        """
        is_name = isinstance(destination.host, str)
        return self.allowed_domains is not None and is_name and destination.port in DEFAULT_PORTS

    def why_unreachable(self, addresses: Collection[IPAddress]) -> Refusal | None:
        """Judge what a host stands for. One good address is enough: only that is connected to.

        The answer does not name the address, or builds could read the host's private DNS.
        """
        if not addresses:
            return Refusal(502, "its name could not be resolved", "Check its spelling.")
        reasons = [self.address_rule(address) for address in addresses]
        if None in reasons:
            return None
        return Refusal(
            403,
            f"it is {reasons[0]}",
            "Only public addresses can be reached; the operator can add others to"
            " EGRESS_ALLOWED_NETWORKS.",
        )


def _normal_forms(entries: Collection[str]) -> list[str]:
    forms = []
    for entry in entries:
        try:
            forms.append(parse_domain(entry))
        except BadTarget:
            continue
    return forms
