"""A map-style data set whose samples are the files of a directory."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.utils.data import Dataset

from covey.files import walk
from covey.paths import Resolver
from covey.plan import Manifest

__all__ = ["FileDataset"]

# Files of one batch that are read at the same time. A cold read waits for a
# neighbour or the origin, tens of milliseconds; eight waits together bring a
# batch of 64 in the time of eight reads, and more threads than that fight for
# the interpreter.
_THREADS = 8


class FileDataset(Dataset[Any]):
    """The files below ``root``, in the order of their names' bytes.

    ``root`` is a path or anything that ``covey://`` names, with that in front or
    without. ``suffixes`` keeps the files that end so, in any case. ``names`` are
    paths below root and replace the listing: with them, making the data set asks
    the file system nothing.

    A sample is the bytes of a file, or what ``transform(name, data)`` makes of
    them, name being the path below root. A whole batch is read at once where the
    DataLoader asks for one (``__getitems__``).

    The directory is listed once, here, and never by workers. The names lie in one
    piece of memory, so forked workers share it and spawned ones copy it quickly.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        suffixes: Sequence[str] | None = None,
        names: Iterable[str] | None = None,
        transform: Callable[[str, bytes], Any] | None = None,
        threads: int = _THREADS,
        socket: str | None = None,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}, not 1 or more")
        self.covey_socket = socket
        self.root = Resolver(socket).resolve(os.fspath(root).removeprefix("covey://"))
        self.transform = transform
        self.threads = threads
        if names is None:
            endings = tuple(os.fsencode(s.lower()) for s in suffixes) if suffixes else (b"",)
            found = sorted(name for name in walk(self.root) if name.lower().endswith(endings))
        else:
            found = [os.fsencode(name) for name in names]
        # Names in their order, one after the other, and where each one ends.
        self._names = b"".join(found)
        self._ends = array("Q", [0])
        end = 0
        for name in found:
            end += len(name)
            self._ends.append(end)
        self._listed = None if names is not None else tuple(suffixes or ())
        self._readers = _Readers()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def covey_manifest(self) -> tuple[str, Manifest]:
        """What ``CoveySampler`` tells the agent of this data set."""
        if self._listed is not None:
            return self.root, Manifest(suffixes=self._listed)
        return self.root, Manifest(files=[self.name(i) for i in range(len(self))])

    def name(self, index: int) -> str:
        """The path of a sample below root."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])

    def path(self, index: int) -> str:
        return os.path.join(self.root, self.name(index))

    def __getitem__(self, index: int) -> Any:
        return self._sample(index, _read(self.path(index)))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        paths = [self.path(i) for i in indices]
        if len(paths) < 2 or self.threads == 1:
            data: Iterable[bytes] = map(_read, paths)
        else:
            data = self._readers.pool(self.threads).map(_read, paths)
        return [self._sample(i, d) for i, d in zip(indices, data, strict=True)]

    def _sample(self, index: int, data: bytes) -> Any:
        return data if self.transform is None else self.transform(self.name(index), data)


class _Readers:
    """Threads that read, made where they are first needed.

    A fork copies no threads, so each process makes its own; pickling leaves them
    out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    def pool(self, threads: int) -> ThreadPoolExecutor:
        if self._pid != os.getpid():
            # The lock may have been held when the process was forked.
            self.__init__()  # type: ignore[misc]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(threads, thread_name_prefix="covey-read")
            return self._pool

    def __reduce__(self) -> Any:
        return _Readers, ()


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as f:
        return f.readall()
