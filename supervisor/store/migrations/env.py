"""Alembic's entry point: migrate over the connection that `store.database` hands in."""

from alembic import context

from supervisor.store import registry_tables  # noqa: F401 - adds its tables to the metadata
from supervisor.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
