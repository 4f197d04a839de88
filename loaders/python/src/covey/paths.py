"""Finds the path to read a name at: below a mount where there is one."""

from __future__ import annotations

import os
import threading
import time
import warnings
from urllib.parse import unquote, urlsplit

from covey.agent import Agent, AgentError, AgentUnavailable, Mount

__all__ = ["CoveyWarning", "Resolver", "warn_once"]

# How old the table of mounts may be. Mounts change when somebody types a
# command; a second or two of it is not noticed, and a job that opens ten
# thousand files a second asks the agent once in that time.
_MAX_AGE = 2.0

# The same for a name that no mount covers: it may have been mounted just now.
_MAX_AGE_MISSING = 0.1


class CoveyWarning(UserWarning):
    """Data is read, but not through covey."""


_warned = threading.Event()


def warn_once(message: str) -> None:
    """Warns once a process; forked workers inherit that it was said."""
    if not _warned.is_set():
        _warned.set()
        warnings.warn(message, CoveyWarning, stacklevel=4)


def _place(name: str) -> str:
    """Where a name points, spelt as ``_root`` spells sources.

    What follows the scheme of a name is taken as it is: a key may have %, ? and #
    in it, and the names that a listing returns are asked for again.
    """
    if "://" not in name:
        return os.path.abspath(name)
    scheme, _, rest = name.partition("://")
    if scheme == "file":
        return os.path.abspath(rest)
    return f"{scheme}://{rest.rstrip('/')}"


def _root(source: str) -> str:
    """A mount's source without parameters and encoding: ``s3://bucket/prefix``."""
    if "://" not in source:
        return os.path.abspath(source)
    url = urlsplit(source)
    path = unquote(url.path)
    return _place(f"{url.scheme}://{'' if url.scheme == 'file' else url.netloc}{path}")


def _below(place: str, root: str) -> str | None:
    """The rest of place after root, or None when it is not below it."""
    if place == root:
        return ""
    root = root.rstrip("/") + "/"
    return place[len(root) :] if place.startswith(root) else None


class Resolver:
    """Turns names into paths, by the mounts of the agent on a socket.

    A name is an absolute path, below a mount or below a mounted ``file://``
    source, or the URL of something below a mounted source, without parameters and
    with its key spelt as it is, not percent-encoded. Threads may share a
    resolver. It holds no connection, so forked processes may too.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None) -> None:
        self._socket = socket
        self._table: tuple[float, int, list[Mount] | None] = (0.0, 0, None)

    def resolve(self, name: str) -> str:
        """The path to read ``name`` at.

        A path that no mount covers, or that cannot be asked about because no
        agent answers, is returned as it is, with one warning a process. A URL that
        is not a ``file://`` one cannot be read without a mount:
        FileNotFoundError.
        """
        place = _place(name)
        for age in (_MAX_AGE, _MAX_AGE_MISSING):
            mounts = self._mounts(age)
            found = self._covered(place, mounts or [])
            if found is not None:
                return found
        agent = f"no agent answers on {Agent(self._socket).socket}" if mounts is None else "no mount covers it"
        if not place.startswith("/"):
            raise FileNotFoundError(f"{name}: {agent}; mount its source with: covey mount {place} DIR")
        warn_once(f"{place} is read directly, not through covey: {agent}")
        return place

    @staticmethod
    def _covered(place: str, mounts: list[Mount]) -> str | None:
        for mount in mounts:
            if _below(place, mount.dir) is not None:
                return place
        # Of nested sources the longest is meant.
        best: tuple[int, str] | None = None
        for mount in mounts:
            root = _root(mount.source)
            rest = _below(place, root)
            if rest is not None and (best is None or len(root) > best[0]):
                best = len(root), os.path.join(mount.dir, rest) if rest else mount.dir
        return best[1] if best else None

    def _mounts(self, age: float) -> list[Mount] | None:
        """The table of mounts, at most so old; None when no agent answers."""
        asked, pid, table = self._table
        now = time.monotonic()
        if pid == os.getpid() and now - asked < age:
            return table
        try:
            table = Agent(self._socket).mounts()
        except (AgentUnavailable, AgentError):
            table = None
        self._table = (now, os.getpid(), table)  # one assignment: threads see old or new
        return table
