"""The guest link's messages and frames, shared by both ends. No I/O here.

A frame is a 4-byte big-endian length and one CBOR map (RFC 8949) of that length. The map's `type`
names the message. Both ends treat what they receive as hostile:

    bytes → FrameDecoder (limit before allocation) → structure check → CBOR → frozen message

The structure check walks the CBOR heads before anything is built from them: only the major types
that the messages need, definite lengths, no tags, a bounded depth, maps whose keys are texts and
differ, nothing behind the one item. So a decoder's bug in tags, big numbers, recursion or hashing
is out of a peer's reach, and no frame can be read in two ways.

Unknown fields are ignored and unknown types become `Unknown`, so that either end may be newer.
Times are Unix seconds as floats; durations are seconds unless a name says otherwise.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import cbor2

PROTOCOL_VERSION = 1

CONTROL_PORT = 5001
SECRETS_PORT = 5002
SOURCE_PORT = 5003
REGISTRY_PORT = 8083
EGRESS_PORT = 3128
GUEST_ADDRESS = "10.102.0.1"
"""The address on the guest's `lo` behind which the forwarded ports answer."""

MAX_FRAME_BYTES = 2 << 20
"""No message needs more: a configuration holds a Dockerfile of at most 1 MiB and some text besides;
log data is cut into pieces of `MAX_LOG_DATA_BYTES` by the sender."""
MAX_LOG_DATA_BYTES = 256 << 10
MAX_DEPTH = 8
MAX_ITEMS = 20_000
"""CBOR items in one frame; a lock-file table of thousands of entries still fits."""

_HEADER = struct.Struct(">I")


class WireError(ValueError):
    """The peer broke the protocol. The link cannot be used any further."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Agent → supervisor, first frame: which agent this is, and when it got where."""

    TYPE: ClassVar[str] = "hello"
    protocol: int
    agent: str
    buildkit: str = ""
    toolchain: str = ""
    timeline: Mapping[str, float] = field(default_factory=dict)
    """Seconds since the kernel started, by the name of the moment: `init`, `agent`, `hello`."""


@dataclass(frozen=True, slots=True)
class SecretRequest:
    """One secret that the build names, and the variable that should hold it."""

    id: str
    env_var: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """Supervisor → agent: everything about the build but the source and the secrets' values."""

    TYPE: ClassVar[str] = "config"
    build_id: str
    registry: str
    """`host:port` of the registry as the guest sees it."""
    registry_token: str
    repository: str
    """Where the image is pushed: `builds/{id}`."""
    source_sha256: str
    source_size: int
    timeout_seconds: float
    dockerfile: str = ""
    """Not empty: use this text instead of the file in the source."""
    dockerfile_path: str = "Dockerfile"
    target: str = ""
    build_args: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretRequest, ...] = ()
    no_cache: bool = False
    cache_import: tuple[str, ...] = ()
    """Repositories, each with its tag, to import build cache from."""
    cache_export: str = ""
    mirrors: tuple[str, ...] = ()
    """Upstream registries (`docker.io`) that the registry mirrors under `mirror/{upstream}/`."""
    egress: bool = False
    """Whether port 3128 leads to a proxy."""
    base_image_digest: str = ""
    ca_certificates: str = ""
    """PEM: whom BuildKit trusts beside the public authorities."""
    now: float = 0.0
    """The host's clock, for a guest whose own has drifted."""


@dataclass(frozen=True, slots=True)
class HostReady:
    """Supervisor → agent: the host's ports for this build answer now; begin."""

    TYPE: ClassVar[str] = "host_ready"


@dataclass(frozen=True, slots=True)
class GetSecrets:
    """Agent → supervisor on the secrets port: the one question."""

    TYPE: ClassVar[str] = "get_secrets"
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SecretsResponse:
    """Supervisor → agent on the secrets port: the one answer."""

    TYPE: ClassVar[str] = "secrets_response"
    secrets: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class SourceHeader:
    """Supervisor → agent on the source port, once: exactly `size` raw bytes follow this frame."""

    TYPE: ClassVar[str] = "source_header"
    size: int
    sha256: str
    """Lower-case hexadecimal; the agent verifies it before anything is built."""


