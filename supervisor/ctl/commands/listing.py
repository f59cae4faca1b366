"""What commands write, in the shapes that they share: for people, JSON, template, names only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from supervisor.ctl.errors import UsageError
from supervisor.ctl.model import Json
from supervisor.ctl.output import Output
from supervisor.ctl.template import Fields, Template, parse_template


@dataclass(frozen=True, slots=True)
class How:
    """The shape that was asked for."""

    as_json: bool = False
    template: Template | None = None
    quiet: bool = False


def parse_how(fields: Fields, *, as_json: bool, template: str | None, quiet: bool = False) -> How:
    """Return the shape that the options say. Raises UsageError if they contradict each other."""
    if as_json + (template is not None) + quiet > 1:
        raise UsageError("--json, --format and --quiet exclude each other; give one of them")
    return How(as_json, parse_template(template, fields), quiet)


def write_records(
    out: Output,
    how: How,
    records: Sequence[Json],
    columns: Sequence[str],
    row: Callable[[Json], Sequence[str]],
    name: Callable[[Json], str] = lambda record: str(record["id"]),
) -> None:
    """Write what the API listed; `name` is what `--quiet` writes of each."""
    if how.as_json:
        out.json(list(records))
    elif how.template is not None:
        for record in records:
            out.formatted(how.template, record)
    elif how.quiet:
        for record in records:
            out.line(name(record))
    else:
        out.table(columns, [row(record) for record in records])


def write_record(
    out: Output, how: How, record: Json, write: Callable[[], None], name: str = ""
) -> None:
    """Write one thing; `write` does so for people, `name` is what `--quiet` writes."""
    if how.as_json:
        out.json(record)
    elif how.template is not None:
        out.formatted(how.template, record)
    elif how.quiet:
        out.line(name)
    else:
        write()
