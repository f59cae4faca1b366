"""A scripted guest agent: speaks `agent.wire` as the real one does, or breaks every rule of it.

    hypervisor = FakeHypervisor(guest=agent(succeed))
    hypervisor = FakeHypervisor(guest=agent(partial(fail_step, message="exit code 1")))

A script is given a `Talk` when the host has connected; when it returns, the guest powers off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import trio

from agent import wire
from tests.fakes.hypervisor import FakeGuest, Guest

DIGEST = "sha256:" + "ab" * 32
STEP = "sha256:" + "01" * 32
AGENT_TIME = 1_700_000_100.0


class Talk:
    """One conversation, as the agent holds it."""

    def __init__(self, guest: FakeGuest, stream: trio.abc.Stream) -> None:
        self.guest = guest
        self.stream = stream
        self.config: wire.Config
        self.heard: list[wire.Message | wire.Unknown] = []
        self._decoder = wire.FrameDecoder()
        self._seq = 0

    async def say(self, message: wire.Message) -> None:
        """Send one message as it is."""
        await self.stream.send_all(wire.encode(message))

    async def hear(self) -> wire.Message | wire.Unknown:
        """Return the next message. Raises BrokenResourceError at the end of the connection."""
        while not self.heard:
            data = await self.stream.receive_some()
            if not data:
                raise trio.BrokenResourceError("the host has closed the connection")
            self.heard += self._decoder.feed(data)
        return self.heard.pop(0)

    async def hear_only(self, kind: type[wire.Message]) -> wire.Message:
        """Return the next message of this kind; before it, heartbeats and `get_status` may come."""
        while isinstance(message := await self.hear(), wire.Heartbeat | wire.GetStatus):
            if isinstance(message, wire.GetStatus):
                await self.phase("idle")
        assert isinstance(message, kind), message
        return message

    async def greet(self) -> None:
        """Say hello, and take the configuration up to `host_ready`."""
        await self.say(wire.Hello(protocol=wire.PROTOCOL_VERSION, agent="fake", buildkit="v0.32"))
        self.config = await self._wait_config()
        await self.hear_only(wire.HostReady)

    async def phase(self, name: str) -> None:
        """Enter a phase."""
        await self.say(wire.Status(self._next(), AGENT_TIME, name))

    async def step(self, name: str, *, digest: str = STEP, is_done: bool = False) -> None:
        """Report a step that begins, or is done."""
        ended = AGENT_TIME + 1 if is_done else None
        await self.say(wire.Step(self._next(), digest, name, AGENT_TIME, ended))

    async def log(self, data: bytes, *, step: str = STEP) -> None:
        """Report output of a step."""
        await self.say(wire.Log(self._next(), AGENT_TIME, step, 1, data))

    async def result(self, *, ok: bool, digest: str = "", code: str = "", error: str = "") -> None:
        """Report the result, and wait until the host has closed."""
        await self.say(wire.BuildResult(self._next(), ok, digest, code, error, lockfile_hashes={}))
        while True:
            await self.hear()

    async def fetch_source(self) -> bytes:
        """Fetch the source, and check it against the configuration."""
        async with await self.guest.connect(wire.SOURCE_PORT) as stream:
            received = bytearray()
            while True:
                data = await stream.receive_some()
                if not data:
                    raise trio.BrokenResourceError("the host does not send the source")
                received += data
                length = int.from_bytes(received[:4], "big")
                end = 4 + length + self.config.source_size
                if len(received) >= end:
                    break
        content = bytes(received[4 + length :])
        assert hashlib.sha256(content).hexdigest() == self.config.source_sha256
        return content

    async def push(self, digest: str = DIGEST) -> None:
        """Push an image to the build's repository."""
        async with await self.guest.connect(wire.REGISTRY_PORT) as stream:
            asked = f"PUSH {self.config.registry_token} {self.config.repository} {digest}\n"
            await stream.send_all(asked.encode())
            assert await stream.receive_some() == b"OK\n"

    async def _wait_config(self) -> wire.Config:
        """Be an idle agent, perhaps for long, until there is a build to do."""
        next_beat = trio.current_time() + wire.HEARTBEAT_SECONDS
        while True:
            message = None
            with trio.move_on_at(next_beat):
                message = await self.hear()
            match message:
                case None:
                    await self.say(wire.Heartbeat(AGENT_TIME))
                    next_beat += wire.HEARTBEAT_SECONDS
                case wire.GetStatus():
                    await self.say(wire.Status(self._next(), AGENT_TIME, "idle"))
                case wire.Config():
                    return message
                case _:
                    assert isinstance(message, wire.Heartbeat), message

    def _next(self) -> int:
        self._seq += 1
        return self._seq


