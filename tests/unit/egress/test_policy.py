"""Where one build may connect to."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config import load_settings
from supervisor.egress.addresses import address_rule
from supervisor.egress.policy import EgressLimits, EgressPolicy, Refusal
from supervisor.egress.targets import Destination, parse_connect_target
from supervisor.errors import ConfigError
from supervisor.model.build import NetworkMode, Policy


def make_policy(
    *allowed: str, mode: NetworkMode = NetworkMode.EGRESS, anything: bool = False
) -> EgressPolicy:
    build = Policy(600, 2048, 2, mode, None if anything else allowed)
    return EgressPolicy.from_build(build, address_rule())


def denied(policy: EgressPolicy, target: str) -> Refusal | None:
    return policy.why_denied(parse_connect_target(target))


def test_without_a_list_any_name_and_address_may_be_asked_for() -> None:
    policy = make_policy(anything=True)
    assert denied(policy, "example.org:443") is None
    assert denied(policy, "8.8.8.8:80") is None


def test_a_name_that_is_not_listed_is_denied_and_the_answer_says_what_to_do() -> None:
    refusal = denied(make_policy("example.org"), "example.net:443")
    assert refusal is not None
    assert refusal.is_denial
    assert refusal.sentence("example.net:443") == (
        "example.net:443 is denied: it is not in allowed_domains."
        " Add it to allowed_domains of the build."
    )


def test_with_a_list_an_address_is_allowed_only_as_an_entry() -> None:
    policy = make_policy("example.org", "*.example.org", "8.8.8.8")
    assert denied(policy, "8.8.8.8:443") is None
    assert denied(policy, "8.8.4.4:443") is not None
    assert denied(policy, "[2606:4700::1]:443") is not None


def test_an_empty_list_allows_nothing() -> None:
    assert denied(make_policy(), "example.org:443") is not None


def test_an_isolated_build_may_reach_nothing() -> None:
    policy = make_policy(mode=NetworkMode.ISOLATED, anything=True)
    assert denied(policy, "example.org:443") is not None


def test_an_entry_that_cannot_be_read_allows_nothing() -> None:
    policy = make_policy("*.1.2", "127.1", "*", "example.org")
    assert policy.allowed_domains == ("example.org",)


@pytest.mark.parametrize("port", [22, 25, 8080, 8083, 3128, 65535])
def test_other_ports_are_denied(port: int) -> None:
    refusal = denied(make_policy(anything=True), f"example.org:{port}")
    assert refusal is not None
    assert refusal.reason == "its port is not one of 80, 443"


def test_the_operator_chooses_the_ports() -> None:
    build = Policy(600, 2048, 2)
    policy = EgressPolicy.from_build(build, address_rule(), (443, 9418))
    assert denied(policy, "example.org:9418") is None
    assert denied(policy, "example.org:80") is not None


def test_one_good_address_is_enough() -> None:
    policy = make_policy(anything=True)
    private, public = ip_address("10.0.0.1"), ip_address("8.8.8.8")
    assert policy.why_unreachable([private, public]) is None


def test_the_answer_does_not_name_a_private_address() -> None:
    refusal = make_policy(anything=True).why_unreachable([ip_address("10.20.30.40")])
    assert refusal is not None
    assert refusal.is_denial
    assert "10.20.30.40" not in refusal.sentence("internal.example:443")
    assert "EGRESS_ALLOWED_NETWORKS" in refusal.hint


def test_a_name_without_addresses_has_failed_and_is_not_denied() -> None:
    refusal = make_policy(anything=True).why_unreachable([])
    assert refusal is not None
    assert not refusal.is_denial


def test_settings_give_the_limits_and_the_networks() -> None:
    settings = load_settings(
        egress_allowed_networks="10.0.0.0/8, ::1",
        egress_ports="443,8443",
        egress_max_bytes=1000,
        egress_max_connections=3,
    )
    assert settings.egress_allowed_networks == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert settings.egress_ports == (443, 8443)
    limits = EgressLimits.from_settings(settings)
    assert (limits.max_bytes, limits.max_connections) == (1000, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("EGRESS_ALLOWED_NETWORKS", "10.0.0.1/8"), ("EGRESS_PORTS", "0"), ("EGRESS_PORTS", "http")],
)
def test_settings_that_cannot_be_meant_are_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        load_settings()


label = st.sampled_from(["a", "b", "example", "org", "net", "x-y"])
names = st.lists(label, min_size=1, max_size=4).map(".".join)
entries = st.lists(names | names.map("*.{}".format), max_size=4)


@given(entries, names, st.integers(1, 65535))
def test_a_list_allows_exactly_its_names_and_what_its_wildcards_stand_for(
    allowed: list[str], name: str, port: int
) -> None:
    expected = port in (80, 443) and any(
        name == entry or (entry[:2] == "*." and name.endswith(f".{entry[2:]}")) for entry in allowed
    )
    assert (make_policy(*allowed).why_denied(Destination(name, port)) is None) is expected
