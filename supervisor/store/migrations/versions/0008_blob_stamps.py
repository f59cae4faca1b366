"""What the file of a blob was like when it was last verified.

Revision ID: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column. The files so far are verified when they are first asked for."""
    op.add_column("registry_blobs", sa.Column("stamp", sa.String(100)))
