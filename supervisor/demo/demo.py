"""The demo from its first line to its last.

    daemon up → submit → follow → show what came of it → (keep) → daemon down

The daemon and each command are processes of this one. Whatever ends it, a signal included, ends
them: they are cancelled in order, and killed by the kernel if this process dies.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from supervisor.config import Accelerator
from supervisor.demo.place import Place, prepare_place
from supervisor.errors import SupervisorError
from supervisor.runtime.process import Process, run_daemon
from supervisor.vm.probe import why_no_kvm

EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130
READY_SECONDS = 300.0
"""The first start imports base images and probes the host; a busy one takes its time."""
_DAEMON_GRACE_SECONDS = 30.0
_COMMAND_GRACE_SECONDS = 2.0
_ASK_AGAIN_SECONDS = 0.1
_ANSWER_SECONDS = 5.0
_TOKEN_LIFETIME = "1d"
_EMULATION = "kvm.unusable"
"""What the daemon logs when it has found that machines must be emulated."""


class DemoFailed(Exception):
    """The demo cannot go on; the message says why, `evidence` what was printed last."""

    def __init__(self, message: str, evidence: str = "") -> None:
        super().__init__(message)
        self.evidence = evidence


async def run_demo(
    environ: Mapping[str, str],
    source: Path,
    *,
    keep: bool,
    daemon: Sequence[str] = (sys.executable, "-m", "supervisor.daemon", "run"),
) -> int:
    """Run the demo and return its exit code: that of the build. Leaves nothing behind."""
    code = EXIT_INTERRUPTED
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def stop_at_signal() -> None:
                async for _ in signals:
                    say("\nstopping")
                    nursery.cancel_scope.cancel(reason="interrupted by a signal")
                    return

            nursery.start_soon(stop_at_signal)
            try:
                with prepare_place(environ) as place:
                    code = await _Demo(place, source, daemon, keep=keep).run()
            except (DemoFailed, SupervisorError) as exc:
                say(f"\nThe demo cannot go on: {exc}")
                evidence = getattr(exc, "evidence", "")
                if evidence:
                    say(f"The daemon's last words:\n{_indent(evidence)}")
                code = EXIT_UNREACHABLE
            nursery.cancel_scope.cancel(reason="the demo is over")
    return code


class _Demo:
    def __init__(self, place: Place, source: Path, daemon: Sequence[str], *, keep: bool) -> None:
        self._place = place
        self._source = source
        self._argv = daemon
        self._keep = keep
        self._is_emulated = False
        self._daemon_ended = trio.Event()

    async def run(self) -> int:
        self._announce()
        began = trio.current_time()
        result = 0
        failure: DemoFailed | SupervisorError | None = None
        async with trio.open_nursery() as nursery:
            daemon: Process = await nursery.start(
                partial(
                    run_daemon,
                    self._argv,
                    sink=self._on_daemon_output,
                    env=dict(self._place.settings),
                    stop_grace=_DAEMON_GRACE_SECONDS,
                )
            )
            nursery.start_soon(self._watch_daemon, daemon)
            try:
                await self._wait_ready(daemon)
                say(f"The daemon is ready after {trio.current_time() - began:.1f} s.")
                self._tell_acceleration()
                result = await self._build()
                if self._keep:
                    say("\nThe daemon goes on until you press Ctrl-C.")
                    await self._daemon_ended.wait()
            except (DemoFailed, SupervisorError) as exc:
                failure = exc
            nursery.cancel_scope.cancel(reason="the demo is over")
        if failure is not None:
            raise failure
        return result

    def _announce(self) -> None:
        say(
            f"Starting the daemon on 127.0.0.1:{self._place.port}, state in {self._place.data_dir}."
        )
        if (obstacle := why_no_kvm()) is not None:
            self._is_emulated = True
            say(f"No KVM on this host ({obstacle}).")

    def _tell_acceleration(self) -> None:
        if self._is_emulated or self._place.settings.get("ACCELERATOR") == Accelerator.TCG:
            say("Machines are emulated in software here: all works, several times slower than KVM.")
        else:
            say("Machines run on KVM.")

    async def _watch_daemon(self, daemon: Process) -> None:
        await daemon.wait()
        self._daemon_ended.set()

    def _on_daemon_output(self, data: bytes) -> None:
        if _EMULATION.encode() in data:
            self._is_emulated = True

    async def _wait_ready(self, daemon: Process) -> None:
        with trio.move_on_after(READY_SECONDS):
            while not self._daemon_ended.is_set():
                if await is_ready(self._place.socket):
                    return
                with trio.move_on_after(_ASK_AGAIN_SECONDS):
                    await self._daemon_ended.wait()
            ended = await daemon.wait()
            raise DemoFailed(f"the daemon ended: {ended.why}", ended.tail)
        raise DemoFailed(f"the daemon was not ready within {READY_SECONDS:g} s", daemon.tail())

    async def _build(self) -> int:
        began = trio.current_time()
        path = _short(self._source)
        code, out = await self._ctl("build", "--detach", "--quiet", str(self._source), shown=path)
        if code:
            say(out.strip())
            return code
        build_id = out.split()[-1]  # warnings may stand above it
        code, _ = await self._ctl("attach", "--progress", "plain", build_id, is_live=True)
        took = trio.current_time() - began
        if self._daemon_ended.is_set():
            raise DemoFailed("the daemon ended during the build")
        _, out = await self._ctl("show", "--json", build_id, is_silent=True)
        build = json.loads(out)
        self._tell_result(build, took)
        if build["status"] == "ready":
            await self._tell_how_to_pull(build)
        return code

    def _tell_result(self, build: Mapping[str, Any], took: float) -> None:
        say("")
        rows = [
            ("status", build["status"]),
            ("image", build.get("image_ref")),
            ("digest", build.get("image_digest")),
            ("reason", build.get("error_code")),
            ("attempts", build.get("attempt")),
        ]
        for name, value in rows:
            if value is not None:
                say(f"  {name:<10} {value}")
        for name, milliseconds in (build.get("phases") or {}).items():
            say(f"  {name:<10} {milliseconds / 1000:7.1f} s")
        say(f"  {'total':<10} {took:7.1f} s from the submission to the end")

    async def _tell_how_to_pull(self, build: Mapping[str, Any]) -> None:
        code, out = await self._ctl(
            "token", "create", "--subject", "demo", "--tenant", str(build["tenant"]),
            "--permission", "image:read", "--lifetime", _TOKEN_LIFETIME,
        )  # fmt: skip
        if code:
            raise DemoFailed(f"no token could be made: {out.strip()}")
        token = out.strip()
        image = f"docker://{build['image_ref']}@{build['image_digest']}"
        inspect = ["skopeo", "inspect", "--tls-verify=false", "--creds", f"demo:{token}", image]
        copy = [
            "skopeo", "copy", "--src-tls-verify=false", "--src-creds", f"demo:{token}", image,
            "oci:hello-image",
        ]  # fmt: skip
        if shutil.which("skopeo") is not None:
            await self._check_with_skopeo(inspect, str(build["image_digest"]))
        say("\nTo pull it while the daemon runs:")
        say(f"  {shlex.join(inspect)}")
        say(f"  {shlex.join(copy)}")
        if not self._keep:
            self._tell_how_to_go_on()

    async def _check_with_skopeo(self, inspect: list[str], digest: str) -> None:
        out = bytearray()
        ended = await run_daemon([*inspect, "--format", "{{.Digest}}"], sink=out.extend)
        found = out.decode(errors="replace").strip()
        if ended.status or found != digest:
            raise DemoFailed(f"skopeo does not find that digest in the registry: {found}")
        say("  skopeo inspect finds that digest in the daemon's registry.")

    def _tell_how_to_go_on(self) -> None:
        place = self._place
        if place.is_temporary:
            say(
                "\nThe demo stops the daemon and removes all that it made. To keep it running, add"
                " --keep; to keep the image, name a directory: DATA_DIR=$PWD/build/demo ./run demo"
            )
            return
        key = f"JWT_SECRET_FILE={shlex.quote(str(place.key_file))} " if place.key_file else ""
        say("\nThe demo stops the daemon; the image stays. To start it again on the same data:")
        say(
            f"  {key}DATA_DIR={shlex.quote(str(place.data_dir))} HOST=127.0.0.1"
            f" PORT={place.port} ./run up"
        )

    async def _ctl(
        self, *args: str, shown: str = "", is_live: bool = False, is_silent: bool = False
    ) -> tuple[int, str]:
        """Run hypeman-ctl and return its exit code and output; `is_live` also passes it on."""
        if not is_silent:
            words = [*args[:-1], shown] if shown else args
            say(f"\n$ hypeman-ctl {shlex.join(words)}")
        out = bytearray()
        sink = partial(_pass_on, out) if is_live else out.extend
        ended = await run_daemon(
            [sys.executable, "-m", "supervisor.ctl", "--socket", str(self._place.socket), *args],
            sink=sink,
            stop_grace=_COMMAND_GRACE_SECONDS,
        )
        return ended.status, out.decode(errors="replace")


async def is_ready(socket: Path) -> bool:
    """Ask the daemon at `socket` whether builds can start. Anything but a yes is a no."""
    with trio.move_on_after(_ANSWER_SECONDS):
        try:
            stream = await trio.open_unix_socket(socket)
        except OSError:
            return False
        try:
            await stream.send_all(b"GET /ready HTTP/1.0\r\nHost: localhost\r\n\r\n")
            answer = bytes(await stream.receive_some(64))
            return answer.split(b" ")[1:2] == [b"200"]
        except trio.BrokenResourceError:
            return False
        finally:
            stream.socket.close()
    return False


def say(text: str) -> None:
    """Write a line to the user."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _pass_on(kept: bytearray, data: bytes) -> None:
    del kept[:]
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())
