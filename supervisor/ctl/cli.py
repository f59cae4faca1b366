"""The console entry point: what must hold before the rest of the program is even imported."""

from __future__ import annotations

import signal
import sys

from supervisor.ctl.errors import EXIT_USAGE
from supervisor.ctl.streams import prepare_streams, silence_stdout


def main() -> None:
    """Run the program with usable streams."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a command watches signals itself Ctrl-C just ends it: no traceback from an import.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    prepare_streams()
    from supervisor.ctl.program import run

    try:
        run()
    except OSError as exc:  # help and completion, which no command has written
        sys.stderr.write(f"hypeman-ctl: standard output cannot be written: {exc.strerror}\n")
        silence_stdout()
        sys.exit(EXIT_USAGE)
