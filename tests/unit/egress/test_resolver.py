"""The host's resolver, with its system call replaced: tests ask no name server."""

from __future__ import annotations

import socket
import threading
from ipaddress import ip_address

import pytest
import trio

from supervisor.egress.resolver import MAX_ADDRESSES, host_resolver


def answer_with(
    monkeypatch: pytest.MonkeyPatch, *addresses: str | tuple[str, ...] | Exception
) -> list[bytes]:
    asked: list[bytes] = []

    def getaddrinfo(host: bytes, port: None, type: int) -> list[object]:
        asked.append(host)
        for address in addresses:
            if isinstance(address, Exception):
                raise address
        return [(0, type, 6, "", (address, 0, 0, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


async def test_addresses_keep_their_order_and_are_named_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = answer_with(monkeypatch, "2606:4700::1", "1.1.1.1", "2606:4700::1", "1.1.1.1")
    found = await host_resolver(trio.CapacityLimiter(1))("example.org")
    assert found == (ip_address("2606:4700::1"), ip_address("1.1.1.1"))
    assert asked == [b"example.org"]


async def test_a_zone_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "fe80::1%eth0")
    assert await host_resolver(trio.CapacityLimiter(1))("x.example") == (ip_address("fe80::1"),)


async def test_a_name_with_very_many_addresses_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, *(f"1.1.1.{number}" for number in range(200)))
    assert len(await host_resolver(trio.CapacityLimiter(1))("x.example")) == MAX_ADDRESSES


@pytest.mark.parametrize(
    "failure", [socket.gaierror(socket.EAI_NONAME, "no such name"), OSError("no descriptors")]
)
async def test_a_name_that_cannot_be_resolved_has_no_addresses(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, failure)
    assert await host_resolver(trio.CapacityLimiter(1))("nowhere.example") == ()


async def test_cancelling_does_not_wait_for_a_lookup_and_keeps_its_place_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_asked, may_end = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        is_asked.set()
        may_end.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    limiter = trio.CapacityLimiter(1)
    resolve = host_resolver(limiter)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resolve, "slow.example")
            await trio.to_thread.run_sync(is_asked.wait)
            nursery.cancel_scope.cancel(reason="the build ended")
        assert limiter.borrowed_tokens == 1
    finally:
        may_end.set()
    async with limiter:  # comes free when the lookup has ended
        pass
