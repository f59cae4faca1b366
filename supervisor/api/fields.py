"""The fields of a submission: one model for the multipart form and for the websocket's JSON.

A form has only texts, so its parts are first turned into what they stand for (`from_texts`); then
both are judged by `BuildFields`. Every value that later meets a command line, a path or the
registry is held to a grammar here that leaves nothing to quote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from supervisor.api.mistakes import describe, parse_json, show
from supervisor.config import Settings
from supervisor.egress.targets import BadTarget, parse_domain
from supervisor.errors import InvalidRequest
from supervisor.model.build import BuildRequest, NetworkMode, Policy, SecretRef
from supervisor.model.cache import SCOPE_PATTERN, parse_scope
from supervisor.tokens import Caller

MIN_MEMORY_MB = 512
"""Less does not boot."""
MAX_DOCKERFILE_BYTES = 512 << 10
"""With all the other fields it still fits into one frame of the guest link."""
MAX_TEXT_BYTES = 256 << 10
"""Of any other part."""

DEPRECATED_WARNING = '299 - "the part `runtime` is deprecated and ignored"'

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HEX_DIGEST = r"[0-9a-f]{64}"

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
_SECRET_ID = r"^[A-Za-z0-9_.-]{1,64}$"
_STAGE = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
_SHA256 = rf"^{_HEX_DIGEST}$"
_DIGEST = rf"^sha256:{_HEX_DIGEST}$"
_CACHE_KEY = rf"^{_COMPONENT}$"
_IMAGE_NAME = rf"^{_COMPONENT}(?:/{_COMPONENT})*(?::[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}})?$"
_GRAMMARS = {
    _VARIABLE: "the name of a variable: ASCII letters, digits and `_`, no digit first, at most 128"
    " characters",
    _SECRET_ID: "1 to 64 ASCII letters, digits, `_`, `.` and `-`",
    _STAGE: "the name of a stage: ASCII letters, digits, `_`, `.` and `-`, a letter or digit first,"
    " at most 128 characters",
    _SHA256: "a SHA-256: 64 hexadecimal digits, `sha256:` in front if you like",
    _DIGEST: "a digest: `sha256:` and 64 lower-case hexadecimal digits",
    SCOPE_PATTERN: "3 to 64 lower-case ASCII letters, digits and `-`, no `-` first or last",
    _CACHE_KEY: "lower-case ASCII letters and digits, with `.`, `_` or `-` between them",
    _IMAGE_NAME: "name[:tag] without a registry: lower-case ASCII letters and digits, with `.`,"
    " `_`, `-` or `/` between them; the tag of at most 128 letters, digits, `_`, `.` and `-`",
}
"""What a text must be, in words."""


def _check_path(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not parts or _CONTROL.search(path):
        raise ValueError("must be a relative path that stays inside the source")
    return "/".join(parts)


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None


def _check_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    _check_encodable(text)
    return text


def _check_line(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("must not hold control characters")
    _check_encodable(text)
    return text


def _check_domain(name: str) -> str:
    try:
        return parse_domain(name)
    except BadTarget as exc:
        raise ValueError(f"must be a domain name, `*.` and one, or an address: {exc}") from None


def _strip_prefix(digest: Any) -> Any:
    if not isinstance(digest, str) or not digest.isascii():
        return digest
    return digest.lower().removeprefix("sha256:")


def _check_secret_id(secret_id: str) -> str:
    if secret_id in (".", ".."):
        raise ValueError("must not be `.` or `..`")
    return secret_id


def _check_scope(scope: str) -> str:
    if parse_scope(scope) is None:
        raise ValueError("must not be `global`, which is reserved")
    return scope


Variable = Annotated[str, StringConstraints(pattern=_VARIABLE)]
Line = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_check_line)]
TagKey = Annotated[
    str, StringConstraints(min_length=1, max_length=128), AfterValidator(_check_line)
]


class SecretField(BaseModel):
    """A secret that the build asks for by name."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: Annotated[str, StringConstraints(pattern=_SECRET_ID), AfterValidator(_check_secret_id)]
    env_var: Variable | None = None


