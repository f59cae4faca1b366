"""Upstream registries: how the operator names one, and where its images lie in this registry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from supervisor.model.oci import parse_repository

DOCKER_HUB = "docker.io"
DOCKER_HUB_URL = "https://registry-1.docker.io"
"""Where Docker Hub serves the registry protocol; `docker.io` itself does not."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::\d{{1,5}})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Upstream:
    """One registry that is mirrored."""

    name: str
    """As `FROM` says it: `docker.io`, `registry.example:5000`."""
    url: str
    """`https://host[:port]`, or `http://…` if the operator wrote so; without a slash at the end."""
    path: str = ""
    """What the repositories' names begin with there: `dockerhub/` in a proxy of several."""

    @property
    def component(self) -> str:
        """Its part of the names below `mirror/`; a colon cannot be in them."""
        return self.name.replace(":", "_")


def parse_upstream(text: str) -> Upstream:
    """Read an entry of `MIRRORS`: a name, or `name=URL`. Raises ValueError with a sentence."""
    name, equals, url = text.partition("=")
    if not _NAME.fullmatch(name) or parse_repository(f"mirror/{name.replace(':', '_')}/x") is None:
        raise ValueError(
            f"{name!r} is not the name of a registry: a host in lower case, or host:port"
        )
    if not equals:
        return Upstream(name, DOCKER_HUB_URL if name == DOCKER_HUB else f"https://{name}")
    parts = urlsplit(url)
    path = parts.path.strip("/")
    if (
        parts.scheme not in ("https", "http")
        or not parts.hostname
        or parts.port == 0
        or parts.username is not None
        or parts.query
        or parts.fragment
        or (path and parse_repository(path) is None)
    ):
        raise ValueError(
            f"{name} needs a URL of the form https://host[:port][/path], without credentials:"
            " those go into MIRROR_CREDENTIALS_FILE"
        )
    return Upstream(name, f"{parts.scheme}://{parts.netloc.lower()}", f"{path}/" if path else "")
