"""Identifiers: made in order, and parsed without mercy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.model.ids import ID_LENGTH, IdSource, machine_id, parse_build_id, parse_tenant
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
