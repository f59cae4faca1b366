"""What a host lacks for a while, beside room on its disks, and what every client is told of it: it
runs out of descriptors or of memory for its kernel, or another program holds its database.
"""

from __future__ import annotations

import errno

OUT_OF_CAPACITY = "the host has too much to do at the moment; try again later"
DATABASE_HELD = "another program holds the database of the host; try again later"
HELD_RETRY_SECONDS = 10
"""A caller has waited as long already as we wait for the database ourselves."""

NO_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def is_out_of_capacity(error: BaseException | None) -> bool:
    """Say whether `error` is, or was made from, a call that the host refused for lack of these."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_CAPACITY:
            return True
        error = error.__cause__
    return False
