"""Who makes a request, and whether they may.

A listener may say who its callers are (the UNIX socket: whoever can open it is an administrator);
everybody else shows an API token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supervisor import tokens
from supervisor.config import Keys
from supervisor.errors import Forbidden, NotFound, Unauthorized
from supervisor.model.build import Build
from supervisor.tokens import Caller, Permission

CALLER_KEY = "hypeman.caller"
"""Where a listener puts its callers' identity, in the `state` of the ASGI scope."""


def authenticate(scope: Mapping[str, Any], authorization: str | None, keys: Keys | None) -> Caller:
    """Return who speaks. Raises Unauthorized."""
    local = scope.get("state", {}).get(CALLER_KEY)
    if isinstance(local, Caller):
        return local
    if authorization is None:
        raise Unauthorized("a token is needed: Authorization: Bearer <token>")
    if sum(name == b"authorization" for name, _ in scope["headers"]) > 1:
        # Whoever stands before us may have looked at another one of them.
        raise Unauthorized("the request has more than one Authorization header")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("only Bearer tokens are accepted: Authorization: Bearer <token>")
    if keys is None:
        raise Unauthorized("this daemon has no JWT_SECRET; use its UNIX socket")
    return tokens.parse_api_token(keys.api, token.strip())


def authorize(caller: Caller, permission: Permission) -> None:
    """Raise Forbidden if the caller lacks the permission."""
    if not caller.may(permission):
        raise Forbidden(f"the token does not carry the permission {permission}")


def check_visible(caller: Caller, build: Build) -> Build:
    """Return `build`; raises NotFound, worded as if it did not exist, if it is another tenant's."""
    if build.tenant != caller.tenant and not caller.is_admin:
        raise NotFound(f"there is no build {build.id}")
    return build
