"""The OpenAPI description, made from what the daemon works with: the table of routes, the models of
fields and views, the table of problems and the operator's limits. So it cannot say anything else.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema
from quart import request
from quart_trio.wrappers import TrioResponse as Response

from supervisor.api import openapi_operator as operator
from supervisor.api.fields import LIMITS, BuildFields
from supervisor.api.ports import ApiDeps
from supervisor.api.problems import STATUS_OF_CODE
from supervisor.api.queries import DEFAULT_LIMIT, MAX_EVENT_ID, MAX_LIMIT, check_names
from supervisor.api.routes import ROUTES, Route
from supervisor.api.tokenroute import TokenRequest
from supervisor.api.views import (
    BuildView,
    HealthView,
    ProblemView,
    StepView,
    TokenView,
    json_response,
)
from supervisor.api.yamltext import to_yaml
from supervisor.model.build import Reason, Status
from supervisor.runtime.threads import run_in_thread

Json = dict[str, Any]

_REF = "#/components/schemas/{model}"
_ID: Json = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-z]{24}$"},
    "description": "The build's id.",
}
_EVENT: Json = {
    "type": "object",
    "description": "An event. On a websocket it carries the `id` to resume after; in server-sent"
    " events that is the `id:` line.",
    "required": ["type", "timestamp"],
    "properties": {
        "type": {"enum": ["log", "status", "step", "egress", "heartbeat"]},
        "timestamp": {"type": "string", "format": "date-time"},
        "id": {"type": "integer"},
        "content": {"type": "string"},
        "partial": {"const": True, "description": "The line goes on in the next event."},
        "status": {"enum": list(Status)},
        "error_code": {"enum": list(Reason), "description": "Of a build that has failed."},
        "error_reason": {
            "type": "string",
            "description": "What exactly happened, if more is known.",
        },
        "step": {"type": "object"},
        "egress": {
            "type": "object",
            "description": "What became of one request of the build to the network. What was denied"
            " is a line of the log as well.",
            "required": ["allowed", "host", "port", "bytes_sent", "bytes_received"],
            "properties": {
                "allowed": {"type": "boolean"},
                "host": {"type": "string"},
                "port": {"type": "integer"},
                "bytes_sent": {"type": "integer"},
                "bytes_received": {"type": "integer"},
                "reason": {"type": "string"},
            },
        },
    },
}
_DESCRIPTION = """\
Source code in, container images out; each build in a microVM of its own.

Every error is JSON: `{"code", "message", "details"?}`. Codes are stable, messages are for people.

Event streams are server-sent events whose `data:` is an Event. A reader that reconnects with
`Last-Event-ID` gets every event once, in order. Every stream of a finished build ends with its
final status. After 15 s of silence there is a heartbeat, which has no id.

