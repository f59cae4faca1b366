"""The daemon's API as typed calls: what the commands use, and the tests.

    async with open_client(find_endpoint(environ=os.environ)) as client:
        build = await client.submit(BuildOptions(target="app"), source)
        async with client.open_events(build.id) as events:
            async for event in events: ...

Every call raises DaemonUnreachable, ApiError or ProtocolError and nothing else of its own.
"""

from __future__ import annotations

import string
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import httpx2

from supervisor.ctl.connection import (
    Connection,
    Endpoint,
    Trace,
    open_connection,
    parse_json,
)
from supervisor.ctl.errors import ApiError, NotFound, ProtocolError, UsageError
from supervisor.ctl.follow import EventStream, open_events
from supervisor.ctl.model import (
    BuildInfo,
    Json,
    StepInfo,
    parse_build,
    parse_list,
    parse_object,
    parse_step,
)
from supervisor.ctl.upload import BuildOptions, MultipartBody, Source
from supervisor.model.ids import ID_LENGTH, parse_build_id

PAGE_SIZE = 1000
"""The API's maximum."""
_LIST_BUILDS = "hypeman-ctl list shows the builds"
_MAX_NAMED = 10
"""So many builds are named when a beginning fits several."""
_DIGITS = string.digits + string.ascii_lowercase
"""What ids are made of, in their order."""
_UPLOAD_TIMEOUT = httpx2.Timeout(None, connect=10.0)
"""A source may be large and the daemon may check it for a while; what stalls is its to end."""


