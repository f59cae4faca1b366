"""Where the demo's daemon lives: its directories, port and key, given or made up."""

from __future__ import annotations

import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from supervisor.config import Settings

KEY_FILE = "demo-jwt-secret"
SOCKET_NAME = "hypeman.sock"


@dataclass(frozen=True, slots=True)
class Place:
    """Everything about the daemon that the demo decides."""

    data_dir: Path
    runtime_dir: Path
    port: int
    is_temporary: bool
    """The data vanishes with the demo."""
    key_file: Path | None
    """Where the demo has put the key that it made; None if the user gave one."""
    settings: Mapping[str, str]
    """The daemon's environment."""

    @property
    def socket(self) -> Path:
        """The daemon's UNIX socket."""
        return self.runtime_dir / SOCKET_NAME


@contextmanager
def prepare_place(environ: Mapping[str, str]) -> Iterator[Place]:
    """Yield a place for the daemon. Directories that the user did not name are removed again."""
    given = {
        name.upper(): environ[name.upper()]
        for name in Settings.model_fields
        if environ.get(name.upper())
    }
    with ExitStack() as stack:
        data_dir = _directory(stack, given.get("DATA_DIR"), "data")
        runtime_dir = _directory(stack, given.get("RUNTIME_DIR"), "run")
        port = int(given["PORT"]) if "PORT" in given else _free_port()
        key_file = None
        if "JWT_SECRET" not in given and "JWT_SECRET_FILE" not in given:
            key_file = data_dir / KEY_FILE
            given["JWT_SECRET_FILE"] = str(key_file)
            if not key_file.exists():
                _write_key(key_file)
        defaults = {
            "HOST": "127.0.0.1",
            "METRICS_ADDRESS": f"127.0.0.1:{_free_port()}",
            "POOL_SIZE": "0",  # one build: a second machine would only take its processor time
            "DRAIN_GRACE": "0",
        }
        yield Place(
            data_dir=data_dir,
            runtime_dir=runtime_dir,
            port=port,
            is_temporary="DATA_DIR" not in given,
            key_file=key_file,
            settings={
                **defaults,
                **given,
                "DATA_DIR": str(data_dir),
                "RUNTIME_DIR": str(runtime_dir),
                "PORT": str(port),
            },
        )


def _directory(stack: ExitStack, given: str | None, purpose: str) -> Path:
    if given is not None:
        path = Path(given).absolute()
        path.mkdir(parents=True, exist_ok=True)
        return path
    temporary = tempfile.TemporaryDirectory(prefix=f"hypeman-demo-{purpose}-")
    return Path(stack.enter_context(temporary))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _write_key(path: Path) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(f"{secrets.token_hex(32)}\n")
