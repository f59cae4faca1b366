"""What the API's tests share: the application on the fake build service, and tokens."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
import trio.lowlevel

from supervisor import tokens
from supervisor.api.app import make_app
from supervisor.api.front import ASGIApp, Front
from supervisor.api.listeners import Addresses, serve_api
from supervisor.api.ports import ApiDeps
from supervisor.config import Keys, Settings
from supervisor.model.build import Status
from supervisor.model.ids import BuildId, Tenant
from supervisor.runtime.threads import Threads
from supervisor.tokens import Permission
from tests.api.rawclient import RawClient
from tests.fakes.build_service import FakeBuilds
from tests.fakes.operations import FakeImages, FakeOperator

API_KEY = b"a" * 32
REGISTRY_KEY = b"r" * 32


def tar_gz(**files: bytes) -> bytes:
    """Return a source archive; names are written with `__` for dots."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


SOURCE = tar_gz(Dockerfile=b"FROM scratch\n")


def token(tenant: str = "acme", *permissions: Permission, secret: bytes = API_KEY) -> str:
    return tokens.mint_api_token(
        secret,
        subject=tenant,
        tenant=Tenant(tenant),
        permissions=frozenset(permissions) or None,
        now=1_700_000_000,
        lifetime_seconds=1e9,
    )


def bearer(tenant: str = "acme", *permissions: Permission) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(tenant, *permissions)}"}


ADMIN = bearer("root", *Permission)


async def echo_registry(scope: Any, receive: Any, send: Any) -> None:
    """Stand in for the registry: tells the path, reads nothing of the body."""
    body = f"registry {scope['path']}".encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Api:
    """The API on fakes, reachable without sockets."""

    deps: ApiDeps
    fake: FakeBuilds

    @cached_property
    def front(self) -> Front:

        app: Any = make_app(self.deps)
        return Front(api=app, registry=echo_registry)

    def client(self, **headers: str) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app=self.front)
        return httpx2.AsyncClient(transport=transport, base_url="http://api", headers=headers)

    def with_settings(self, **changes: Any) -> Api:
        settings = self.deps.settings.model_copy(update=changes)
        return replace(self, deps=replace(self.deps, settings=settings))

    async def submit(self, tenant: str = "acme", **parts: str) -> BuildId:
        async with self.client(**bearer(tenant)) as client:
            response = await client.post("/builds", files=form(SOURCE, **parts))
        assert response.status_code == 202, response.text
        return BuildId(response.json()["id"])

    async def submit_finished(self, *lines: str, status: Status = Status.READY) -> BuildId:
        build_id = await self.submit()
        self.fake.start(build_id)
        self.fake.log(build_id, *lines)
        self.fake.finish(build_id, status)
        return build_id


def form(source: bytes | None = SOURCE, /, **texts: str) -> list[tuple[str, Any]]:
    """Return the parts of a submission for the client's `files=`."""
    parts: list[tuple[str, Any]] = [(name, (None, text)) for name, text in texts.items()]
    if source is not None:
        parts.append(("source", ("source.tar.gz", source)))
    return parts


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    builds_dir = tmp_path / "builds"
    builds_dir.mkdir()
    fake = FakeBuilds(builds_dir)
    deps = ApiDeps(
        builds=fake,
        images=FakeImages(),
        operator=FakeOperator(fake),
        settings=Settings(data_dir=tmp_path, runtime_dir=tmp_path, host="127.0.0.1", port=0),
        keys=Keys(api=API_KEY, registry=REGISTRY_KEY),
        threads=Threads(),
        name_registry=lambda: "registry.example:5000",
        clock=lambda: fake.now,
    )
    yield Api(deps, fake)
    assert not fake.leftovers(), "an upload that was not taken in is still there"
    assert fake.open_readers == 0, "a follower has gone and its reader is still open"


@dataclass
class Server:
    """The API on real sockets."""

    addresses: Addresses
    nursery: trio.Nursery

    @property
    def url(self) -> str:
        assert self.addresses.tcp is not None
        host, port = self.addresses.tcp
        return f"http://{host}:{port}"

    def client(self, **headers: str) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=30)

    def local_client(self) -> httpx2.AsyncClient:
        transport = httpx2.AsyncHTTPTransport(uds=str(self.addresses.unix))
        return httpx2.AsyncClient(transport=transport, base_url="http://local", timeout=30)

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[RawClient]:
        """Connect over TCP while the block lasts."""
        async with await self.connect() as stream:
            yield RawClient(stream)

    async def connect(self) -> trio.SocketStream:
        assert self.addresses.tcp is not None
        return await trio.open_tcp_stream(*self.addresses.tcp)


@asynccontextmanager
async def serving(api: Api, registry: ASGIApp = echo_registry) -> AsyncIterator[Server]:
    """Serve the API on loopback and on a UNIX socket while the block lasts."""
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_api, api.deps, registry)
        yield Server(addresses, nursery)
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.fixture
async def server(api: Api) -> AsyncIterator[Server]:
    async with serving(api) as server:
        yield server


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for what nothing announces: a file that a thread writes, a task that has ended."""
    with trio.fail_after(10):
        while not condition():
            await trio.lowlevel.checkpoint()
