"""The registry's facts.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_DIGEST = sa.String(135)
_NAME = sa.String(255)


def upgrade() -> None:
    """Create the tables of repositories, blobs, links, manifests, tags and uploads."""
    op.create_table(
        "registry_repositories",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "registry_blobs",
        sa.Column("digest", _DIGEST, primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "registry_links",
        _repository_column(),
        _blob_column(),
        sa.Column("used_at", sa.Float, nullable=False),
    )
    op.create_index("ix_registry_links_digest", "registry_links", ["digest"])
    op.create_index("ix_registry_links_used_at", "registry_links", ["used_at"])
    op.create_table(
        "registry_manifests",
        _repository_column(),
        _blob_column(),
        sa.Column("media_type", sa.String(255), nullable=False),
        sa.Column("artifact_type", sa.String(255)),
        sa.Column("subject", _DIGEST),
        sa.Column("annotations", sa.JSON, nullable=False),
        sa.Column("pushed_at", sa.Float, nullable=False),
    )
    op.create_index("ix_registry_manifests_digest", "registry_manifests", ["digest"])
    op.create_index(
        "ix_registry_manifests_subject", "registry_manifests", ["repository", "subject"]
    )
    op.create_table(
        "registry_references",
        sa.Column("repository", _NAME, primary_key=True),
        sa.Column("manifest", _DIGEST, primary_key=True),
        sa.Column("digest", _DIGEST, primary_key=True),
        _manifest_key("manifest", "fk_registry_references_manifest"),
    )
    op.create_index(
        "ix_registry_references_digest", "registry_references", ["repository", "digest"]
    )
    op.create_table(
        "registry_tags",
        sa.Column("repository", _NAME, primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        _manifest_key("digest", "fk_registry_tags_manifest"),
    )
    op.create_index("ix_registry_tags_digest", "registry_tags", ["repository", "digest"])
    op.create_table(
        "registry_uploads",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("repository", _NAME, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
    )
    op.create_index("ix_registry_uploads_repository", "registry_uploads", ["repository"])
    op.create_index("ix_registry_uploads_started_at", "registry_uploads", ["started_at"])


def _repository_column() -> sa.Column[str]:
    key = sa.ForeignKey("registry_repositories.name", ondelete="CASCADE")
    return sa.Column("repository", _NAME, key, primary_key=True)


def _blob_column() -> sa.Column[str]:
    return sa.Column("digest", _DIGEST, sa.ForeignKey("registry_blobs.digest"), primary_key=True)


def _manifest_key(column: str, name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["repository", column],
        ["registry_manifests.repository", "registry_manifests.digest"],
        name=name,
        ondelete="CASCADE",
    )
