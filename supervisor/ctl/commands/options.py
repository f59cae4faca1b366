"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

import typer

from supervisor.ctl.errors import UsageError
from supervisor.ctl.watch import Progress

BuildName = Annotated[
    str, typer.Argument(metavar="BUILD", help="Id of a build, or its unique beginning.")
]
BuildNames = Annotated[
    list[str], typer.Argument(metavar="BUILD...", help="Ids of builds, or their unique beginnings.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON as the API gives it.")]
Template = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="TEXT", help="Write TEXT for each, {fields} of the JSON filled in."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Write ids only.")]
ProgressKind = Annotated[Progress, typer.Option(help="How to show progress.")]
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="Write the id once it is taken in, and leave.")
]
IdempotencyKey = Annotated[
    str | None, typer.Option(metavar="KEY", help="Asking again with it gives the first build.")
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")]
OlderThan = Annotated[
    str,
    typer.Option(
        metavar="AGE",
        help="Only what was last pushed or asked for before: 90s, 10m, 12h, 30d. Under an hour, a"
        " push from elsewhere that is under way may have to be repeated.",
    ),
]

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_AMOUNT = re.compile(r"(\d{1,9})([a-z]{0,2})")


def parse_amount(text: str, units: Mapping[str, int], option: str) -> int:
    """Return a number with a unit behind it in the first one of `units`. Raises UsageError."""
    match = _AMOUNT.fullmatch(text.lower())
    if match is None or match[2] not in units:
        known = ", ".join(unit for unit in units if unit)
        raise UsageError(f"{option} {text}: expected a whole number, with {known} behind it or not")
    return int(match[1]) * units[match[2]]