@dataclass(frozen=True, slots=True)
class Step:
    """Agent → supervisor: the present state of one BuildKit vertex."""

    TYPE: ClassVar[str] = "step"
    seq: int
    digest: str
    name: str
    started_at: float | None = None
    completed_at: float | None = None
    cached: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Log:
    """Agent → supervisor: output of one step, as bytes, in the order it was written."""

    TYPE: ClassVar[str] = "log"
    seq: int
    time: float
    step: str
    """Digest of the vertex, or empty for a line of the agent's own."""
    stream: int
    """1 for standard output, 2 for standard error."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Status:
    """Agent → supervisor: the agent enters a phase, or answers `get_status`."""

    TYPE: ClassVar[str] = "status"
    seq: int
    time: float
    phase: str
    """`idle`, `source`, `starting`, `building`, `pushing` or `done`."""


@dataclass(frozen=True, slots=True)
class GetStatus:
    """Supervisor → agent: say where you are."""

    TYPE: ClassVar[str] = "get_status"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Either way, every `HEARTBEAT_SECONDS`: the sender is alive."""

    TYPE: ClassVar[str] = "heartbeat"
    time: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """Supervisor → agent: stop the build and power off."""

    TYPE: ClassVar[str] = "cancel"
    reason: str


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Agent → supervisor, last frame: what came of it. The supervisor believes none of it
    unchecked.
    """

    TYPE: ClassVar[str] = "build_result"
    seq: int
    ok: bool
    image_digest: str = ""
    error_code: str = ""
    """One of the contract's reasons that a guest can know, for instance `build_failed`."""
    error: str = ""
    """A sentence for people: the step, the command, the exit code and the last lines."""
    base_image_digest: str = ""
    lockfile_hashes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Error:
    """Either way: the last frame could not be used (an unknown type, a message out of place)."""

    TYPE: ClassVar[str] = "error"
    message: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A well-formed message of a type that this end does not know."""

    type: str


Message = (
    Hello
    | Config
    | HostReady
    | GetSecrets
    | SecretsResponse
    | SourceHeader
    | Step
    | Log
    | Status
    | GetStatus
    | Heartbeat
    | Cancel
    | BuildResult
    | Error
)

HEARTBEAT_SECONDS = 5.0
"""How often each end shows that it is alive."""

_TYPES: Mapping[str, type[Any]] = {cls.TYPE: cls for cls in typing.get_args(Message)}


def encode(message: Message) -> bytes:
    """Return `message` as one frame, ready to send."""
    body = cbor2.dumps({"type": message.TYPE, **as_map(message)})
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"a {message.TYPE} message of {len(body)} bytes is over {MAX_FRAME_BYTES}")
    return _HEADER.pack(len(body)) + body


def as_map(value: Any) -> dict[str, Any]:
    """Return a message's fields as CBOR and JSON can hold them. (`dataclasses.asdict` copies, which
    costs more than the rest of sending a line.)
    """
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    for name, item in fields.items():
        if type(item) is tuple:
            fields[name] = [as_map(i) if hasattr(i, "__dataclass_fields__") else i for i in item]
    return fields


def parse(body: bytes) -> Message | Unknown:
    """Return the message in a frame's body. Raises WireError for anything malformed."""
    _check_structure(body)
    try:
        fields = cbor2.loads(body)
    except (cbor2.CBORDecodeError, ValueError, RecursionError) as exc:
        raise WireError("a frame does not hold valid CBOR") from exc
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise WireError("a frame does not hold a map with a type")
    cls = _TYPES.get(fields["type"])
    if cls is None:
        return Unknown(fields["type"][:64])
    message: Message = _build(cls, fields)
    return message


