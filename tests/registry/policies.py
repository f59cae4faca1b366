"""Collection policies for tests."""

from __future__ import annotations

from supervisor.actors.registry_handle import CollectionPolicy

AT_ONCE = CollectionPolicy(interval_seconds=1e9, upload_seconds=-1e6, unused_seconds=-1e6, batch=2)
"""Everything that nothing needs is garbage at once, whatever the clock says; small steps."""
