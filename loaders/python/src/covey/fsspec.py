"""A read-only ``covey://`` file system for fsspec, and so for what builds on it.

    pandas.read_parquet("covey:///mnt/data/part-0.parquet")
    pandas.read_parquet("covey://s3://bucket/data/part-0.parquet")

After ``covey://`` comes an absolute path or the URL of a mounted source; see
``covey.paths``. Files are opened below the mount and read by the kernel, so
there is nothing between the reader and the page cache, and no thread, loop or
connection that a fork could break.
"""

from __future__ import annotations

import errno
import os
import stat
from datetime import datetime, timezone
from typing import Any, NoReturn

from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]

from covey.paths import Resolver

__all__ = ["CoveyFileSystem"]


class CoveyFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The file system behind ``covey://`` names.

    ``socket`` is the agent's socket, by default the one that the ``covey``
    command asks.
    """

    protocol = "covey"
    root_marker = "/"

    def __init__(self, socket: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._resolver = Resolver(socket)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        path = os.fspath(path)
        path = path.removeprefix("covey://")
        if "://" not in path and not path.startswith("/"):
            path = "/" + path
        return path.rstrip("/") or cls.root_marker

    def _real(self, path: str) -> str:
        return self._resolver.resolve(self._strip_protocol(path))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        return _entry(name, os.stat(self._resolver.resolve(name)))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        name = self._strip_protocol(path)
        real = self._resolver.resolve(name)
        if not os.path.isdir(real):
            only = self.info(name)
            return [only] if detail else [name]
        base = name.rstrip("/")
        with os.scandir(real) as entries:
            found = sorted(entries, key=lambda e: e.name)
        if not detail:
            return [f"{base}/{e.name}" for e in found]
        listed = []
        for e in found:
            try:
                listed.append(_entry(f"{base}/{e.name}", e.stat()))
            except FileNotFoundError:  # went away since, or a link to nowhere
                continue
        return listed

    def created(self, path: str) -> NoReturn:
        raise NotImplementedError("an object store does not know when an object was created; modified() does")

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["mtime"], tz=timezone.utc)

    def ukey(self, path: str) -> str:
        i = self.info(path)
        return f"{i['name']} {i['size']} {i['mtime']} {i['ino']}"

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> Any:
        if mode != "rb":
            _read_only(path)
        return open(self._real(path), "rb")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        with open(self._real(path), "rb") as f:
            size = os.fstat(f.fileno()).st_size
            first, last, _ = slice(start, end).indices(size)
            f.seek(first)
            return f.read(max(last - first, 0))

    # What fsspec would do nothing for, and so report as done.

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> NoReturn:
        _read_only(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        if not (exist_ok and self.isdir(path)):
            _read_only(path)

    def rmdir(self, path: str) -> NoReturn:
        _read_only(path)

    def _rm(self, path: str) -> NoReturn:
        _read_only(path)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> NoReturn:
        _read_only(path2)


def _entry(name: str, st: os.stat_result) -> dict[str, Any]:
    return {
        "name": name,
        "size": st.st_size,
        "type": "directory" if stat.S_ISDIR(st.st_mode) else "file",
        "mode": st.st_mode,
        "ino": st.st_ino,
        "mtime": st.st_mtime,
    }


def _read_only(path: str) -> NoReturn:
    raise OSError(errno.EROFS, "covey:// only reads", path)
