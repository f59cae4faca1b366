"""What several tenants want of a daemon that dies all the time, and what they were told.

Each tenant submits (with an Idempotency-Key, and again until there is an answer), cancels, follows
and pushes. Whatever it was told is written down here: no restart may take it back.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx2
import trio

from tests.chaos.guest import END, PAUSE
from tests.chaos.host import Host
from tests.e2e.daemon import FINAL, pack
from tests.registry.images import Image, digest_of, image

TENANTS = ("acme", "bolt", "crab")
MOST_UNFINISHED = 5
"""Of one tenant, so that there is always a queue and never a long one."""
PAUSE_SECONDS = 0.03
CANCELLED_SHARE = 0.08
ENDS = ("ready",) * 8 + ("failed", "panic")


@dataclass
class Told:
    """What the tenants know for certain."""

    accepted: dict[str, str] = field(default_factory=dict)
    """Build → tenant: the daemon has said that it will have an end."""
    wanted: dict[str, str] = field(default_factory=dict)
    """Build → the end that it was written to have."""
    finals: dict[str, str] = field(default_factory=dict)
    """Build → the final status that was seen."""
    cancelled: set[str] = field(default_factory=set)
    """Builds of which the daemon has said that they will be cancelled."""
    pushed: list[tuple[str, str, Image]] = field(default_factory=list)
    """(tenant, repository, image): the registry has taken the manifest."""
    followed: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Build → its events (id, data) as a follower heard them, over all connections."""
    answers: Counter[str] = field(default_factory=Counter)
    """Every status of an answer over 499, with its code."""

    @property
    def unfinished(self) -> set[str]:
        return self.accepted.keys() - self.finals.keys()


