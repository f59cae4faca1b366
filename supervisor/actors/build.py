"""The life of one attempt, from the lease of its machine to the verdict. Read it top to bottom.

A BuildActor is temporary: it owns one machine, one guest link and one deadline, and ends with a
verdict that is stored. Whatever the build or its guest does is a verdict, never an exception; what
leaves here as an exception is a bug of ours, and the supervisor of the builds answers it.

The nesting is the ownership, and leaving it is the clean-up:

    deadline and cancellation ⊃ machine and its host ports ⊃ guest link ⊃ conversation
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from agent import wire
from supervisor.actors.contact import ContactTimes, Dial, make_contact
from supervisor.actors.hostports import HostPorts, ServeEgress, ServeRegistry
from supervisor.actors.ledger import Ledger
from supervisor.actors.loss import explain_loss, reason_of_guest, render_evidence
from supervisor.actors.phases import PhaseClock
from supervisor.actors.pool import Lease, Waits
from supervisor.actors.transcript import Rendered, Transcript
from supervisor.actors.turns import Turn
from supervisor.config import Settings
from supervisor.egress.policy import Decision
from supervisor.errors import GuestLost, HostError, ResourceExhausted, VmBootFailed
from supervisor.guest import session
from supervisor.guest.config import guest_config
from supervisor.guest.link import GuestLink, send_heartbeats
from supervisor.guest.secrets import SecretNotFound, read_secrets_sync
from supervisor.model.build import Build, ErrorReason, Phase, Provenance, Reason, Step
from supervisor.model.ids import BuildId, Tenant, machine_id
from supervisor.model.lifecycle import Ended, Event, Interrupted, PushBegun, Succeeded
from supervisor.model.oci import parse_digest
from supervisor.runtime.logs import log
from supervisor.runtime.threads import run_in_thread
from supervisor.store import builds
from supervisor.store.eventlog import BuildLog
from supervisor.vm.machine import Machine, MachineSpec

CONCLUDE_SECONDS = 10.0
"""Storing a verdict takes milliseconds; a disk that needs longer must not hold a shutdown up."""
TOKEN_MARGIN_SECONDS = 300.0
MIN_TOKEN_SECONDS = 1800.0
HOST_FAILED = "the host refused what the build needs; the operator finds why in the daemon's log"

GUEST_REASONS = frozenset(
    {
        Reason.BUILD_FAILED,
        Reason.DOCKERFILE_INVALID,
        Reason.BASE_IMAGE_NOT_FOUND,
        Reason.BASE_IMAGE_MISMATCH,
        Reason.SECRET_NOT_FOUND,
        Reason.OUT_OF_MEMORY,
        Reason.OUT_OF_DISK,
        Reason.PUSH_FAILED,
        Reason.BUILDER_LOST,
    }
)
"""What a guest may give as the reason of a failure; the others are the host's to give."""


class Registry(Protocol):
    """What an attempt needs of the registry."""

    async def holds_image(self, repository: str, digest: str) -> bool:
        """Say whether `repository` has that manifest, and everything it refers to.

        The digest may be any text: what cannot be one is not there.
        """
        ...

    async def tag(self, repository: str, reference: str, digest: str, *, source: str) -> None:
        """Give the image `digest` of the repository `source` another repository and tag.

        Raises HostError if the image is not there whole, or the name cannot be one.
        """
        ...


