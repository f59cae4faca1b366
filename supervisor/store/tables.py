"""The tables about builds. Migrations in `migrations/` create them; the two must agree (tested).

Structured values that are only ever read whole (the request, phases, provenance) are JSON text;
what is searched or ordered by has a column.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

builds = sa.Table(
    "builds",
    metadata,
    sa.Column("id", sa.String(24), primary_key=True),
    sa.Column("tenant", sa.String(63), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("lost_attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("request", sa.JSON, nullable=False),
    # Apart from the request, because they may be large and lists do without them.
    sa.Column("dockerfile", sa.Text),
    sa.Column("build_args", sa.JSON, nullable=False),
    sa.Column("source_sha256", sa.String(64), nullable=False),
    sa.Column("source_size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("queued_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("completed_at", sa.Float),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("error_code", sa.String(32)),
    sa.Column("error_reason", sa.String(32)),
    sa.Column("error", sa.Text),
    sa.Column("image_digest", sa.String(135)),
    sa.Column("provenance", sa.JSON),
    sa.Column("phases", sa.JSON, nullable=False),
    sa.Column("steps", sa.JSON, nullable=False),
    sa.Index("ix_builds_tenant_id", "tenant", "id"),
    sa.Index("ix_builds_status_id", "status", "id"),
    sa.Index("ix_builds_completed_at", "completed_at"),
)

build_tags = sa.Table(
    "build_tags",
    metadata,
    sa.Column(
        "build_id", sa.String(24), sa.ForeignKey("builds.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("value", sa.String(1024), nullable=False),
    sa.Index("ix_build_tags_key", "key", "value"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("tenant", sa.String(63), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    sa.Column(
        "build_id", sa.String(24), sa.ForeignKey("builds.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Index("ix_idempotency_keys_created_at", "created_at"),
)
