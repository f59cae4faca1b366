"""The fields of each answer, for `--format`. A test compares them with what the API describes."""

from __future__ import annotations

from supervisor.ctl.template import Fields

BUILD: Fields = frozenset(
    {
        "id", "status", "tenant", "tags.*", "attempt", "created_at", "started_at", "completed_at",
        "queue_position", "duration_ms", "phases.*", "image_digest", "image_ref", "error",
        "error_code", "error_reason", "policy.timeout_seconds", "policy.memory_mb", "policy.cpus",
        "policy.network_mode", "policy.allowed_domains", "provenance.source_hash",
        "provenance.builder_image_digest", "provenance.timestamp", "provenance.base_image_digest",
        "provenance.lockfile_hashes.*", "provenance.buildkit_version",
        "provenance.toolchain_version",
    }
)  # fmt: skip
STEP: Fields = frozenset({"digest", "name", "cached", "started_at", "completed_at", "error"})
IMAGE: Fields = frozenset(
    {"repository", "digest", "tags", "media_type", "size_bytes", "pushed_at", "image_ref"}
)
IMAGE_DETAIL: Fields = IMAGE | {"manifest.*", "config.*"}
MACHINE: Fields = frozenset(
    {"id", "state", "cpus", "memory_mb", "since", "build", "tenant", "pid", "rss_bytes"}
)
USAGE: Fields = frozenset({"kind", "count", "size_bytes", "reclaimable_bytes"})
PRUNED: Fields = frozenset(
    {"repositories", "manifests", "blobs", "sources", "freed_bytes", "dry_run"}
)
SETTING: Fields = frozenset({"name", "value", "is_default"})
SYSTEM: Fields = frozenset(
    {
        "version", "started_at", "ready", "why_not_ready", "hypervisor", "platform",
        "builder_image.reference", "builder_image.digest", "builder_image.components.*",
        "registry_address", "data_dir", "runtime_dir", "builds.*", "host.cpus",
        "host.load_average", "host.memory_bytes", "host.memory_available_bytes",
        "host.disk_bytes", "host.disk_free_bytes",
    }
)  # fmt: skip

TOKEN: Fields = frozenset({"token"})
CLAIMS: Fields = frozenset(
    {
        "sub", "tenant", "permissions", "iat", "nbf", "exp", "aud", "iss", "build_id",
        "repo_access", "repos", "scope",
    }
)  # fmt: skip
"""Of tokens of the API and of the registry."""
EVENT: Fields = frozenset(
    {
        "type", "timestamp", "content", "partial", "status", "error_code", "error_reason",
        "step.*", "egress.*",
    }
)  # fmt: skip

# What this program itself makes:
READINESS: Fields = frozenset({"ready", "why_not"})
VERSIONS: Fields = frozenset({"client", "api"})
CONTEXT: Fields = frozenset({"name", "host", "current"})
CHECK: Fields = frozenset({"name", "state", "found", "what_to_do"})
CANCELLED: Fields = frozenset({"id", "status"})
REMOVED: Fields = frozenset({"id", "removed"})
REMOVED_IMAGE: Fields = frozenset({"image", "removed"})
REMOVED_CONTEXT: Fields = CONTEXT | {"removed"}
EVIDENCE: Fields = frozenset({"id", "evidence"})
TOP: Fields = frozenset(
    {
        "queue.capacity", "queue.capacity_per_tenant", "queue.max_queued", "queue.draining",
        "queue.running", "queue.waiting", "machines", *(f"system.{name}" for name in SYSTEM),
    }
)  # fmt: skip
"""Three answers of the API, asked for one after the other."""
