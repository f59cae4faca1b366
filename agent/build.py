"""The life of one build in the machine, top to bottom.

    settle → secrets → source → BuildKit ready → buildctl → result

Every outcome is a `build_result`; only bugs are exceptions.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from agent import buildctl, control, paths, vitals, wire
from agent.buildkit import Daemon
from agent.failure import (
    BASE_IMAGE_MISMATCH,
    BUILD_FAILED,
    BUILDER_LOST,
    Evidence,
    Failure,
    classify,
    failed,
)
from agent.forward import forward
from agent.lockfiles import hash_lockfiles_sync
from agent.process import run_child
from agent.progress import Progress
from agent.redact import Redaction
from agent.rootless import builder_env
from agent.secrets import fetch_secrets, write_file_sync, write_secrets_sync
from agent.session import Send
from agent.source import fetch_source
from agent.spawn import Spawned
from agent.vsock import Connect

_T = TypeVar("_T")

LOCKFILES_SECONDS = 10
"""How much longer than the build itself the search for lock files may take."""
MAX_BEHIND_SECONDS = 1.0
MAX_AHEAD_SECONDS = 60.0
"""How far off the clock may be. The host's time may have waited long to be read, so a clock that is
ahead of it may be right."""
_LAZY_COLLECTOR = {"GOGC": "400", "GOMEMLIMIT": "128MiB"}
"""buildctl holds little and lives for one build: collecting its garbage costs more than it gives
back. It does hold the names of all files of a large source; then memory counts again."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


async def run_build(
    config: wire.Config, send: Send, *, daemon: Daemon, connect: Connect, unpacking: Spawned
) -> wire.BuildResult:
    """Run the configured build to its end. Cancelling leaves no process behind but `unpacking`,
    if it comes before the source.

    The caller forwards the registry's port: every machine needs it, so it is there already.
    """
    if failure := buildctl.check(config):
        return failed(failure)
    settle_sync(config)

    secrets: Mapping[str, bytes] = {}
    if config.secrets:
        answer = await _with_stream(
            connect, wire.SECRETS_PORT, partial(fetch_secrets, ids=[s.id for s in config.secrets])
        )
        if isinstance(answer, Failure):
            return failed(answer)
        secrets = answer
    secret_files = write_secrets_sync(secrets, paths.SECRETS_DIR, paths.BUILDER_UID)

    await send([control.status("source")])
    fetch = partial(fetch_source, config=config, unpacking=unpacking)
    failure = await _with_stream(connect, wire.SOURCE_PORT, fetch)
    if failure is not None:
        return failed(failure)

    lockfiles: dict[str, str] = {}
    looked = trio.Event()
    async with trio.open_nursery() as services:
        if config.egress:
            port = wire.EGRESS_PORT
            await services.start(forward, wire.GUEST_ADDRESS, port, connect, port)
        await send([control.status("starting")])
        if why := await daemon.wait_ready(config.mirrors):
            result = failed(Failure(BUILDER_LOST, why))
        else:
            await send([control.status("building")])
            command = buildctl.argv(config, secret_files)
            # Its thread begins to run when buildctl has been started, and no earlier.
            services.start_soon(_collect_lockfiles, lockfiles, looked)
            result = await _run_buildctl(command, config, Redaction(secrets.values()), daemon, send)
            with trio.move_on_after(LOCKFILES_SECONDS):
                await looked.wait()
        services.cancel_scope.cancel(reason="the build has ended")
    return dataclasses.replace(result, lockfile_hashes=lockfiles)


def settle_sync(config: wire.Config) -> None:
    """Put in place what the build needs of its configuration: clock, trust, files, credentials."""
    if is_clock_wrong(config.now, time.time()):
        time.clock_settime(time.CLOCK_REALTIME, config.now)
    public = {**wire.as_map(config), "registry_token": None}
    write_file_sync(paths.BUILD_JSON, json.dumps(public).encode(), mode=0o600, owner=os.getuid())
    if config.ca_certificates:
        # BuildKit reads the file when it first needs it, which is not before a build.
        with Path(paths.CA_CERTIFICATES).open("a", encoding="ascii") as file:
            file.write(f"\n{config.ca_certificates}\n")
    Path(paths.DOCKER_DIR).mkdir(0o700)
    credentials = {"auths": {config.registry: _credentials(config.registry_token)}}
    write_file_sync(
        f"{paths.DOCKER_DIR}/config.json",
        json.dumps(credentials).encode(),
        mode=0o600,
        owner=paths.BUILDER_UID,
    )
    os.chown(paths.DOCKER_DIR, paths.BUILDER_UID, paths.BUILDER_UID)
    if config.dockerfile:
        Path(paths.DOCKERFILE_DIR).mkdir(0o755)
        write_file_sync(
            f"{paths.DOCKERFILE_DIR}/Dockerfile",
            config.dockerfile.encode(),
            mode=0o644,
            owner=os.getuid(),
        )