class Machines(Protocol):
    """Where an attempt gets its machine from."""

    async def lease(
        self,
        spec: MachineSpec,
        waiting: Waits,
        *,
        task_status: trio.TaskStatus[Lease] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hand out a machine, and keep it until cancelled; see `Pool.lease`."""
        ...


@dataclass(frozen=True)
class BuildDeps:
    """What every attempt is given by the composition root."""

    settings: Settings
    ledger: Ledger
    machines: Machines
    registry: Registry
    builder_image_digest: str
    mint_registry_token: Callable[[Build, float], str]
    """(build, lifetime in seconds) → a token for what this build may push and pull."""
    serve_registry: ServeRegistry
    """Serves `/v2`, and nothing else, to one machine."""
    serve_egress: ServeEgress
    """Serves the proxy to one machine, within what the policy of its build allows."""
    dial: Dial
    ca_certificates: str = ""
    """What builders trust beside the public authorities, as PEM."""


class BuildActor:
    """Runs one attempt of one build. `run` is its task; the other methods are its handle."""

    def __init__(self, build: Build, deps: BuildDeps) -> None:
        self._build = build
        self._deps = deps
        self._scope = trio.CancelScope()
        self._verdict: Event | None = None
        self._clock = PhaseClock(Phase.LEASE)
        self._session = session.Session()
        self._transcript = Transcript(
            self._session.number_of, max_bytes=deps.settings.max_log_bytes
        )
        self._buildkit_version = ""
        self._toolchain_version = ""
        self._machine: Machine | None = None
        self._turn: Turn | None = None
        self._link: GuestLink | None = None
        self._host_said = ""
        self._log = log.bind(build_id=build.id, tenant=build.tenant, attempt=build.attempt)

    # -- the handle ----------------------------------------------------------------------------

    @property
    def id(self) -> BuildId:
        """The build."""
        return self._build.id

    @property
    def tenant(self) -> Tenant:
        """Whose build it is."""
        return self._build.tenant

    @property
    def build(self) -> Build:
        """The build as last stored."""
        return self._build

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps so far."""
        return self._session.steps

    def cancel(self) -> bool:
        """End the build as cancelled. Returns at once: False if it has another verdict already."""
        self._settle(self._ended(Reason.CANCELLED, "cancelled"))
        self._scope.cancel(reason=f"build {self.id}: cancelled by request")
        match self._verdict:
            case Ended(reason=Reason.CANCELLED) | Interrupted():
                return True  # what was interrupted is about to wait again, and is cancelled there
            case _:
                return False

    def interrupt(self) -> None:
        """Give the attempt up and let the build wait for another one. Returns at once."""
        self._settle(Interrupted(is_planned=True))
        self._scope.cancel(reason=f"build {self.id}: the daemon stops")

    # -- the task ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the attempt and store its verdict; then the machine is gone and the slot is free."""
        timeout = self._build.request.policy.timeout_seconds
        async with self._deps.ledger.logs.open(self.id) as events:
            self._scope.deadline = trio.current_time() + timeout
            try:
                with self._scope:
                    await self._run_machine(events)
            except Exception as exc:
                # A fault while everything is taken down does not undo what was reached before.
                if self._verdict is None:
                    raise
                self._log.opt(exception=exc).error("attempt.ended_badly")
            if self._verdict is None:
                self._verdict = self._ended(
                    Reason.BUILD_TIMEOUT, f"the build did not finish within {timeout} s"
                )
            try:
                with trio.fail_after(CONCLUDE_SECONDS, shield=True):
                    await self._conclude(events, self._verdict)
            except (HostError, trio.TooSlowError) as exc:
                # The queue takes the build back as soon as the host works again.
                self._log.error("build.verdict_not_stored", why=str(exc) or "it took too long")

    async def _run_machine(self, events: BuildLog) -> None:
        """Boot the machine, hold the conversation, leave a verdict; then destroy the machine."""
        policy = self._build.request.policy
        spec = MachineSpec(machine_id(self.id, self._build.attempt), policy.cpus, policy.memory_mb)
        async with trio.open_nursery() as nursery:
            try:
                secrets = await self._read_secrets()
                lease: Lease = await nursery.start(
                    self._deps.machines.lease, spec, self._deadline_waits
                )
                self._machine, self._turn = lease.machine, lease.turn
                self._clock.enter(Phase.BOOT)
                await self._open_ports(lease.machine, secrets, events, nursery)
                link = self._link = await self._greet(lease)
                try:
                    await self._configure(link)
                    nursery.start_soon(self._keep_alive, link)
                    self._settle(await self._converse(link, events))
                finally:
                    await link.aclose()
            except SecretNotFound as exc:
                self._settle(self._ended(Reason.SECRET_NOT_FOUND, str(exc)))
            except (GuestLost, VmBootFailed) as exc:
                self._settle(await self._explain_loss(exc))
            except HostError as exc:
                self._settle(self._blame_host(exc))
            nursery.cancel_scope.cancel(reason=f"build {self.id}: the attempt is over")

    @contextmanager
    def _deadline_waits(self) -> Iterator[None]:
        """Stop the clock of the deadline: what passes is the host's time and not the build's."""
        left = self._scope.deadline - trio.current_time()
        self._scope.deadline = math.inf
        try:
            yield
        finally:
            self._scope.deadline = trio.current_time() + left

    async def _open_ports(
        self,
        machine: Machine,
        secrets: Mapping[str, bytes],
        events: BuildLog,
        nursery: trio.Nursery,
    ) -> None:
        deps = self._deps

        async def tell(decision: Decision) -> None:
            try:
                await _store(events, self._transcript.egress(decision, self._now()))
            except HostError as exc:
                self._log.error("build.log_incomplete", why=exc.message)

        ports = HostPorts(
            build=self._build,
            source_path=deps.ledger.source_path(self.id),
            secrets=secrets,
            serve_registry=deps.serve_registry,
            serve_egress=deps.serve_egress,
            silence_seconds=deps.settings.link_silence,
            tell=tell,
        )
        await ports.open(machine, nursery)

    async def _read_secrets(self) -> Mapping[str, bytes]:
        """Read the secrets before anything boots. Raises SecretNotFound, and HostError."""
        wanted = self._build.request.secrets
        if not wanted:
            return {}
        directory = self._deps.settings.build_secrets_dir
        disk = self._deps.ledger.threads.disk
        return await run_in_thread(disk, read_secrets_sync, directory, self.tenant, wanted)

    async def _greet(self, lease: Lease) -> GuestLink:
        """Have the agent's hello: one from the pool has said it. Raises GuestLost."""
        settings = self._deps.settings
        contact = lease.contact
        if contact is None:
            times = ContactTimes(settings.boot_timeout, settings.link_silence)
            contact = await make_contact(lease.machine, self._deps.dial, times)
        self._buildkit_version = contact.hello.buildkit[:100]
        self._toolchain_version = contact.hello.toolchain[:100]
        self._clock.enter(Phase.SOURCE)
        seconds = round(self._clock.spent(Phase.BOOT), 3)
        self._log.info("machine.leased", machine_id=lease.machine.id, boot_seconds=seconds)
        return contact.link

    async def _configure(self, link: GuestLink) -> None:
        """Mint the registry token now, not at submit: it must outlive the build, not the queue."""
        build, deps = self._build, self._deps
        left = max(0.0, self._scope.deadline - trio.current_time())
        lifetime = max(MIN_TOKEN_SECONDS, left + TOKEN_MARGIN_SECONDS)
        token = deps.mint_registry_token(build, lifetime)
        await link.send(
            guest_config(
                build,
                deps.settings,
                token=token,
                seconds=left,
                now=deps.ledger.clock(),
                ca_certificates=deps.ca_certificates,
            )
        )
        await link.send(wire.HostReady())

    async def _converse(self, link: GuestLink, events: BuildLog) -> Event:
        """Take what the guest says until it reports a result, and return the verdict on that."""
        while True:
            for action in self._session.receive(await link.receive()):
                match action:
                    case session.Output(lines):
                        await _store(events, self._transcript.lines(lines, self._now()))
                        if self._transcript.is_full:
                            self._session.mute()
                    case session.StepChanged():
                        await _store(events, self._transcript.step_change(action, self._now()))
                    case session.PhaseEntered(phase):
                        await self._enter_phase(phase)
                    case session.Refused(why):
                        self._log.debug("guest.refused")  # what it was is the guest's word
                        await link.send(wire.Error(why))
                    case session.Finished(result):
                        return await self._judge(result)

    async def _enter_phase(self, phase: str) -> None:
        if phase == "building":
            self._clock.enter(Phase.BUILD)
            if self._turn is not None:
                self._turn.end()  # BuildKit serves
        elif phase == "pushing":
            self._clock.enter(Phase.PUSH)
            self._build = await self._deps.ledger.apply(self._build, PushBegun())

    async def _judge(self, result: wire.BuildResult) -> Event:
        """Believe a success only if this host's own registry holds the image, every blob of it."""
        self._clock.stop()
        if not result.ok:
            known = {reason.value for reason in GUEST_REASONS}
            reason = Reason(result.error_code) if result.error_code in known else None
            reason = reason or Reason.BUILD_FAILED
            message = result.error or "the build failed without a word"
            return self._ended(reason, message, reason_of_guest(reason))
        base = self._build.request.base_image_digest
        if base is not None and result.base_image_digest != base:
            return self._ended(
                Reason.BASE_IMAGE_MISMATCH,
                f"the guest built on {result.base_image_digest[:80]!r} instead of {base}",
            )
        repository = f"builds/{self.id}"
        if not await self._deps.registry.holds_image(repository, result.image_digest):
            return self._ended(
                Reason.PUSH_FAILED,
                f"the guest reports the image {result.image_digest[:80]!r}, which"
                f" {repository} does not hold",
            )
        # An agent that went from building to done in one breath has pushed all the same.
        self._build = await self._deps.ledger.apply(self._build, PushBegun())
        return Succeeded(
            image_digest=result.image_digest,
            provenance=self._provenance(result),
            phases=self._clock.phases,
        )

    async def _keep_alive(self, link: GuestLink) -> None:
        """Send heartbeats. A link that takes none is noticed by the receiver as well."""
        try:
            await send_heartbeats(link, self._deps.ledger.clock)
        except GuestLost:
            return

    async def _explain_loss(self, exc: GuestLost | VmBootFailed) -> Event:
        """End the attempt with how its machine was lost."""
        loss = await explain_loss(exc, self._machine, self._link)
        self._host_said = loss.host_said
        why = exc.message if loss.host_said else loss.message
        self._log.warning("machine.lost", why=why, error_reason=loss.reason)
        return self._ended(Reason.BUILDER_LOST, loss.error, loss.reason)

    def _blame_host(self, exc: HostError) -> Event:
        """End the attempt because of the host, whose disk or database refused something.

        The tenant is told of a full disk; any other reason may name files of the host.
        """
        self._log.error("attempt.host_failed", why=exc.message, error_code=exc.code)
        if isinstance(exc, ResourceExhausted):
            return self._ended(Reason.OUT_OF_DISK, exc.message, ErrorReason.HOST_OUT_OF_DISK)
        return self._ended(Reason.BUILDER_LOST, HOST_FAILED, ErrorReason.HOST_FAILED)

    async def _conclude(self, events: BuildLog, verdict: Event) -> None:
        """Store what is left of the output, the steps, and the verdict; name what was made."""
        try:
            await _store(events, self._transcript.lines(self._session.finish(), self._now()))
            missing = self._session.dropped_bytes
            await _store(events, self._transcript.end(missing, self._now()))
        except HostError as exc:
            self._log.error("build.log_incomplete", why=exc.message)
        await self._deps.ledger.database.run(builds.set_steps, self.id, self.steps)
        if isinstance(verdict, Succeeded):
            verdict = await self._name_image(verdict)
        elif isinstance(verdict, Ended):
            await self._keep_evidence(verdict)
        self._build = await self._deps.ledger.apply(self._build, verdict)

    async def _keep_evidence(self, verdict: Ended) -> None:
        """Store what the operator may want to see: the machine has ended, and said all it will."""
        text = render_evidence(self._build, verdict, self._machine, self._link, self._host_said)
        if text is None:
            return
        try:
            await self._deps.ledger.keep_evidence(self.id, text)
        except HostError as exc:
            self._log.warning("build.evidence_not_kept", why=exc.message)

    async def _name_image(self, verdict: Succeeded) -> Succeeded | Ended:
        """Give the image the extra name that was asked for: not before nothing can undo it."""
        if (image_name := self._build.request.image_name) is None:
            return verdict
        name, _, tag = image_name.partition(":")
        target, source = f"{self.tenant}/{name}", f"builds/{self.id}"
        try:
            await self._deps.registry.tag(
                target, tag or "latest", verdict.image_digest, source=source
            )
        except HostError as exc:
            return self._ended(Reason.PUSH_FAILED, exc.message)
        return verdict

    def _settle(self, verdict: Event) -> None:
        """The first verdict stands: a cancellation a tick after the end changes nothing."""
        if self._verdict is None:
            self._verdict = verdict

    def _ended(self, reason: Reason, message: str, detail: ErrorReason | None = None) -> Ended:
        self._clock.stop()
        return Ended(reason, message, self._clock.phases, detail)

    def _now(self) -> float:
        return self._deps.ledger.clock()

    def _provenance(self, result: wire.BuildResult) -> Provenance:
        return Provenance(
            source_hash=f"sha256:{self._build.source.sha256}",
            builder_image_digest=self._deps.builder_image_digest,
            timestamp=self._now(),
            base_image_digest=parse_digest(result.base_image_digest),
            lockfile_hashes=dict(result.lockfile_hashes),
            buildkit_version=self._buildkit_version or None,
            toolchain_version=self._toolchain_version or None,
        )


async def _store(events: BuildLog, said: Rendered) -> None:
    await events.append(said.events, said.text, continues=said.continues)
