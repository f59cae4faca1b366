"""Read a multipart/form-data submission (RFC 7578) as it arrives. Only short texts are held."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio
from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from supervisor.api.fields import MAX_DOCKERFILE_BYTES, MAX_TEXT_BYTES, check_part_name
from supervisor.api.uploads import Upload
from supervisor.errors import InvalidRequest, PayloadTooLarge

MAX_PARTS = 64
MAX_PART_HEADERS = 8
MAX_HEADER_BYTES = 4096
"""Of one header of a part."""
STALL_SECONDS = 60.0
"""A client that sends nothing for so long has gone without saying so."""
OVERHEAD_BYTES = 4 << 20
"""How much longer than its source a form may be: texts, boundaries, headers."""

_TOO_COMPLEX = (
    f"the form is too complex: it may have {MAX_PARTS} parts, each with {MAX_PART_HEADERS} headers"
    f" of at most {MAX_HEADER_BYTES:,} bytes"
)
_NOT_WHOLE = (
    "the body is not a whole multipart form: each part must begin with the boundary of the"
    " Content-Type and have a header `Content-Disposition: form-data` with a name, and the boundary"
    " followed by `--` must end the last one"
)


async def receive_form(
    body: AsyncIterator[bytes],
    content_type: str,
    content_length: int | None,
    upload: Upload,
    max_source_bytes: int,
) -> dict[str, str]:
    """Write the part `source` to `upload` and return the texts of the others.

    Raises InvalidRequest or PayloadTooLarge as soon as it is known.
    """
    most = max_source_bytes + OVERHEAD_BYTES
    if content_length is not None and content_length > most:
        raise PayloadTooLarge(f"the source is larger than {max_source_bytes:,} bytes")
    form = _Form(upload)
    parser = _open_parser(content_type)
    received = 0
    try:
        with parser:
            while chunk := await _next_chunk(body):
                received += len(chunk)
                if received > most:
                    raise PayloadTooLarge(f"the request is larger than {most:,} bytes")
                for event in parser.parse(chunk):
                    await form.handle(event)
    except ParserLimitReached as exc:
        raise InvalidRequest(_TOO_COMPLEX) from exc
    except MultipartError as exc:
        raise InvalidRequest(_NOT_WHOLE) from exc
    if not form.has_source:
        raise InvalidRequest("the part `source` is missing")
    return form.texts


class _Form:
    """The parts of one form, one after the other."""

    def __init__(self, upload: Upload) -> None:
        self.texts: dict[str, str] = {}
        self.has_source = False
        self._upload = upload
        self._name = ""
        self._text = bytearray()

    async def handle(self, event: MultipartSegment | bytes | None) -> None:
        if event is None:
            self._end_part()
        elif isinstance(event, MultipartSegment):
            self._begin_part(event)
        elif self._name == "source":
            await self._upload.write(event)
        else:
            self._text += event
            most = MAX_DOCKERFILE_BYTES if self._name == "dockerfile" else MAX_TEXT_BYTES
            if len(self._text) > most:
                raise PayloadTooLarge(f"the part `{self._name}` is larger than {most:,} bytes")

    def _begin_part(self, part: MultipartSegment) -> None:
        self._name = part.name or ""
        check_part_name(self._name)
        if self._name in self.texts or (self._name == "source" and self.has_source):
            raise InvalidRequest(f"the part `{self._name}` is there twice")
        self.has_source |= self._name == "source"

    def _end_part(self) -> None:
        if self._name == "source":
            return
        try:
            self.texts[self._name] = self._text.decode()
        except UnicodeDecodeError as exc:
            raise InvalidRequest(f"the part `{self._name}` is not UTF-8") from exc
        self._text.clear()


def _open_parser(content_type: str) -> PushMultipartParser:
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not 0 < len(boundary) <= 200:
        raise InvalidRequest("the body must be multipart/form-data with a boundary")
    try:
        return PushMultipartParser(
            boundary,
            max_segment_count=MAX_PARTS,
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
    except MultipartError as exc:
        raise InvalidRequest("the boundary of the form must not hold line breaks") from exc


async def _next_chunk(body: AsyncIterator[bytes]) -> bytes:
    """Return what came of the body, or nothing at its end."""
    with trio.move_on_after(STALL_SECONDS):
        return await anext(body, b"")
    raise InvalidRequest(f"the upload stalled for {STALL_SECONDS:.0f} s")
