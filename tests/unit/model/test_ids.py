"""Identifiers: made in order, and parsed without mercy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.model.ids import (
    ID_LENGTH,
    BuildId,
    IdSource,
    machine_id,
    parse_build_id,
    parse_tenant,
)
from tests.samples import build_id


@given(st.lists(st.floats(0, 4e9), min_size=2, max_size=50))
def test_ids_sort_by_the_order_they_were_made_in_whatever_the_clock_does(
    times: list[float],
) -> None:
    source = IdSource()
    ids = [source.build_id(now) for now in times]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(parse_build_id(made) == made for made in ids)


def test_ids_of_two_sources_sort_by_their_time() -> None:
    assert IdSource().build_id(1000.0) < IdSource().build_id(1000.002)


def test_ids_go_on_behind_the_newest_that_is_stored_also_if_the_clock_went_back() -> None:
    newest = IdSource().build_id(2_000_000.0)
    source = IdSource(newest)
    ids = [newest, *(source.build_id(now) for now in (1_000_000.0, 1.0, 3_000_000.0))]
    assert ids == sorted(set(ids))
    assert ids[-1] > IdSource().build_id(2_999_999.0)


def test_an_id_that_leaves_no_room_behind_it_is_not_gone_on_from() -> None:
    source = IdSource(BuildId("z" * ID_LENGTH))
    ids = [source.build_id(1000.0) for _ in range(3)]
    assert ids == sorted(set(ids))
    assert all(parse_build_id(made) == made for made in ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * (ID_LENGTH - 1),
        "a" * (ID_LENGTH + 1),
        "A" * ID_LENGTH,
        "a" * (ID_LENGTH - 1) + "\n",
        "../" + "a" * (ID_LENGTH - 3),
        "٣" * ID_LENGTH,
    ],
)
def test_what_is_no_build_id_is_refused(text: str) -> None:
    assert parse_build_id(text) is None


@pytest.mark.parametrize("text", ["a", "acme", "a-b", "0", "a" * 63])
def test_a_tenant_is_a_dns_label(text: str) -> None:
    assert parse_tenant(text) == text


@pytest.mark.parametrize(
    "text", ["", "-a", "a-", "A", "a.b", "a/b", "..", "a\n", "é", "a" * 64, "a b", "a\0"]
)
def test_what_is_no_tenant_is_refused(text: str) -> None:
    assert parse_tenant(text) is None


def test_each_attempt_has_a_machine_id_of_its_own() -> None:
    assert machine_id(build_id(1), 1) != machine_id(build_id(1), 2)
