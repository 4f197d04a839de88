"""The description of one epoch's order, in the 40 bytes of Go package fetch/plan."""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["MAX_SAMPLES", "Spec"]

MAX_SAMPLES = 1 << 32
_MAX_WORLD = 1 << 24

_VERSION = 1
_DISTRIBUTED = 1
_SHUFFLE = 1
_DROP_LAST = 2
_LAYOUT = struct.Struct("<BBHIQQQII")


@dataclass(frozen=True)
class Spec:
    """One epoch of one job, as ``torch.utils.data.DistributedSampler`` has it.

    ``base`` is where in the epoch's order this world of ranks takes over, in
    samples of all ranks together. ``rank_map`` names a table of which node has
    which rank; 0 means that nobody said. A negative seed is kept as its two's
    complement.
    """

    samples: int
    world: int
    seed: int = 0
    epoch: int = 0
    base: int = 0
    rank_map: int = 0
    shuffle: bool = True
    drop_last: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", self.seed % (1 << 64))
        for name, most in (
            ("samples", MAX_SAMPLES),
            ("base", self.samples + _MAX_WORLD),
            ("epoch", (1 << 32) - 1),
            ("rank_map", (1 << 32) - 1),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, not 0 to {most}")
        if not 1 <= self.world <= _MAX_WORLD:
            raise ValueError(f"world is {self.world}, not 1 to {_MAX_WORLD}")

    @property
    def per_rank(self) -> int:
        """How many samples each rank reads."""
        left = max(self.samples - self.base, 0)
        return left // self.world if self.drop_last else -(-left // self.world)

    def to_bytes(self) -> bytes:
        flags = _SHUFFLE * self.shuffle | _DROP_LAST * self.drop_last
        return _LAYOUT.pack(
            _VERSION, _DISTRIBUTED, flags, self.world, self.samples, self.seed, self.base, self.epoch, self.rank_map
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Spec:
        """Reads what ``to_bytes`` wrote; ValueError for anything else."""
        if len(data) != _LAYOUT.size:
            raise ValueError(f"a plan has {_LAYOUT.size} bytes, not {len(data)}")
        version, kind, flags, world, samples, seed, base, epoch, rank_map = _LAYOUT.unpack(data)
        if (version, kind) != (_VERSION, _DISTRIBUTED) or flags & ~(_SHUFFLE | _DROP_LAST):
            raise ValueError(f"plan of version {version}, kind {kind}, flags {flags:#x}")
        return cls(samples, world, seed, epoch, base, rank_map, bool(flags & _SHUFFLE), bool(flags & _DROP_LAST))
