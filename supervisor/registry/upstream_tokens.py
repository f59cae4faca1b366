"""Tokens for upstream registries: the challenge that asks for one, and the service that gives it.

What is asked for is always `pull` of one repository, whatever the challenge says. Where to ask is
the upstream's word, and it is given the token: so only the upstream's own credentials are ever
sent, only to a token service that is its own, and none is asked that is another upstream's.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping

import httpx2
import trio

from supervisor.registry.credentials import Credentials, canonical_host
from supervisor.registry.upstream_errors import failing, refused
from supervisor.registry.upstream_http import UpstreamHttp

MAX_TOKEN_ANSWER_BYTES = 64 << 10
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}", re.ASCII)
_BEARER = re.compile(r"\s*bearer\s+(.*)", re.ASCII | re.IGNORECASE)
_BASIC = re.compile(r"\s*basic(\s|$)", re.ASCII | re.IGNORECASE)
_PARAMETER = re.compile(r'([a-z_]{1,32})="([^"\\]{0,1024})"\s*(?:,\s*|$)', re.ASCII | re.IGNORECASE)
_DEFAULT_LIFETIME_SECONDS = 60.0
"""Of a token whose answer names none (the distribution's token specification)."""
_MAX_LIFETIME_SECONDS = 3600.0
_MARGIN_SECONDS = 5.0
_REMEMBERED = 1024


class Tokens:
    """Authorization values for the repositories of one upstream.

    `foreign` are the canonical hosts of the other upstreams, whose token services it must not name.
    """

    def __init__(
        self, http: UpstreamHttp, credentials: Credentials, foreign: Collection[str]
    ) -> None:
        self._http = http
        self._credentials = credentials
        self._host = canonical_host(http.host)
        self._foreign = frozenset(foreign) - {self._host}
        self._foreign_names = {_name_of(host) for host in self._foreign} - {_name_of(self._host)}
        self._known = OrderedDict[str, tuple[float, str]]()

    def known(self, repository: str) -> str | None:
        """Return what worked the last time, if it is good still."""
        ends_at, value = self._known.get(repository, (0.0, ""))
        return value if trio.current_time() < ends_at else None

    async def obtain(self, repository: str, challenges: Iterable[str]) -> str:
        """Answer the challenge of a 401 with an Authorization value. Raises UpstreamError."""
        self._known.pop(repository, None)
        for text in challenges:
            if match := _BEARER.fullmatch(text):
                value, lifetime = await self._fetch(repository, parse_parameters(match[1]))
                break
            if _BASIC.match(text):
                value, lifetime = self._basic(), _MAX_LIFETIME_SECONDS
                break
        else:
            raise failing(self._http.name, "it asks for a kind of credential that is not known")
        self._known[repository] = (trio.current_time() + lifetime, value)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return value

    def _basic(self) -> str:
        basic = self._credentials.for_host(self._http.host)
        if basic is None:
            raise refused(
                self._http.name, "it asks for a password; MIRROR_CREDENTIALS_FILE has none"
            )
        return f"Basic {basic}"

    async def _fetch(self, repository: str, challenge: Mapping[str, str]) -> tuple[str, float]:
        realm = self._http.parse_realm(challenge.get("realm", ""))
        query = {"scope": f"repository:{repository}:pull"}
        if service := challenge.get("service"):
            query["service"] = service
        basic = self._credentials.for_host(self._http.host) if self._is_own(realm) else None
        headers = {} if basic is None else {"authorization": f"Basic {basic}"}
        async with self._http.ask("GET", realm.copy_merge_params(query), headers) as response:
            if response.status_code in (400, 401, 403, 404):
                raise refused(self._http.name, f"its token service answers {response.status_code}")
            self._http.require_success(response)
            content = await self._http.read_all(response, MAX_TOKEN_ANSWER_BYTES)
        token, lifetime = _parse_answer(content)
        if token is None:
            raise failing(self._http.name, "its token service gave no token")
        return f"Bearer {token}", lifetime

    def _is_own(self, realm: httpx2.URL) -> bool:
        """Say whether a token service is the upstream's. Raises UpstreamError for another one's.

        It is on the upstream's host, or without a port on a domain above: gitlab.com is the one of
        registry.gitlab.com.
        """
        host = canonical_host(realm.netloc.decode("ascii"))
        if host == self._host:
            return True
        if host in self._foreign or _name_of(host) in self._foreign_names:
            raise failing(self._http.name, f"it names a token service of another upstream: {host}")
        return "." in host and self._host.endswith(f".{host}") and not _is_address(host)


def _name_of(host: str) -> str:
    """Return the canonical form of a host without its port."""
    return canonical_host(re.sub(r":\d+\Z", "", host, flags=re.ASCII))


def _is_address(host: str) -> bool:
    """Say whether a host without a port is an IPv4 address, or the end of one."""
    return host.rpartition(".")[2].isdecimal()


def parse_parameters(text: str) -> Mapping[str, str]:
    """Return the parameters of a challenge, names in lower case; what is malformed ends it."""
    found: dict[str, str] = {}
    position = 0
    while match := _PARAMETER.match(text, position):
        found.setdefault(match[1].lower(), match[2])
        position = match.end()
    return found


def _parse_answer(content: bytes) -> tuple[str | None, float]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None, 0.0
    if not isinstance(answer, dict):
        return None, 0.0
    token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        return None, 0.0
    lifetime = answer.get("expires_in")
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float):
        lifetime = _DEFAULT_LIFETIME_SECONDS
    return token, max(0.0, min(float(lifetime), _MAX_LIFETIME_SECONDS) - _MARGIN_SECONDS)
