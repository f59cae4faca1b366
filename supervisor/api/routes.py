"""The table of routes: what exists, and which permission it needs.

Registration, authorization and the OpenAPI description are all made from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.tokens import Permission


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. Handlers have the same `name`."""

    name: str
    method: str
    path: str
    permission: Permission | None
    """None: no token is needed."""
    summary: str

    @property
    def is_websocket(self) -> bool:
        """Say whether it is answered by an upgrade."""
        return self.path.endswith("/ws")

    @property
    def rule(self) -> str:
        """The path in the notation of the router."""
        # The name of an image has slashes in it.
        return self.path.replace("{name}", "<path:name>").replace("{", "<").replace("}", ">")


READ, WRITE, DELETE, ADMIN = (
    Permission.BUILD_READ,
    Permission.BUILD_WRITE,
    Permission.BUILD_DELETE,
    Permission.BUILD_ADMIN,
)
IMAGE_READ, IMAGE_DELETE = Permission.IMAGE_READ, Permission.IMAGE_DELETE

# fmt: off
ROUTES = (
    Route("submit_build", "POST", "/builds", WRITE, "Submit a build"),
    Route("list_builds", "GET", "/builds", READ, "List builds, newest first"),
    Route("submit_and_follow", "GET", "/builds/ws", WRITE, "Submit a build and follow it"),
    Route("get_build", "GET", "/builds/{id}", READ, "Show a build"),
    Route("delete_build", "DELETE", "/builds/{id}", DELETE, "Cancel a build, or purge one"),
    Route("build_logs", "GET", "/builds/{id}/logs", READ, "Follow a build, or get its log as text"),
    Route("build_events", "GET", "/builds/{id}/events", READ, "Read the events of a build"),
    Route("build_steps", "GET", "/builds/{id}/steps", READ, "List the BuildKit steps of a build"),
    Route("build_evidence", "GET", "/builds/{id}/evidence", ADMIN, "Show what a machine left"),
    Route("retry_build", "POST", "/builds/{id}/retry", WRITE, "Build again what has ended"),
    Route("follow_build", "GET", "/builds/{id}/ws", READ, "Follow a build on a websocket"),
    Route("create_token", "POST", "/tokens", ADMIN, "Make an API token"),
    Route("show_queue", "GET", "/queue", READ, "Show what runs and what waits"),
    Route("list_images", "GET", "/images", IMAGE_READ, "List images by name"),
    Route("prune_images", "POST", "/images/prune", IMAGE_DELETE, "Remove images without a tag"),
    Route("get_image", "GET", "/images/{name}", IMAGE_READ, "Show an image"),
    Route("delete_image", "DELETE", "/images/{name}", IMAGE_DELETE, "Remove a tag or an image"),
    Route("list_machines", "GET", "/machines", ADMIN, "List the machines"),
    Route("system_info", "GET", "/system/info", ADMIN, "Show the daemon and its host"),
    Route("system_config", "GET", "/system/config", ADMIN, "Show the settings in effect"),
    Route("disk_usage", "GET", "/system/df", ADMIN, "Show what takes up room"),
    Route("prune_system", "POST", "/system/prune", ADMIN, "Remove what nothing can use"),
    Route("health", "GET", "/health", None, "Tell that the daemon answers"),
    Route("ready", "GET", "/ready", None, "Tell whether builds can start"),
    Route("spec_json", "GET", "/spec.json", None, "This description as JSON"),
    Route("spec_yaml", "GET", "/spec.yaml", None, "This description as YAML"),
)
# fmt: on

ROUTE_OF_NAME = {route.name: route for route in ROUTES}
