"""The settings: environment variables over one TOML file over the defaults here.

Parsed and checked once, at the start; then frozen and passed down in slices. Every timeout, limit
and size of the daemon stands here with its unit and reason. Secrets may be given as files
(`JWT_SECRET_FILE`, for systemd's LoadCredential=) and are never printed.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from supervisor import tokens
from supervisor.errors import ConfigError
from supervisor.model.upstream import Upstream, parse_upstream

_SAID_BETTER = {"extra_forbidden": "there is no such setting"}

MIB = 1 << 20
GIB = 1 << 30
MAX_CA_BYTES = 512 << 10
"""Twice what all public authorities take; with the longest of everything else it fits a frame."""
_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\s+[A-Za-z0-9+/][A-Za-z0-9+/=\s]*-----END CERTIFICATE-----",
    re.ASCII,
)


class Accelerator(StrEnum):
    """How the processor of a machine is provided."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class HypervisorName(StrEnum):
    """The drivers that boot machines."""

    QEMU = "qemu"


class LogLevel(StrEnum):
    """What is worth a line in the log."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Settings(BaseSettings):
    """The effective configuration of one daemon; a field has its environment variable's name."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        frozen=True, extra="forbid", case_sensitive=False, env_ignore_empty=True
    )

    data_dir: Path = Field(Path("/var/lib/hypeman"), description="Durable state.")
    runtime_dir: Path = Field(
        Path("/run/hypeman"), description="Sockets and machine directories; may vanish."
    )
    host: str = Field("0.0.0.0", description="Address of the TCP listener, or `none`.")
    port: int = Field(
        8083, ge=0, le=65535, description="Port of the TCP listener; 0 picks a free one."
    )
    jwt_secret: SecretStr | None = Field(
        None, description="Key of the API tokens (HS256), at least 32 bytes."
    )
    jwt_secret_file: Path | None = Field(None, description="A file holding the key instead.")
    registry_secret: SecretStr | None = Field(
        None, description="Key of the registry tokens; derived if absent."
    )
    registry_secret_file: Path | None = Field(None, description="A file holding that key instead.")
    registry_url: str = Field(
        "10.102.0.1:8083",
        description="The registry as guests see it: what the agent of the builder image forwards.",
    )
    public_registry: str | None = Field(
        None, description="The registry as users see it (host:port); `localhost:PORT` if absent."
    )
    builder_image: str = Field(
        "hypeman/builder:latest", description="The builder image, name:tag below IMAGES_DIR."
    )
    images_dir: Path | None = Field(None, description="Builder images; DATA_DIR/images if absent.")
    seed_images_dir: Path | None = Field(
        None,
        description="OCI layouts imported into the registry at start, by ref.name.",
    )
    max_concurrent_source_builds: int = Field(
        2, ge=1, le=1024, description="Machines running builds at once."
    )
    max_concurrent_builds_per_tenant: int | None = Field(
        None, ge=1, description="The same for one tenant; the global number if absent."
    )
    max_queued_builds: int = Field(
        1000, ge=1, description="Waiting builds; one more is answered 429."
    )
    build_timeout: int = Field(600, ge=1, description="Default of timeout_seconds, in seconds.")
    max_build_timeout: int = Field(7200, ge=1, description="Largest timeout_seconds accepted.")
    build_memory_mb: int = Field(2048, ge=512, description="Default of memory_mb, in MiB.")
    max_build_memory_mb: int = Field(16384, ge=512, description="Largest memory_mb accepted.")
    build_cpus: int = Field(2, ge=1, description="Default of cpus.")
    max_build_cpus: int = Field(8, ge=1, description="Largest cpus accepted.")
    build_secrets_dir: Path | None = Field(
        None, description="Secrets of builds: <tenant>/<id>, or <id> shared."
    )
    pool_size: int = Field(
        1,
        ge=0,
        description="Machines booted ahead of need, in the default shape; with the builds that run,"
        " never more than MAX_CONCURRENT_SOURCE_BUILDS.",
    )
    pool_machine_max_age: float = Field(
        3600.0,
        gt=0,
        description="Seconds after which a machine that waits is replaced: no guest and no VMM gets"
        " older, whatever they leak, and a boot an hour costs nothing.",
    )
    hypervisor: HypervisorName = Field(
        HypervisorName.QEMU, description="The driver that boots machines."
    )
    accelerator: Accelerator = Field(
        Accelerator.AUTO, description="kvm, tcg, or auto: probe by booting."
    )
    max_source_bytes: int = Field(2 * GIB, ge=1, description="Largest upload, in bytes.")
    max_unpacked_bytes: int = Field(
        10 * GIB, ge=1, description="Largest sum of sizes in an archive, in bytes."
    )
    max_source_entries: int = Field(1_000_000, ge=1, description="Most entries in an archive.")
    max_source_ratio: int = Field(
        200,
        ge=1,
        description="How many times its own size an upload may unpack to, beyond 256 MiB: checking"
        " a few MB of compressed zeros would take minutes.",
    )
    mirrors: Annotated[tuple[str, ...], NoDecode] = Field(
        ("docker.io", "ghcr.io", "quay.io"),
        description="Registries that the mirror may fetch from, comma-separated: a name as FROM"
        " says it, or name=URL where another server stands for it (http:// only if written here).",
    )
    mirror_tag_ttl: float = Field(
        300.0, ge=0, description="Seconds for which a mirrored tag is served without asking."
    )
    mirror_timeout: float = Field(
        60.0,
        gt=0,
        description="Seconds for connecting to an upstream, for its answer to begin, and for each"
        " MiB of it: what is slower is given up.",
    )
    mirror_max_blob_bytes: int = Field(
        10 * GIB, ge=MIB, description="Largest layer that the mirror fetches, in bytes."
    )
    mirror_retention_days: int = Field(
        30,
        ge=1,
        description="Days for which mirrored content stays after its upstream confirmed it.",
    )
    mirror_credentials_file: Path | None = Field(
        None,
        description="Credentials for upstreams, in the form of docker's config.json (`auths`).",
    )
    build_retention_days: int = Field(
        30,
        ge=1,
        validation_alias=AliasChoices("build_retention_days", "build_retention"),
        description="Finished builds are kept this long; `BUILD_RETENTION` is the same setting.",
    )
    build_retention_count: int = Field(
        1000, ge=0, description="The newest builds are kept regardless of age."
    )
    metrics_address: str = Field(
        "127.0.0.1:9464", description="Where /metrics is served, or `none`."
    )
    otel_exporter_otlp_endpoint: str | None = Field(
        None,
        description="An OpenTelemetry collector (http://host:4318) that gets a trace of each build,"
        " by OTLP over HTTP below its /v1/traces; off if absent.",
    )

    max_log_bytes: int = Field(
        1 * GIB, ge=MIB, description="Largest log of one build; the cut is said in the log."
    )

    egress_allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (),
        description="Networks that builds may reach though they are not public, comma-separated:"
        " an internal package mirror. This host's own addresses only if listed alone (/32, /128).",
    )
    egress_ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode] = Field(
        (80, 443), description="Ports that builds may reach, comma-separated."
    )
    egress_ca_file: Path | None = Field(
        None,
        description="Certificates (PEM) that BuildKit trusts beside the public ones when it fetches"
        " by https itself: those of internal servers, or of a proxy that opens TLS. The containers"
        " of steps have their own.",
    )
    egress_max_bytes: int = Field(
        20 * GIB,
        ge=1,
        description="What one attempt may transfer, both ways together, in bytes: large base images"
        " and dependencies fit.",
    )
    egress_max_connections: int = Field(
        64, ge=1, le=1024, description="Connections of one machine served at once; others wait."
    )
    egress_connect_timeout: float = Field(
        20.0, gt=0, description="Seconds for resolving a name and connecting to its address."
    )
    egress_idle_timeout: float = Field(
        300.0,
        gt=0,
        description="Seconds without a byte after which a connection ends; a git server may count"
        " objects for minutes.",
    )

    boot_timeout: float = Field(
        120.0,
        gt=0,
        description="Seconds from VMM start to the agent's hello, and in the pool as many again"
        " until it is fit for a build; emulation can be slow.",
    )
    link_silence: float = Field(
        60.0, gt=0, description="Seconds without any frame after which a guest counts as lost."
    )
    machine_stop_grace: float = Field(
        2.0, gt=0, description="Seconds a VMM gets after a polite stop before it is killed."
    )
    drain_grace: float = Field(
        30.0,
        ge=0,
        description="Seconds builds get to finish at a graceful stop; then they are requeued.",
    )
    probe_timeout: float = Field(8.0, gt=0, description="Seconds the accelerator probe may take.")
    http_grace: float = Field(
        5.0, gt=0, description="Seconds open requests get when the daemon stops."
    )
    log_level: LogLevel = Field(LogLevel.INFO, description="debug, info, warning or error.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: explicit values, environment, TOML file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lists = {
            name: tuple(item.strip() for item in values[name].split(",") if item.strip())
            for name in ("mirrors", "egress_allowed_networks", "egress_ports")
            if isinstance(values.get(name), str)
        }
        return {**values, **lists}

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("host", "metrics_address")
    @classmethod
    def _none_is_nowhere(cls, value: str) -> str:
        return "" if value == "none" else value

    @field_validator("mirrors")
    @classmethod
    def _check_mirrors(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [parse_upstream(item).name for item in value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice} is listed twice")
        return value

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be http:// or https:// and a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            # It is shown to administrators; the exporter reads headers from the environment.
            raise ValueError("may hold no credentials: set OTEL_EXPORTER_OTLP_HEADERS instead")
        return value

    @model_validator(mode="after")
    def _check_defaults_fit(self) -> Settings:
        for name in ("build_timeout", "build_memory_mb", "build_cpus"):
            if getattr(self, name) > getattr(self, f"max_{name}"):
                raise ValueError(f"{name.upper()} is over MAX_{name.upper()}")
        return self

    @property
    def tenant_capacity(self) -> int:
        """How many builds of one tenant may run at once."""
        return self.max_concurrent_builds_per_tenant or self.max_concurrent_source_builds

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """The registries that are mirrored."""
        return tuple(parse_upstream(item) for item in self.mirrors)

    @property
    def effective_images_dir(self) -> Path:
        """Where builder images are looked up."""
        return self.images_dir or self.data_dir / "images"


@dataclass(frozen=True, slots=True)
class Keys:
    """The two signing keys, as bytes; kept apart from the settings so that nothing prints them."""

    api: bytes = field(repr=False)
    registry: bytes = field(repr=False)


def load_settings(toml_file: Path | None = None, **overrides: Any) -> Settings:
    """Read the configuration. Raises ConfigError naming every setting that is wrong."""

    class FileSettings(Settings):
        model_config = SettingsConfigDict(toml_file=toml_file)

    if toml_file is not None and not toml_file.is_file():
        raise ConfigError(f"the configuration file {toml_file} does not exist")
    try:
        return FileSettings(**overrides)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"the configuration file {toml_file} cannot be read: {exc}") from exc
    except ValidationError as exc:
        problems = [
            f"{'.'.join(map(str, error['loc'])).upper() or 'configuration'}:"
            f" {_SAID_BETTER.get(error['type'], error['msg'])}"
            for error in exc.errors(include_input=False, include_url=False)
        ]
        raise ConfigError("the configuration cannot be used: " + "; ".join(problems)) from None


