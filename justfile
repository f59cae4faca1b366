# The tasks of this repository. `./run NAME` is `just NAME` in the virtual environment.

build := justfile_directory() / "build"

# What the daemon is told of its surroundings; a value that is set already wins.
export IMAGES_DIR := env("IMAGES_DIR", build / "images")
export SEED_IMAGES_DIR := env("SEED_IMAGES_DIR", build / "bases")
export PATH := env("PATH") + ":" + build / "tools" / "bin"
# Whatever the surroundings say: hundreds of processes would compile the same modules again.
export PYTHONDONTWRITEBYTECODE := ""

# List the recipes
[private]
default:
    @just --justfile {{ quote(justfile()) }} --list --unsorted

# Build PATH (or the example) in a microVM, from a fresh machine to a pushed image
[positional-arguments]
demo *ARGS: setup
    @cd {{ quote(invocation_directory()) }} && python -m supervisor.demo "$@"

# The daemon in the foreground, configured by environment variables; SIGTERM stops it
up: setup
    #!/bin/sh
    set -eu
    if [ -z "${JWT_SECRET:-}${JWT_SECRET_FILE:-}${HYPEMAN_CONFIG:-}${HOST:-}" ]; then
        echo "JWT_SECRET is not set: the UNIX socket only. For TCP: JWT_SECRET=\$(openssl rand -hex 32) ./run up" >&2
        export HOST=none
    fi
    # The defaults are root's places; an ordinary user has some of its own.
    if [ "$(id -u)" != 0 ]; then
        export DATA_DIR="${DATA_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/hypeman}"
        export RUNTIME_DIR="${RUNTIME_DIR:-${XDG_RUNTIME_DIR:-/tmp/hypeman-$(id -u)}/hypeman}"
    fi
    echo "hypeman-ctl finds this daemon with RUNTIME_DIR=${RUNTIME_DIR:-/run/hypeman}" >&2
    exec hypeman-supervisor run

# Everything that is needed to run: host packages, tools, kernel, images (a second when done)
setup:
    @echo "== host" >&2
    @python -m images.host --install
    @echo "== images" >&2
    @python -m images.build

# What the host has, what it lacks and where that would come from, and whether a machine boots
doctor:
    @python -m images.host --boot

# Make one image (builder, busybox, debian) and check it: the builder by booting it
image NAME:
    @python -m images.build {{ quote(NAME) }}
    @if [ {{ quote(NAME) }} = builder ]; then python -m images.check_boot --count 3; fi

# Lint, types, unit and actor tests: no machine is booted
check:
    @pytest -n 2 tests/lint tests/unit tests/actors

# Run the conformance suite of the OCI distribution specification: BINARY; docs/registry.md says which
conformance BINARY="":
    @python -m tests.registry.conformance {{ quote(BINARY) }}

# Everything, on real machines; what continuous integration runs
test *ARGS: setup
    @echo "== tests: lint, types, unit, actors, contract, API, end to end" >&2
    @pytest -n 2 {{ ARGS }}

# The benchmarks, all or those named (registry, followers, …): a table, and JSON in build/bench; --quick tries them
bench *NAMES: setup
    @python -m benchmarks {{ NAMES }}

# Install the daemon, its units and its images below $DESTDIR$PREFIX (/usr); docs/operations.md
install: setup
    @systemd/install.sh

# Remove what `install` has put there; what the daemon has stored, and its settings, stay
uninstall:
    @systemd/install.sh remove

# Kill daemons on fake machines: --kills N --seed S; then let the host refuse things, and be short of them
chaos *ARGS:
    @python -m tests.chaos.sweep {{ ARGS }}
    @python -m tests.chaos.refusals
    @python -m tests.chaos.shortage

# Many builds in one daemon: --builds N on fake machines, --real N on real ones; says what has grown
soak *ARGS:
    @python -m tests.chaos.soak {{ ARGS }}

# Format, and fix what can be fixed mechanically
fix:
    ruff format .
    ruff check --fix .

# Renew all lock files within what pyproject.toml, agent/ and images/ ask for
lock:
    uv pip compile --upgrade --generate-hashes --no-emit-index-url --universal \
        --python-version 3.11 --group dev pyproject.toml -o requirements.lock
    uv pip compile --upgrade --generate-hashes --no-emit-index-url --no-annotate \
        --python-platform x86_64-unknown-linux-gnu --python-version 3.11 \
        --constraints requirements.lock agent/requirements.in -o agent/requirements.lock
