"""Which daemon is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.ctl.connection import Endpoint, find_endpoint
from supervisor.ctl.errors import UsageError


def test_the_local_socket_is_the_default() -> None:
    assert find_endpoint(environ={}) == Endpoint(socket=Path("/run/hypeman/hypeman.sock"))
    assert find_endpoint(environ={"RUNTIME_DIR": "/r"}).socket == Path("/r/hypeman.sock")
    named = find_endpoint(environ={"RUNTIME_DIR": "/r", "HYPEMAN_SOCKET": "/s"})
    assert named.socket == Path("/s")


def test_options_win_over_the_environment() -> None:
    environ = {"HYPEMAN_HOST": "https://a", "HYPEMAN_TOKEN": "t", "RUNTIME_DIR": "/r"}
    assert find_endpoint(environ=environ) == Endpoint(url="https://a", token="t")
    assert find_endpoint(host="b:80/", token="u", environ=environ) == Endpoint(
        url="http://b:80", token="u"
    )
    assert find_endpoint(socket=Path("/s"), environ=environ) == Endpoint(socket=Path("/s"))
    assert find_endpoint(host="unix:///s", environ={}) == Endpoint(socket=Path("/s"))


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Endpoint(url="https://a", token="secret"))


@pytest.mark.parametrize(
    "host",
    ["ftp://a", "http://", "http://a:port", "http://[::1", "http://a:99999", "http://a:0", ""],
)
def test_what_is_no_url_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="is not a URL"):
        find_endpoint(host=host, environ={})


@pytest.mark.parametrize("host", ["https://me:secret@a", "https://a?x=1", "https://a#x"])
def test_a_url_holds_no_secret_and_no_query(host: str) -> None:
    with pytest.raises(UsageError, match="scheme, name and port alone") as caught:
        find_endpoint(host=host, environ={})
    assert "secret" not in caught.value.message


def test_a_socket_in_a_url_is_absolute() -> None:
    with pytest.raises(UsageError, match="unix:///path"):
        find_endpoint(host="unix://s", environ={})


def test_contradictions_and_broken_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        find_endpoint(socket=Path("/s"), host="a", environ={})
    with pytest.raises(UsageError, match="characters that no token has"):
        find_endpoint(host="a", token="a\r\nX: y", environ={})