class Workload:
    """The tenants. `run` goes on until cancelled; `pause` is when nothing new is asked for."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self.told = Told()
        self.is_paused = False
        self._host = host
        self._rng = rng
        self._submitting: set[str] = set()
        """Whose submission is under way: it may become a build though the workload pauses."""
        self._following = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for tenant in TENANTS:
                nursery.start_soon(self._be_a_tenant, tenant)

    async def wait_all_ended(self) -> None:
        while (  # noqa: ASYNC110 - another process ends them
            self._submitting or self.told.unfinished or self._following
        ):
            await trio.sleep(PAUSE_SECONDS)

    async def _be_a_tenant(self, tenant: str) -> None:
        async with self._host.client(tenant) as client, trio.open_nursery() as nursery:
            nursery.start_soon(self._submit_builds, client, tenant)
            nursery.start_soon(self._watch, client, tenant)
            nursery.start_soon(self._cancel_some, client, tenant)
            nursery.start_soon(self._push_images, client, tenant)
            nursery.start_soon(self._follow_some, client, tenant)

    async def _submit_builds(self, client: httpx2.AsyncClient, tenant: str) -> None:
        number = 0
        while True:
            mine = [each for each in self.told.unfinished if self.told.accepted[each] == tenant]
            if self.is_paused or len(mine) >= MOST_UNFINISHED:
                await trio.sleep(PAUSE_SECONDS)
                continue
            number += 1
            end = self._rng.choice(ENDS)
            source = pack({"Dockerfile": f"FROM scratch\n# {tenant} {number}\n"})
            arguments = {PAUSE: str(self._rng.uniform(0, 0.08)), END: end}
            self._submitting.add(tenant)
            answer = await self._ask(
                client,
                "POST",
                "/builds",
                headers={"Idempotency-Key": f"{tenant}-{number}"},
                files={"source": ("source.tar.gz", source, "application/gzip")},
                data={"build_args": json.dumps(arguments)},
            )
            assert answer.status_code in (200, 202), answer.text
            build_id = answer.json()["id"]
            assert build_id not in self.told.accepted, "two submissions made one build"
            self.told.accepted[build_id] = tenant
            self.told.wanted[build_id] = end
            self._submitting.discard(tenant)

    async def _watch(self, client: httpx2.AsyncClient, tenant: str) -> None:
        while True:
            await trio.sleep(PAUSE_SECONDS)
            for build in (await self._ask(client, "GET", "/builds?limit=30")).json():
                assert build["tenant"] == tenant
                self._note_status(build["id"], build["status"])
            for build_id in self._lost_from_view(tenant):
                build = (await self._ask(client, "GET", f"/builds/{build_id}")).json()
                self._note_status(build_id, build["status"])

    def _lost_from_view(self, tenant: str) -> list[str]:
        mine = [each for each in self.told.unfinished if self.told.accepted[each] == tenant]
        return sorted(mine)[:2]

    def _note_status(self, build_id: str, status: str) -> None:
        seen = self.told.finals.get(build_id)
        assert seen in (None, status), f"{build_id} was {seen} and is {status}"
        if status in FINAL:
            self.told.finals[build_id] = status

    async def _cancel_some(self, client: httpx2.AsyncClient, tenant: str) -> None:
        chosen = set[str]()
        while True:
            await trio.sleep(PAUSE_SECONDS)
            for build_id in sorted(self.told.unfinished - chosen):
                if self.told.accepted[build_id] != tenant:
                    continue
                chosen.add(build_id)
                if self._rng.random() < CANCELLED_SHARE:
                    answer = await self._ask(client, "DELETE", f"/builds/{build_id}")
                    if answer.status_code == 204:
                        self.told.cancelled.add(build_id)

    async def _push_images(self, client: httpx2.AsyncClient, tenant: str) -> None:
        number = 0
        while True:
            await trio.sleep(PAUSE_SECONDS)
            if self.is_paused:
                continue
            number += 1
            made = image({"of": f"{tenant} {number} ".encode() * 3000}, {"common": b"c" * 9000})
            repository = f"{tenant}/app"
            if all([await self._push_blob(client, repository, blob) for blob in made.blobs]):
                answer = await self._ask(
                    client,
                    "PUT",
                    f"/v2/{repository}/manifests/{made.digest}",
                    content=made.manifest,
                    headers={"Content-Type": made.media_type},
                )
                if answer.status_code == 201:
                    self.told.pushed.append((tenant, repository, made))

    async def _push_blob(self, client: httpx2.AsyncClient, repository: str, blob: bytes) -> bool:
        """Push a blob in pieces. A daemon that dies may forget an upload, though not a blob."""
        answer = await self._ask(client, "POST", f"/v2/{repository}/blobs/uploads/")
        location = answer.headers.get("location", "")
        half = len(blob) // 2
        answer = await self._ask(client, "PATCH", location, content=blob[:half])
        if answer.status_code != 202:
            return False
        joint = "&" if "?" in location else "?"
        location = answer.headers["location"]
        target = f"{location}{joint}digest={digest_of(blob)}"
        answer = await self._ask(client, "PUT", target, content=blob[half:])
        return answer.status_code == 201

    async def _follow_some(self, client: httpx2.AsyncClient, tenant: str) -> None:
        while True:
            await trio.sleep(PAUSE_SECONDS)
            mine = [each for each in self.told.unfinished if self.told.accepted[each] == tenant]
            if mine:
                self._following += 1
                await self._follow(client, self._rng.choice(sorted(mine)))
                self._following -= 1

    async def _follow(self, client: httpx2.AsyncClient, build_id: str) -> None:
        heard = self.told.followed.setdefault(build_id, [])
        while True:
            try:
                async for event_id, data in self._events(client, build_id, heard):
                    heard.append((event_id, data))
                if heard and json.loads(heard[-1][1]).get("status") in FINAL:
                    return
            except httpx2.TransportError:
                await trio.sleep(PAUSE_SECONDS)

    async def _events(
        self, client: httpx2.AsyncClient, build_id: str, heard: list[tuple[str, str]]
    ) -> AsyncIterator[tuple[str, str]]:
        headers = {"Last-Event-ID": heard[-1][0]} if heard else {}
        async with client.stream("GET", f"/builds/{build_id}/logs", headers=headers) as answer:
            event_id = ""
            async for line in answer.aiter_lines():
                if line.startswith("id:"):
                    event_id = line[3:].strip()
                elif line.startswith("data:") and event_id:
                    yield event_id, line[5:].strip()
                    event_id = ""

    async def _ask(
        self, client: httpx2.AsyncClient, method: str, target: str, **more: object
    ) -> httpx2.Response:
        """Ask until there is an answer that is the daemon's last word on it."""
        while True:
            try:
                answer = await client.request(method, target, **more)  # type: ignore[arg-type]
            except httpx2.TransportError:
                await trio.sleep(PAUSE_SECONDS)
                continue
            if answer.status_code < 500:
                return answer
            self.told.answers[f"{method} {answer.status_code} {answer.text[:200]}"] += 1
            if target.startswith("/v2/"):
                return answer
            await trio.sleep(PAUSE_SECONDS)
