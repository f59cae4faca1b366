"""What exactly ended a build, beside the code.

Revision ID: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column. Of the builds so far nobody knows it."""
    op.add_column("builds", sa.Column("error_reason", sa.String(32)))
