"""The part of the OpenAPI description that is about the operator's routes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from supervisor.api.images import PruneRequest
from supervisor.api.operator import SystemPruneRequest
from supervisor.api.operator_views import (
    ImageDetailView,
    ImageView,
    MachineView,
    PruneView,
    QueueView,
    SettingView,
    SystemView,
    UsageView,
)
from supervisor.model.oci import DIGEST_PATTERN, MAX_REPOSITORY_LENGTH, REPOSITORY_PATTERN

Json = dict[str, Any]

SHOWN: tuple[type[BaseModel], ...] = (
    ImageView,
    ImageDetailView,
    MachineView,
    PruneView,
    QueueView,
    SettingView,
    SystemView,
    UsageView,
)
BODIES: dict[str, type[BaseModel]] = {
    "prune_images": PruneRequest,
    "prune_system": SystemPruneRequest,
}
ANSWERS: dict[str, tuple[str, type[BaseModel], bool]] = {
    "show_queue": ("What runs and waits.", QueueView, False),
    "list_images": ("A page of images.", ImageView, True),
    "get_image": ("The image.", ImageDetailView, False),
    "prune_images": ("What was removed.", PruneView, False),
    "list_machines": ("The machines.", MachineView, True),
    "system_info": ("The daemon and its host.", SystemView, False),
    "system_config": ("The settings.", SettingView, True),
    "disk_usage": ("What takes up room.", UsageView, True),
    "prune_system": ("What was removed.", PruneView, False),
}
"""Description and model of each answer with 200, and whether it is a list."""
PROBLEMS: dict[str, frozenset[int]] = {
    "retry_build": frozenset({409, 429, 503}),
    "show_queue": frozenset({503}),
    "list_images": frozenset({503}),
    "get_image": frozenset({404, 503}),
    "delete_image": frozenset({404, 409, 503}),
    "prune_images": frozenset({413, 503}),
    "list_machines": frozenset({503}),
    "system_info": frozenset({503}),
    "system_config": frozenset(),
    "disk_usage": frozenset({503}),
    "prune_system": frozenset({413, 503}),
}
NAME: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "description": "`repository:tag` or `repository@sha256:…`, with or without the registry before"
    " it. Without a tag `latest`; without a slash, of the caller's tenant.",
}
REPOSITORY: Json = {
    "name": "repository",
    "in": "query",
    "schema": {
        "type": "string",
        "pattern": f"^{REPOSITORY_PATTERN}$",
        "maxLength": MAX_REPOSITORY_LENGTH,
    },
    "description": "Only images of this repository.",
}
CURSOR: Json = {
    "name": "cursor",
    "in": "query",
    "schema": {
        "type": "string",
        "pattern": f"^{REPOSITORY_PATTERN}@{DIGEST_PATTERN}$",
        "maxLength": MAX_REPOSITORY_LENGTH + len("@sha256:") + 64,
    },
    "description": "From the `Link` header of the page before.",
}
