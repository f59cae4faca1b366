from __future__ import annotations

import pytest

from supervisor.vm.console import KEPT_BYTES, MAX_STAMPS, Console

BOOT = b"SeaBIOS\r\nBooting from ROM..hypeman: 2.45 init\r\nhypeman: 3.62 handover\r\n"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_moments_of_a_boot_are_found_however_they_arrive(size: int) -> None:
    ups: list[bool] = []
    console = Console(lambda: ups.append(True))
    for start in range(0, len(BOOT), size):
        console.feed(BOOT[start : start + size])
    assert console.stamps == {"init": 2.45, "handover": 3.62}
    assert ups == [True]


def test_the_first_of_a_name_counts() -> None:
    ups: list[bool] = []
    console = Console(lambda: ups.append(True))
    console.feed(BOOT + b"hypeman: 99.99 handover\nhypeman: 99.99 init\n")
    assert console.stamps == {"init": 2.45, "handover": 3.62}
    assert ups == [True]


@pytest.mark.parametrize(
    "line",
    [
        b"hypeman: 3.62 handover",  # not ended
        b"hypeman: handover\n",
        b"hypeman: 3,62 handover\n",
        b"hypeman: 9999999.0 handover\n",
        b"hypeman: 3.62 HANDOVER\n",
        b"hypeman: nan handover\n",
        b"x" * 1000 + b"hypeman: 3.62 handover\n",
    ],
)
def test_what_is_not_quite_such_a_line_is_only_output(line: bytes) -> None:
    console = Console(lambda: pytest.fail("the guest is not up"))
    console.feed(line)
    assert console.stamps == {}


def test_a_guest_that_prints_for_ever_costs_no_memory() -> None:
    console = Console()
    console.feed(b"x" * 10_000_000)
    for number in range(1000):
        name = f"{chr(97 + number % 26)}{chr(97 + number // 26 % 26)}"
        console.feed(f"\nhypeman: 1.0 {name}{chr(97 + number // 676)}\n".encode())
    assert len(console.stamps) == MAX_STAMPS
    assert len(console.tail()) <= KEPT_BYTES


async def test_waiting_ends_when_the_guest_is_up() -> None:
    console = Console()
    console.feed(BOOT)
    await console.wait_up()
