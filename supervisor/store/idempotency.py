"""Units of work about idempotency keys: the same key twice makes one build."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from supervisor.errors import Conflict
from supervisor.model.build import Build
from supervisor.model.ids import BuildId, Tenant
from supervisor.store.builds import get_build, insert_build
from supervisor.store.tables import idempotency_keys as keys

KEPT_SECONDS = 24 * 3600.0
"""How long a key answers with the build that it made (the contract)."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's key, and the hash of the request that came with it."""

    key: str
    request_hash: str


def insert_build_once(connection: sa.Connection, build: Build, key: IdempotencyKey | None) -> Build:
    """Store a new build, unless its key has made one already: then return that one.

    Raises Conflict if the key came with a different request.
    """
    if key is not None:
        known = _find(connection, build.tenant, key.key, newer_than=build.created_at - KEPT_SECONDS)
        if known is not None:
            build_id, request_hash = known
            if request_hash != key.request_hash:
                raise Conflict(
                    f"the Idempotency-Key has made build {build_id} from a different request;"
                    " use a new key"
                )
            return get_build(connection, build_id)
    insert_build(connection, build)
    if key is not None:
        _replace(connection, build, key)
    return build


def _find(
    connection: sa.Connection, tenant: Tenant, key: str, *, newer_than: float
) -> tuple[BuildId, str] | None:
    query = sa.select(keys.c.build_id, keys.c.request_hash).where(
        keys.c.tenant == tenant, keys.c.key == key, keys.c.created_at > newer_than
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else (BuildId(row.build_id), row.request_hash)


def _replace(connection: sa.Connection, build: Build, key: IdempotencyKey) -> None:
    """Store the key; an expired one of the same name goes."""
    connection.execute(keys.delete().where(keys.c.tenant == build.tenant, keys.c.key == key.key))
    connection.execute(
        keys.insert().values(
            tenant=build.tenant,
            key=key.key,
            request_hash=key.request_hash,
            build_id=build.id,
            created_at=build.created_at,
        )
    )
