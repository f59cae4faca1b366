"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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
