"""A root file system in the making: a tar file, less what is not wanted, plus what is ours.

Nothing is unpacked for it, so owners, modes and set-uid bits survive without root, and the result
depends on nothing but its inputs: fixed times, fixed order, no names of the host's users.
"""

import io
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path


@dataclass
class Tree:
    """Additions to a base tar, by path without the leading slash; later ones replace earlier."""

    base: Path | None
    epoch: int
    exclude: Sequence[str] = ()
    # The set-uid programs that stay so; None keeps all.
    setuid: Sequence[str] | None = None
    added: dict[str, tuple[tarfile.TarInfo, bytes]] = field(default_factory=dict)

    def add_file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        self._add(name, tarfile.REGTYPE, mode, data=data)

    def add_link(self, name: str, target: str) -> None:
        self._add(name, tarfile.SYMTYPE, 0o777, target=target)

    def add_hard_link(self, name: str, target: str) -> None:
        self._add(name, tarfile.LNKTYPE, 0o755, target=target)

    def add_directory(self, name: str, *, mode: int = 0o755, owner: int = 0) -> None:
        self._add(name, tarfile.DIRTYPE, mode, owner=owner)

    def add_tree(self, root: Path, at: str = "", keep: Callable[[Path], bool] = bool) -> None:
        """Add all below `root`; of the modes, only "executable" counts, as in git."""
        for path in sorted(root.rglob("*")):
            name = (Path(at) / path.relative_to(root)).as_posix()
            if path.is_symlink():
                self.add_link(name, str(path.readlink()))
            elif path.is_file() and keep(path):
                executable = path.stat().st_mode & stat.S_IXUSR
                self.add_file(name, path.read_bytes(), mode=0o755 if executable else 0o644)

    def edit(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Replace a file of the base by what `change` makes of it; its mode and owner stay."""
        info, data = next(self.read([name]))
        data = change(data)
        info.size = len(data)
        self.added[name] = (info, data)

    def read(self, patterns: Sequence[str]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        """The base's regular files that match one of the patterns."""
        assert self.base is not None
        with tarfile.open(self.base) as base:
            for info in base:
                name = _name(info)
                if info.isreg() and any(fnmatchcase(name, pattern) for pattern in patterns):
                    info.name = name
                    yield info, _bytes(base, info)

    def excludes(self, name: str) -> bool:
        """Whether a path of the base is left out."""
        return any(fnmatchcase(f"/{name}", pattern) for pattern in self.exclude)

    def write(self, target: Path) -> None:
        """Write the whole as one tar file: the base in its order, then additions, sorted."""
        missing = self._missing_parents()
        temporary = target.with_name(f"{target.name}.new")
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as out:
            if self.base:
                with tarfile.open(self.base) as base:
                    for info in base:
                        name = _name(info)
                        if name not in self.added and not self.excludes(name):
                            self._emit(out, info, _bytes(base, info))
            for name in sorted({*self.added, *missing}):
                self._emit(out, *self.added.get(name, (missing.get(name) or _NONE, b"")))
        temporary.replace(target)

    def _add(
        self,
        name: str,
        kind: bytes,
        mode: int,
        *,
        data: bytes = b"",
        target: str = "",
        owner: int = 0,
    ) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.size = kind, mode, target, len(data)
        info.uid = info.gid = owner
        self.added[name] = (info, data)

    def _emit(self, out: tarfile.TarFile, info: tarfile.TarInfo, data: bytes) -> None:
        info.mtime = self.epoch
        info.uname = info.gname = ""
        if self.setuid is not None and info.isreg() and _name(info) not in self.setuid:
            info.mode &= ~(stat.S_ISUID | stat.S_ISGID)
        # Fractions of a second, which the archive tools would otherwise carry over.
        info.pax_headers = {
            key: value for key, value in info.pax_headers.items() if key not in ("mtime", "atime")
        }
        out.addfile(info, io.BytesIO(data) if info.isreg() else None)

    def _missing_parents(self) -> dict[str, tarfile.TarInfo]:
        present = set(self.added)
        if self.base:
            with tarfile.open(self.base) as base:
                present |= {_name(info) for info in base}
        made: dict[str, tarfile.TarInfo] = {}
        for name in self.added:
            for parent in Path(name).parents:
                path = parent.as_posix()
                if path != "." and path not in present:
                    info = tarfile.TarInfo(path)
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    made[path] = info
        return made


_NONE = tarfile.TarInfo()


def _name(info: tarfile.TarInfo) -> str:
    return info.name.removeprefix("./").rstrip("/") or "."


def _bytes(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(info) if info.isreg() else None
    return stream.read() if stream else b""
