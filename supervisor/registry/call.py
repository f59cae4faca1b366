"""One authorised request, as the routes get it."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.model.oci import Digest, RepositoryName, parse_digest
from supervisor.registry.access import Principal
from supervisor.registry.errors import digest_invalid
from supervisor.registry.http import Request


@dataclass(frozen=True, slots=True)
class Call:
    """A request to one repository by somebody who may make it."""

    request: Request
    principal: Principal
    repository: RepositoryName
    reference: str
    """The rest of the path: a digest, a tag, the id of an upload. Not checked yet."""

    @property
    def digest(self) -> Digest:
        """The reference as a digest. Raises RegistryError."""
        return require_digest(self.reference)


def require_digest(text: str) -> Digest:
    """Return a digest from outside. Raises RegistryError."""
    digest = parse_digest(text)
    if digest is None:
        raise digest_invalid("a digest is sha256: or sha512: and lower-case hexadecimal digits")
    return digest
