"""`python -m supervisor.ctl`."""

from supervisor.ctl.cli import main

main()
