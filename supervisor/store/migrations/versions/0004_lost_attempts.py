"""How many attempts of a build the host lost, apart from those that a planned stop interrupted.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "builds", sa.Column("lost_attempts", sa.Integer, nullable=False, server_default="0")
    )
