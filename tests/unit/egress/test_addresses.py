"""Which addresses a build may reach."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.egress.addresses import IPAddress, address_rule, embedded_ipv4

PUBLIC = (
    "1.1.1.1",
    "8.8.8.8",
    "151.101.2.132",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "223.255.255.255",
    "2606:4700::6810:84e5",
    "2a04:4e42::644",
    "2001:200::1",
    "2400:cb00:2048:1::c629:d7a2",
)
REFUSED = {
    "a private address": (
        "10.0.0.0",
        "10.255.255.255",
        "10.102.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "192.168.255.255",
        "fc00::1",
        "fd12:3456:789a::1",
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fec0::1",
    ),
    "a loopback address": ("127.0.0.1", "127.255.255.255", "127.1.2.3", "::1"),
    "a link-local address": ("169.254.0.1", "169.254.255.255", "fe80::1", "febf::1"),
    "a multicast address": ("224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"),
    "an unspecified address": ("0.0.0.0", "0.0.0.1", "0.255.255.255", "::"),
    "a broadcast address": ("255.255.255.255",),
    "a carrier's shared address": ("100.64.0.1", "100.127.255.255"),
    "a metadata address": (
        "169.254.169.254",
        "169.254.170.2",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
    ),
    "a reserved address": (
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "240.0.0.1",
        "255.255.255.254",
        "100::1",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "64:ff9b:1::1",
        "4000::1",
        "fe00::1",
    ),
    "an IPv4 address inside an IPv6 address": (
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "::8.8.8.8",
        "::2",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::8.8.8.8",
        "2002:7f00:1::",
        "2002:808:808::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ),
}


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert address_rule()(ip_address(address)) is None


@pytest.mark.parametrize(
    ("address", "kind"), [(a, kind) for kind, addresses in REFUSED.items() for a in addresses]
)
def test_a_special_address_is_refused_by_its_kind(address: str, kind: str) -> None:
    assert address_rule()(ip_address(address)) == kind


def test_a_listed_network_is_allowed_and_its_neighbours_are_not() -> None:
    rule = address_rule([ip_network("10.1.0.0/16"), ip_network("fd12::/64")])
    assert rule(ip_address("10.1.2.3")) is None
    assert rule(ip_address("fd12::5")) is None
    assert rule(ip_address("10.2.0.1")) == "a private address"
    assert rule(ip_address("fd12:0:0:1::5")) == "a private address"


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"])
def test_no_list_opens_what_is_no_servers_address(address: str) -> None:
    rule = address_rule([ip_network("0.0.0.0/0"), ip_network("::/0"), ip_network(address)])
    assert rule(ip_address(address)) is not None


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254", "168.63.129.16"])
def test_a_metadata_address_is_opened_only_by_its_own_entry(address: str) -> None:
    everything = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    assert address_rule(everything)(ip_address(address)) == "a metadata address"
    assert address_rule([ip_network(address)])(ip_address(address)) is None


def test_the_hosts_own_address_is_opened_only_by_its_own_entry() -> None:
    own = ip_address("8.8.4.4")
    assert address_rule((), own.__eq__)(own) == "an address of this host"
    assert address_rule([ip_network("8.8.4.0/24")], own.__eq__)(own) == "an address of this host"
    assert address_rule([ip_network("8.8.4.4/32")], own.__eq__)(own) is None
    assert address_rule((), own.__eq__)(ip_address("8.8.4.5")) is None


@pytest.mark.parametrize("prefix", ["64:ff9b::", "::ffff:"])
def test_a_listed_translation_prefix_still_judges_the_address_inside(prefix: str) -> None:
    rule = address_rule([ip_network("64:ff9b::/96"), ip_network("::ffff:0:0/96")])
    assert rule(ip_address(f"{prefix}8.8.8.8")) is None
    assert rule(ip_address(f"{prefix}127.0.0.1")) == "a loopback address"
    assert rule(ip_address(f"{prefix}169.254.169.254")) == "a metadata address"


addresses = st.one_of(
    st.integers(0, 2**32 - 1).map(IPv4Address),
    st.integers(0, 2**128 - 1).map(IPv6Address),
    st.integers(0, 2**125 - 1).map(lambda n: IPv6Address((1 << 125) | n)),  # 2000::/3
)
inner = st.integers(0, 2**32 - 1)


@given(addresses)
def test_whatever_python_calls_special_is_refused(address: IPAddress) -> None:
    if (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
        or not address.is_global
    ):
        assert address_rule()(address) is not None


@given(inner, st.integers(0, 2**80 - 1), st.integers(0, 2**32 - 1))
def test_no_form_of_an_embedded_address_is_allowed(number: int, tail: int, server: int) -> None:
    forms = (
        number,
        0xFFFF << 32 | number,
        0xFFFF << 48 | number,
        0x64FF9B << 96 | number,
        0x2002 << 112 | number << 80 | tail,
        0x20010000 << 96 | server << 64 | (number ^ 0xFFFFFFFF),
        0x26064700 << 96 | 0x5EFE << 32 | number,
        0x26064700 << 96 | 0x02005EFE << 32 | number,
    )
    for form in forms:
        assert address_rule()(IPv6Address(form)) is not None
    for form in forms[1:]:
        assert embedded_ipv4(IPv6Address(form)) == IPv4Address(number)