Script = Callable[[Talk], Awaitable[None]]


def agent(script: Script) -> Guest:
    """Return a guest that runs `script` with the first host that connects."""

    async def run(guest: FakeGuest) -> None:
        async with guest.listen(wire.CONTROL_PORT) as listener:
            stream = await listener.accept()
            await script(Talk(guest, stream))

    return run


# -- agents that keep the rules ----------------------------------------------------------------


async def succeed(talk: Talk) -> None:
    """Build and push an image."""
    await talk.greet()
    await talk.phase("source")
    await talk.fetch_source()
    await talk.phase("building")
    await talk.step("[1/1] RUN make")
    await talk.log(b"compiling\nlinking\nno newline")
    await talk.step("[1/1] RUN make", is_done=True)
    await talk.phase("pushing")
    await talk.push()
    await talk.result(ok=True, digest=DIGEST)


async def fail_step(
    talk: Talk, code: str = "build_failed", message: str = "RUN make: exit code 2"
) -> None:
    """Report that a step failed."""
    await talk.greet()
    await talk.phase("building")
    await talk.step("[1/1] RUN make")
    await talk.log(b"make: *** no rule\n")
    await talk.result(ok=False, code=code, error=message)


async def push_and_fail(talk: Talk) -> None:
    """Push an image, and report a failure."""
    await talk.greet()
    await talk.push()
    await talk.result(ok=False, code="build_failed", error="the cache could not be written")


async def succeed_on(talk: Talk, base: str) -> None:
    """Push an image that is built on `base`, as far as the guest says."""
    await talk.greet()
    await talk.push()
    await talk.say(wire.BuildResult(1, True, DIGEST, base_image_digest=base))
    await talk.hear()


class Working:
    """Builds until it is told to finish: `is_building` and `may_finish` are the two moments."""

    def __init__(self) -> None:
        self.is_building = trio.Event()
        self.may_finish = trio.Event()

    async def __call__(self, talk: Talk) -> None:
        await talk.greet()
        await talk.phase("building")
        await talk.step("[1/1] RUN sleep")
        await talk.log(b"working\n")
        self.is_building.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat, talk)
            await self.may_finish.wait()
            nursery.cancel_scope.cancel(reason="finished")
        await talk.phase("pushing")
        await talk.push()
        await talk.result(ok=True, digest=DIGEST)

    async def _beat(self, talk: Talk) -> None:
        while True:
            await trio.sleep(wire.HEARTBEAT_SECONDS)
            await talk.say(wire.Heartbeat(AGENT_TIME))


# -- agents that break them --------------------------------------------------------------------


async def never_say_hello(talk: Talk) -> None:
    """Accept the connection, and say nothing."""
    await trio.sleep_forever()


async def speak_another_protocol(talk: Talk) -> None:
    """Say hello in a version that nobody speaks."""
    await talk.say(wire.Hello(protocol=999, agent="newer"))
    await talk.hear()


async def send_garbage(talk: Talk) -> None:
    """Send bytes that are no frame."""
    await talk.greet()
    await talk.stream.send_all(b"\x00\x00\x00\x05\xff\xff\xff\xff\xff")
    await talk.hear()


