"""The tables of the registry's facts. The migrations create them; the two must agree (tested).

A blob's row exists only while its file does: the file is durable before the row, and the row goes
before the file. `registry_links` says through which repository a blob is readable.
"""

from __future__ import annotations

import sqlalchemy as sa

from supervisor.store.tables import metadata

_DIGEST = sa.String(135)  # "sha512:" and 128 hexadecimal digits
_NAME = sa.String(255)

repositories = sa.Table(
    "registry_repositories",
    metadata,
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False),
)

blobs = sa.Table(
    "registry_blobs",
    metadata,
    sa.Column("digest", _DIGEST, primary_key=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("stamp", sa.String(100)),  # of the file when it was verified; NULL: not known
)

links = sa.Table(
    "registry_links",
    metadata,
    sa.Column(
        "repository",
        _NAME,
        sa.ForeignKey("registry_repositories.name", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("digest", _DIGEST, sa.ForeignKey("registry_blobs.digest"), primary_key=True),
    sa.Column("used_at", sa.Float, nullable=False),
    sa.Index("ix_registry_links_digest", "digest"),
    sa.Index("ix_registry_links_used_at", "used_at"),
)

manifests = sa.Table(
    "registry_manifests",
    metadata,
    sa.Column(
        "repository",
        _NAME,
        sa.ForeignKey("registry_repositories.name", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("digest", _DIGEST, sa.ForeignKey("registry_blobs.digest"), primary_key=True),
    sa.Column("media_type", sa.String(255), nullable=False),
    sa.Column("artifact_type", sa.String(255)),
    sa.Column("subject", _DIGEST),
    sa.Column("annotations", sa.JSON, nullable=False),
    sa.Column("pushed_at", sa.Float, nullable=False),
    sa.Index("ix_registry_manifests_digest", "digest"),
    sa.Index("ix_registry_manifests_subject", "repository", "subject"),
)

references = sa.Table(
    "registry_references",
    metadata,
    sa.Column("repository", _NAME, primary_key=True),
    sa.Column("manifest", _DIGEST, primary_key=True),
    sa.Column("digest", _DIGEST, primary_key=True),
    sa.ForeignKeyConstraint(
        ["repository", "manifest"],
        ["registry_manifests.repository", "registry_manifests.digest"],
        name="fk_registry_references_manifest",
        ondelete="CASCADE",
    ),
    sa.Index("ix_registry_references_digest", "repository", "digest"),
)

tags = sa.Table(
    "registry_tags",
    metadata,
    sa.Column("repository", _NAME, primary_key=True),
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("digest", _DIGEST, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("checked_at", sa.Float),  # by the upstream of a mirrored tag; NULL: it was pushed
    sa.ForeignKeyConstraint(
        ["repository", "digest"],
        ["registry_manifests.repository", "registry_manifests.digest"],
        name="fk_registry_tags_manifest",
        ondelete="CASCADE",
    ),
    sa.Index("ix_registry_tags_digest", "repository", "digest"),
)

uploads = sa.Table(
    "registry_uploads",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("repository", _NAME, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Index("ix_registry_uploads_repository", "repository"),
    sa.Index("ix_registry_uploads_started_at", "started_at"),
)
