"""Where things are in the guest. Plain strings: `pathlib` costs start-up time that a boot feels."""

from __future__ import annotations

BUILDER_UID = 1000
"""The user `builder`, who runs everything that touches what a build brings along."""
HOME = "/home/builder"
RUNTIME_DIR = f"{HOME}/.local/share"
STATE_DIR = f"{RUNTIME_DIR}/buildkit"
"""BuildKit's state, on the scratch disk."""
BUILDKIT_SOCKET = f"{STATE_DIR}/buildkitd.sock"

CA_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
"""Where BuildKit, and the git that it runs, look for those whom they trust."""

SOURCE_DIR = "/src"
CONFIG_DIR = "/config"
BUILD_JSON = f"{CONFIG_DIR}/build.json"

RUN_DIR = "/run/hypeman"
"""On a tmpfs, as everything below it must be: secrets and the registry token are here."""
BUILDKITD_TOML = f"{RUN_DIR}/buildkitd.toml"
NOTIFY_SOCKET = f"{RUN_DIR}/notify.sock"
SECRETS_DIR = f"{RUN_DIR}/secrets"
DOCKER_DIR = f"{RUN_DIR}/docker"
DOCKERFILE_DIR = f"{RUN_DIR}/dockerfile"
"""Holds the request's own Dockerfile, apart from the context."""
WORK_DIR = f"{RUN_DIR}/work"
"""The one directory here that `builder` may write to."""
WARMUP_DIR = f"{RUN_DIR}/warmup"
METADATA_JSON = f"{WORK_DIR}/metadata.json"
