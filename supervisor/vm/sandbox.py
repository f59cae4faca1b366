"""What a VMM is not given: privileges, and a network.

The VMM and the vsock device run in a user namespace without capabilities and in an empty network
namespace. Whoever breaks out of a guest finds no way to gain rights and no network to reach. It
needs no root. Hosts that forbid it get the next best, and a warning.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.errors import ToolFailed
from supervisor.runtime.logs import log
from supervisor.runtime.process import TIED_TO_PARENT, run_tool

# `unshare --user` changes credentials, so the tie to the parent has to be made after it.
_NO_CAPABILITIES = (
    "setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", *TIED_TO_PARENT[1:],
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A way to start a program with less."""

    name: str
    prefix: tuple[str, ...]

    def wrap(self, argv: list[str]) -> list[str]:
        """Return the command line that runs `argv` inside."""
        return [*self.prefix, *argv]


STRICT = Sandbox(
    "no privileges, no network",
    ("unshare", "--user", "--map-root-user", "--net", "--", *_NO_CAPABILITIES),
)
NO_NETWORK = Sandbox("no network", ("unshare", "--net", "--", *_NO_CAPABILITIES))
UNPRIVILEGED = Sandbox("no new privileges", ("setpriv", "--no-new-privs", *TIED_TO_PARENT[1:]))
KINDS = (STRICT, NO_NETWORK, UNPRIVILEGED)


async def find_sandbox() -> Sandbox:
    """Return the strictest sandbox that this host allows, tried by running something in it.

    Raises ToolFailed if not even the last one works.
    """
    for kind in KINDS[:-1]:
        try:
            await run_tool(kind.wrap(["true"]))
        except ToolFailed as exc:
            log.bind(sandbox=kind.name, why=exc.message).warning("sandbox.refused")
        else:
            return kind
    await run_tool(KINDS[-1].wrap(["true"]))
    return KINDS[-1]
