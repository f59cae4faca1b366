"""The registry as an ASGI application: `/v2` of the OCI distribution specification, only that.

It is mounted under the public listener, and is all that the guests' listeners serve. A request is
matched to a route, its sender is identified, the right to the repository is decided, and only then
does a route see it. Every answer of class 4xx and 5xx has the specification's JSON.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from supervisor.config import Keys
from supervisor.errors import DatabaseBusy, ResourceExhausted, Unauthorized
from supervisor.model.oci import RepositoryName, parse_repository
from supervisor.registry.access import (
    Access,
    Principal,
    TenantOfBuild,
    may,
    may_list_repositories,
)
from supervisor.registry.authentication import TOKEN_PATH, Authenticator
from supervisor.registry.blobroutes import BlobRoutes
from supervisor.registry.blobs import BlobStore
from supervisor.registry.call import Call
from supervisor.registry.discoveryroutes import DiscoveryRoutes
from supervisor.registry.errors import (
    Code,
    RegistryError,
    name_invalid,
    name_unknown,
    unsupported,
)
from supervisor.registry.facts import Facts
from supervisor.registry.http import (
    JSON,
    ClientGone,
    CountBytes,
    Receive,
    Request,
    Scope,
    Send,
    count_nothing,
    header,
)
from supervisor.registry.manifestroutes import ManifestRoutes
from supervisor.registry.mirror import Mirror
from supervisor.registry.sound import SoundBlobs
from supervisor.registry.tokenroute import TokenRoute
from supervisor.registry.uploadroutes import UploadRoutes
from supervisor.registry.uploads import Uploads
from supervisor.runtime.capacity import (
    DATABASE_HELD,
    HELD_RETRY_SECONDS,
    OUT_OF_CAPACITY,
    is_out_of_capacity,
)
from supervisor.runtime.clock import Clock
from supervisor.runtime.logs import log
from supervisor.runtime.mailbox import ActorGone
from supervisor.tokens import RegistryCaller

_PATHS = re.compile(
    r"""/v2/(?:
        (?P<catalog>_catalog)
      | (?P<name>.+)/(?:
            (?P<tags>tags/list)
          | blobs/uploads(?:/(?P<upload>[^/]*))?
          | manifests/(?P<manifest>[^/]+)
          | referrers/(?P<referrers>[^/]+)
          | blobs/(?P<blob>[^/]+)
        )
    )""",
    re.VERBOSE | re.ASCII,
)
_MAX_PATH_LENGTH = 1024
_CONTENT = frozenset({"blob", "uploads", "upload", "manifest"})
"""The kinds of routes that carry blobs and manifests."""

Handler = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Route:
    access: Access
    handle: Handler


class Registry:
    """The application. One instance serves every listener.

    `fallback_host` returns what is named (host:port) in challenges to clients whose Host header is
    unusable. `count_bytes` is told of what blobs and manifests take on the way in and out.
    """

    def __init__(
        self,
        *,
        facts: Facts,
        mirror: Mirror,
        store: BlobStore,
        sound: SoundBlobs,
        uploads: Uploads,
        keys: Keys | None,
        tenant_of_build: TenantOfBuild,
        clock: Clock,
        fallback_host: Callable[[], str],
        count_bytes: CountBytes = count_nothing,
    ) -> None:
        self._tenant_of_build = tenant_of_build
        self._count_bytes = count_bytes
        self._authenticator = Authenticator(keys, clock, fallback_host)
        secret = None if keys is None else keys.registry
        self._tokens = TokenRoute(self._authenticator, secret, tenant_of_build, clock)
        self._discovery = DiscoveryRoutes(facts)
        blobs = BlobRoutes(facts, mirror, store, sound)
        taking = UploadRoutes(facts, store, sound, uploads, tenant_of_build)
        manifests = ManifestRoutes(facts, mirror, store)
        self._routes: Mapping[str, Mapping[str, _Route]] = {
            "blob": {
                "GET": _Route(Access.PULL, blobs.get),
                "HEAD": _Route(Access.PULL, blobs.head),
                "DELETE": _Route(Access.DELETE, blobs.delete),
            },
            "uploads": {"POST": _Route(Access.PUSH, taking.post)},
            "upload": {
                "GET": _Route(Access.PUSH, taking.get),
                "PATCH": _Route(Access.PUSH, taking.patch),
                "PUT": _Route(Access.PUSH, taking.put),
                "DELETE": _Route(Access.PUSH, taking.delete),
            },
            "manifest": {
                "GET": _Route(Access.PULL, manifests.get),
                "HEAD": _Route(Access.PULL, manifests.head),
                "PUT": _Route(Access.PUSH, manifests.put),
                "DELETE": _Route(Access.DELETE, manifests.delete),
            },
            "tags": {"GET": _Route(Access.PULL, self._discovery.tags)},
            "referrers": {"GET": _Route(Access.PULL, self._discovery.referrers)},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        match scope["type"]:
            case "http":
                await self._serve(Request(scope, receive, send))
            case "lifespan":
                await _live(receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1000})

    async def _serve(self, request: Request) -> None:
        try:
            await self._handle(request)
        except Exception as exc:
            if (answer := _answer_to(exc, request.path)) is not None:
                await _answer_error(request, answer)

    async def _handle(self, request: Request) -> None:
        if request.path == TOKEN_PATH:
            await self._tokens.handle(request)
            return
        principal = self._identify(request)
        if request.path in ("/v2", "/v2/"):
            await self._answer_base(request, principal)
            return
        kind, name, reference = _match(request)
        if kind == "catalog":
            await self._list_repositories(request, principal)
            return
        routes = self._routes[kind]
        route = routes.get(request.method)
        if route is None:
            raise _method_not_allowed(routes)
        repository = parse_repository(name)
        if repository is None:
            if principal is None:
                raise self._authenticator.challenge(request, "", "authentication required")
            raise name_invalid()
        if kind in _CONTENT:
            request.count_bytes = self._count_bytes
        allowed = await self._require(request, principal, route.access, repository)
        await route.handle(Call(request, allowed, repository, reference))

    def _identify(self, request: Request) -> Principal | None:
        try:
            return self._authenticator.authenticate(request)
        except Unauthorized as exc:
            raise self._authenticator.challenge(
                request, "", exc.message, error="invalid_token"
            ) from exc

    async def _require(
        self,
        request: Request,
        principal: Principal | None,
        access: Access,
        repository: RepositoryName,
    ) -> Principal:
        """Return the principal if it may do that. Raises the answer otherwise."""
        if principal is not None and await may(
            principal, access, repository, self._tenant_of_build
        ):
            return principal
        actions = "pull,push" if access is Access.PUSH else access
        scope = f"repository:{repository}:{actions}"
        if principal is None:
            raise self._authenticator.challenge(request, scope, "authentication required")
        if access is Access.PULL:
            raise name_unknown()
        if isinstance(principal, RegistryCaller) and principal.build_id is None:
            # The token may have been asked for less than its owner has: let the client ask again.
            raise self._authenticator.challenge(
                request, scope, "the token does not allow this", error="insufficient_scope"
            )
        raise RegistryError(
            HTTPStatus.FORBIDDEN, Code.DENIED, f"{access} is not allowed in this repository"
        )

    async def _answer_base(self, request: Request, principal: Principal | None) -> None:
        if principal is None:
            raise self._authenticator.challenge(request, "", "authentication required")
        if request.method not in ("GET", "HEAD"):
            raise unsupported("only GET answers here")
        await request.answer(HTTPStatus.OK, b"{}", [JSON])

    async def _list_repositories(self, request: Request, principal: Principal | None) -> None:
        if principal is None:
            raise self._authenticator.challenge(
                request, "registry:catalog:*", "authentication required"
            )
        if not may_list_repositories(principal):
            raise RegistryError(
                HTTPStatus.FORBIDDEN, Code.DENIED, "the catalog is for administrators"
            )
        if request.method != "GET":
            raise unsupported("only GET answers here")
        await self._discovery.repositories(request)


def _match(request: Request) -> tuple[str, str, str]:
    """Return the kind of route, the name of the repository, and the rest of the path."""
    match = None
    if len(request.path) <= _MAX_PATH_LENGTH:
        match = _PATHS.fullmatch(request.path)
    if match is None:
        raise RegistryError(
            HTTPStatus.NOT_FOUND, Code.UNSUPPORTED, "the registry has no such route"
        )
    for kind in ("catalog", "tags", "manifest", "referrers", "blob"):
        if match[kind] is not None:
            return kind, match["name"] or "", match[kind]
    upload = match["upload"] or ""
    return ("upload" if upload else "uploads"), match["name"], upload


def _method_not_allowed(routes: Mapping[str, _Route]) -> RegistryError:
    return RegistryError(
        HTTPStatus.METHOD_NOT_ALLOWED,
        Code.UNSUPPORTED,
        "this route does not answer this method",
        headers=[header("allow", ", ".join(routes))],
    )


def _answer_to(error: Exception, path: str) -> RegistryError | None:
    """Return what to answer; None to a client that has gone. Logs what a person must look at."""
    match error:
        case ClientGone():
            return None
        case RegistryError():
            return error
        case ActorGone():
            return _unavailable("the registry is restarting; try again")
        case ResourceExhausted():
            log.error("registry.exhausted", path=path, error=str(error))
            return _full()
        case DatabaseBusy(message=message):
            log.bind(why=message).error("registry.database_busy", path=path)
            return _unavailable(DATABASE_HELD, HELD_RETRY_SECONDS)
        case _ if is_out_of_capacity(error):
            log.error("registry.exhausted", path=path, error=str(error))
            return _unavailable(OUT_OF_CAPACITY)
        case ExceptionGroup(exceptions=(Exception() as only,)):  # of the nursery that was sending
            return _answer_to(only, path)
        case ExceptionGroup() if error.split(ClientGone)[1] is None:
            return None
        case _:
            incident = secrets.token_hex(8)
            log.opt(exception=error).error("registry.request_failed", incident=incident, path=path)
            return _internal(incident)


async def _answer_error(request: Request, error: RegistryError) -> None:
    # A body that has begun cannot become an error: the connection ends short instead.
    if not request.answered:
        await request.answer(error.status, error.body(), [JSON, *error.headers])


def _unavailable(why: str, after_seconds: int = 1) -> RegistryError:
    return RegistryError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        Code.UNAVAILABLE,
        why,
        headers=[header("retry-after", str(after_seconds))],
    )


def _full() -> RegistryError:
    return RegistryError(
        HTTPStatus.INSUFFICIENT_STORAGE, Code.UNAVAILABLE, "the registry has no room left"
    )


def _internal(incident: str) -> RegistryError:
    return RegistryError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        Code.INTERNAL,
        f"the registry failed; its log knows this as incident {incident}",
    )


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
