"""A fake agent that does what its build asks for, and pushes a real image through its link."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial

import h11
import trio

from agent import wire
from tests.chaos.faults import Journal
from tests.fakes.agent import STEP, Talk, agent
from tests.fakes.hypervisor import Guest
from tests.registry.images import Image, digest_of, image

PAUSE = "CHAOS_PAUSE"
END = "CHAOS_END"
"""The build arguments: seconds of work, and `ready`, `failed`, `panic` or `silent`."""


def chaotic_guest(journal: Journal) -> Guest:
    """Return a guest that notes which build it had, from when to when."""
    return agent(partial(_build, journal=journal))


def image_for(source_sha256: str) -> Image:
    """Return the image that a source becomes: one layer of its own, one that all share."""
    own = hashlib.sha256(source_sha256.encode()).digest() * 500
    return image({"own": own}, {"shared": b"shared by all " * 2000})


async def _build(talk: Talk, journal: Journal) -> None:
    await talk.greet()
    config = talk.config
    facts = {"build": config.build_id, "machine": talk.guest.spec.id}
    journal.note("begin", **facts)
    try:
        await _work(talk, config.build_args)
    finally:
        journal.note("end", **facts)


async def _work(talk: Talk, asked: Mapping[str, str]) -> None:
    await talk.phase("source")
    await talk.fetch_source()
    await talk.phase("building")
    await talk.step("[1/1] RUN make")
    for number in range(4):
        await talk.log(b"line %d of the build\n" % number)
        await trio.sleep(float(asked.get(PAUSE, "0")) / 4)
    end = asked.get(END, "ready")
    if end == "failed":
        await talk.result(ok=False, code="build_failed", error="RUN make: exit code 2")
    if end == "panic":
        talk.guest.print("Kernel panic - not syncing: as ordered\n")
        await talk.guest.panic()
    await talk.step("[1/1] RUN make", digest=STEP, is_done=True)
    await talk.phase("pushing")
    made = image_for(talk.config.source_sha256)
    async with await talk.guest.connect(wire.REGISTRY_PORT) as stream:
        try:
            await _push(_Http(stream, talk.config.registry_token), talk.config.repository, made)
        except PushRefused as exc:
            refusal = str(exc)
        else:
            refusal = ""
    if refusal:
        await talk.result(ok=False, code="push_failed", error=refusal)
    await talk.result(ok=True, digest=made.digest)


async def _push(http: _Http, repository: str, made: Image) -> None:
    for number, content in enumerate(made.blobs):
        digest = digest_of(content)
        if number % 2:
            location, _ = await http.ask("POST", f"/v2/{repository}/blobs/uploads/", 202)
            half = len(content) // 2
            location, _ = await http.ask("PATCH", location, 202, content[:half])
            joint = "&" if "?" in location else "?"
            await http.ask("PUT", f"{location}{joint}digest={digest}", 201, content[half:])
        else:
            target = f"/v2/{repository}/blobs/uploads/?digest={digest}"
            await http.ask("POST", target, 201, content)
    kind = {"content-type": json.loads(made.manifest)["mediaType"]}
    target = f"/v2/{repository}/manifests/{made.digest}"
    await http.ask("PUT", target, 201, made.manifest, kind)


class PushRefused(Exception):
    """The registry answered otherwise than it should."""


class _Http:
    """HTTP on one connection of a guest."""

    def __init__(self, stream: trio.abc.Stream, token: str) -> None:
        self._stream = stream
        self._headers = {"host": "10.102.0.1:8083", "authorization": f"Bearer {token}"}
        self._connection = h11.Connection(h11.CLIENT)

    async def ask(
        self,
        method: str,
        target: str,
        expected: int,
        body: bytes = b"",
        more: Mapping[str, str] | None = None,
    ) -> tuple[str, bytes]:
        """Make a request; return the location and the body of the answer."""
        headers = {**self._headers, "content-length": str(len(body)), **(more or {})}
        sent = b"".join(
            self._connection.send(event) or b""
            for event in (
                h11.Request(method=method, target=target, headers=list(headers.items())),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
        )
        await self._stream.send_all(sent)
        location, answer, status = "", b"", 0
        while True:
            match event := self._connection.next_event():
                case h11.NEED_DATA:
                    self._connection.receive_data(await self._stream.receive_some())
                case h11.Response():
                    status = event.status_code
                    location = dict(event.headers).get(b"location", b"").decode()
                case h11.Data():
                    answer += bytes(event.data)
                case h11.EndOfMessage():
                    break
                case _:
                    raise trio.BrokenResourceError("the registry hung up")
        self._connection.start_next_cycle()
        if status != expected:
            raise PushRefused(f"{method} {target}: {status} {answer[:500]!r}")
        return location, answer