class Client:
    """The calls; use `open_client`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def endpoint(self) -> Endpoint:
        """Where the daemon is."""
        return self._connection.endpoint

    async def submit(
        self, options: BuildOptions, source: Source, *, idempotency_key: str | None = None
    ) -> BuildInfo:
        """Upload a source and return the build that the daemon has taken in.

        Raises whatever `source` raises. Cancelled or failed before the answer, there is no build
        unless the daemon had the whole upload; an `idempotency_key` makes asking again safe.
        """
        body = MultipartBody(options.as_parts(), source)
        headers = {"Content-Type": body.content_type, **_key_headers(idempotency_key)}
        return parse_build(
            await self._connection.request_json(
                "POST", "/builds", content=body, headers=headers, patience=_UPLOAD_TIMEOUT
            )
        )

    async def list_builds(
        self, *, status: str | None = None, tags: Mapping[str, str] | None = None, most: int = 50
    ) -> list[BuildInfo]:
        """Return at most `most` builds, newest first."""
        query = {f"tags[{key}]": value for key, value in (tags or {}).items()}
        query["limit"] = str(max(1, min(most, PAGE_SIZE)))
        if status is not None:
            query["status"] = status
        path: str | None = f"/builds?{httpx2.QueryParams(query)}"
        builds: list[BuildInfo] = []
        while path is not None and len(builds) < most:
            page, path = await self._get_page(path)
            builds += page
        return builds[:most]

    async def _get_page(self, path: str) -> tuple[list[BuildInfo], str | None]:
        """Return one page of builds, and the path of the next."""
        async with self._connection.open_response("GET", path) as response:
            page = parse_list(parse_json(await response.aread()), "builds")
            return [parse_build(build) for build in page], _next_page(response)

    async def resolve(self, name: str) -> str:
        """Return the id of the build that `name` is, or is the unique beginning of.

        Raises UsageError if it fits several builds, NotFound if it fits none.
        """
        if parse_build_id(name) is not None:
            return name
        if not name or len(name) >= ID_LENGTH or set(name) - set(_DIGITS):
            raise UsageError(
                f"{name!r} is no build id: {ID_LENGTH} lower-case letters and digits, or fewer",
                hint=_LIST_BUILDS,
            )
        # Ids are ordered, and so are the lists: what fits comes right before what follows it.
        query = {"limit": str(_MAX_NAMED + 1)}
        if (after := _successor(name)) is not None:
            query["cursor"] = after
        page, _ = await self._get_page(f"/builds?{httpx2.QueryParams(query)}")
        found = [build.id for build in page if build.id.startswith(name)]
        if len(found) > 1:
            more = "" if len(found) <= _MAX_NAMED else ", and more"
            raise UsageError(
                f"{name} fits several builds: {', '.join(found[:_MAX_NAMED])}{more}",
                hint="give more characters of the id",
            )
        if not found:
            raise NotFound(404, "not_found", f"no build's id begins with {name}", hint=_LIST_BUILDS)
        return found[0]

    async def retry(self, build_id: str, *, idempotency_key: str | None = None) -> BuildInfo:
        """Build again what has ended, as a new build. Raises NotFound or ApiError 409."""
        headers = _key_headers(idempotency_key)
        return parse_build(
            await self._connection.request_json(
                "POST", f"/builds/{build_id}/retry", headers=headers
            )
        )

    async def get_build(self, build_id: str) -> BuildInfo:
        """Return a build. Raises NotFound."""
        return parse_build(await self._connection.request_json("GET", f"/builds/{build_id}"))

    async def list_steps(self, build_id: str) -> list[tuple[StepInfo, Mapping[str, Any]]]:
        """Return the BuildKit steps of a build, each with its JSON. Raises NotFound."""
        steps = await self._connection.request_json("GET", f"/builds/{build_id}/steps")
        return [(parse_step(step), step) for step in parse_list(steps, "steps")]

    async def get_evidence(self, build_id: str) -> str:
        """Return what the machine left that a build has lost. NotFound if none. For administrators.

        A guest has written in it.
        """
        async with self._connection.open_response("GET", f"/builds/{build_id}/evidence") as answer:
            return (await answer.aread()).decode(errors="replace")

    async def cancel(self, build_id: str) -> None:
        """Have a build cancelled; returns when that is accepted. NotFound, or ApiError 409."""
        await self._connection.request_json("DELETE", f"/builds/{build_id}")

    async def purge(self, build_id: str) -> None:
        """Remove a finished build's record and files. Raises NotFound or ApiError 409."""
        await self._connection.request_json(
            "DELETE", f"/builds/{build_id}", params={"purge": "true"}
        )

    def open_events(
        self,
        build_id: str,
        *,
        follow: bool = True,
        on_interruption: Callable[[str], None] = lambda _: None,
    ) -> AbstractAsyncContextManager[EventStream]:
        """Read the build's events from the first on, each exactly once, to the final status.

        With `follow` false, to the last event that there is now. `on_interruption` is told when the
        connection breaks; it is made again.
        """
        path = f"/builds/{build_id}/logs"
        return open_events(self._connection, path, follow=follow, on_interruption=on_interruption)

    async def queue(self) -> Json:
        """Return what runs and what waits."""
        return parse_object(await self._connection.request_json("GET", "/queue"), "the queue")

    async def list_machines(self) -> Sequence[Json]:
        """Return the machines. For administrators."""
        return parse_list(await self._connection.request_json("GET", "/machines"), "machines")

    async def list_images(self, *, repository: str | None = None) -> list[Json]:
        """Return all images by name, or those of one repository."""
        query = {"limit": str(PAGE_SIZE)}
        if repository is not None:
            query["repository"] = repository
        path: str | None = f"/images?{httpx2.QueryParams(query)}"
        images: list[Json] = []
        while path is not None:
            async with self._connection.open_response("GET", path) as response:
                images += parse_list(parse_json(await response.aread()), "images")
                path = _next_page(response)
        return images

    async def get_image(self, name: str) -> Json:
        """Return an image with its documents. Raises NotFound."""
        with _naming_image(name):
            answer = await self._connection.request_json("GET", f"/images/{_quote(name)}")
        return parse_object(answer, "an image")

    async def remove_image(self, name: str) -> None:
        """Remove a tag, and the image with its last one. Raises NotFound or ApiError 409."""
        with _naming_image(name):
            await self._connection.request_json("DELETE", f"/images/{_quote(name)}")

    async def prune_images(self, **wish: Any) -> Json:
        """Remove images without a tag; return what went."""
        return await self._prune("/images/prune", wish)

    async def prune_system(self, **wish: Any) -> Json:
        """Remove what nothing can use; return what went. For administrators."""
        return await self._prune("/system/prune", wish)

    async def disk_usage(self) -> Sequence[Json]:
        """Return what takes up room. For administrators."""
        return parse_list(await self._connection.request_json("GET", "/system/df"), "usages")

    async def system_info(self) -> Json:
        """Return facts about daemon and host. For administrators."""
        answer = await self._connection.request_json("GET", "/system/info")
        return parse_object(answer, "a description of the daemon")

    async def system_config(self) -> Sequence[Json]:
        """Return the settings in effect. For administrators."""
        return parse_list(await self._connection.request_json("GET", "/system/config"), "settings")

    async def _prune(self, path: str, wish: Mapping[str, Any]) -> Json:
        answer = await self._connection.request_json(
            "POST", path, json=dict(wish), patience=_UPLOAD_TIMEOUT
        )
        return parse_object(answer, "what was removed")

    async def create_token(
        self,
        *,
        subject: str,
        tenant: str | None = None,
        permissions: Sequence[str] | None = None,
        lifetime_seconds: int | None = None,
    ) -> Mapping[str, Any]:
        """Return what the daemon answers, with the token under `token`. For administrators."""
        wanted = {
            "subject": subject,
            "tenant": tenant,
            "permissions": list(permissions) if permissions is not None else None,
            "lifetime_seconds": lifetime_seconds,
        }
        answer = await self._connection.request_json(
            "POST",
            "/tokens",
            json={name: value for name, value in wanted.items() if value is not None},
        )
        if not isinstance(answer, Mapping) or not isinstance(answer.get("token"), str):
            raise ProtocolError("the daemon's answer holds no token")
        return answer

    async def readiness(self) -> str | None:
        """Return None if builds can start, else the daemon's sentence why not."""
        try:
            await self._connection.request_json("GET", "/ready")
        except ApiError as exc:
            if exc.status == 503:
                return exc.message
            raise
        return None

    async def api_version(self) -> str:
        """Return the version of the API that the daemon speaks."""
        spec = await self._connection.request_json("GET", "/spec.json")
        info = spec.get("info") if isinstance(spec, Mapping) else None
        version = info.get("version") if isinstance(info, Mapping) else None
        if not isinstance(version, str):
            raise ProtocolError("the daemon does not say which version of the API it speaks")
        return version


