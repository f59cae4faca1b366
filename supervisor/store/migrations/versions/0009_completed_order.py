"""An index for the order in which builds have ended.

Revision ID: 0009
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the index: every start asks for the builds that ended last."""
    op.create_index("ix_builds_completed_at", "builds", ["completed_at"])