@dataclass(frozen=True, slots=True)
class EffectiveValue:
    """A setting as it may be shown."""

    name: str
    """The environment variable."""
    shown: str | int | float | bool | None
    """None: not set. Lists are comma-separated, a secret is `(hidden)`."""
    is_default: bool


def effective_values(settings: Settings) -> list[EffectiveValue]:
    """Return every setting, secrets hidden, in the order of their declaration."""
    return [
        EffectiveValue(
            name.upper(),
            _show(getattr(settings, name)),
            is_default=getattr(settings, name) == field.default,
        )
        for name, field in Settings.model_fields.items()
    ]


def _show(value: Any) -> str | int | float | bool | None:
    match value:
        case SecretStr():
            return "(hidden)"
        case tuple():
            return ",".join(map(str, value))
        case StrEnum():
            return value.value
        case None | bool() | int() | float():
            return value
        case _:
            return str(value)


def load_keys(settings: Settings) -> Keys | None:
    """Return the signing keys, or None if there is no JWT_SECRET: then there is no TCP listener.

    Raises ConfigError if a key is unreadable or shorter than 32 bytes.
    """
    api = _read_secret("JWT_SECRET", settings.jwt_secret, settings.jwt_secret_file)
    if api is None:
        return None
    registry = _read_secret(
        "REGISTRY_SECRET", settings.registry_secret, settings.registry_secret_file
    )
    return Keys(api=api, registry=registry or tokens.derive_registry_secret(api))