def is_clock_wrong(host: float, guest: float) -> bool:
    """Say whether the guest's clock has to be set to `host`, the host's time a moment ago."""
    is_right = host - MAX_BEHIND_SECONDS <= guest <= host + MAX_AHEAD_SECONDS
    return host > 0 and not is_right


def _credentials(token: str) -> dict[str, str]:
    """Return the token for both ways in which a registry may ask: Bearer as it is, and Basic."""
    if not token:
        return {}
    basic = base64.b64encode(f"builder:{token}".encode()).decode()
    return {"auth": basic, "registrytoken": token}


async def _with_stream(
    connect: Connect, port: int, use: Callable[[trio.abc.Stream], Awaitable[_T]]
) -> _T | Failure:
    try:
        stream = await connect(port)
    except OSError as exc:
        return Failure(BUILDER_LOST, f"the supervisor's port {port} does not answer: {exc}")
    return await use(stream)


async def _collect_lockfiles(found: dict[str, str], looked: trio.Event) -> None:
    hashes = await trio.to_thread.run_sync(
        hash_lockfiles_sync,
        paths.SOURCE_DIR,
        trio.from_thread.check_cancelled,
        abandon_on_cancel=True,  # it only reads, and a huge directory may keep it busy
    )
    found.update(hashes)
    looked.set()


async def _run_buildctl(
    command: list[str], config: wire.Config, redaction: Redaction, daemon: Daemon, send: Send
) -> wire.BuildResult:
    progress = Progress(redaction)
    disk = vitals.DiskWatch(paths.STATE_DIR)
    memory = vitals.MemoryWatch()
    export = trio.CancelScope()

    async def report(data: bytes) -> None:
        for message in progress.feed(data):
            if isinstance(message, wire.Step) and message.error:
                disk.look()  # now, before BuildKit removes what the step has written
            if isinstance(message, wire.Status) and judge_base(config, progress.base_image_digest):
                # Everything is built, and layers are being packed: nothing has been pushed yet. If
                # something has all the same, the supervisor removes it.
                export.cancel(reason="the base is another one")
                return
            await send([message])

    env = {**builder_env(), "DOCKER_CONFIG": paths.DOCKER_DIR, **_LAZY_COLLECTOR}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.run)
        nursery.start_soon(memory.run)
        status: int | OSError = 0
        with export:
            try:
                status = await run_child(command, report, env=env, user=paths.BUILDER_UID)
            except OSError as exc:
                status = exc
        nursery.cancel_scope.cancel(reason="buildctl has ended")
    if isinstance(status, OSError):
        return failed(Failure(BUILD_FAILED, f"buildctl could not be started: {status}"))
    await send(progress.finish())

    base = progress.base_image_digest
    if status != 0:
        evidence = Evidence(
            exit_status=status,
            text=progress.text,
            failed_steps=progress.failed_steps,
            oom_kills=memory.kills,
            is_disk_full=disk.was_full,
            daemon_exit=daemon.exit,
        )
        return failed(classify(evidence), base)
    if mismatch := judge_base(config, base):
        return failed(mismatch, base)
    digest = read_image_digest_sync(paths.METADATA_JSON)
    if not digest:
        return failed(Failure(BUILD_FAILED, "BuildKit succeeded, but named no image"), base)
    return wire.BuildResult(seq=0, ok=True, image_digest=digest, base_image_digest=base)


def judge_base(config: wire.Config, base: str) -> Failure | None:
    """Return why the final stage must not have the base that it has, or None if it may."""
    if not config.base_image_digest or base == config.base_image_digest:
        return None
    return Failure(
        BASE_IMAGE_MISMATCH,
        f"the final stage's base is {base or 'unknown'} instead of {config.base_image_digest}",
    )


def read_image_digest_sync(path: str) -> str:
    """Return the digest that BuildKit names in its metadata file, or nothing if it does not."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            digest = json.loads(file.read(1 << 20)).get("containerimage.digest")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else ""
