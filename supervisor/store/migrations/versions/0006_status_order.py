"""An index for lists of one status, in their order.

Revision ID: 0006
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Replace the index, which knew no order within a status."""
    op.drop_index("ix_builds_status", "builds")
    op.create_index("ix_builds_status_id", "builds", ["status", "id"])
