"""The judge of a soak: what it finds, and what it lets pass."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.chaos.soak import (
    MOST_GROWTH_KIB,
    MOST_MORE,
    MOST_OBJECTS,
    MOST_ROWS,
    grown_between,
    more_objects_in_second_half,
    more_rows_between,
)

VITALS = {"anonymous_kib": 80_000, "descriptors": 20, "threads": 8, "tasks": 25, "children": 0}
BUILDS = 750
ROWS: Mapping[str, int] = dict.fromkeys([*MOST_ROWS, "registry_uploads", "build_tags"], 7)


def test_what_stays_as_it_was_has_not_grown() -> None:
    most = {name: value + MOST_MORE.get(name, 0) for name, value in VITALS.items()}
    assert grown_between(VITALS, {**most, "anonymous_kib": 80_000 + MOST_GROWTH_KIB}) == []


@pytest.mark.parametrize("name", VITALS)
def test_what_one_build_in_ten_leaves_behind_is_found(name: str) -> None:
    left = 200 if name == "anonymous_kib" else 1
    [found] = grown_between(VITALS, {**VITALS, name: VITALS[name] + left * BUILDS // 10})
    assert found.startswith(name if name in MOST_MORE else "memory")


def test_rows_may_grow_with_the_builds_that_are_kept_and_no_others() -> None:
    kept = {name: count + MOST_ROWS.get(name, 0) * BUILDS for name, count in ROWS.items()}
    assert more_rows_between({250: ROWS, 1000: kept}) == []


@pytest.mark.parametrize("name", ROWS)
def test_a_row_too_many_is_found(name: str) -> None:
    kept = {**ROWS, name: ROWS[name] + MOST_ROWS.get(name, 0) * BUILDS + 1}
    [found] = more_rows_between({250: ROWS, 1000: kept})
    assert found.startswith(name)


def test_objects_that_each_build_leaves_behind_are_found() -> None:
    def vitals(last: int) -> dict[int, dict[str, int]]:
        return {250: {"objects": 1}, 500: {"objects": 100_000}, 1000: {"objects": 100_000 + last}}

    at_all, of_each = MOST_OBJECTS
    most = at_all + 500 * of_each
    assert more_objects_in_second_half(vitals(most)) == []
    assert more_objects_in_second_half(vitals(most + 1)) != []
