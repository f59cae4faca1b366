"""`python -m supervisor.daemon` is `hypeman-supervisor`."""

from supervisor.daemon.cli import main

main()