class BuildFields(BaseModel):
    """Everything that a submission may say beside its source."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)

    dockerfile: Annotated[str, AfterValidator(_check_text)] | None = Field(
        None, description="Replaces the Dockerfile in the source; never written into it."
    )
    dockerfile_path: Annotated[
        str, StringConstraints(max_length=1024), AfterValidator(_check_path)
    ] = Field("Dockerfile", description="Path of the Dockerfile inside the source.")
    target: Annotated[str, StringConstraints(pattern=_STAGE)] | None = Field(
        None, description="The stage to build."
    )
    build_args: dict[Variable, Annotated[str, AfterValidator(_check_text)]] = Field(
        default_factory=dict, description="JSON object: values of ARG.", max_length=256
    )
    tags: dict[TagKey, Line] = Field(
        default_factory=dict, description="JSON object: labels to find the build by.", max_length=64
    )
    secrets: tuple[SecretField, ...] = Field(
        (),
        description="JSON array of the secrets that the build uses.",
        max_length=64,
        strict=False,
    )
    source_hash: (
        Annotated[str, BeforeValidator(_strip_prefix), StringConstraints(pattern=_SHA256)] | None
    ) = Field(None, description="SHA-256 of the uploaded bytes, `sha256:` optional; checked.")
    base_image_digest: Annotated[str, StringConstraints(pattern=_DIGEST)] | None = Field(
        None, description="What the base image of the final stage must resolve to."
    )
    cache_scope: (
        Annotated[
            str,
            StringConstraints(pattern=SCOPE_PATTERN),
            AfterValidator(_check_scope),
        ]
        | None
    ) = Field(None, description="The tenant's build cache to use; not `global`.")
    global_cache_key: (
        Annotated[str, StringConstraints(pattern=_CACHE_KEY, max_length=128)] | None
    ) = Field(None, description="The shared build cache to import; exported to by administrators.")
    timeout_seconds: Annotated[int, Field(ge=1)] | None = Field(
        None, description="How long an attempt may take, from the lease of its machine."
    )
    memory_mb: Annotated[int, Field(ge=MIN_MEMORY_MB)] | None = Field(
        None, description="Memory of the machine in MiB."
    )
    cpus: Annotated[int, Field(ge=1)] | None = Field(None, description="Processors of the machine.")
    network_mode: Annotated[NetworkMode, Field(strict=False)] | None = Field(
        None, description="What the build may reach beside the registry."
    )
    allowed_domains: (
        Annotated[
            tuple[Annotated[str, AfterValidator(_check_domain)], ...],
            Field(max_length=256, strict=False),
        ]
        | None
    ) = Field(
        None, description="JSON array of names, `*.` allowed in front; absent: any public address."
    )
    no_cache: bool = Field(False, description="Build every step anew.")
    image_name: (
        Annotated[
            str,
            StringConstraints(
                pattern=_IMAGE_NAME,
                max_length=180,
            ),
        ]
        | None
    ) = Field(None, description="An extra name of the result in the registry, `name[:tag]`.")
    runtime: str | None = Field(None, description="Ignored.", deprecated=True)


class _Limit(NamedTuple):
    field: str
    setting: str


LIMITS = (
    _Limit("timeout_seconds", "max_build_timeout"),
    _Limit("memory_mb", "max_build_memory_mb"),
    _Limit("cpus", "max_build_cpus"),
)
"""Fields whose largest value is the operator's."""

_INTEGERS = frozenset({"timeout_seconds", "memory_mb", "cpus"})
_JSON = frozenset({"build_args", "tags", "secrets", "allowed_domains"})
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def check_part_name(name: str) -> None:
    """Raise InvalidRequest if there is no such part."""
    if name != "source" and name not in BuildFields.model_fields:
        raise InvalidRequest(f"there is no part {show(name)}")


def from_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """Turn the text parts of a form into the values that they stand for; empty ones are absent."""
    return {name: _from_text(name, text) for name, text in texts.items() if text != ""}


def parse_fields(values: Mapping[str, Any]) -> BuildFields:
    """Check the fields of a submission; null and empty texts count as absent.

    Raises InvalidRequest naming each part that is wrong.
    """
    present = {name: value for name, value in values.items() if value is not None and value != ""}
    for name in present:
        check_part_name(name)
    try:
        fields = BuildFields.model_validate(present)
    except ValidationError as exc:
        mistakes = describe(exc, kind="part", grammars=_GRAMMARS)
        raise InvalidRequest(mistakes[0], details=mistakes) from exc
    if fields.allowed_domains is not None and fields.network_mode is NetworkMode.ISOLATED:
        raise InvalidRequest("the part `allowed_domains` has no meaning with network_mode=isolated")
    _check_size("dockerfile", [fields.dockerfile or ""], MAX_DOCKERFILE_BYTES)
    _check_size("build_args", chain.from_iterable(fields.build_args.items()), MAX_TEXT_BYTES)
    if len({secret.id for secret in fields.secrets}) < len(fields.secrets):
        raise InvalidRequest("the part `secrets` names a secret twice")
    return fields


def _check_size(name: str, texts: Iterable[str], most: int) -> None:
    if sum(len(text.encode()) for text in texts) > most:
        raise InvalidRequest(f"the part `{name}` is too large; at most {most:,} bytes are allowed")


def to_request(fields: BuildFields, settings: Settings, caller: Caller) -> BuildRequest:
    """Complete the fields with the operator's defaults. Raises InvalidRequest past a maximum."""
    for limit in LIMITS:
        value, most = getattr(fields, limit.field), getattr(settings, limit.setting)
        if value is not None and value > most:
            raise InvalidRequest(f"the part `{limit.field}` is {value}; at most {most} is allowed")
    return BuildRequest(
        policy=Policy(
            timeout_seconds=fields.timeout_seconds or settings.build_timeout,
            memory_mb=fields.memory_mb or settings.build_memory_mb,
            cpus=fields.cpus or settings.build_cpus,
            network_mode=fields.network_mode or NetworkMode.EGRESS,
            allowed_domains=fields.allowed_domains,
        ),
        dockerfile=fields.dockerfile,
        dockerfile_path=fields.dockerfile_path,
        target=fields.target,
        build_args=fields.build_args,
        tags=fields.tags,
        secrets=tuple(SecretRef(secret.id, secret.env_var) for secret in fields.secrets),
        base_image_digest=fields.base_image_digest,
        cache_scope=fields.cache_scope,
        global_cache_key=fields.global_cache_key,
        export_global_cache=fields.global_cache_key is not None and caller.is_admin,
        no_cache=fields.no_cache,
        image_name=fields.image_name,
    )


def _from_text(name: str, text: str) -> Any:
    if name in _INTEGERS:
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise InvalidRequest(f"the part `{name}` must be a whole number, in decimal digits")
        return int(text)
    if name == "no_cache":
        if text.lower() not in _BOOLEANS:
            raise InvalidRequest("the part `no_cache` must be true or false")
        return _BOOLEANS[text.lower()]
    if name in _JSON:
        return parse_json(text, f"the part `{name}`")
    return text