class FrameDecoder:
    """Turns received bytes into messages; the limit is checked before a frame is collected."""

    def __init__(self, limit_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit_bytes
        self._buffer = bytearray()

    @property
    def is_clean(self) -> bool:
        """Say whether the bytes so far end at a frame's end: an end of stream here is no
        truncation.
        """
        return not self._buffer

    def feed(self, data: bytes | bytearray) -> Iterator[Message | Unknown]:
        """Yield every message that `data` completes, in order. Raises WireError."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > self._limit:
                raise WireError(f"a frame of {length} bytes is over the limit of {self._limit}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield parse(body)

    def take_rest(self) -> bytes:
        """Return what came behind the last frame: on the source port, bytes that are no frame."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


# -- from CBOR to a frozen type ----------------------------------------------------------------


def _build(cls: type[Any], fields: Mapping[str, Any]) -> Any:
    """Make a `cls` from a decoded map: known fields only, each of exactly the declared type."""
    hints = _hints(cls)
    known = {}
    for spec in dataclasses.fields(cls):
        if spec.name in fields:
            known[spec.name] = _convert(fields[spec.name], hints[spec.name], spec.name)
    try:
        return cls(**known)
    except TypeError as exc:
        raise WireError(f"a {getattr(cls, 'TYPE', cls.__name__)} message lacks a field") from exc


_hints_cache: dict[type[Any], dict[str, Any]] = {}


def _hints(cls: type[Any]) -> dict[str, Any]:
    if cls not in _hints_cache:
        _hints_cache[cls] = typing.get_type_hints(cls)
    return _hints_cache[cls]


def _convert(value: Any, hint: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise WireError(f"the field {name!r} is not a finite number")
        return float(value)
    if origin is types.UnionType:
        return None if value is None else _convert(value, typing.get_args(hint)[0], name)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(item, typing.get_args(hint)[0], name) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        key_hint, value_hint = typing.get_args(hint)
        return {
            _convert(key, key_hint, name): _convert(item, value_hint, name)
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _build(hint, value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise WireError(f"the field {name!r} has the wrong type")


# -- the structure check -----------------------------------------------------------------------

_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_ARGUMENT_BYTES = {24: 1, 25: 2, 26: 4, 27: 8}
_SIMPLE_ALLOWED = frozenset({20, 21, 22, 25, 26, 27})  # false, true, null, and the three floats


def _check_structure(body: bytes) -> None:
    """Raise WireError unless `body` is exactly one CBOR item of the kinds that messages use."""
    end = len(body)
    at = 0
    items = 0
    open_items = [1]  # how many items are still due, per level of nesting
    open_keys: list[set[bytes] | None] = [None]  # the keys so far, where the level is a map's
    while open_items:
        if open_items[-1] == 0:
            open_items.pop()
            open_keys.pop()
            continue
        keys = open_keys[-1]
        is_key = keys is not None and open_items[-1] % 2 == 0
        open_items[-1] -= 1
        items += 1
        if items > MAX_ITEMS:
            raise WireError(f"a frame holds more than {MAX_ITEMS} items")
        if at >= end:
            raise WireError("a frame ends inside an item")
        major, info = body[at] >> 5, body[at] & 31
        at += 1
        if (
            major == _TAG
            or info in (28, 29, 30, 31)
            or (major == _SIMPLE and info not in _SIMPLE_ALLOWED)
        ):
            raise WireError("a frame holds a tag, an indefinite length or a reserved value")
        argument = info
        if width := _ARGUMENT_BYTES.get(info, 0):
            if at + width > end:
                raise WireError("a frame ends inside an item")
            argument = int.from_bytes(body[at : at + width], "big")
            at += width
        if is_key and major != _TEXT:
            raise WireError("a key of a map is not a text")
        if major in (_BYTES, _TEXT):
            if argument > end - at:
                raise WireError("a string is longer than its frame")
            if keys is not None and is_key:
                if body[at : at + argument] in keys:
                    raise WireError("a map holds a key twice")
                keys.add(body[at : at + argument])
            at += argument
        elif major in (_ARRAY, _MAP):
            due = argument * (2 if major == _MAP else 1)
            if due > end - at:
                raise WireError("a collection is longer than its frame")
            if len(open_items) >= MAX_DEPTH:
                raise WireError(f"a frame nests deeper than {MAX_DEPTH}")
            open_items.append(due)
            open_keys.append(set() if major == _MAP else None)
    if at != end:
        raise WireError("a frame holds bytes behind its item")