Websockets close with 1000 if the build became ready, 4000 if it failed, 4001 if it was cancelled,
1001 if the daemon stops, and 4000 + the HTTP status of an error that came after the handshake; its
code and message are in the last message, of the type `error`. A message to the daemon may have 4
MiB.
"""


class SpecRoutes:
    """Handlers, named as in the table of routes.

    The description is made when it is first asked for, which hardly anybody does: it would be a
    tenth of the daemon's start. In a thread, because it would be a pause of the event loop.
    """

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps
        self._made: tuple[Json, str] | None = None

    async def spec_json(self) -> Response:
        """Serve the description."""
        check_names(request.args, ())
        spec, _ = await self._make()
        return json_response(spec)

    async def spec_yaml(self) -> Response:
        """Serve it in the other notation."""
        check_names(request.args, ())
        _, text = await self._make()
        return Response(text, content_type="application/yaml")

    async def _make(self) -> tuple[Json, str]:
        if self._made is None:
            self._made = await run_in_thread(self._deps.threads.hashing, _make_sync, self._deps)
        return self._made


def _make_sync(deps: ApiDeps) -> tuple[Json, str]:
    spec = build_spec(deps)
    return spec, to_yaml(spec)


def build_spec(deps: ApiDeps) -> Json:
    """Return the description of the API as `deps` has it work."""
    _, definitions = models_json_schema(
        [
            (BuildView, "serialization"),
            (StepView, "serialization"),
            (ProblemView, "serialization"),
            (TokenView, "serialization"),
            (HealthView, "serialization"),
            (TokenRequest, "validation"),
            (BuildFields, "validation"),
            *((model, "serialization") for model in operator.SHOWN),
            *((model, "validation") for model in operator.BODIES.values()),
        ],
        ref_template=_REF,
    )
    bodies = {TokenRequest.__name__, *(model.__name__ for model in operator.BODIES.values())}
    schemas: Json = {
        name: _plain(schema, takes_null=name in bodies)
        for name, schema in definitions["$defs"].items()
    }
    schemas["Event"] = _EVENT
    fields = schemas.pop("BuildFields")["properties"]
    paths: Json = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, deps, fields)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hypeman", "version": "1", "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }


def _operation(route: Route, deps: ApiDeps, fields: Json) -> Json:
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "security": [] if route.permission is None else [{"token": []}],
        "responses": _responses(route),
    }
    if route.permission is not None:
        operation["description"] = f"Needs the permission `{route.permission}`."
    parameters = [_ID] if "{id}" in route.path else []
    if parameters := parameters + _PARAMETERS.get(route.name, []):
        operation["parameters"] = parameters
    if "{name}" in route.path:
        operation["parameters"] = [operator.NAME]
    if (body := operator.BODIES.get(route.name)) is not None:
        operation["requestBody"] = {"required": True, "content": _content(_ref(body.__name__))}
    if route.name == "submit_build":
        operation["requestBody"] = _form(deps, fields)
    if route.name == "create_token":
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref("TokenRequest")}},
        }
    return operation


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


_FOLLOW = _query("follow", {"type": "boolean"}, "Go on until the final status.")
_AFTER: Json = {"type": "integer", "minimum": 0, "maximum": MAX_EVENT_ID}
_RESUME: Json = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": _AFTER,
    "description": "Send only what came after this event.",
}
_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "description": "For 24 h, the same key and request return the build made first.",
}
_LIMIT = _query(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    "The length of a page.",
)
_PARAMETERS: dict[str, list[Json]] = {
    "submit_build": [_KEY],
    "submit_and_follow": [_KEY],
    "retry_build": [_KEY],
    "list_images": [operator.REPOSITORY, _LIMIT, operator.CURSOR],
    "list_builds": [
        _query("status", {"enum": list(Status)}, "Only builds with this status."),
        _LIMIT,
        _query("cursor", _ID["schema"], "From the `Link` header of the page before."),
        {
            "name": "tags",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "schema": {
                "type": "object",
                "propertyNames": {"minLength": 1},
                "additionalProperties": {"type": "string"},
            },
            "description": "Only builds with these tags: `tags[key]=value`.",
        },
    ],
    "delete_build": [_query("purge", {"type": "boolean"}, "Remove a finished build for good.")],
    "build_logs": [_FOLLOW, _RESUME],
    "build_events": [_FOLLOW, _RESUME],
    "follow_build": [_query("after", _AFTER, "Send only what came after this event.")],
}


def _content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> Json:
    return {"$ref": _REF.format(model=name)}


_SSE: Json = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "Of each event of the stream.",
            "required": ["data"],
            "properties": {
                "id": {"type": "string", "description": "Absent for a heartbeat."},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": _ref("Event"),
                },
            },
        }
    }
}
_TEXT: Json = {"text/plain": {"schema": {"type": "string"}}}


def _list_of(name: str) -> Json:
    return {"type": "array", "items": _ref(name)}


_SUCCESS: dict[str, dict[int, tuple[str, Json | None]]] = {
    "submit_build": {
        200: ("The build that this Idempotency-Key has made.", _content(_ref("BuildView"))),
        202: ("The build is taken in.", _content(_ref("BuildView"))),
    },
    "retry_build": {
        200: ("The build that this Idempotency-Key has made.", _content(_ref("BuildView"))),
        202: ("The new build is taken in.", _content(_ref("BuildView"))),
    },
    "delete_image": {204: ("It is removed; its bytes go by pruning.", None)},
    **{
        name: {200: (text, _content(_list_of(model.__name__) if many else _ref(model.__name__)))}
        for name, (text, model, many) in operator.ANSWERS.items()
    },
    "list_builds": {200: ("A page of builds.", _content(_list_of("BuildView")))},
    "get_build": {200: ("The build.", _content(_ref("BuildView")))},
    "delete_build": {204: ("Accepted: the machine is gone within 5 s; or purged.", None)},
    "build_logs": {
        200: ("Events; with `Accept: text/plain` the log as text.", {**_SSE, **_TEXT}),
        206: ("A range of the text.", _TEXT),
        416: ("The range lies behind the text.", _content(_ref("ProblemView"))),
    },
    "build_events": {200: ("Events.", _SSE)},
    "build_steps": {200: ("The steps.", _content(_list_of("StepView")))},
    "build_evidence": {
        200: ("The last of the console, of the host's programs, and of the messages.", _TEXT)
    },
    "submit_and_follow": {101: ("A websocket.", None)},
    "follow_build": {101: ("A websocket.", None)},
    "create_token": {201: ("The token.", _content(_ref("TokenView")))},
    "health": {200: ("The daemon answers.", _content(_ref("HealthView")))},
    "ready": {200: ("Builds can start.", _content(_ref("HealthView")))},
    "spec_json": {200: ("This description.", _content({"type": "object"}))},
    "spec_yaml": {200: ("This description.", {"application/yaml": {"schema": {"type": "object"}}})},
}
_PROBLEMS: dict[str, frozenset[int]] = {
    "submit_build": frozenset({409, 413, 429, 503}),
    "submit_and_follow": frozenset({429, 503}),
    "delete_build": frozenset({409, 503}),
    "create_token": frozenset({413, 503}),
    "ready": frozenset({503}),
    **operator.PROBLEMS,
}
"""Beside those that every route has."""


def _header(description: str, *, kind: str = "string") -> Json:
    return {"schema": {"type": kind}, "description": description}


_HEADERS: dict[str, Json] = {
    "submit_build": {
        "Location": _header("The build's path."),
        "Warning": _header("A part is deprecated."),
    },
    "retry_build": {"Location": _header("The build's path.")},
    "list_builds": {"Link": _header('The next page, if there is one: `<…>; rel="next"`.')},
    "list_images": {"Link": _header('The next page, if there is one: `<…>; rel="next"`.')},
}
"""Of answers that are no problems."""


def _responses(route: Route) -> Json:
    responses: Json = {}
    for status, (description, content) in _SUCCESS[route.name].items():
        responses[str(status)] = {"description": description}
        if content is not None:
            responses[str(status)]["content"] = content
        if (headers := _HEADERS.get(route.name)) is not None:
            responses[str(status)]["headers"] = headers
    statuses = {400, 500} | _PROBLEMS.get(route.name, frozenset())
    if route.permission is not None:
        statuses |= {401, 403}
    if "{id}" in route.path:
        statuses |= {404}
    for status in sorted(statuses):
        codes = [code for code, its_status in STATUS_OF_CODE.items() if its_status == status]
        responses[str(status)] = {
            "description": "One of: " + ", ".join(f"`{code}`" for code in codes),
            "content": _content(_ref("ProblemView")),
        }
    if "429" in responses:
        responses["429"]["headers"] = {"Retry-After": _header("Seconds.", kind="integer")}
    return responses


def _form(deps: ApiDeps, fields: Json) -> Json:
    shown = {name: dict(schema) for name, schema in fields.items()}
    for limit in LIMITS:
        shown[limit.field]["maximum"] = getattr(deps.settings, limit.setting)
    source = {
        "type": "string",
        "format": "binary",
        "description": "A gzip-compressed tar archive: the build context."
        f" At most {deps.settings.max_source_bytes:,} bytes.",
    }
    schema = {
        "type": "object",
        "required": ["source"],
        "properties": {"source": source, **shown},
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _plain(schema: Any, *, takes_null: bool) -> Any:
    """Drop titles, and what pydantic says about None: in answers and forms a value is absent
    instead. A body of JSON may have null for it.
    """
    if isinstance(schema, list):
        return [_plain(item, takes_null=takes_null) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: _plain(value, takes_null=takes_null)
        for key, value in schema.items()
        if not (key == "default" and value is None)
        and not (key == "title" and isinstance(value, str))
    }
    options = kept.get("anyOf")
    if isinstance(options, list) and {"type": "null"} in options and not takes_null:
        options = [option for option in options if option != {"type": "null"}]
        del kept["anyOf"]
        kept = {**options[0], **kept} if len(options) == 1 else {"anyOf": options, **kept}
    return kept
