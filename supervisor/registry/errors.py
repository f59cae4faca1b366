"""The errors that clients of the registry see, with the distribution specification's codes.

Every one is answered as `{"errors": [{"code", "message", "detail"?}]}`. Texts may change, codes do
not. Nothing of the host (paths, other tenants' names) is ever in a message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import Any

Header = tuple[bytes, bytes]


class Code(StrEnum):
    """The specification's error identifiers, and two of ours for answers of class 5xx."""

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    BLOB_UPLOAD_INVALID = "BLOB_UPLOAD_INVALID"
    BLOB_UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    SIZE_INVALID = "SIZE_INVALID"
    UNAUTHORIZED = "UNAUTHORIZED"
    DENIED = "DENIED"
    UNSUPPORTED = "UNSUPPORTED"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class RegistryError(Exception):
    """A request that cannot be granted, and how to say so."""

    def __init__(
        self,
        status: HTTPStatus,
        code: Code,
        message: str,
        *,
        detail: Any = None,
        headers: Sequence[Header] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.detail = detail
        self.headers = tuple(headers)

    def body(self) -> bytes:
        """Return the JSON that the specification asks for."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        return json.dumps({"errors": [error]}).encode()


def name_invalid() -> RegistryError:
    """Answer a repository name outside the grammar."""
    return RegistryError(
        HTTPStatus.BAD_REQUEST,
        Code.NAME_INVALID,
        "a repository name is path components of lower-case letters, digits and single separators",
    )


def name_unknown() -> RegistryError:
    """Answer for a repository that is not there, or that the caller may not know of."""
    return RegistryError(
        HTTPStatus.NOT_FOUND, Code.NAME_UNKNOWN, "there is no such repository here"
    )


def digest_invalid(why: str) -> RegistryError:
    """Answer a digest that is malformed, of an unknown algorithm, or not that of the content."""
    return RegistryError(HTTPStatus.BAD_REQUEST, Code.DIGEST_INVALID, why)


def blob_unknown() -> RegistryError:
    """Answer for a blob that the repository does not link."""
    return RegistryError(
        HTTPStatus.NOT_FOUND, Code.BLOB_UNKNOWN, "this repository has no such blob"
    )


def blob_damaged() -> RegistryError:
    """Answer for a blob that the repository links, and whose file is not what it was."""
    return RegistryError(
        HTTPStatus.NOT_FOUND,
        Code.BLOB_UNKNOWN,
        "what this registry has stored of the blob is damaged or gone; push it again",
    )


def manifest_damaged() -> RegistryError:
    """Answer for a manifest that the repository holds, and whose file is not what it was."""
    return RegistryError(
        HTTPStatus.NOT_FOUND,
        Code.MANIFEST_UNKNOWN,
        "what this registry has stored of the manifest is damaged or gone; push it again",
    )


def manifest_unknown() -> RegistryError:
    """Answer for a tag or manifest that the repository does not have."""
    return RegistryError(
        HTTPStatus.NOT_FOUND, Code.MANIFEST_UNKNOWN, "this repository has no such manifest"
    )


def manifest_invalid(why: str) -> RegistryError:
    """Answer a manifest that cannot be taken as it is."""
    return RegistryError(HTTPStatus.BAD_REQUEST, Code.MANIFEST_INVALID, why)


def upload_unknown() -> RegistryError:
    """Answer for an upload that is not open in this repository."""
    return RegistryError(
        HTTPStatus.NOT_FOUND,
        Code.BLOB_UPLOAD_UNKNOWN,
        "no such upload is open in this repository; begin a new one",
    )


def unsupported(why: str) -> RegistryError:
    """Answer something that this registry does not do."""
    return RegistryError(HTTPStatus.METHOD_NOT_ALLOWED, Code.UNSUPPORTED, why)


def bad_parameter(name: str, why: str) -> RegistryError:
    """Answer a query parameter or header that cannot be used; no code is quite for that."""
    return RegistryError(HTTPStatus.BAD_REQUEST, Code.UNSUPPORTED, f"{name}: {why}")
