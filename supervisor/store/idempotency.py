"""Units of work about idempotency keys: the same key twice makes one build."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from supervisor.errors import Conflict
from supervisor.model.build import Build
from supervisor.model.ids import BuildId, Tenant
from supervisor.store import builds
from supervisor.store.builds import get_build
from supervisor.store.tables import idempotency_keys as keys

KEPT_SECONDS = 24 * 3600.0
"""How long a key answers with the build that it made (the contract)."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's key, and the hash of the request that came with it."""

    key: str
    request_hash: str


def find_made_by(
    connection: sa.Connection, key: IdempotencyKey, tenant: Tenant, now: float
) -> Build | None:
    """Return the build that a key has made, None if it is new or expired.

    Raises Conflict if the key came with a different request.
    """
    known = _find(connection, tenant, key.key, now)
    if known is None:
        return None
    build_id, request_hash = known
    if request_hash != key.request_hash:
        raise Conflict(
            f"the Idempotency-Key has made build {build_id} from a different request; use a new key"
        )
    return get_build(connection, build_id)


def is_key_known(connection: sa.Connection, tenant: Tenant, key: str, now: float) -> bool:
    """Say whether a key has made a build."""
    return _find(connection, tenant, key, now) is not None


def insert_build(connection: sa.Connection, build: Build, key: IdempotencyKey | None) -> None:
    """Store a new build, and that `key` has made it; an expired key of the same name goes."""
    builds.insert_build(connection, build)
    if key is None:
        return
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


def drop_expired_keys(connection: sa.Connection, now: float) -> int:
    """Forget the keys that answer for nothing any more; return how many."""
    expired = keys.c.created_at <= now - KEPT_SECONDS
    return connection.execute(keys.delete().where(expired)).rowcount


def _find(
    connection: sa.Connection, tenant: Tenant, key: str, now: float
) -> tuple[BuildId, str] | None:
    query = sa.select(keys.c.build_id, keys.c.request_hash).where(
        keys.c.tenant == tenant, keys.c.key == key, keys.c.created_at > now - KEPT_SECONDS
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else (BuildId(row.build_id), row.request_hash)
