"""Finds out which files the samples of a data set are."""

from __future__ import annotations

import os
from typing import Any

from covey.plan import Manifest

__all__ = ["manifest_of"]

# What a request for a plan may have, less room for the rest of it. The files of a
# larger data set are named by their listing.
_MOST_BYTES = 30 << 20


def manifest_of(dataset: Any) -> tuple[str, Manifest] | None:
    """The source of a data set and its manifest; None when they cannot be told.

    A data set tells by a method ``covey_manifest``. One with a ``root`` and with
    ``samples`` that are pairs of a path below it and a class, as torchvision's
    DatasetFolder and ImageFolder have them, is understood without.
    """
    tell = getattr(dataset, "covey_manifest", None)
    if tell is not None:
        source, manifest = tell()
        return source, manifest
    root, samples = getattr(dataset, "root", None), getattr(dataset, "samples", None)
    if not isinstance(root, (str, os.PathLike)) or not isinstance(samples, list) or not samples:
        return None
    return _folder(os.path.join(os.fspath(root), ""), samples)


def _folder(root: Any, samples: list[Any]) -> tuple[str, Manifest] | None:
    if not isinstance(root, str):
        return None
    paths = []
    for sample in samples:
        path = sample[0] if isinstance(sample, tuple) and sample else None
        if not isinstance(path, str) or not path.startswith(root):
            return None
        paths.append(path[len(root) :])
    source = os.path.abspath(root)
    if sum(map(len, paths)) + 3 * len(paths) < _MOST_BYTES:
        return source, Manifest(files=paths)
    # Too many to send. The listing is the same when the order is, and when nothing
    # else lies there; the agent compares the number.
    if paths != sorted(paths, key=os.fsencode):
        return None
    return source, Manifest(suffixes=sorted({os.path.splitext(p)[1].lower() for p in paths}))
