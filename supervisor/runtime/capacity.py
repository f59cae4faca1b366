"""What a host runs out of for a while, beside its disks: descriptors, and memory for its kernel."""

from __future__ import annotations

import errno

NO_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def is_out_of_capacity(error: BaseException | None) -> bool:
    """Say whether `error` is, or was made from, a call that the host refused for lack of these."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_CAPACITY:
            return True
        error = error.__cause__
    return False
