"""TFRecord shards for TensorFlow; needs the extra ``covey[tf]``.

    for epoch in range(epochs):
        data = covey.tf.records("/mnt/imagenet/train", seed=1, epoch=epoch, shards=world, index=rank)
        for batch in data.map(parse).batch(64).prefetch(2):
            train(batch)
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from covey.files import list_files
from covey.paths import Resolver
from covey.plan import Announcer, Manifest

__all__ = ["order", "records"]

# What TensorFlow reads at a time: large enough that the kernel's read-ahead, and
# not the number of requests, decides.
_BUFFER = 8 << 20


def order(files: int, *, seed: int, epoch: int, shuffle: bool = True, shards: int = 1, index: int = 0) -> list[int]:
    """Which files shard ``index`` of ``shards`` reads in an epoch, in their order.

    All shards shuffle alike, by Python's generator for (seed, epoch), and each
    takes every ``shards``-th file: each file is read by one of them.
    """
    if not 0 <= index < shards:
        raise ValueError(f"shard {index} of {shards}")
    numbers = list(range(files))
    if shuffle:
        random.Random(f"{seed}/{epoch}").shuffle(numbers)
    return numbers[index::shards]


def records(
    root: str | os.PathLike[str],
    *,
    suffixes: Sequence[str] = (".tfrecord", ".tfrecords"),
    names: Iterable[str] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    epoch: int = 0,
    shards: int = 1,
    index: int = 0,
    cycle_length: int = 4,
    block_length: int = 1,
    compression: str = "",
    announce: bool = True,
    job: str = "",
    socket: str | None = None,
) -> tf.data.Dataset:
    """The serialised records of one epoch, as a ``tf.data.Dataset`` of strings.

    ``root``, ``names``, ``suffixes`` and ``socket`` are those of
    ``covey.torch.FileDataset``. The files are those of ``order``; TensorFlow reads
    ``cycle_length`` of them in turn, ``block_length`` records each, and all bytes
    go from the mount to TensorFlow's own reader. The records come in the same
    order each time.

    The agent is told which files are to come, and which have been opened, until
    the data set is collected. Without an agent that warns once.
    """
    place = Resolver(socket).resolve(os.fspath(root).removeprefix("covey://"))
    files = list(names) if names is not None else list_files(place, suffixes)
    if not files:
        raise FileNotFoundError(f"{place}: no file there ends in {' or '.join(suffixes)}")
    mine = order(len(files), seed=seed, epoch=epoch, shuffle=shuffle, shards=shards, index=index)
    paths = tf.constant([os.path.join(place, files[i]) for i in mine], tf.string)
    data = tf.data.Dataset.from_tensor_slices(paths)
    if announce and mine:
        data = _announced(data, place, files, mine, index, cycle_length, Announcer(socket, job))

    def read(path: Any) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(path, compression_type=compression, buffer_size=_BUFFER)

    return data.interleave(
        read, cycle_length=cycle_length, block_length=block_length, num_parallel_calls=cycle_length, deterministic=True
    )


def _announced(
    data: tf.data.Dataset, place: str, files: list[str], mine: list[int], index: int, cycle: int, announcer: Announcer
) -> tf.data.Dataset:
    """The paths, and the agent hears of each that is taken."""

    def opened(number: Any, path: Any) -> Any:
        # Called once a file. The first file of a pass posts the plan; a file that
        # is open in the cycle is not over, so the counter stays behind it.
        number = int(number)
        if number == 0:
            announcer.post(place, Manifest(files=files), [mine], [index])
        if announcer.plan is not None:
            announcer.plan.cursor[0] = max(announcer.plan.cursor[0], number + 1 - cycle)
        return path

    def tell(number: Any, path: Any) -> Any:
        path = tf.py_function(opened, [number, path], tf.string)
        path.set_shape([])
        return path

    return data.enumerate().map(tell, num_parallel_calls=1)
