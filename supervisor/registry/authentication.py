"""Who makes a request: from the connection, from a Bearer or Basic credential, or nobody.

A JSON Web Token is a credential in three dresses: `Bearer <jwt>`, and Basic with the token as
password (any user name) or as user name. API tokens and registry tokens are both taken; what each
may do is `registry.access`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus

from supervisor.config import Keys
from supervisor.errors import Unauthorized
from supervisor.registry.access import Principal
from supervisor.registry.errors import Code, RegistryError
from supervisor.registry.http import Request, header
from supervisor.runtime.clock import Clock
from supervisor.tokens import Caller, parse_api_token, parse_registry_token

SERVICE = "hypeman"
TOKEN_PATH = "/v2/token"
CALLER_STATE = "hypeman.caller"
"""Key in the ASGI scope's `state`: who is at the other end of a trusted connection."""

_HOST = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?"
)
_MAX_TOKEN_BYTES = 16 << 10
_REMEMBERED = 1024
_REMEMBER_SECONDS = 1.0


class Authenticator:
    """Turns the credentials of requests into principals."""

    def __init__(self, keys: Keys | None, clock: Clock, fallback_host: Callable[[], str]) -> None:
        self._keys = keys
        self._clock = clock
        self._fallback_host = fallback_host
        # A burst of requests with one token costs one verification a second, not one each.
        self._remembered: OrderedDict[str, tuple[float, Principal]] = OrderedDict()

    def authenticate(self, request: Request) -> Principal | None:
        """Return who asks; None for nobody. Raises Unauthorized for an invalid credential."""
        caller = request.scope.get("state", {}).get(CALLER_STATE)
        if isinstance(caller, Caller):
            return caller
        credentials = request.header(b"authorization")
        if credentials is None:
            return None
        if sum(name == b"authorization" for name, _ in request.scope["headers"]) > 1:
            raise Unauthorized("the request has more than one Authorization header")
        scheme, _, value = credentials.partition(" ")
        match scheme.lower():
            case "bearer":
                return self.verify(value.strip())
            case "basic":
                return self.verify(_token_of_basic(value.strip()))
            case _:
                raise Unauthorized("use Bearer or Basic credentials")

    def verify(self, token: str) -> Principal:
        """Return whom a token speaks for. Raises Unauthorized."""
        now = self._clock()
        known = self._remembered.get(token)
        if known is not None and 0 <= now - known[0] < _REMEMBER_SECONDS:
            expires_at = known[1].expires_at
            if expires_at is None or now < expires_at:
                return known[1]
        principal = self._parse(token)
        self._remembered[token] = (now, principal)
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return principal

    def _parse(self, token: str) -> Principal:
        if self._keys is None:
            raise Unauthorized("this daemon has no JWT_SECRET, so no token is valid here")
        if len(token) > _MAX_TOKEN_BYTES:
            raise Unauthorized("the token is too long")
        try:
            return parse_registry_token(self._keys.registry, token)
        except Unauthorized:
            return parse_api_token(self._keys.api, token)

    def challenge(
        self, request: Request, scope: str, why: str, *, error: str = ""
    ) -> RegistryError:
        """Return the 401 that tells a client where to get a token, and for what."""
        parameters = {"realm": self._realm(request), "service": SERVICE}
        if scope:
            parameters["scope"] = scope
        if error:
            parameters["error"] = error
        value = ",".join(f'{name}="{text}"' for name, text in parameters.items())
        return RegistryError(
            HTTPStatus.UNAUTHORIZED,
            Code.UNAUTHORIZED,
            why,
            headers=[header("www-authenticate", f"Bearer {value}")],
        )

    def _realm(self, request: Request) -> str:
        """Return the address of the token endpoint as this client reaches the registry.

        The Host header is the client's word. One that is not plainly a host is not repeated.
        """
        host = request.header(b"host") or ""
        if not _HOST.fullmatch(host):
            host = self._fallback_host()
        scheme = "https" if request.scope.get("scheme") == "https" else "http"
        return f"{scheme}://{host}{TOKEN_PATH}"


def _token_of_basic(value: str) -> str:
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise Unauthorized("the Basic credentials cannot be read") from exc
    if not colon:
        raise Unauthorized("the Basic credentials cannot be read")
    # A token has two dots. Clients that insist on a user name get to choose any.
    return password if password.count(".") == 2 else user
