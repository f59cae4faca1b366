"""The settings: where they come from, what is refused, and what is never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisor.config import (
    MAX_CA_BYTES,
    Keys,
    LogLevel,
    Settings,
    load_ca_certificates,
    load_keys,
    load_settings,
)
from supervisor.errors import ConfigError
from supervisor.tokens import derive_registry_secret

SECRET = "0123456789abcdef0123456789abcdef"
# The outside names and defaults, as the contract has them.
CONTRACT: dict[str, Any] = {
    "data_dir": Path("/var/lib/hypeman"),
    "runtime_dir": Path("/run/hypeman"),
    "host": "0.0.0.0",
    "port": 8083,
    "jwt_secret": None,
    "builder_image": "hypeman/builder:latest",
    "registry_url": "10.102.0.1:8083",
    "registry_secret": None,
    "mirrors": ("docker.io", "ghcr.io", "quay.io"),
    "metrics_address": "127.0.0.1:9464",
    "max_concurrent_source_builds": 2,
    "max_queued_builds": 1000,
    "build_timeout": 600,
    "build_secrets_dir": None,
    "pool_size": 1,
    "hypervisor": "qemu",
    "accelerator": "auto",
    "max_source_bytes": 2 << 30,
    "max_unpacked_bytes": 10 << 30,
    "max_source_entries": 1_000_000,
    "otel_exporter_otlp_endpoint": None,
    "build_memory_mb": 2048,
    "build_cpus": 2,
    "max_build_timeout": 7200,
    "max_build_memory_mb": 16384,
    "max_build_cpus": 8,
}


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hypeman.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "value"), CONTRACT.items())
def test_the_defaults_are_the_contracts(name: str, value: Any) -> None:
    assert getattr(load_settings(), name) == value


def test_the_environment_goes_before_the_file_and_the_file_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toml(tmp_path, "port = 1000\nbuild_cpus = 3\n")
    monkeypatch.setenv("PORT", "2000")
    settings = load_settings(path)
    assert (settings.port, settings.build_cpus, settings.pool_size) == (2000, 3, 1)
    assert load_settings(path, port=3000).port == 3000


def test_an_empty_variable_counts_as_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("BUILD_SECRETS_DIR", "")
    settings = load_settings(toml(tmp_path, "port = 1000\n"))
    assert (settings.port, settings.build_secrets_dir) == (1000, None)


@pytest.mark.parametrize("name", ["host", "metrics_address"])
def test_a_listener_can_be_turned_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name.upper(), "none")
    assert getattr(load_settings(), name) == ""


def test_the_mirrors_are_a_list_in_both_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(toml(tmp_path, 'mirrors = ["a", "b"]\n')).mirrors == ("a", "b")
    monkeypatch.setenv("MIRRORS", " docker.io, ,quay.io ")
    assert load_settings().mirrors == ("docker.io", "quay.io")


def test_the_level_of_the_log_is_one_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    assert load_settings().log_level is LogLevel.WARNING


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "many"),
        ("PORT", "65536"),
        ("MAX_CONCURRENT_SOURCE_BUILDS", "0"),
        ("BUILD_TIMEOUT", "-1"),
        ("HYPERVISOR", "bochs"),
        ("ACCELERATOR", "warp"),
        ("LOG_LEVEL", "loud"),
        ("BOOT_TIMEOUT", "nan"),
        ("LINK_SILENCE", "0"),
        ("MIRRORS", "docker.io=ftp://x"),
        ("MIRRORS", "docker.io,docker.io=https://x"),
        ("MIRROR_TAG_TTL", "-1"),
        ("MIRROR_RETENTION_DAYS", "0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        load_settings()


@pytest.mark.parametrize(
    "url",
    [
        "collector:4318",
        "ftp://collector",
        "http://",
        "http://user:hunter2@collector",
        "http://collector/?key=hunter2",
        "http://collector/#hunter2",
    ],
)
def test_a_collector_is_a_url_without_credentials(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_ENDPOINT: ") as refused:
        load_settings()
    assert "hunter2" not in refused.value.message


@pytest.mark.parametrize("url", ["http://localhost:4318", "https://collector.example/otlp/"])
def test_a_collector_may_be_anywhere(url: str) -> None:
    assert load_settings(otel_exporter_otlp_endpoint=url).otel_exporter_otlp_endpoint == url


@pytest.mark.parametrize("name", ["BUILD_RETENTION", "BUILD_RETENTION_DAYS"])
def test_retention_has_two_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(toml(tmp_path, f"{name.lower()} = 7\n")).build_retention_days == 7
    monkeypatch.setenv(name, "60")
    settings = load_settings()
    assert (settings.build_retention_days, settings.build_retention_count) == (60, 1000)


def test_every_wrong_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("POOL_SIZE", "y")
    with pytest.raises(ConfigError, match=r"(?s)PORT: .*POOL_SIZE: "):
        load_settings()


@pytest.mark.parametrize("name", ["build_timeout", "build_memory_mb", "build_cpus"])
def test_a_default_over_its_own_maximum_is_refused(name: str) -> None:
    overrides: dict[str, Any] = {name: 1_000_000}
    with pytest.raises(ConfigError, match=f"{name.upper()} is over"):
        load_settings(**overrides)


def test_mirrors_may_be_other_servers_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRRORS", "docker.io=http://10.0.0.1:5000, ghcr.io")
    assert [(item.name, item.url) for item in load_settings().upstreams] == [
        ("docker.io", "http://10.0.0.1:5000"),
        ("ghcr.io", "https://ghcr.io"),
    ]
    monkeypatch.setenv("MIRRORS", ",")
    assert load_settings().upstreams == ()


def test_a_misspelt_setting_in_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="PROT: there is no such setting"):
        load_settings(toml(tmp_path, "prot = 1\n"))


@pytest.mark.parametrize("text", ["port = \n", "[", "\x00"])
def test_a_broken_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"hypeman\.toml"):
        load_settings(toml(tmp_path, text))


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "hypeman.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"hypeman\.toml"):
        load_settings(path)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings(tmp_path / "hypeman.toml")


def test_the_settings_cannot_be_changed_later() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_a_tenants_share_is_everything_unless_it_is_set() -> None:
    assert load_settings(max_concurrent_source_builds=5).tenant_capacity == 5
    settings = load_settings(max_concurrent_source_builds=5, max_concurrent_builds_per_tenant=2)
    assert settings.tenant_capacity == 2


def test_images_are_below_the_data_unless_said_otherwise() -> None:
    assert load_settings(data_dir="/d").effective_images_dir == Path("/d/images")
    assert load_settings(data_dir="/d", images_dir="/i").effective_images_dir == Path("/i")


# -- secrets -----------------------------------------------------------------------------------


def test_no_secret_is_ever_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    settings = load_settings(toml(tmp_path, f'registry_secret = "{SECRET[::-1]}"\n'))
    keys = load_keys(settings)
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(keys), str(keys)]
    shown.append(str(settings.model_dump()))
    for text in shown:
        assert SECRET not in text
        assert SECRET[::-1] not in text


def test_an_error_does_not_show_the_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(toml(tmp_path, f'jwt_secret = ["{SECRET}"]\nport = "x"\n'))
    assert "JWT_SECRET" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_without_a_secret_there_are_no_keys() -> None:
    assert load_keys(load_settings()) is None


def test_the_registrys_key_is_derived_or_given() -> None:
    derived = load_keys(load_settings(jwt_secret=SECRET))
    assert derived == Keys(SECRET.encode(), derive_registry_secret(SECRET.encode()))
    given = load_keys(load_settings(jwt_secret=SECRET, registry_secret=SECRET[::-1]))
    assert given == Keys(SECRET.encode(), SECRET[::-1].encode())


def test_a_key_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(SECRET + "\n")
    keys = load_keys(load_settings(jwt_secret_file=path))
    assert keys is not None
    assert keys.api == SECRET.encode()


@pytest.mark.parametrize("name", ["jwt_secret", "registry_secret"])
def test_a_short_key_is_refused_by_name_and_not_shown(name: str) -> None:
    overrides: dict[str, Any] = {"jwt_secret": SECRET, name: "short"}
    with pytest.raises(ConfigError, match=f"{name.upper()} has 5 bytes") as caught:
        load_keys(load_settings(**overrides))
    assert "'short'" not in str(caught.value)


def test_a_key_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="JWT_SECRET_FILE"):
        load_keys(load_settings(jwt_secret_file=tmp_path / "absent"))


def certificate(body: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----"


def test_only_the_certificates_of_a_bundle_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"
    path.write_text(f"# Größe\n{certificate('AAAA')}\n{key}\n{certificate('BB/+=')}\n")
    found = load_ca_certificates(load_settings(egress_ca_file=path))
    assert found == f"{certificate('AAAA')}\n{certificate('BB/+=')}"
    assert load_ca_certificates(load_settings()) == ""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "no certificate"),
        (certificate(""), "no certificate"),
        (certificate("A!"), "no certificate"),
        (certificate("A" * MAX_CA_BYTES), "builders take"),
        (None, "cannot be read"),
    ],
    ids=["empty", "no_body", "no_base64", "too_much", "absent"],
)
def test_a_ca_file_of_no_use_is_refused_by_name(
    tmp_path: Path, content: str | None, why: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"EGRESS_CA_FILE .*{why}"):
        load_ca_certificates(load_settings(egress_ca_file=path))
