"""Which addresses are this host's own, as its kernel says."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network

import pytest

from supervisor.egress import routes
from supervisor.errors import ConfigError


@pytest.mark.parametrize("address", ["127.0.0.1", "127.77.0.9", "255.255.255.255", "0.0.0.0"])
def test_what_ends_on_this_host_is_its_own(address: str) -> None:
    assert routes.is_own_address(ip_address(address))


def test_the_address_of_an_interface_is_its_own() -> None:
    """The address that a packet to the outside would carry; loopback where there is no outside."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # a datagram socket: nothing is sent
        except OSError:
            probe.connect(("127.0.0.1", 9))
        assert routes.is_own_address(ip_address(probe.getsockname()[0]))


@pytest.mark.parametrize("address", ["198.51.100.1", "2001:db8::1"])
def test_an_address_of_others_or_of_nobody_is_not(address: str) -> None:
    assert not routes.is_own_address(ip_address(address))


def test_the_hosts_rule_refuses_its_own_addresses_even_in_a_listed_network() -> None:
    rule = routes.host_address_rule([ip_network("127.0.0.0/8")])
    assert rule(ip_address("127.0.0.1")) == "an address of this host"
    assert routes.host_address_rule([ip_network("127.0.0.1/32")])(ip_address("127.0.0.1")) is None


def test_without_an_answer_of_the_kernel_nothing_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("address family not supported")

    monkeypatch.setattr(socket, "socket", refuse)
    assert routes.is_own_address(ip_address("198.51.100.1"))
    with pytest.raises(ConfigError, match="AF_NETLINK"):
        routes.host_address_rule(())
