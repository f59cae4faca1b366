"""A registry that holds what agents push over their machine's port, and nothing else.

A push is one line, `PUSH <token> <repository> <digest>`, answered with `OK`. A token is what
`mint` returns: it is good for pushing to its build's repository.
"""

from __future__ import annotations

import trio

from supervisor.actors.hostports import GuestPort
from supervisor.errors import HostError
from supervisor.model.build import Build


class FakeRegistry:
    """Implements what an attempt needs of the registry (`actors.build.Registry`)."""

    def __init__(self) -> None:
        self.images: set[tuple[str, str]] = set()
        self.names: dict[str, str] = {}
        """Digests by `repository:tag`."""
        self.minted: list[tuple[str, float]] = []
        """Build id and lifetime of every token."""
        self.refuses_names = False

    def mint(self, build: Build, lifetime_seconds: float) -> str:
        """Return a token for a build."""
        self.minted.append((build.id, lifetime_seconds))
        return f"token-{build.id}"

    async def holds_image(self, repository: str, digest: str) -> bool:
        await trio.lowlevel.checkpoint()
        return (repository, digest) in self.images

    async def tag(self, repository: str, reference: str, digest: str, *, source: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuses_names or (source, digest) not in self.images:
            raise HostError(f"an image cannot be named {repository}:{reference}")
        self.names[f"{repository}:{reference}"] = digest

    async def delete_repository(self, repository: str) -> bool:
        await trio.lowlevel.checkpoint()
        left = {image for image in self.images if image[0] != repository}
        is_there = left != self.images
        self.images = left
        return is_there

    async def serve(self, listener: GuestPort) -> None:
        """Serve one machine until cancelled."""
        while True:
            async with await listener.accept() as stream:
                words = bytes(await stream.receive_some()).decode().split()
                match words:
                    case ["PUSH", token, repository, digest] if (
                        token == f"token-{repository.removeprefix('builds/')}"
                    ):
                        self.images.add((repository, digest))
                        await stream.send_all(b"OK\n")
                    case _:
                        await stream.send_all(b"NO\n")
