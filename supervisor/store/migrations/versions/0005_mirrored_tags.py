"""When the upstream of a mirrored tag last confirmed it.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column. Every tag so far was pushed, so it has no such time."""
    op.add_column("registry_tags", sa.Column("checked_at", sa.Float))
