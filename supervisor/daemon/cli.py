"""`hypeman-supervisor`: the daemon's own command line."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated

import trio
import typer

from supervisor.config import (
    Settings,
    effective_values,
    load_ca_certificates,
    load_keys,
    load_settings,
)
from supervisor.errors import ConfigError, SupervisorError
from supervisor.runtime.logs import log, setup_logging

MAX_OPEN_FILES = 65_536

EXIT_FAILED = 1
EXIT_USAGE = 2

app = typer.Typer(
    help="Build container images from source, each build in a microVM of its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Inspect the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="HYPEMAN_CONFIG", help="TOML file; the environment overrides."),
]


@app.command(epilog="Example: JWT_SECRET=$(openssl rand -hex 32) hypeman-supervisor run")
def run(config: ConfigFile = None) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT.

    The first signal lets running builds finish for DRAIN_GRACE seconds, the second stops at once;
    builds that are still running then are continued by the next start.
    """
    settings = _load(config)
    run_daemon = _load_daemon()
    setup_logging(settings.log_level)
    faulthandler.enable()  # the watchdog's SIGABRT then shows where the event loop was stuck
    os.umask(0o027)  # what is stored belongs to the daemon's user and group
    _raise_file_limit()
    try:
        trio.run(run_daemon, settings)
    except Exception as exc:
        raise SystemExit(_report(exc)) from None


@config_app.command("check", epilog="Example: hypeman-supervisor config check --json")
def config_check(
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the effective configuration, secrets hidden. Exit 2 if it cannot be used."""
    settings = _load(config)
    values = {value.name: value.shown for value in effective_values(settings)}
    if as_json:
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    width = max(map(len, values))
    for name, value in values.items():
        sys.stdout.write(f"{name:<{width}}  {'' if value is None else value}\n")


@app.command(epilog="Example: hypeman-supervisor version")
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"hypeman {distribution_version('hypeman')}\n")


def main() -> None:
    """Console entry point."""
    app()


def _load_daemon() -> Callable[[Settings], Awaitable[None]]:
    """Import the daemon, which the other commands do without.

    Nothing that is imported is garbage. To look for some took a sixth of the import, and would take
    its time again and again while the daemon runs.
    """
    gc.disable()
    from supervisor.daemon.app import run_daemon

    gc.freeze()
    gc.enable()
    return run_daemon


def _load(config: Path | None) -> Settings:
    try:
        settings = load_settings(config)
        load_keys(settings)
        load_ca_certificates(settings)
    except ConfigError as exc:
        sys.stderr.write(f"hypeman-supervisor: {exc.message}\n")
        raise SystemExit(EXIT_USAGE) from None
    return settings


def _report(exc: Exception) -> int:
    """Log why the daemon ended, each reason once; return its exit status."""
    known, rest = ExceptionGroup("", [exc]).split(SupervisorError)
    for leaf in _leaves(known):
        log.error("daemon.failed", code=leaf.code, why=leaf.message)
    if rest is not None:
        log.opt(exception=rest).critical("daemon.crashed")
    return EXIT_USAGE if known is not None and known.subgroup(ConfigError) else EXIT_FAILED


def _leaves(group: ExceptionGroup[SupervisorError] | None) -> list[SupervisorError]:
    found: list[SupervisorError] = []
    for exc in group.exceptions if group is not None else ():
        found += _leaves(exc) if isinstance(exc, ExceptionGroup) else [exc]
    return found


def _raise_file_limit() -> None:
    """Take as many file descriptors as allowed: each connection and each machine needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
