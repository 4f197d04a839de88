"""A DistributedSampler that can stop in an epoch and go on with other ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from covey.plan import Announcer, Manifest, Plan
from covey.spec import Spec
from covey.torch.manifests import manifest_of

__all__ = ["CoveySampler"]

_STATE_VERSION = 1

# For how many epochs a plan is posted. A loader does not know how many there will
# be, and epochs that never come cost the agent nothing.
_EPOCHS = 100_000

# How many indices become Python numbers at a time: enough that the conversion
# costs little each, few enough that they stay in the processor's cache.
_CHUNK = 4096


class CoveySampler(DistributedSampler[Any]):
    """Drop-in for ``torch.utils.data.DistributedSampler``, with the same orders.

    It takes the same arguments and gives each rank the same samples in the same
    order, bit for bit. Beyond that:

    - ``state_dict`` says in a few numbers where the job is in its epoch, and
      ``load_state_dict`` goes on from there without going through what was read.
    - A job may go on with another number of ranks: what is left of the epoch's
      order is dealt anew, each sample once.
    - The agent of this machine is told the order in 40 bytes, and how far the rank
      is, so that it reads ahead. That needs a data set that says which files its
      samples are: ``FileDataset``, torchvision's ``ImageFolder`` and its kin, one
      with a method ``covey_manifest`` that returns a source and a
      ``covey.plan.Manifest``, or both as arguments here. ``announce=False`` keeps
      it to itself. Without an agent it warns once and goes on.
    - The order is held as a tensor of this rank's share, where DistributedSampler
      makes a list of Python numbers for all ranks.

    Call ``set_epoch`` before each epoch, as with DistributedSampler. Setting the
    epoch that a loaded state is in keeps its position.
    """

    def __init__(
        self,
        dataset: Any,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        announce: bool = True,
        source: str | None = None,
        manifest: Manifest | None = None,
        job: str = "",
        socket: str | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle, seed, drop_last)
        if (source is None) != (manifest is None):
            raise ValueError("source and manifest go together")
        self._base = 0
        self._reading: _Reading | None = None
        self._announced: _Announced | None = None
        if announce and len(dataset) > 0:
            told = manifest_of(dataset) if source is None or manifest is None else (source, manifest)
            if told is not None:
                socket = getattr(dataset, "covey_socket", None) if socket is None else socket
                self._announced = _Announced(Announcer(socket, job), *told)
        self._count()

    @property
    def spec(self) -> Spec:
        """What the agent would have to know to say the same order."""
        return Spec(
            samples=len(self.dataset),  # type: ignore[arg-type]
            world=self.num_replicas,
            seed=self.seed,
            epoch=self.epoch,
            base=self._base,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
        )

    def __iter__(self) -> Iterator[int]:
        self._reading = _Reading(self)
        return self._reading

    @property
    def plan(self) -> Plan | None:
        """The plan that the agent holds; None before the first iteration and when
        there is none."""
        return self._announced.plan if self._announced is not None else None

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            super().set_epoch(epoch)
            self._move(0)

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Where the epoch is, the same on every rank and for any number of ranks.

        ``consumed`` is how many samples this rank has trained on since the
        iteration began: batches times batch size. Without it, it is how many were
        taken from the sampler, which with the worker processes of a DataLoader is
        a few batches more. All ranks must have consumed the same number.
        """
        position = self._base
        if self._reading is not None:
            taken = self._reading.taken if consumed is None else consumed
            if not 0 <= taken <= self._reading.per_rank:
                raise ValueError(f"consumed is {taken}, not 0 to {self._reading.per_rank}")
            position = self._reading.base + taken * self.num_replicas
        elif consumed:
            raise ValueError(f"consumed is {consumed}, but no iteration has begun")
        return {
            "version": _STATE_VERSION,
            "epoch": self.epoch,
            "position": position,
            "samples": len(self.dataset),  # type: ignore[arg-type]
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was, with the ranks that there are now.

        ValueError when the state is of another order: other data, seed, shuffle
        or drop_last.
        """
        if state_dict.get("version") != _STATE_VERSION:
            raise ValueError(f"sampler state of version {state_dict.get('version')!r}, not {_STATE_VERSION}")
        mine = self.state_dict()
        for key in ("samples", "seed", "shuffle", "drop_last"):
            if state_dict[key] != mine[key]:
                raise ValueError(f"the sampler's {key} is {mine[key]!r}, that of the state {state_dict[key]!r}")
        position = state_dict["position"]
        if position < 0:
            raise ValueError(f"sampler state at position {position}")
        super().set_epoch(state_dict["epoch"])
        self._move(position)

    def _move(self, base: int) -> None:
        self._base = base
        self._reading = None
        self._count()

    def _count(self) -> None:
        """Keeps what DistributedSampler tells of its length to what is left."""
        left = max(len(self.dataset) - self._base, 0)  # type: ignore[arg-type]
        per = left // self.num_replicas if self.drop_last else -(-left // self.num_replicas)
        self.num_samples = per
        self.total_size = per * self.num_replicas

    def _finished(self, reading: _Reading) -> None:
        """The next iteration begins at the front, as DistributedSampler's does."""
        if reading is self._reading and self._base:
            self._base = 0
            self._count()

    def _share(self) -> torch.Tensor:
        """This rank's samples, from the position on."""
        n, world = len(self.dataset), self.num_replicas  # type: ignore[arg-type]
        first = self._base + self.rank
        places = torch.arange(first, first + self.num_samples * world, world)
        if n:
            places %= n  # padding is the order from its beginning
        if not self.shuffle:
            return places
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        return torch.randperm(n, generator=generator)[places]


class _Announced:
    """The plan of one sampler, over as many of its passes as it foretells."""

    def __init__(self, announcer: Announcer, source: str, manifest: Manifest) -> None:
        self._announcer = announcer
        self._source = source
        self._manifest = manifest
        self.plan: Plan | None = None
        self._first = Spec(0, 1)
        self._start = 0  # the counter when the pass under way began
        self._next = 0  # and when the pass after it begins

    def begin(self, sampler: CoveySampler, base: int) -> None:
        """Called at the front of a pass that begins at base."""
        spec = replace(sampler.spec, base=base)
        start = self._foretold(spec)
        if self.plan is None or self.plan.ended or start is None or start < self.plan.cursor[0]:
            self._post(sampler, spec)
            start = 0
        self._start, self._next = start, start + spec.per_rank
        self.advance(sampler, base, 0)

    def _foretold(self, spec: Spec) -> int | None:
        """Where in the plan a pass begins; None when the plan has it not."""
        first = self._first
        if not first.shuffle:
            # Every pass is the same, and the plan has one after the other.
            same = replace(spec, epoch=first.epoch) == replace(first, base=0)
            return self._next if same and self._next > 0 else None
        passes = spec.epoch - first.epoch
        if not 0 < passes < _EPOCHS or spec != replace(first, epoch=spec.epoch, base=0):
            return None
        return first.per_rank + (passes - 1) * replace(first, base=0).per_rank

    def advance(self, sampler: CoveySampler, base: int, taken: int) -> None:
        if self.plan is None:
            return
        if self.plan.ended:
            # The job paused for longer than the lease: the rest is a new plan.
            spec = replace(sampler.spec, base=base + taken * sampler.num_replicas)
            self._post(sampler, spec)
            self._start, self._next = -taken, spec.per_rank
        if self.plan is not None:
            self.plan.cursor[0] = self._start + taken

    def _post(self, sampler: CoveySampler, spec: Spec) -> None:
        self._first = spec
        # A shuffled order that is read again without set_epoch is posted again.
        self.plan = self._announcer.post(self._source, self._manifest, spec, [sampler.rank], epochs=_EPOCHS)

    def __reduce__(self) -> Any:
        return _Announced, (self._announcer, self._source, self._manifest)


class _Reading(Iterator[int]):
    """One pass over what is left of an epoch."""

    def __init__(self, sampler: CoveySampler) -> None:
        self.base = sampler._base
        self.per_rank = sampler.num_samples
        self.taken = 0
        self._sampler = sampler
        # First, so that the agent reads while the order is drawn here.
        if sampler._announced is not None:
            sampler._announced.begin(sampler, self.base)
        self._share = sampler._share()
        self._chunk: list[int] = []
        self._tell = self._counter()

    def _counter(self) -> Callable[[int], None] | None:
        """Says how far this pass is, in a store to memory."""
        announced = self._sampler._announced
        if announced is None or announced.plan is None:
            return None
        cursor, start = announced.plan.cursor, announced._start

        def tell(taken: int) -> None:
            cursor[0] = start + taken

        return tell

    def __next__(self) -> int:
        at = self.taken % _CHUNK
        if at == 0:
            self._chunk = self._share[self.taken : self.taken + _CHUNK].tolist()
            announced = self._sampler._announced
            if announced is not None and self.taken and self is self._sampler._reading:
                announced.advance(self._sampler, self.base, self.taken)
                self._tell = self._counter()
        if at >= len(self._chunk):
            self._sampler._finished(self)
            raise StopIteration
        self.taken += 1
        if self._tell is not None and self is self._sampler._reading:
            self._tell(self.taken)
        return self._chunk[at]
