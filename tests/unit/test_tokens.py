"""Tokens: two kinds, one algorithm, and nothing that helps a forger."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import Unauthorized
from supervisor.model.ids import Tenant
from supervisor.tokens import (
    ALL_BUT_ADMIN,
    CLOCK_LEEWAY_SECONDS,
    ISSUER,
    LOCAL_ADMIN,
    REGISTRY_AUDIENCE,
    Permission,
    RepoGrant,
    derive_registry_secret,
    mint_api_token,
    mint_registry_token,
    parse_api_token,
    parse_registry_token,
)
from tests.samples import build_id

KEY = b"k" * 32
REGISTRY_KEY = derive_registry_secret(KEY)
PUSH = RepoGrant("builds/1", "push")
PULL = RepoGrant("mirror/docker.io/library/alpine", "pull")


def signed(claims: dict[str, Any], key: bytes = KEY, **header: Any) -> str:
    """Return a token with any claims and header, properly signed: more than a library would."""
    parts = [json.dumps({"alg": "HS256", "typ": "JWT", **header}), json.dumps(claims)]
    message = ".".join(_encode(part.encode()) for part in parts)
    return f"{message}.{_encode(hmac.new(key, message.encode(), hashlib.sha256).digest())}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def api_claims(**changes: Any) -> dict[str, Any]:
    claims = {"sub": "acme", "exp": time.time() + 60, **changes}
    return {name: value for name, value in claims.items() if value is not None}


def registry_claims(**changes: Any) -> dict[str, Any]:
    return api_claims(
        **{
            "aud": REGISTRY_AUDIENCE,
            "iss": ISSUER,
            "repo_access": [{"repo": "a", "scope": "pull"}],
            **changes,
        }
    )


def test_a_minted_api_token_speaks_for_its_caller() -> None:
    token = mint_api_token(
        KEY,
        subject="ci",
        tenant=Tenant("acme"),
        permissions=frozenset({Permission.BUILD_READ, Permission.BUILD_ADMIN}),
        now=time.time(),
        lifetime_seconds=60,
    )
    caller = parse_api_token(KEY, token)
    assert (caller.subject, caller.tenant, caller.is_admin) == ("ci", "acme", True)
    assert caller.permissions == {Permission.BUILD_READ, Permission.BUILD_ADMIN}


def test_a_token_without_tenant_and_permissions_has_the_defaults() -> None:
    caller = parse_api_token(KEY, signed(api_claims()))
    assert caller.tenant == "acme"
    assert caller.permissions == ALL_BUT_ADMIN
    assert not caller.is_admin


def test_an_administrator_may_everything_and_others_what_they_have() -> None:
    assert all(LOCAL_ADMIN.may(permission) for permission in Permission)
    reader = parse_api_token(KEY, signed(api_claims(permissions=["build:read"])))
    assert [p for p in Permission if reader.may(p)] == [Permission.BUILD_READ]


@pytest.mark.parametrize("permission", Permission)
def test_every_permission_can_be_given_by_name(permission: Permission) -> None:
    caller = parse_api_token(KEY, signed(api_claims(permissions=[permission.value])))
    assert caller.permissions == {permission}


def test_all_of_image_is_a_permission() -> None:
    caller = parse_api_token(KEY, signed(api_claims(permissions=["image:*"])))
    assert {p.value for p in caller.permissions} == {"image:read", "image:write", "image:delete"}


@pytest.mark.parametrize(
    "permissions",
    [
        "build:admin",
        {"build:admin": True},
        ["build:read", "build:*"],
        ["build:read", 5],
        ["build:read", ["build:write"]],
        ["BUILD:READ"],
        ["*"],
        [None],
        5,
        True,
    ],
)
def test_malformed_permissions_give_none(permissions: Any) -> None:
    assert parse_api_token(KEY, signed(api_claims(permissions=permissions))).permissions == set()


def test_null_permissions_are_malformed_and_not_absent() -> None:
    token = signed({**api_claims(), "permissions": None})
    assert parse_api_token(KEY, token).permissions == set()


# -- forgeries ---------------------------------------------------------------------------------


def refused(token: str, key: bytes = KEY) -> None:
    for parse in (parse_api_token, parse_registry_token):
        with pytest.raises(Unauthorized):
            parse(key, token)


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, "HS384", "HS512", "RS256",
                                 "ES256", "PS256", "EdDSA", "hs256", 5, ["HS256"], {}])  # fmt: skip
def test_the_header_does_not_choose_the_algorithm(alg: Any) -> None:
    for claims in (api_claims(), registry_claims()):
        token = signed(claims, alg=alg)
        refused(token)
        refused(token.rpartition(".")[0] + ".")


def test_an_honest_token_of_another_hmac_is_refused() -> None:
    key = b"k" * 64
    for algorithm in ("HS384", "HS512"):
        refused(jwt.encode(api_claims(), key, algorithm), key)


def test_a_token_signed_with_another_key_is_refused() -> None:
    refused(signed(api_claims(), key=b"x" * 32))
    refused(signed(api_claims(), key=b""))


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_token_with_anything_changed_is_refused(part: int) -> None:
    parts = signed(api_claims()).split(".")
    parts[part] = parts[part][:-4] + ("AAAA" if parts[part][-4:] != "AAAA" else "BBBB")
    refused(".".join(parts))


@given(st.text(max_size=100))
def test_any_text_is_refused(token: str) -> None:
    refused(token)


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b.c", "a.b.c.d.e", "\ud800.a.b", "\0", "é.é.é", "Bearer x"],
)
def test_no_token_is_refused(token: str) -> None:
    refused(token)


@pytest.mark.parametrize("header", [b"[" * 20_000, b'{"a":' * 20_000, b"1", b"null", b"\xff"])
def test_a_hostile_header_is_refused_before_any_signature(header: bytes) -> None:
    refused(f"{_encode(header)}.{_encode(b'{}')}.{_encode(b'x')}")


# -- claims ------------------------------------------------------------------------------------


def test_an_expired_token_says_so_after_the_leeway() -> None:
    parse_api_token(KEY, signed(api_claims(exp=time.time() - CLOCK_LEEWAY_SECONDS / 2)))
    with pytest.raises(Unauthorized, match="expired"):
        parse_api_token(KEY, signed(api_claims(exp=time.time() - 2 * CLOCK_LEEWAY_SECONDS)))


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"exp": "soon"},
        {"exp": []},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"sub": None},
        {"sub": ""},
        {"sub": 5},
        {"sub": ["acme"]},
        {"iat": "x"},
    ],
)
def test_claims_that_are_missing_or_wrong_are_refused(changes: dict[str, Any]) -> None:
    refused(signed(api_claims(**changes)))
    refused(signed(registry_claims(**changes)))


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_token_of_the_future_is_refused(claim: str) -> None:
    # Counted from the test itself: parameters are made when pytest collects, minutes before.
    changes = {claim: time.time() + 600}
    refused(signed(api_claims(**changes)))
    refused(signed(registry_claims(**changes)))


@pytest.mark.parametrize("tenant", ["", "..", "a/b", "A", "a" * 64, "a\n", 5, ["a"], {}, "é"])
def test_a_tenant_that_is_no_label_is_refused(tenant: Any) -> None:
    with pytest.raises(Unauthorized, match="tenant"):
        parse_api_token(KEY, signed(api_claims(tenant=tenant)))


def test_a_subject_that_is_no_label_needs_a_tenant() -> None:
    with pytest.raises(Unauthorized, match="tenant"):
        parse_api_token(KEY, signed(api_claims(sub="someone@example.org")))
    caller = parse_api_token(KEY, signed(api_claims(sub="someone@example.org", tenant="acme")))
    assert caller.subject == "someone@example.org"


# -- one kind is never valid in the other's place ----------------------------------------------


def registry_token(key: bytes = REGISTRY_KEY) -> str:
    return mint_registry_token(
        key,
        subject="builder-1",
        build_id=build_id(1),
        grants=[PUSH, PULL],
        now=time.time(),
        lifetime_seconds=60,
    )


def test_a_minted_registry_token_grants_exactly_its_repositories() -> None:
    caller = parse_registry_token(REGISTRY_KEY, registry_token())
    assert (caller.subject, caller.build_id) == ("builder-1", build_id(1))
    assert caller.grants == (PUSH, PULL)


def test_the_registrys_key_is_not_the_apis() -> None:
    assert REGISTRY_KEY != KEY
    assert len(REGISTRY_KEY) == 32
    with pytest.raises(Unauthorized):
        parse_registry_token(KEY, registry_token())


def test_a_registry_token_is_no_api_token_even_under_one_key() -> None:
    with pytest.raises(Unauthorized, match="registry token"):
        parse_api_token(KEY, registry_token(KEY))


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "registry"},
        {"aud": ["registry"]},
        {"aud": []},
        {"build_id": build_id(1)},
        {"repos": []},
        {"repo_access": []},
    ],
)
def test_any_claim_of_a_registry_token_makes_it_no_api_token(claims: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized, match="registry token"):
        parse_api_token(KEY, signed(api_claims(**claims)))


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": None},
        {"aud": "api"},
        {"aud": 5},
        {"iss": None},
        {"iss": "somebody"},
        {"build_id": "../1"},
        {"build_id": 5},
    ],
)
def test_what_is_no_token_of_our_registry_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized):
        parse_registry_token(KEY, signed(registry_claims(**changes)))


def test_an_api_token_is_no_registry_token_even_under_one_key() -> None:
    with pytest.raises(Unauthorized):
        parse_registry_token(KEY, signed(api_claims()))


def test_the_older_form_of_a_grant_is_read() -> None:
    claims = registry_claims(repo_access=None, repos=["a", "b"], scope="push")
    caller = parse_registry_token(KEY, signed(claims))
    assert caller.grants == (RepoGrant("a", "push"), RepoGrant("b", "push"))


@pytest.mark.parametrize(
    "changes",
    [
        {"repo_access": {"repo": "a", "scope": "push"}},
        {"repo_access": ["a"]},
        {"repo_access": [{"repo": "a"}]},
        {"repo_access": [{"repo": 5, "scope": "push"}]},
        {"repo_access": [{"repo": "a", "scope": "*"}]},
        {"repo_access": [{"repo": "a", "scope": "pull"}, {"repo": "b", "scope": "admin"}]},
        {"repo_access": None, "repos": "a", "scope": "push"},
        {"repo_access": None, "repos": ["a"]},
        {"repo_access": None, "repos": [5], "scope": "push"},
        {"repo_access": None},
    ],
)
def test_a_malformed_grant_grants_nothing_at_all(changes: dict[str, Any]) -> None:
    assert parse_registry_token(KEY, signed(registry_claims(**changes))).grants == ()


@pytest.mark.parametrize("expiry", [10**400, 1e300, float("inf"), True, "9999999999", None])
def test_an_end_that_is_no_time_is_no_end(expiry: object) -> None:
    token = jwt.encode({"sub": "acme", "exp": expiry}, KEY, "HS256")
    with pytest.raises(Unauthorized):
        parse_api_token(KEY, token)
