"""Reads the records of shards: tar files as WebDataset has them, and TFRecord files.

The readers go through a file once, from its front, and hold one sample at a time.
What they read through a covey mount was compared with its digest on the way, so
they check a shard's form and not its checksums.
"""

from __future__ import annotations

import os
import struct
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

__all__ = ["ShardError", "reader_for", "tar_samples", "tfrecords"]

# How much is read at a time: what one request to the agent brings.
_BUFFER = 1 << 20

# The longest record that is believed. TensorFlow's own reader would take a length
# of any 64 bits and fail for want of memory; a damaged shard must not do that.
_LONGEST = 1 << 31


class ShardError(ValueError):
    """A shard is not what its name says, or is cut off."""


def tar_samples(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The samples of a WebDataset shard, uncompressed or not.

    Files that follow each other and have one name up to the first dot after the
    last slash are one sample: a dict of the rest of their names, in lower case, to
    their bytes, and of ``__key__`` to what they have in common. Directories, links
    and files whose name begins with a dot or has none in it are passed over.
    """
    sample: dict[str, Any] = {}
    try:
        with open(path, "rb", buffering=_BUFFER) as f, tarfile.open(fileobj=f, mode="r") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or they pile up
                key, extension = _split(member.name)
                if not member.isreg() or not key or not extension:
                    continue
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                if extension in sample:
                    raise ShardError(f"{os.fspath(path)}: {member.name} is there twice")
                sample["__key__"] = key
                sample[extension] = _contents(tar, member, path)
    except (tarfile.TarError, EOFError) as err:
        raise ShardError(f"{os.fspath(path)}: {err}") from err
    if sample:
        yield sample


def _contents(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Any) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise ShardError(f"{os.fspath(path)}: {member.name} ends after {len(data)} of {member.size} bytes")
    return data


def _split(name: str) -> tuple[str, str]:
    directory, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (directory + slash + stem if stem else ""), extension.lower()


def tfrecords(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The records of an uncompressed TFRecord file."""
    with open(path, "rb", buffering=_BUFFER) as f:
        at = 0
        while head := f.read(12):
            if len(head) < 12:
                raise ShardError(f"{os.fspath(path)}: cut off at byte {at + len(head)}")
            (length,) = struct.unpack_from("<Q", head)
            if length > _LONGEST:
                raise ShardError(f"{os.fspath(path)}: a record of {length} bytes at byte {at}; is it a TFRecord file?")
            data = _exactly(f, length, path)
            _exactly(f, 4, path)
            at += 16 + length
            yield data


def _exactly(f: BinaryIO, size: int, path: Any) -> bytes:
    data = f.read(size)
    if len(data) < size:
        raise ShardError(f"{os.fspath(path)}: cut off, {size - len(data)} bytes are missing at its end")
    return data


def reader_for(path: str) -> Callable[[str], Iterator[Any]]:
    """The reader for a shard's name; ValueError for a name that says nothing."""
    name = path.lower()
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return tar_samples
    if ".tfrecord" in os.path.basename(name):
        return tfrecords
    raise ValueError(f"{path}: no tar and no TFRecord by its name; say how it is read with read=")
