"""The grammar of a submission's fields, against whatever may come."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.api.fields import (
    MAX_DOCKERFILE_BYTES,
    MAX_TEXT_BYTES,
    BuildFields,
    check_part_name,
    from_texts,
    parse_fields,
    to_request,
)
from supervisor.config import Settings
from supervisor.errors import InvalidRequest
from supervisor.model.build import BuildRequest, NetworkMode, Policy
from supervisor.model.ids import Tenant
from supervisor.tokens import ALL_BUT_ADMIN, Caller

ALL = frozenset(BuildFields.model_fields) | {"source"}
CALLER = Caller("acme", Tenant("acme"), ALL_BUT_ADMIN)
SETTINGS = Settings()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def request_of(**values: Any) -> BuildRequest:
    return to_request(parse_fields(values), SETTINGS, CALLER)


def test_nothing_said_gives_the_operators_defaults() -> None:
    assert request_of() == BuildRequest(Policy(600, 2048, 2, NetworkMode.EGRESS, None))


def refusal_of(**values: Any) -> InvalidRequest | None:
    """Return why these fields are refused, or None if they are taken."""
    try:
        request_of(**values)
    except InvalidRequest as exc:
        return exc
    return None


names = st.sampled_from(sorted(BuildFields.model_fields))


@given(name=names, value=json_values)
def test_any_json_value_is_taken_or_refused_with_a_short_message(name: str, value: Any) -> None:
    if (refusal := refusal_of(**{name: value})) is not None:
        assert name in refusal.message
        assert refusal.message.isprintable()
        assert len(refusal.message) < 300


@given(name=names, text=st.text(max_size=200))
def test_any_text_is_taken_or_refused(name: str, text: str) -> None:
    with suppress(InvalidRequest):
        request_of(**from_texts({name: text}))


@given(st.text().filter(lambda name: name not in ALL))
def test_no_other_name_is_a_part(name: str) -> None:
    with pytest.raises(InvalidRequest, match="there is no part"):
        check_part_name(name)


@given(name=st.sampled_from(["target", "image_name", "cache_scope"]), value=st.text(min_size=1))
def test_what_meets_an_option_of_buildkit_adds_nothing_to_it(name: str, value: str) -> None:
    """No comma, equals sign, quote, space or newline survives where an option is made of it."""
    if refusal_of(**{name: value}) is None:
        assert not set(value) & set(",=\"' \n\r\t\\;$`{}")


@pytest.mark.parametrize("name", ["target", "image_name", "cache_scope", "global_cache_key"])
@pytest.mark.parametrize("bad", ",=\"' \n\r\t\\;$`{}\0é")
def test_characters_that_options_are_made_of_are_refused(name: str, bad: str) -> None:
    assert refusal_of(**{name: "abc"}) is None
    for value in (f"abc{bad}", f"{bad}abc", f"a{bad}c"):
        assert refusal_of(**{name: value}) is not None


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("TRUE", True), ("1", True), ("false", False), ("0", False)]
)
def test_truth_in_a_form(text: str, value: bool) -> None:
    assert from_texts({"no_cache": text}) == {"no_cache": value}


def test_the_same_fields_as_a_form_and_as_json_are_the_same_request() -> None:
    values = {
        "build_args": {"A": "1"},
        "tags": {"b": "2"},
        "secrets": [{"id": "x"}],
        "allowed_domains": ["a.org"],
        "timeout_seconds": 5,
        "no_cache": True,
        "target": "t",
    }
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }
    assert request_of(**from_texts(texts)) == request_of(**values)


def test_the_value_of_a_wrong_field_is_not_repeated() -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_of(build_args={"TOKEN": ["hunter2"]}, source_hash="hunter2")
    assert "hunter2" not in caught.value.message + "".join(caught.value.details)


@pytest.mark.parametrize(
    "values",
    [
        {"dockerfile": "\ud800"},
        {"build_args": {"A": "\ud800"}},
        {"dockerfile": "é" * (MAX_DOCKERFILE_BYTES // 2 + 1)},
        {"build_args": {"A": "x" * MAX_TEXT_BYTES}},
    ],
)
def test_what_could_not_be_sent_to_a_guest_is_refused(values: dict[str, Any]) -> None:
    assert refusal_of(**values) is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "a b"}, "the part `target` must be the name of a stage: ASCII letters,"),
        ({"tags": []}, "the part `tags` must be a JSON object"),
        ({"tags": {"a": 1}}, "the part `tags`, 'a' must be text"),
        ({"tags": {"": "x"}}, "the part `tags`, '', its name must not be empty"),
        ({"tags": {"a": "\ud800"}}, "the part `tags`, 'a' must be valid Unicode"),
        ({"tags": dict.fromkeys(map(str, range(65)), "")}, "must have at most 64 entries"),
        ({"build_args": {"A B": "x"}}, "'A B', its name must be the name of a variable"),
        ({"secrets": {}}, "the part `secrets` must be a JSON array"),
        ({"secrets": ["x"]}, "the part `secrets`, entry 1 must be a JSON object"),
        ({"secrets": [{"id": "a"}, {}]}, "the part `secrets`, entry 2, 'id' is missing"),
        ({"secrets": [{"id": "a", "more": 1}]}, "entry 1, 'more' does not exist"),
        ({"secrets": [{"id": ".."}]}, "must not be `.` or `..`"),
        ({"source_hash": "abc"}, "must be a SHA-256: 64 hexadecimal digits"),
        ({"base_image_digest": "sha256:A"}, "must be a digest"),
        ({"cache_scope": "global"}, "must not be `global`, which is reserved"),
        ({"cache_scope": "A"}, "must be 3 to 64 lower-case ASCII letters"),
        ({"image_name": "host:5000/a"}, "must be name[:tag] without a registry"),
        ({"timeout_seconds": "5"}, "the part `timeout_seconds` must be a whole number"),
        ({"timeout_seconds": 0}, "the part `timeout_seconds` must be at least 1"),
        ({"memory_mb": 10**6}, "the part `memory_mb` is 1000000; at most 16384 is allowed"),
        ({"no_cache": "yes"}, "the part `no_cache` must be true or false"),
        ({"network_mode": "none"}, "the part `network_mode` must be one of isolated, egress"),
        ({"allowed_domains": "a.org"}, "the part `allowed_domains` must be a JSON array"),
        ({"allowed_domains": ["a.org", "b c"]}, "entry 2 must be a domain name, `*.` and one,"),
        ({"allowed_domains": ["0x7f.1"]}, "entry 1 must be a domain name"),
        ({"dockerfile_path": "../x"}, "must be a relative path that stays inside the source"),
    ],
)
def test_a_refusal_says_what_is_allowed(values: dict[str, Any], message: str) -> None:
    refusal = refusal_of(**values)
    assert refusal is not None
    assert message in refusal.message


@given(name=names, value=json_values)
def test_no_refusal_speaks_of_how_it_is_checked(name: str, value: Any) -> None:
    if (refusal := refusal_of(**{name: value})) is not None:
        for word in ("regex", "pattern", "tuple", "dict", "string", "instance", "Input", "[a-z"):
            assert word not in refusal.message.replace(repr(value), "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("build_args", '{"A": "1", "A": "2"}'),
        ("tags", '{"a": "1", "b": "", "a": "1"}'),
        ("secrets", '[{"id": "x", "id": "y"}]'),
    ],
)
def test_a_key_that_is_there_twice_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"the part `{name}` has '\w+' twice"):
        from_texts({name: text})


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[1" + "0" * 5000 + "]", '"\\u12"'])
def test_what_is_not_json_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InvalidRequest, match="the part `tags` is not"):
        from_texts({"tags": text})


@pytest.mark.parametrize(
    ("written", "meant"), [("A.org.", "a.org"), ("*.B.org", "*.b.org"), ("192.0.2.7", "192.0.2.7")]
)
def test_an_allowed_domain_is_stored_as_the_proxy_compares_it(written: str, meant: str) -> None:
    policy = request_of(allowed_domains=[written]).policy
    assert policy.allowed_domains == (meant,)
