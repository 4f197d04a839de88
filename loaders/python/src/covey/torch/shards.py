"""An iterable data set over shards."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from covey.files import list_files
from covey.paths import Resolver
from covey.plan import Announcer, Manifest, Plan
from covey.records import reader_for

__all__ = ["ShardDataset"]

_STATE_VERSION = 1


class ShardDataset(IterableDataset[Any]):
    """The samples of tar or TFRecord shards below ``root``, shard by shard.

    ``root``, ``suffixes``, ``names`` and ``socket`` are those of ``FileDataset``.
    ``read(path)`` yields the samples of a shard; without it the name decides
    between ``covey.records.tar_samples`` and ``tfrecords``. ``transform`` makes of
    a sample what the loader sees.

    The shards of an epoch are shuffled by ``seed`` and ``set_epoch`` and dealt to
    all processes that read: ``num_replicas`` ranks (the process group's, where
    there is one) times the worker processes of the DataLoader. Each reads its
    shards one after the other and tells the agent which are to come. Nothing is
    read twice and nothing left out, so ranks may differ by a shard; a job that
    needs the same number of steps on each has to stop at the fewest. Samples
    within a shard keep their order; shuffle them behind, or pack them shuffled.

    ``state_dict`` says where this process is and is what torchdata's
    StatefulDataLoader keeps for each worker; going on passes over the samples of
    one shard that were read. ``set_epoch`` must be called before the DataLoader
    makes its workers: with ``persistent_workers`` they keep the epoch they have.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        suffixes: Sequence[str] = (".tar", ".tfrecord"),
        names: Iterable[str] | None = None,
        read: Callable[[str], Iterable[Any]] | None = None,
        transform: Callable[[Any], Any] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        announce: bool = True,
        job: str = "",
        socket: str | None = None,
    ) -> None:
        self.root = Resolver(socket).resolve(os.fspath(root).removeprefix("covey://"))
        self.names = list(names) if names is not None else list_files(self.root, suffixes)
        if not self.names:
            raise FileNotFoundError(f"{self.root}: no shard there ends in {' or '.join(suffixes)}")
        if read is None:
            for name in self.names:
                reader_for(name)
        self.read, self.transform = read, transform
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.num_replicas, self.rank = _ranks(num_replicas, rank)
        self._announcer = Announcer(socket, job) if announce else None
        self._done = (0, 0)  # shards, and samples of the next one
        self._begin = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self._begin = (0, 0)

    def shards(self, reader: int, readers: int) -> list[int]:
        """Which shards one of all reading processes reads, in their order."""
        order = torch.arange(len(self.names))
        if self.shuffle:
            generator = torch.Generator()
            generator.manual_seed(self.seed + self.epoch)
            order = torch.randperm(len(self.names), generator=generator)
        return order[reader::readers].tolist()

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        # Neighbouring shards of the order go to different ranks, so that ranks
        # differ by at most one shard whatever the number of workers.
        mine = self.shards(number * self.num_replicas + self.rank, of * self.num_replicas)
        begin, self._begin = self._begin, (0, 0)
        return self._samples(mine, *begin, number)

    def _samples(self, mine: list[int], shard: int, skip: int, worker: int) -> Iterator[Any]:
        plan = self._announce(mine[shard:], worker)
        try:
            for taken, index in enumerate(mine[shard:]):
                if plan is not None:
                    plan.cursor[0] = taken
                yield from self._shard(index, shard + taken, skip)
                skip = 0
                self._done = (shard + taken + 1, 0)
            self._done = (0, 0)
        finally:
            # A worker process exits without what collects its objects.
            if self._announcer is not None:
                self._announcer.close()

    def _shard(self, index: int, place: int, skip: int) -> Iterator[Any]:
        path = os.path.join(self.root, self.names[index])
        samples = iter((self.read or reader_for(path))(path))
        for n, sample in enumerate(itertools.islice(samples, skip, None), skip + 1):
            self._done = (place, n)
            yield sample if self.transform is None else self.transform(sample)

    def _announce(self, mine: list[int], worker: int) -> Plan | None:
        if self._announcer is None or not mine:
            return None
        # Only the shards that this process reads: a manifest of few names, and
        # nothing that another process would have to agree with.
        reader = worker * self.num_replicas + self.rank
        return self._announcer.post(self.root, Manifest(files=self.names), [mine], [reader])

    def state_dict(self) -> dict[str, Any]:
        """Where the pass under way in this process is."""
        return {
            "version": _STATE_VERSION,
            "epoch": self.epoch,
            "seed": self.seed,
            "names": len(self.names),
            "done": list(self._done),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The next pass of this process goes on where ``state_dict`` was.

        ValueError when the state is of other shards or another order.
        """
        if state_dict.get("version") != _STATE_VERSION:
            raise ValueError(f"state of version {state_dict.get('version')!r}, not {_STATE_VERSION}")
        for key, mine in (("seed", self.seed), ("names", len(self.names))):
            if state_dict[key] != mine:
                raise ValueError(f"the data set's {key} is {mine}, that of the state {state_dict[key]}")
        shard, sample = state_dict["done"]
        self.epoch = state_dict["epoch"]
        self._begin = self._done = (shard, sample)


def _ranks(replicas: int | None, rank: int | None) -> tuple[int, int]:
    if replicas is None or rank is None:
        group = torch.distributed.is_available() and torch.distributed.is_initialized()
        replicas = replicas if replicas is not None else (torch.distributed.get_world_size() if group else 1)
        rank = rank if rank is not None else (torch.distributed.get_rank() if group else 0)
    if not 0 <= rank < replicas:
        raise ValueError(f"rank {rank} in a world of {replicas}")
    return replicas, rank
