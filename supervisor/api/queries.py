"""The query strings of the API. A parameter that does not exist is an error: it is a typing mistake
that would otherwise silently change what is meant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from urllib.parse import urlencode

from werkzeug.datastructures import MultiDict

from supervisor.actors.builds import BuildFilter
from supervisor.errors import InvalidRequest
from supervisor.model.build import Build, Status
from supervisor.model.events import START, EventId
from supervisor.model.ids import Tenant, parse_build_id

DEFAULT_LIMIT = 50
MAX_LIMIT = 1000
MAX_EVENT_ID = (1 << 63) - 1
_STATUSES = frozenset(Status)
_TAG = re.compile(r"tags\[(.+)\]", re.DOTALL)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def parse_list_query(args: MultiDict[str, str], tenant: Tenant | None) -> BuildFilter:
    """Return which builds to list. Raises InvalidRequest naming the parameter."""
    tags = {match[1]: args[name] for name in args if (match := _TAG.fullmatch(name))}
    check_names(args, ("status", "limit", "cursor"), tags_allowed=True)
    status = args.get("status")
    if status is not None and status not in _STATUSES:
        raise InvalidRequest(f"the parameter `status` must be one of {', '.join(Status)}")
    limit = parse_limit(args)
    cursor = args.get("cursor")
    before = parse_build_id(cursor) if cursor is not None else None
    if cursor is not None and before is None:
        raise InvalidRequest("the parameter `cursor` is not one that this API gave out")
    return BuildFilter(
        tenant=tenant,
        status=Status(status) if status else None,
        tags=tags,
        before=before,
        limit=limit,
    )


def parse_limit(args: Mapping[str, str]) -> int:
    """Return the length of a page."""
    limit = _parse_number("limit", args.get("limit", str(DEFAULT_LIMIT)), MAX_LIMIT)
    if limit < 1:
        raise InvalidRequest(f"the parameter `limit` must be between 1 and {MAX_LIMIT}")
    return limit


def one_more(wanted: BuildFilter) -> BuildFilter:
    """Ask for one build more than shown: whether it is there tells whether there is a next page."""
    return replace(wanted, limit=wanted.limit + 1)


def next_link(path: str, args: MultiDict[str, str], last: Build) -> str:
    """Return the `Link` header to the page behind `last`."""
    query = [(name, value) for name, value in args.items(multi=True) if name != "cursor"]
    return f'<{path}?{urlencode([*query, ("cursor", last.id)])}>; rel="next"'


def parse_flag(args: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Return a true-or-false parameter."""
    text = args.get(name)
    if text is None:
        return default
    if text.lower() not in _BOOLEANS:
        raise InvalidRequest(f"the parameter `{name}` must be true or false")
    return _BOOLEANS[text.lower()]


def parse_event_id(text: str | None, what: str) -> EventId:
    """Return the event to resume after; the start if there is none."""
    return START if text is None else EventId(_parse_number(what, text, MAX_EVENT_ID))


def check_names(
    args: MultiDict[str, str], known: Collection[str], *, tags_allowed: bool = False
) -> None:
    """Raise InvalidRequest for a parameter that does not exist or is there twice."""
    for name, values in args.lists():
        if name not in known and not (tags_allowed and _TAG.fullmatch(name)):
            raise InvalidRequest(f"there is no parameter {name[:64]!a}")
        if len(values) > 1:
            raise InvalidRequest(f"the parameter {name[:64]!a} is there twice")


def _parse_number(what: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= most):
        raise InvalidRequest(f"the parameter `{what}` must be a whole number, at most {most}")
    return int(text)
