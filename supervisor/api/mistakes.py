"""What is wrong with values from outside, in sentences: what the value should be, never how that is
checked, and never the value itself, which may be long or secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from supervisor.errors import InvalidRequest

_MOST = 20
"""Mistakes that are told at once."""
_SHOULD_BE = {
    "bool_type": "must be true or false",
    "dict_type": "must be a JSON object",
    "extra_forbidden": "does not exist",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a JSON array",
    "missing": "is missing",
    "model_type": "must be a JSON object",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode",
    "too_long": "must have at most {max_length} entries",
    "tuple_type": "must be a JSON array",
}
"""The kinds of mistakes that pydantic finds, as far as the models of the API can have them."""


def describe(error: ValidationError, *, kind: str, grammars: Mapping[str, str]) -> Sequence[str]:
    """Return one sentence, without its stop, for each mistake.

    `kind` is what the fields of the model are called outside. `grammars` says for each pattern of
    the model what a text must be.
    """
    found = error.errors(include_input=False, include_url=False)
    return [_describe_one(each, kind, grammars) for each in found[:_MOST]]


def parse_json(text: str | bytes, what: str) -> Any:
    """Parse JSON from outside. Raises InvalidRequest naming `what`, also for a key that is twice in
    an object: which of the values counts would be a guess.
    """
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, what))
    except json.JSONDecodeError as exc:
        where = f"from character {exc.pos + 1} on"
        raise InvalidRequest(f"{what} is not valid JSON {where}") from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"{what} is not JSON that can be read") from exc


def show(text: str) -> str:
    """Return a name from outside for a message: in quotes, on one line, in ASCII, not too long."""
    return ascii(text[:64])


def _describe_one(error: Any, kind: str, grammars: Mapping[str, str]) -> str:
    name, *inner = error["loc"] or ("",)
    where = f"the {kind} `{name}`" if isinstance(name, str) and name.isidentifier() else "the body"
    if error["type"] == "extra_forbidden" and not inner:
        return f"there is no {kind} {show(str(name))}"
    for part in inner:
        if part == "[key]":
            where += ", its name"
        elif isinstance(part, int):
            where += f", entry {part + 1}"
        else:
            where += f", {show(part)}"
    return f"{where} {_should_be(error, grammars)}"


def _should_be(error: Any, grammars: Mapping[str, str]) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "string_pattern_mismatch":
            return f"must be {grammars[context['pattern']]}"
        case "value_error":
            return str(context["error"])
        case "enum" | "literal_error":
            allowed: str = context["expected"].replace("'", "").replace(" or ", ", ")
            return f"must be one of {allowed}"
        case kind:
            return _SHOULD_BE[kind].format(**context)


def _object(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, after in pairwise(names) if name == after)
        raise InvalidRequest(f"{what} has {show(twice)} twice")
    return made
