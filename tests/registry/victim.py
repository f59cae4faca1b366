"""A registry that is killed: the driver of test_durability.

    python -m tests.registry.victim DIRECTORY

For n = 1, 2, …, a child process runs a script of pushes, a pull through the mirror, deletions and a
collection, and kills itself with SIGKILL after the n-th step that touches the disk; another child
then opens what is left and checks it. The round in which nobody is killed is the last. Prints how
many rounds there were.

The children are forked from this process, which has imported everything and runs no threads.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import trio

from supervisor.model.oci import Digest, RepositoryName
from supervisor.store import registry_upkeep as upkeep
from supervisor.store.database import Database
from supervisor.store.registry_tables import blobs
from tests.registry.client import Client
from tests.registry.images import digest_of, image
from tests.registry.mirroring import NAME, open_mirror
from tests.registry.policies import AT_ONCE
from tests.registry.serve import Served, database_of, open_registry

REPOSITORY = RepositoryName("acme/app")
FIRST = image({"a": b"1" * 300_000}, {"shared": b"s" * 200_000})
SECOND = image({"a": b"2" * 300_000}, {"shared": b"s" * 200_000})
PARTIAL = b"p" * 150_000
MIRRORED = image({"a": b"m" * 300_000})
HERE = f"/v2/mirror/{NAME}/acme/app"
MOST_ROUNDS = 400


def main() -> None:
    """Run the rounds."""
    fresh, data = Path(sys.argv[1]) / "fresh", Path(sys.argv[1]) / "data"
    # Making the database and the directories is not the subject.
    assert _in_child(partial(trio.run, _prepare, fresh)) == 0
    for number in range(1, MOST_ROUNDS):
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(fresh, data)
        status = _in_child(partial(_live_until, number, data))
        if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
            sys.exit(f"round {number}: the script failed")
        if os.waitstatus_to_exitcode(_in_child(partial(trio.run, _check, data))) != 0:
            sys.exit(f"round {number}: what was left is not in order")
        if not os.WIFSIGNALED(status):
            print(f"{number - 1} rounds")  # noqa: T201 - the result
            return
    sys.exit("the script did not come to its end")


def _in_child(run: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


# The one that dies


def _live_until(number: int, data: Path) -> None:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _kill_after(os, "fsync", step)
    _kill_after(os, "pwritev", step)
    _kill_after(Path, "rename", step)
    _kill_after(Path, "unlink", step)
    _kill_after(Database, "run_sync", step)
    trio.run(_script, data)


def _kill_after(owner: Any, name: str, step: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def with_step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        step()
        return result

    setattr(owner, name, with_step)


async def _prepare(data: Path) -> None:
    async with open_registry(data):
        pass


async def _script(data: Path) -> None:
    async with open_mirror(data, policy=AT_ONCE) as mirrored:
        mirrored.upstream.add("acme/app", MIRRORED, "1")
        served, client = mirrored.served, mirrored.client
        await _pull_through(client)
        await _push_slowly(client)
        await client.push(REPOSITORY, SECOND, "latest")
        location = await client.begin(REPOSITORY)
        await client("PATCH", location, PARTIAL)
        # The first image goes: what it shares with the second must stay.
        target = f"/v2/{REPOSITORY}/manifests/{FIRST.digest}"
        assert await client.status_of(target, "DELETE") == 202
        await served.handle.collect()


async def _pull_through(client: Client) -> None:
    answer = await client("GET", f"{HERE}/manifests/1")
    assert answer.body == MIRRORED.manifest
    for content in MIRRORED.blobs:
        answer = await client("GET", f"{HERE}/blobs/{digest_of(content)}")
        assert answer.body == content


async def _push_slowly(client: Client) -> None:
    for content in FIRST.blobs:
        location = await client.begin(REPOSITORY)
        half = len(content) // 2
        await client("PATCH", location, content[:half])
        answer = await client("PUT", f"{location}?digest={digest_of(content)}", content[half:])
        assert answer.status == 201
    assert (await client.push_manifest(REPOSITORY, FIRST, "latest")).status == 201


# The one that looks


async def _check(data: Path) -> None:
    async with open_mirror(data, policy=AT_ONCE) as mirrored:
        mirrored.upstream.add("acme/app", MIRRORED, "1")
        served, client = mirrored.served, mirrored.client
        await _check_tags(served, client)
        await _check_contents(served)
        await _resume_uploads(served, client)
        await served.handle.collect()
        await _check_tags(served, client)
        await _check_no_garbage(served)
        await _pull_through(client)
        await client.push(REPOSITORY, FIRST, "latest")
        assert await served.handle.holds_image(REPOSITORY, FIRST.digest)


async def _check_tags(served: Served, client: Client) -> None:
    """No tag points at missing content."""
    page = await served.handle.list_tags(REPOSITORY, 100, "")
    for tag in page.items if page else ():
        found = await served.handle.find_tagged(REPOSITORY, tag)
        assert found is not None
        assert await served.handle.holds_image(REPOSITORY, found.digest)
        (item,) = [item for item in (FIRST, SECOND) if item.digest == found.digest]
        for content in item.blobs:
            answer = await client("GET", f"/v2/{REPOSITORY}/blobs/{digest_of(content)}")
            assert answer.body == content
        answer = await client("GET", f"/v2/{REPOSITORY}/manifests/{tag}")
        assert answer.body == item.manifest


async def _check_contents(served: Served) -> None:
    """No file under a digest has other content, or half of it; no row is without its file."""
    stored = await served.actor.store.stored()
    assert await database_of(served).run(_all_blobs) <= set(stored)
    for digest in stored:
        assert digest_of(served.actor.store.path(digest).read_bytes()) == digest


def _all_blobs(connection: sa.Connection) -> set[Digest]:
    return {Digest(item) for item in connection.scalars(sa.select(blobs.c.digest))}


async def _resume_uploads(served: Served, client: Client) -> None:
    """An upload in progress goes on where it stood."""
    names = await served.actor.uploads.last_used()
    for upload in await database_of(served).run(upkeep.known_uploads, names):
        location = f"/v2/{REPOSITORY}/blobs/uploads/{upload}"
        received = (served.root / "uploads" / upload).read_bytes()
        (content,) = [item for item in (PARTIAL, *FIRST.blobs) if item.startswith(received)]
        answer = await client("GET", location)
        assert answer.headers["range"] == f"0-{max(0, len(received) - 1)}"
        rest = content[len(received) :]
        answer = await client("PUT", f"{location}?digest={digest_of(content)}", rest)
        assert answer.status == 201


async def _check_no_garbage(served: Served) -> None:
    """After a collection every file has an owner."""
    stored = set(await served.actor.store.stored())
    assert await database_of(served).run(upkeep.known_blobs, stored) == stored
    assert await database_of(served).run(upkeep.find_unused_blobs, "", 10) == []
    assert list((served.root / "uploads").iterdir()) == []


if __name__ == "__main__":
    main()
