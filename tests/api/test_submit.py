"""POST /builds: what is taken in, what is refused, and that nothing is left of what was not."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections import deque
from typing import Any

import httpx2
import pytest
import trio

from supervisor.errors import Conflict, HostError, NotReady
from supervisor.model.build import NetworkMode, SecretRef
from supervisor.model.ids import BuildId
from supervisor.runtime.mailbox import ActorGone
from supervisor.tokens import Permission
from tests.api.conftest import SOURCE, Api, bearer, form, tar_gz
from tests.kit import cancel_at_every_checkpoint

BARE = tar_gz(readme=b"no Dockerfile here")


async def post(api: Api, parts: Any, **headers: str) -> httpx2.Response:
    async with api.client(**bearer(), **headers) as client:
        return await client.post("/builds", files=parts)


async def refusal(api: Api, parts: Any, **headers: str) -> tuple[int, str, str]:
    response = await post(api, parts, **headers)
    body = response.json()
    return response.status_code, body.get("code", ""), body.get("message", "")


async def test_the_answer_is_the_build_and_the_source_is_on_disk(api: Api) -> None:
    response = await post(api, form(tags='{"branch": "main"}'))
    assert response.status_code == 202
    build = response.json()
    assert build == {
        "id": build["id"],
        "status": "queued",
        "tenant": "acme",
        "tags": {"branch": "main"},
        "policy": {"timeout_seconds": 600, "memory_mb": 2048, "cpus": 2, "network_mode": "egress"},
        "attempt": 0,
        "created_at": "2027-01-15T08:00:00.000Z",
        "queue_position": 1,
        "phases": {},
    }
    assert response.headers["Location"] == f"/builds/{build['id']}"
    stored = api.fake.builds[build["id"]]
    assert stored.source.sha256 == hashlib.sha256(SOURCE).hexdigest()
    assert stored.source.size_bytes == len(SOURCE)
    path = api.fake.upload_path(stored.id)
    assert path.read_bytes() == SOURCE
    assert path.stat().st_mode & 0o007 == 0


async def test_every_part_reaches_the_build(api: Api) -> None:
    digest = "sha256:" + "0" * 64
    response = await post(
        api,
        form(
            BARE,
            dockerfile="FROM scratch\n",
            dockerfile_path="./docker//Dockerfile.ci",
            target="stage-1",
            build_args='{"VERSION": "1.0", "EMPTY": ""}',
            tags='{"k": "v"}',
            secrets='[{"id": "npm_token", "env_var": "NPM_TOKEN"}, {"id": "other"}]',
            source_hash="SHA256:" + hashlib.sha256(BARE).hexdigest().upper(),
            base_image_digest=digest,
            cache_scope="my-app",
            global_cache_key="node-20",
            timeout_seconds="20",
            memory_mb="1024",
            cpus="1",
            network_mode="egress",
            allowed_domains='["Example.org", "*.debian.org"]',
            no_cache="true",
            image_name="team/app:1.0",
        ),
    )
    assert response.status_code == 202, response.text
    request = api.fake.builds[response.json()["id"]].request
    assert request.dockerfile == "FROM scratch\n"
    assert request.dockerfile_path == "docker/Dockerfile.ci"
    assert request.target == "stage-1"
    assert request.build_args == {"VERSION": "1.0", "EMPTY": ""}
    assert request.secrets == (SecretRef("npm_token", "NPM_TOKEN"), SecretRef("other"))
    assert request.base_image_digest == digest
    assert request.cache_scope == "my-app"
    assert request.global_cache_key == "node-20"
    assert not request.export_global_cache
    assert (request.policy.timeout_seconds, request.policy.memory_mb, request.policy.cpus) == (
        20,
        1024,
        1,
    )
    assert request.policy.network_mode is NetworkMode.EGRESS
    assert request.policy.allowed_domains == ("example.org", "*.debian.org")
    assert request.no_cache
    assert request.image_name == "team/app:1.0"


async def test_parts_may_come_in_any_order(api: Api) -> None:
    parts = form(BARE, target="one")
    parts.append(("dockerfile_path", (None, "readme")))
    assert (await post(api, parts)).status_code == 202


async def test_a_text_part_may_come_as_a_file(api: Api) -> None:
    parts = [("dockerfile", ("Dockerfile", b"FROM scratch")), ("source", (None, BARE))]
    assert (await post(api, parts)).status_code == 202


async def test_empty_optional_parts_are_absent(api: Api) -> None:
    empty = {
        name: "" for name in ("target", "build_args", "timeout_seconds", "dockerfile", "no_cache")
    }
    response = await post(api, form(**empty))
    request = api.fake.builds[response.json()["id"]].request
    assert (request.target, request.dockerfile, request.no_cache) == (None, None, False)


async def test_the_deprecated_part_is_ignored_with_a_warning(api: Api) -> None:
    response = await post(api, form(runtime="nodejs20"))
    assert response.status_code == 202
    assert response.headers["Warning"].startswith('299 - "the part `runtime` is deprecated')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dockerfile", "FROM x\0"),
        ("dockerfile_path", "../Dockerfile"),
        ("dockerfile_path", "/Dockerfile"),
        ("dockerfile_path", "a\nb"),
        ("dockerfile_path", "./"),
        ("dockerfile_path", "x" * 1025),
        ("target", "-x"),
        ("target", "a b"),
        ("target", "a,b=c"),
        ("target", "x\n"),
        ("build_args", "[]"),
        ("build_args", "{"),
        ("build_args", "[" * 100_000),
        ("build_args", '{"a": 1}'),
        ("build_args", '{"a b": "c"}'),
        ("build_args", '{"a=b": "c"}'),
        ("build_args", '{"A\\n": "c"}'),
        ("build_args", '{"A": "\\u0000"}'),
        ("tags", '{"": "x"}'),
        ("tags", '{"a": null}'),
        ("tags", '{"a": "\\n"}'),
        ("tags", json.dumps({str(n): "" for n in range(65)})),
        ("source_hash", "sha256:123"),
        ("source_hash", "md5:" + "0" * 64),
        ("timeout_seconds", "0"),
        ("timeout_seconds", "-1"),
        ("timeout_seconds", "1.5"),
        ("timeout_seconds", "7201"),
        ("timeout_seconds", "ten"),
        ("timeout_seconds", "٣"),
        ("timeout_seconds", "9" * 5000),
        ("memory_mb", "511"),
        ("memory_mb", "16385"),
        ("cpus", "0"),
        ("cpus", "9"),
        ("no_cache", "maybe"),
        ("image_name", "App"),
        ("image_name", "../x"),
        ("image_name", "a//b"),
        ("image_name", "a:b:c"),
        ("image_name", "host:5000/a"),
        ("image_name", "a@sha256:0"),
        ("network_mode", "host"),
        ("secrets", '[{"id": ".."}]'),
        ("secrets", '[{"id": "a/b"}]'),
        ("secrets", '[{"id": "a", "value": "x"}]'),
        ("secrets", '[{"id": "a", "env_var": "A=B"}]'),
        ("secrets", '[{"id": "a"}, {"id": "a"}]'),
        ("secrets", '["a"]'),
        ("base_image_digest", "0" * 64),
        ("cache_scope", "global"),
        ("cache_scope", "a"),
        ("cache_scope", "-ab"),
        ("cache_scope", "a,b"),
        ("cache_scope", "x" * 65),
        ("global_cache_key", "a/b"),
        ("global_cache_key", "A"),
        ("allowed_domains", '["*"]'),
        ("allowed_domains", '["127.1"]'),
        ("allowed_domains", '["a..b"]'),
        ("allowed_domains", '["*.*.org"]'),
        ("allowed_domains", '["exämple.org"]'),
        ("allowed_domains", '["a.org\\n"]'),
        ("allowed_domains", '"a.org"'),
    ],
)
async def test_a_wrong_value_is_refused_naming_the_part(api: Api, name: str, value: str) -> None:
    status, code, message = await refusal(api, form(**{name: value}))
    assert (status, code) == (400, "invalid_request")
    assert f"part `{name}`" in message
    assert len(message) < 300
    assert message.isprintable()


async def test_every_mistake_is_listed(api: Api) -> None:
    response = await post(api, form(target="a b", image_name="A"))
    assert len(response.json()["details"]) == 2


async def test_domains_have_no_meaning_in_isolation(api: Api) -> None:
    parts = form(network_mode="isolated", allowed_domains='["a.org"]')
    assert (await refusal(api, parts))[0] == 400


async def test_isolation_may_be_asked_for(api: Api) -> None:
    response = await post(api, form(network_mode="isolated"))
    assert response.json()["policy"]["network_mode"] == "isolated"


async def test_only_an_administrators_build_writes_the_shared_cache(api: Api) -> None:
    async with api.client(**bearer("root", *Permission)) as client:
        response = await client.post("/builds", files=form(global_cache_key="key"))
    assert api.fake.builds[response.json()["id"]].request.export_global_cache


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (form(nonsense="1"), "no part 'nonsense'"),
        ([("target", (None, "a")), ("target", (None, "b")), *form()], "`target` is there twice"),
        (form() + form(), "`source` is there twice"),
        (form(None, target="a"), "`source` is missing"),
        (form(b""), "`source` is empty"),
        ([*form(), ("target", (None, b"\xff"))], "`target` is not UTF-8"),
        ([*form(), ("", (None, "x"))], "no part ''"),
        ([(f"x{n}", (None, "")) for n in range(70)], "no part 'x0'"),
    ],
)
async def test_a_wrong_form_is_refused(api: Api, parts: Any, why: str) -> None:
    status, code, message = await refusal(api, parts)
    assert (status, code) == (400, "invalid_request")
    assert why in message


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("", b""),
        ("application/gzip", SOURCE),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=" + "x" * 300, b""),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"no boundary in here"),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="source"\r\n\r\nabc',
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 10_000),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 100 + b"\r\n"),
    ],
)
async def test_a_body_that_is_no_whole_form_is_refused(
    api: Api, content_type: str, body: bytes
) -> None:
    async with api.client(**bearer(), **{"Content-Type": content_type}) as client:
        response = await client.post("/builds", content=body)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    said = (
        "the body must be multipart/form-data with a boundary",
        "the boundary of the form must not hold line breaks",
        "the form is too complex: it may have 64 parts, each with 8 headers of at most 4,096 bytes",
        "the body is not a whole multipart form: each part must begin with the boundary of the"
        " Content-Type and have a header `Content-Disposition: form-data` with a name, and the"
        " boundary followed by `--` must end the last one",
        "the part `source` is missing",
    )
    assert response.json()["message"] in said


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (b"hello", "invalid_source"),
        (gzip.compress(b"hello", mtime=0), "invalid_source"),
        (SOURCE[:-5], "invalid_source"),
        (BARE, "dockerfile_required"),
    ],
)
async def test_a_source_that_cannot_be_built_is_refused(api: Api, source: bytes, code: str) -> None:
    assert (await refusal(api, form(source)))[:2] == (400, code)


async def test_a_named_dockerfile_must_be_there(api: Api) -> None:
    status, code, message = await refusal(api, form(dockerfile_path="ci/Dockerfile"))
    assert (status, code) == (400, "dockerfile_required")
    assert "ci/Dockerfile" in message


async def test_another_hash_than_said_is_refused(api: Api) -> None:
    status, code, message = await refusal(api, form(source_hash="0" * 64))
    assert (status, code) == (400, "source_hash_mismatch")
    assert hashlib.sha256(SOURCE).hexdigest() in message


async def test_what_cannot_be_discarded_does_not_hide_why_it_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    discard = api.fake.discard

    async def refuse(build_id: BuildId) -> None:
        await discard(build_id)
        raise HostError("the directory cannot be removed: Input/output error")

    monkeypatch.setattr(api.fake, "discard", refuse)
    status, code, _ = await refusal(api, form(source_hash="sha256:" + "0" * 64))
    assert (status, code) == (400, "source_hash_mismatch")


async def test_too_much_is_refused(api: Api) -> None:
    small = api.with_settings(max_source_bytes=len(SOURCE))
    assert (await post(small, form())).status_code == 202
    smaller = api.with_settings(max_source_bytes=len(SOURCE) - 1)
    assert (await refusal(smaller, form()))[:2] == (413, "payload_too_large")
    unpacked = api.with_settings(max_unpacked_bytes=12)
    assert (await refusal(unpacked, form()))[:2] == (413, "payload_too_large")
    two = tar_gz(Dockerfile=b"", b=b"")
    entries = api.with_settings(max_source_entries=1)
    assert (await refusal(entries, form(two)))[:2] == (413, "payload_too_large")


@pytest.mark.parametrize(
    ("name", "size"), [("dockerfile", (1 << 20) + 1), ("build_args", (1 << 18) + 1)]
)
async def test_a_long_text_is_refused_naming_the_part(api: Api, name: str, size: int) -> None:
    status, code, message = await refusal(api, form(**{name: "x" * size}))
    assert (status, code) == (413, "payload_too_large")
    assert f"`{name}`" in message


async def test_a_full_queue_is_told_before_the_upload_is_read(api: Api) -> None:
    api.fake.room = 0
    response = await post(api, form())
    assert (response.status_code, response.json()["code"]) == (429, "queue_full")
    assert response.headers["Retry-After"] == "30"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotReady("stopping"), 503, "builder_not_ready"),
        (Conflict("x"), 409, "conflict"),
        (HostError("the database failed"), 500, "internal_error"),
    ],
)
async def test_what_the_service_refuses_leaves_nothing(
    api: Api, error: Exception, status: int, code: str
) -> None:
    api.fake.submit_error = error
    assert (await refusal(api, form()))[:2] == (status, code)
    assert not api.fake.leftovers()


async def test_after_an_unknown_outcome_the_files_stay_for_recovery(api: Api) -> None:
    api.fake.submit_error = ActorGone("it died meanwhile")
    assert (await refusal(api, form()))[:2] == (503, "builder_not_ready")
    (left,) = api.fake.leftovers()
    assert api.fake.upload_path(BuildId(left.name)).is_file()
    await api.fake.discard(BuildId(left.name))


async def test_a_full_disk_is_the_hosts_trouble(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert (await refusal(api, form()))[:2] == (503, "builder_not_ready")


async def call_front(api: Api, headers: dict[str, str], body: bytes) -> None:
    """Submit without a client library, whose own clean-up is none of ours."""
    pieces = deque(body[at : at + 65_536] for at in range(0, len(body), 65_536))

    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if not pieces:
            await trio.sleep_forever()
        piece = pieces.popleft()
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(_: Any) -> None:
        await trio.lowlevel.checkpoint()

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/builds",
        "raw_path": b"/builds",
        "query_string": b"",
        "headers": raw,
        "client": None,
    }
    await api.front(scope, receive, send)


class TestIdempotency:
    """The header Idempotency-Key."""

    async def test_the_same_request_returns_the_first_build(self, api: Api) -> None:
        first = await post(api, form(tags='{"a":"1","b":"2"}'), **{"Idempotency-Key": "key-1"})
        again = await post(api, form(tags='{"b":"2","a":"1"}'), **{"Idempotency-Key": "key-1"})
        assert (first.status_code, again.status_code) == (202, 200)
        assert again.json()["id"] == first.json()["id"]
        assert not api.fake.leftovers()

    @pytest.mark.parametrize("parts", [form(target="x"), form(tar_gz(Dockerfile=b"FROM x"))])
    async def test_another_request_under_the_key_is_a_conflict(self, api: Api, parts: Any) -> None:
        await post(api, form(), **{"Idempotency-Key": "key-1"})
        status, code, _ = await refusal(api, parts, **{"Idempotency-Key": "key-1"})
        assert (status, code) == (409, "conflict")

    @pytest.mark.parametrize("key", ["", "x" * 256, "a b", "é"])
    async def test_a_key_is_short_and_printable(self, api: Api, key: str) -> None:
        async with api.client(**bearer()) as client:
            raw = [(b"Idempotency-Key", key.encode("latin-1"))]
            response = await client.post("/builds", files=form(), headers=raw)
        assert response.status_code == 400


async def test_a_cancelled_upload_leaves_nothing_at_any_point(api: Api) -> None:
    """Whenever the client goes away, the build is taken in or nothing of it is left."""
    big = tar_gz(Dockerfile=b"FROM scratch", data=os.urandom(3 << 20))

    request = httpx2.Request("POST", "http://api/builds", files=form(big, tags='{"a": "b"}'))
    body = request.read()

    async def submit() -> None:
        await call_front(api, {"Content-Type": request.headers["Content-Type"], **bearer()}, body)

    async def check(_: int) -> None:
        assert not api.fake.leftovers()
        for build_id in api.fake.builds:
            assert api.fake.upload_path(build_id).stat().st_size == len(big)

    assert await cancel_at_every_checkpoint(submit, check) > 10


async def test_a_client_that_leaves_while_the_build_is_taken_in_changes_nothing(api: Api) -> None:
    api.fake.go_on_submitting = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(post, api, form())
        await api.fake.submitting.wait()
        nursery.cancel_scope.cancel(reason="the client leaves")
        api.fake.go_on_submitting.set()
    (build_id,) = api.fake.builds
    assert api.fake.upload_path(build_id).is_file()