def load_ca_certificates(settings: Settings) -> str:
    """Return the certificates in EGRESS_CA_FILE. Raises ConfigError if it is of no use."""
    path = settings.egress_ca_file
    if path is None:
        return ""
    try:
        text = path.read_text("ascii", "replace")  # bundles have names in comments
    except OSError as exc:
        raise ConfigError(f"EGRESS_CA_FILE {path} cannot be read: {exc.strerror}") from exc
    certificates = "\n".join(_CERTIFICATE.findall(text))
    if not certificates:
        raise ConfigError(f"EGRESS_CA_FILE {path} holds no certificate in PEM form")
    if len(certificates) > MAX_CA_BYTES:
        raise ConfigError(
            f"EGRESS_CA_FILE {path} holds {len(certificates)} bytes of certificates; builders take"
            f" {MAX_CA_BYTES}"
        )
    return certificates


def _read_secret(name: str, value: SecretStr | None, file: Path | None) -> bytes | None:
    if value is not None:
        secret = value.get_secret_value().encode()
    elif file is not None:
        try:
            secret = file.read_bytes().strip()
        except OSError as exc:
            raise ConfigError(f"{name}_FILE {file} cannot be read: {exc.strerror}") from exc
    else:
        return None
    if len(secret) < tokens.MIN_SECRET_BYTES:
        raise ConfigError(
            f"{name} has {len(secret)} bytes and needs at least {tokens.MIN_SECRET_BYTES};"
            " make one with: openssl rand -hex 32"
        )
    return secret