@asynccontextmanager
async def open_client(endpoint: Endpoint, trace: Trace = lambda _: None) -> AsyncIterator[Client]:
    """Yield a client of the daemon at `endpoint`; nothing is sent before the first call."""
    async with open_connection(endpoint, trace) as connection:
        yield Client(connection)


@contextmanager
def _naming_image(name: str) -> Iterator[None]:
    """Have what the daemon did not find named: it may have been one of many."""
    try:
        yield
    except NotFound as exc:
        raise NotFound(
            exc.status,
            exc.code,
            f"there is no image {name}",
            request_id=exc.request_id,
            hint="hypeman-ctl images lists those that there are",
        ) from exc


def _key_headers(idempotency_key: str | None) -> dict[str, str]:
    """Return the header for a key. Raises UsageError if no header can hold it."""
    if idempotency_key is None:
        return {}
    if not idempotency_key or not idempotency_key.isascii() or not idempotency_key.isprintable():
        raise UsageError("--idempotency-key must be printable ASCII characters, at least one")
    return {"Idempotency-Key": idempotency_key}


def _quote(name: str) -> str:
    return urllib.parse.quote(name, safe="/:@")


def _successor(prefix: str) -> str | None:
    """Return the least id that follows every id with that beginning, None if none does."""
    kept = prefix.rstrip(_DIGITS[-1])
    if not kept:
        return None
    following = _DIGITS[_DIGITS.index(kept[-1]) + 1]
    return (kept[:-1] + following).ljust(ID_LENGTH, _DIGITS[0])


def _next_page(response: httpx2.Response) -> str | None:
    """Return path and query of the next page; its host is ours whatever the link says."""
    link = response.links.get("next", {}).get("url")
    if not link:
        return None
    return str(httpx2.URL(link).raw_path, "ascii")
