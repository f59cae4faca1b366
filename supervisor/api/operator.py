"""The operator's routes: the queue, the machines, the host, the disk, the configuration."""

from __future__ import annotations

from importlib.metadata import version
from typing import ClassVar

from pydantic import ConfigDict, Field
from quart import g, request
from quart_trio.wrappers import TrioResponse as Response

from supervisor.api.bodies import receive_json
from supervisor.api.images import DEFAULT_AGE_SECONDS, PruneRequest, owner_of, render_pruned
from supervisor.api.operator_views import (
    BuilderImageView,
    HostView,
    MachineView,
    QueueView,
    SettingView,
    SystemView,
    UsageView,
)
from supervisor.api.ports import ApiDeps
from supervisor.api.queries import check_names
from supervisor.api.views import BuildView, json_response, render_build
from supervisor.config import effective_values
from supervisor.model.build import Build
from supervisor.model.inventory import PruneWish
from supervisor.model.times import rfc3339


class SystemPruneRequest(PruneRequest):
    """What may go, beside what nothing can ever use again."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)

    caches: bool = Field(False, description="Whole build caches, too.")
    sources: bool = Field(
        False, description="The archives of finished builds, too: those cannot be retried then."
    )


class OperatorRoutes:
    """Handlers, named as in the table of routes."""

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps
        self._operator = deps.operator

    async def show_queue(self) -> Response:
        """Show what runs and what waits."""
        check_names(request.args, ())
        state = await self._operator.queue(owner_of(g.caller))
        view = QueueView(
            capacity=state.capacity,
            capacity_per_tenant=state.tenant_capacity,
            max_queued=state.max_queued,
            draining=state.is_draining,
            running=[self._render_build(build) for build in state.running],
            waiting=[self._render_build(build) for build in state.waiting],
        )
        return json_response(view.model_dump(mode="json", exclude_none=True))

    async def list_machines(self) -> Response:
        """Show the machines."""
        check_names(request.args, ())
        views = [
            MachineView(
                id=machine.id,
                state=machine.phase,
                cpus=machine.cpus,
                memory_mb=machine.memory_mb,
                since=rfc3339(machine.since),
                build=machine.build_id,
                tenant=machine.tenant,
                pid=machine.pid,
                rss_bytes=machine.rss_bytes,
            )
            for machine in await self._operator.machines()
        ]
        return json_response([view.model_dump(mode="json", exclude_none=True) for view in views])

    async def system_info(self) -> Response:
        """Show the daemon and its host."""
        check_names(request.args, ())
        facts, load = self._operator.facts, await self._operator.load()
        settings = self._deps.settings
        why_not_ready = self._deps.builds.readiness()
        view = SystemView(
            version=version("hypeman"),
            started_at=rfc3339(facts.started_at),
            ready=why_not_ready is None,
            why_not_ready=why_not_ready,
            hypervisor=facts.hypervisor,
            platform=facts.platform,
            builder_image=BuilderImageView(
                reference=facts.builder_image,
                digest=facts.builder_image_digest,
                components=dict(facts.components),
            ),
            registry_address=self._deps.registry_address,
            data_dir=str(settings.data_dir),
            runtime_dir=str(settings.runtime_dir),
            builds=dict(await self._operator.count_builds()),
            host=HostView(
                cpus=load.cpus,
                load_average=load.load_average,
                memory_bytes=load.memory_bytes,
                memory_available_bytes=load.memory_available_bytes,
                disk_bytes=load.disk_bytes,
                disk_free_bytes=load.disk_free_bytes,
            ),
        )
        return json_response(view.model_dump(mode="json", exclude_none=True))

    async def system_config(self) -> Response:
        """Show the settings that the daemon runs with."""
        check_names(request.args, ())
        views = [
            SettingView(name=value.name, value=value.shown, is_default=value.is_default)
            for value in effective_values(self._deps.settings)
        ]
        return json_response([view.model_dump(mode="json", exclude_none=True) for view in views])

    async def disk_usage(self) -> Response:
        """Show what takes up room."""
        check_names(request.args, ())
        wish = PruneWish(before=self._deps.clock() - DEFAULT_AGE_SECONDS)
        views = [
            UsageView(
                kind=usage.kind,
                count=usage.count,
                size_bytes=usage.size_bytes,
                reclaimable_bytes=usage.reclaimable_bytes,
            )
            for usage in await self._deps.images.usage(wish)
        ]
        return json_response([view.model_dump(mode="json") for view in views])

    async def prune_system(self) -> Response:
        """Remove what nothing can use."""
        check_names(request.args, ())
        wanted = await receive_json(SystemPruneRequest, "nothing was pruned")
        wish = PruneWish(
            before=self._deps.clock() - wanted.older_than_seconds,
            caches=wanted.caches,
            sources=wanted.sources,
        )
        pruned = await self._deps.images.prune(wish, is_dry=wanted.dry_run)
        return json_response(render_pruned(pruned, is_dry=wanted.dry_run))

    def _render_build(self, build: Build) -> BuildView:
        return BuildView.model_validate(
            render_build(
                build,
                queue_position=self._operator.queue_position(build),
                registry_address=self._deps.registry_address,
            )
        )
