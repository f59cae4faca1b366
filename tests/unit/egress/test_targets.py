"""Targets in every spelling: one is read, the others are refused."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.egress.addresses import IPAddress
from supervisor.egress.targets import (
    BadTarget,
    Destination,
    matches,
    parse_absolute_target,
    parse_connect_target,
    parse_domain,
)

READ = {
    "example.org": "example.org",
    "EXAMPLE.Org": "example.org",
    "example.org.": "example.org",
    "a.b.c.d.example.org": "a.b.c.d.example.org",
    "xn--bcher-kva.example": "xn--bcher-kva.example",
    "my_bucket.s3.example": "my_bucket.s3.example",
    "localhost": "localhost",
    "1e100.net": "1e100.net",
    "0x7f.example": "0x7f.example",
    "1.2.3.4.example": "1.2.3.4.example",
    "8.8.8.8": "8.8.8.8",
    "8.8.8.8.": "8.8.8.8",
    "[2606:4700::1]": "2606:4700::1",
    "[2606:4700:0:0:0:0:0:1]": "2606:4700::1",
    "[2606:4700::ABCD]": "2606:4700::abcd",
    "[::FFFF:127.0.0.1]": "::ffff:7f00:1",
    "a" * 63 + ".example": "a" * 63 + ".example",
}
REFUSED = (
    # Addresses in the spellings of inet_aton(3).
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0X7F000001",
    "127.1",
    "127.0.1",
    "0177.0.0.1",
    "0177.1",
    "0x7f.1",
    "0x7f.0.0.1",
    "127.0.0.0x1",
    "127.0.0.01",
    "127.000.000.001",
    "0x7f.0x0.0x0.0x1",
    "0x",
    "1.0x",
    "256.256.256.256",
    "127.0.0.1.5",
    "127.0.0.256",
    "0",
    "00",
    "0.0",
    "4294967297",
    "127.0.0.1..",
    ".127.0.0.1",
    "-1",
    "1.2.3.-4",
    # Things around or inside of the host.
    "user@example.org",
    "user:pass@example.org",
    "example.org@127.0.0.1",
    "127.0.0.1%40example.org",
    "example%2eorg",
    "%31%32%37.0.0.1",
    "127.0.0.1%00.example.org",
    "127.0.0.1%2f.example.org",
    "example.org\\",
    "example.org\\@127.0.0.1",
    "example.org;127.0.0.1",
    "example.org,127.0.0.1",
    "example.org#",
    "example.org?",
    "*",
    "*.example.org",
    "exam ple.org",
    "exa\tmple.org",
    "example.org\n",
    "example.org\0",
    "",
    ".",
    "..",
    ".example.org",
    "example..org",
    "example.org..",
    "-example.org",
    "example-.org",
    "a" * 64 + ".example",
    "a." * 127 + "example",
    # Other letters: dots, digits and look-alikes that some codecs fold into ASCII.
    "bücher.example",
    "example。org",
    "example．org",
    "１２７.0.0.1",
    "①②⑦.0.0.1",
    "ⓔxample.org",
    "exampl\u00ade.org",
    "\u202eexample.org",
    # Brackets and zones.
    "[]",
    "[",
    "[::1",
    "::1]",
    "[[::1]]",
    "[::1]]",
    "[127.0.0.1]",
    "[example.org]",
    "[fe80::1%eth0]",
    "[fe80::1%25eth0]",
    "[::1%]",
    "[v1.x]",
    "[::1].example.org",
    "[::1]example.org",
    "[::g]",
    "[:::1]",
    "[1:2:3:4:5:6:7:8:9]",
)


@pytest.mark.parametrize(("text", "normal"), READ.items())
def test_the_plain_spelling_is_read(text: str, normal: str) -> None:
    assert parse_connect_target(f"{text}:443").name == normal
    assert parse_connect_target(f"{text}:443").port == 443
    target = parse_absolute_target(f"http://{text}/x?y")
    assert target.destination == Destination(parse_connect_target(f"{text}:1").host, 80)
    assert target.path == "/x?y"


@pytest.mark.parametrize("text", REFUSED)
def test_every_other_spelling_is_refused(text: str) -> None:
    with pytest.raises(BadTarget):
        parse_connect_target(f"{text}:443")
    if not text.startswith("example.org") or text[-1] not in "#?":
        with pytest.raises(BadTarget):
            parse_absolute_target(f"http://{text}:80/")


@pytest.mark.parametrize(
    "target",
    [
        "example.org",
        "example.org:",
        "example.org:0",
        "example.org:00443",
        "example.org:0443",
        "example.org:65536",
        "example.org:99999",
        "example.org:443443",
        "example.org:-1",
        "example.org:+443",
        "example.org:4_4",
        "example.org:４４３",
        "example.org:https",
        "example.org:443:443",
        "example.org: 443",
        "example.org:443/",
        "2606:4700::1:443",
        "http://example.org:443",
        "/",
        "*",
        "",
        ":",
        ":443",
    ],
)
def test_connect_needs_a_host_and_a_plain_port(target: str) -> None:
    with pytest.raises(BadTarget):
        parse_connect_target(target)


@pytest.mark.parametrize(
    ("target", "host_header", "path"),
    [
        ("http://example.org", "example.org", "/"),
        ("HTTP://Example.ORG./", "example.org", "/"),
        ("http://example.org:/a", "example.org", "/a"),
        ("http://example.org:80/a", "example.org", "/a"),
        ("http://example.org:8080/a", "example.org:8080", "/a"),
        ("http://example.org?q=1", "example.org", "/?q=1"),
        ("http://[2606:4700::1]:8080/", "[2606:4700::1]:8080", "/"),
        ("http://example.org//evil.example/", "example.org", "//evil.example/"),
        ("http://example.org/@evil.example/", "example.org", "/@evil.example/"),
        ("http://example.org/http://evil.example/", "example.org", "/http://evil.example/"),
    ],
)
def test_an_absolute_target_gives_the_host_header_and_the_path(
    target: str, host_header: str, path: str
) -> None:
    read = parse_absolute_target(target)
    assert (read.host_header, read.path) == (host_header, path)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/etc/passwd", "asked for http"),
        ("*", "asked for http"),
        ("example.org:80", "asked for http"),
        ("http:/example.org/", "asked for http"),
        ("http:example.org", "asked for http"),
        ("//example.org/", "asked for http"),
        ("https://example.org/", "CONNECT"),
        ("ftp://example.org/", "only http"),
        ("file:///etc/passwd", "only http"),
        ("gopher://example.org/", "only http"),
        ("http:///path", "name of a host"),
        ("http://", "name of a host"),
        ("http://example.org/#x", "fragment"),
        ("http://example.org#@127.0.0.1/", "fragment"),
    ],
)
def test_other_targets_are_refused_with_a_reason(target: str, reason: str) -> None:
    with pytest.raises(BadTarget, match=reason):
        parse_absolute_target(target)


def test_user_information_is_refused_by_its_name() -> None:
    with pytest.raises(BadTarget, match="user information"):
        parse_connect_target("user@example.org:443")


def test_a_backslash_does_not_end_the_host() -> None:
    """Some URL libraries take it for a slash."""
    with pytest.raises(BadTarget):
        parse_absolute_target("http://allowed.example\\.evil.example/")


@pytest.mark.parametrize(
    ("entry", "host", "is_match"),
    [
        ("example.org", "example.org", True),
        ("Example.ORG.", "eXample.org.", True),
        ("example.org", "www.example.org", False),
        ("example.org", "example.org.evil.example", False),
        ("example.org", "notexample.org", False),
        ("example.org", "example.or", False),
        ("*.example.org", "www.example.org", True),
        ("*.Example.org.", "WWW.example.org.", True),
        ("*.example.org", "a.b.c.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "badexample.org", False),
        ("*.example.org", "www.example.org.evil.example", False),
        ("8.8.8.8", "8.8.8.8", True),
        ("8.8.8.8", "8.8.4.4", False),
        ("2606:4700::1", "[2606:4700:0::1]", True),
        ("[2606:4700::1]", "[2606:4700::1]", True),
        ("2606:4700::1", "[2606:4700::2]", False),
        ("7f00::1", "127.0.0.1", False),
    ],
)
def test_an_entry_of_allowed_domains_matches(entry: str, host: str, is_match: bool) -> None:
    assert matches(parse_domain(entry), parse_connect_target(f"{host}:443")) is is_match


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.",
        "**.example.org",
        "a.*.org",
        "*example.org",
        "*.*.org",
        "*.8.8.8.8",
        "*.1",
        "http://example.org",
        "example.org:443",
        "example.org/",
        "[::1",
        "::1%lo",
        "10.0.0.0/8",
    ],
)
def test_other_entries_are_refused(entry: str) -> None:
    with pytest.raises(BadTarget):
        parse_domain(entry)


label = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,10}[a-z0-9_])?", fullmatch=True)
names = st.lists(label, min_size=1, max_size=5).map(lambda ls: ".".join([*ls, "example"]))


@given(names, st.integers(1, 65535), st.booleans())
def test_case_and_a_trailing_dot_change_nothing(name: str, port: int, has_dot: bool) -> None:
    dot = "." if has_dot else ""
    assert parse_connect_target(f"{name.upper()}{dot}:{port}") == Destination(name, port)
    assert str(Destination(name, port)) == f"{name}:{port}"


@given(names, names)
def test_a_wildcard_matches_exactly_what_ends_in_its_labels(base: str, name: str) -> None:
    below = Destination(f"{name}.{base}", 443)
    assert matches(parse_domain(f"*.{base}"), below)
    assert not matches(parse_domain(base), below)
    other = Destination(name, 443)
    is_below = name.split(".")[-len(base.split(".")) :] == base.split(".") and name != base
    assert matches(parse_domain(f"*.{base}"), other) is is_below


@given(st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address))
def test_an_address_is_read_as_itself(address: IPv4Address | IPv6Address) -> None:
    destination = Destination(address, 443)
    assert parse_connect_target(str(destination)) == destination
    assert matches(parse_domain(str(address)), destination)


@given(st.text(max_size=40) | st.text("0123456789abcdefx.:[]@%*-_/\\", max_size=30))
def test_whatever_is_read_is_a_plain_name_or_an_address(text: str) -> None:
    """So nothing that a resolver or a header could read otherwise goes further."""
    hosts: list[str | IPAddress] = []
    with suppress(BadTarget):
        hosts.append(parse_connect_target(f"{text}:443").host)
    with suppress(BadTarget):
        hosts.append(parse_absolute_target(f"http://{text}").destination.host)
    for host in hosts:
        if isinstance(host, str):
            assert re.fullmatch(r"[a-z0-9_.-]+", host, re.ASCII)
            with pytest.raises(OSError, match="illegal IP address"):
                socket.inet_aton(host)
