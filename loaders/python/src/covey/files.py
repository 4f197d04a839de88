"""Lists the files below a directory in the order that the agent lists them in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

__all__ = ["list_files", "walk"]


def list_files(root: str, suffixes: Sequence[str] | None = None) -> list[str]:
    """Paths below root, in ascending order of their bytes.

    ``suffixes`` keeps the files that end so, in any case.
    """
    endings = tuple(os.fsencode(s.lower()) for s in suffixes) if suffixes else (b"",)
    return [os.fsdecode(n) for n in sorted(n for n in walk(root) if n.lower().endswith(endings))]


def walk(root: str) -> Iterator[bytes]:
    """Paths below root of the files and the links to files, in no order.

    Links to directories are not followed: they may lead around in a circle.
    """
    left = [b""]
    top = os.fsencode(root)
    while left:
        below = left.pop()
        with os.scandir(os.path.join(top, below)) as entries:
            for e in entries:
                name = os.path.join(below, e.name)
                if e.is_dir(follow_symlinks=False):
                    left.append(name)
                elif e.is_file():
                    yield name
