"""The command line of `buildctl`. Pure.

Values of three kinds get here. Names that the supervisor made (repositories, registries, secret
ids) are checked against their grammar. Numbers and flags are ours. Free text of a user (build
arguments, the target, the path of the Dockerfile) only ever goes into `--opt NAME=VALUE`, which
buildctl splits at the first `=` and nowhere else, and always as an argument of its own behind
`--opt`, where it is not trimmed. So no text of a user can add an attribute to an option, nor an
option.

`--output`, `--secret`, `--import-cache` and `--export-cache` are lines of CSV; their fields are
quoted here although the grammars leave nothing to quote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from agent import paths, wire
from agent.failure import BUILD_FAILED, DOCKERFILE_INVALID, Failure
from agent.rootless import NO_PROXY, PROXY, REGISTRY

MAX_ARGUMENT_BYTES = 128 << 10
"""The kernel's limit for one argument (MAX_ARG_STRLEN), its end included."""

ATTESTATION = "attest:provenance=mode=min"
"""Provenance for whoever pulls the image: when it was built, by what, and from which base images.
`max` would publish the Dockerfile and the values of all build arguments, in which people do put
passwords, to everybody who may pull; `min` holds no value of an argument and no name of a secret.
"""
_ATTESTING = "BUILDKIT_ATTEST_"
"""What the frontend reads as `attest:` options if it comes as a build argument."""

_HOST = r"[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_IS_HOST = re.compile(_HOST, re.ASCII)
_IS_REPOSITORY = re.compile(_REPOSITORY, re.ASCII)
_IS_TAGGED = re.compile(rf"{_REPOSITORY}(?::{_TAG})?", re.ASCII)
_IS_SECRET_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,64}", re.ASCII)


def check(config: wire.Config) -> Failure | None:
    """Return why `config` cannot become a command line, or None."""
    if config.registry != REGISTRY:
        why = f"the registry {config.registry!r} is not {REGISTRY}, which is all there is here"
        return Failure(BUILD_FAILED, why)
    names = [
        ("repository", config.repository, _IS_REPOSITORY),
        *(("cache to import", ref, _IS_TAGGED) for ref in config.cache_import),
        *(("mirrored registry", host, _IS_HOST) for host in config.mirrors),
        *(("secret", secret.id, _IS_SECRET_ID) for secret in config.secrets),
    ]
    if config.cache_export:
        names.append(("cache to export", config.cache_export, _IS_TAGGED))
    for what, value, grammar in names:
        if not grammar.fullmatch(value):
            return Failure(BUILD_FAILED, f"{value!r} is not the name of a {what}")
    for name in config.build_args:
        if not name or "=" in name:
            return Failure(DOCKERFILE_INVALID, f"{name!r} cannot name a build argument")
        if name.startswith(_ATTESTING):
            why = f"the build argument {name[:80]!r} would change the builder's own attestation"
            return Failure(DOCKERFILE_INVALID, why)
    for option in _options(config):
        if "\0" in option:
            return Failure(DOCKERFILE_INVALID, f"{option[:80]!r} holds a NUL character")
        if len(option.encode("utf-8", "surrogateescape")) >= MAX_ARGUMENT_BYTES:
            return Failure(
                DOCKERFILE_INVALID,
                f"{option[:80]!r}… is longer than the {MAX_ARGUMENT_BYTES} bytes it can be",
            )
    return None


def argv(config: wire.Config, secret_files: Mapping[str, str]) -> list[str]:
    """Return the command for a `config` that has passed `check`.

    `secret_files` says where each secret's value is, by id.
    """
    dockerfile_dir = paths.DOCKERFILE_DIR if config.dockerfile else paths.SOURCE_DIR
    command = [
        "buildctl", "--addr", f"unix://{paths.BUILDKIT_SOCKET}",
        "build",
        "--progress", "rawjson",
        "--metadata-file", paths.METADATA_JSON,
        "--frontend", "dockerfile.v0",
        "--local", f"context={paths.SOURCE_DIR}",
        # The whole source, and the path inside it as an option: BuildKit then keeps a path with
        # `..` or a symlink inside the tree. Only the Dockerfile itself is transferred.
        "--local", f"dockerfile={dockerfile_dir}",
    ]  # fmt: skip
    for option in _options(config):
        command += ["--opt", option]
    if config.no_cache:
        command += ["--no-cache"]
    for secret_id, path in secret_files.items():
        command += ["--secret", csv(id=secret_id, src=path)]
    for ref in config.cache_import:
        command += ["--import-cache", csv(type="registry", ref=f"{config.registry}/{ref}")]
    if config.cache_export:
        # A cache that could not be written costs the next build time, and must not cost this one.
        command += ["--export-cache", csv(
            type="registry", ref=f"{config.registry}/{config.cache_export}",
            mode="max", image_manifest="true", oci_mediatypes="true", ignore_error="true",
        )]  # fmt: skip
    # Layers are gzip, which everything that pulls can read; zstd is smaller and faster to make,
    # but umoci, older daemons and scanners stop at it. Layers of a base image stay as they are.
    command += ["--output", csv(
        type="image", name=f"{config.registry}/{config.repository}:latest",
        push="true", oci_mediatypes="true", compression="gzip",
    )]  # fmt: skip
    return command


def csv(**attributes: str) -> str:
    """Return one line of CSV for an option; `_` in a name stands for `-`."""
    return ",".join(
        _field(f"{name.replace('_', '-')}={value}") for name, value in attributes.items()
    )


def _field(text: str) -> str:
    if not re.search(r'[",\r\n]', text):
        return text
    return '"' + text.replace('"', '""') + '"'


def _options(config: wire.Config) -> Sequence[str]:
    """Return the values of `--opt`."""
    # BuildKit's own names for proxies: given to steps, kept out of the image and of cache keys.
    proxies = {"http_proxy": PROXY, "https_proxy": PROXY, "no_proxy": NO_PROXY}
    arguments = {**(proxies if config.egress else {}), **config.build_args}
    filename = "Dockerfile" if config.dockerfile else config.dockerfile_path
    return [
        f"filename={filename}",
        *([f"target={config.target}"] if config.target else []),
        *(f"build-arg:{name}={value}" for name, value in arguments.items()),
        ATTESTATION,
    ]