async def send_an_oversize_frame(talk: Talk) -> None:
    """Announce a frame of 4 GiB."""
    await talk.greet()
    await talk.stream.send_all(b"\xff\xff\xff\xff")
    await talk.hear()


async def cut_a_frame(talk: Talk) -> None:
    """Send half a frame, and power off."""
    await talk.greet()
    await talk.stream.send_all(wire.encode(wire.Heartbeat(1.0))[:7])


async def cut_the_link(talk: Talk) -> None:
    """Send half a frame and hang up, in a guest that goes on."""
    await talk.greet()
    await talk.stream.send_all(wire.encode(wire.Heartbeat(1.0))[:7])
    await talk.stream.aclose()
    await trio.sleep_forever()


async def die_unheard(talk: Talk) -> None:
    """Power off before the first word."""


async def nest_deeply(talk: Talk) -> None:
    """Send a frame of a hundred thousand lists, each inside the one before."""
    await talk.greet()
    body = b"\xa1\x61x" + b"\x81" * 100_000 + b"\x00"
    await talk.stream.send_all(len(body).to_bytes(4, "big") + body)
    await talk.hear()


async def hold_connections_half_open(talk: Talk) -> None:
    """Connect to the host's ports, say half a word to each of them, and wait."""
    await talk.greet()
    for port in (wire.SOURCE_PORT, wire.REGISTRY_PORT):
        await talk.guest.connect(port)
    await talk.stream.send_all(wire.encode(wire.Heartbeat(1.0))[:7])
    await trio.sleep_forever()


async def fall_silent(talk: Talk) -> None:
    """Begin, and never say anything again."""
    await talk.greet()
    await talk.phase("building")
    await trio.sleep_forever()


async def power_off_early(talk: Talk) -> None:
    """Power off in the middle of the build, with a last word on the console."""
    await talk.greet()
    await talk.phase("building")
    talk.guest.print("Out of memory: Killed process 1\n")
    await talk.guest.panic()


async def claim_an_image(talk: Talk, digest: str = DIGEST) -> None:
    """Report a success without having pushed anything."""
    await talk.greet()
    await talk.phase("pushing")
    await talk.result(ok=True, digest=digest)


async def go_back_in_numbers(talk: Talk) -> None:
    """Send a message with a number that came before."""
    await talk.greet()
    await talk.log(b"a\n")
    await talk.say(wire.Log(0, AGENT_TIME, "", 1, b"b\n"))
    await talk.hear()


async def say_what_is_not_its_to_say(talk: Talk) -> None:
    """Send messages of the other end; the host says that they are of no use. Then succeed."""
    await talk.greet()
    for message in (wire.HostReady(), wire.Cancel("stop"), wire.SecretsResponse({"a": b"b"})):
        await talk.say(message)
        await talk.hear_only(wire.Error)
    await talk.phase("pushing")
    await talk.push()
    await talk.result(ok=True, digest=DIGEST)


async def flood_the_log(talk: Talk, total_bytes: int = 4 << 20, line: bytes = b"\n") -> None:
    """Send a lot of output, then succeed."""
    await talk.greet()
    await talk.phase("building")
    await talk.step("[1/1] RUN yes")
    piece = line * (wire.MAX_LOG_DATA_BYTES // len(line))
    for _ in range(total_bytes // len(piece)):
        await talk.log(piece)
    await talk.step("[1/1] RUN yes", is_done=True)
    await talk.phase("pushing")
    await talk.push()
    await talk.result(ok=True, digest=DIGEST)


async def flood_with_steps(talk: Talk, number: int = 2000) -> None:
    """Report the same step again and again, each time changed, then succeed."""
    await talk.greet()
    await talk.phase("building")
    for count in range(number):
        await talk.step(f"{count} " + "x" * 4000)
    await talk.phase("pushing")
    await talk.push()
    await talk.result(ok=True, digest=DIGEST)
