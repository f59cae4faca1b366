"""What goes on: lines on stderr, each with the minutes and seconds since the program began."""

from __future__ import annotations

import sys
import time

_BEGAN = time.monotonic()


def tell(text: str) -> None:
    """Say what begins or has ended."""
    minutes, seconds = divmod(int(time.monotonic() - _BEGAN), 60)
    print(f"{minutes:4}:{seconds:02}  {text}", file=sys.stderr, flush=True)
