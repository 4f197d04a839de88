#!/usr/bin/env python3
"""Writes the golden vectors of fetch/plan with the real frameworks.

    python make_vectors.py torch      ../../../fetch/plan/testdata
    python make_vectors.py tensorflow ../../../fetch/plan/testdata
    python make_vectors.py wide       ../../../fetch/plan/testdata

``wide`` shuffles 214,748,364 samples, where torch changes its algorithm, and
needs 4 GB of memory and a minute. The expected orders come from torch and
TensorFlow alone, never from covey; only ``wide_small`` is worked out here, from
torch's own random numbers, because torch itself takes that way for huge sizes
only.

An order of more than 256 samples is stored as the SHA-256 of its elements, each
in four bytes, the lowest first, and its first eight elements.
"""

from __future__ import annotations

import array
import hashlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

LONGEST = 256
WIDE = (2**32 - 1) // 20


def shown(order: Iterable[int]) -> dict[str, Any]:
    words = array.array("I", order)
    if len(words) <= LONGEST:
        return {"order": list(words)}
    if sys.byteorder == "big":
        words.byteswap()
    digest = hashlib.sha256(words.tobytes()).hexdigest()
    return {"length": len(words), "first": list(words[:8]), "sha256": digest}


def torch_vectors() -> Iterator[tuple[str, Any]]:
    import torch
    from torch.utils.data import DistributedSampler

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    yield "made_with", f"torch {torch.__version__}"

    full = []
    for seed in (0, 1, 42, 2**32 + 5, -1, 2**64 - 1):
        words = torch.empty(1300, dtype=torch.int64)
        words.random_(-(2**63), None, generator=seeded(seed))
        digits = [str(w % 2**64) for w in words.tolist()]
        full.append({"seed": str(seed % 2**64), "at": {str(i): digits[i] for i in (0, 1, 311, 312, 313, 1299)}})
    yield "random64", full

    perms = []
    for n in (0, 1, 2, 3, 10, 623, 624, 625, 1000, 65537, 100003, 1281167):
        for seed in (0, 1, 42, 2**32 + 5, 2**31, -1, -(2**63), 2**64 - 1):
            order = torch.randperm(n, generator=seeded(seed)).tolist()
            perms.append({"n": n, "seed": str(seed % 2**64), **shown(order)})
    yield "randperm", perms

    wide = []
    for n in (0, 1, 2, 10, 1000, 65537):
        for seed in (0, 42):
            words = torch.empty(max(n, 1), dtype=torch.int64)
            words.random_(-(2**63), None, generator=seeded(seed))
            order: list[int] = []
            for i, word in enumerate(words.tolist()[:n]):
                z = word % 2**64 % (i + 1)
                order.append(i)
                order[i] = order[z]
                order[z] = i
            wide.append({"n": n, "seed": str(seed), **shown(order)})
    yield "wide_small", wide

    samplers = []
    cases = itertools.chain(
        itertools.product((0, 1, 2, 10, 17), (1, 2, 3, 8, 64), (True, False), (0, 42), (0, 3)),
        itertools.product((1000, 65537, 100003), (1, 8, 64), (True, False), (-7, 2**32 + 5), (1,)),
    )
    for (n, world, shuffle, seed, epoch), drop_last in itertools.product(cases, (False, True)):
        if not shuffle and (seed not in (0, -7) or epoch == 3):
            continue
        for rank in sorted({0, world // 2, world - 1}):
            sampler = DistributedSampler(
                range(n), num_replicas=world, rank=rank, shuffle=shuffle, seed=seed, drop_last=drop_last
            )
            sampler.set_epoch(epoch)
            order = list(sampler)
            assert len(order) == len(sampler)
            samplers.append(
                {
                    "n": n, "seed": str(seed % 2**64), "epoch": epoch, "world": world, "rank": rank,
                    "shuffle": shuffle, "drop_last": drop_last, **shown(order),
                }
            )
    yield "distributed", samplers


def wide_vectors() -> Iterator[tuple[str, Any]]:
    import torch

    yield "made_with", f"torch {torch.__version__}"
    perms = []
    for n in (WIDE - 1, WIDE):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(42))
        words = order.to(torch.int32)
        digest = hashlib.sha256(words.numpy().tobytes()).hexdigest()
        perms.append({"n": n, "seed": "42", "length": n, "first": order[:8].tolist(), "sha256": digest})
        del order, words
    yield "randperm", perms


def tensorflow_vectors() -> Iterator[tuple[str, Any]]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    yield "made_with", f"tensorflow {tf.__version__}"

    shards = []
    for n, count in itertools.product((0, 1, 2, 10, 17), (1, 2, 3, 8, 64)):
        for index in sorted({0, count // 2, count - 1}):
            order = [int(x) for x in tf.data.Dataset.range(n).shard(count, index)]
            shards.append({"n": n, "shards": count, "index": index, "order": order})
    yield "shard", shards

    def interleave(records: list[int], cycle: int, block: int, **how: Any) -> list[list[int]]:
        sizes = tf.constant(records, tf.int64)
        files = tf.data.Dataset.range(len(records)).interleave(
            lambda f: tf.data.Dataset.range(sizes[f]).map(lambda i: tf.stack([f, i])),
            cycle_length=cycle, block_length=block, **how,
        )
        return [[int(f), int(i)] for f, i in files]

    woven = []
    for records in ([], [0], [1], [3, 0, 5, 1, 4, 2], [0, 0, 2, 0], [2, 2, 2, 2], [7, 1, 1, 1, 1, 1, 1]):
        for cycle, block in itertools.product((1, 2, 3, 4, 16), (1, 2, 3, 10)):
            if not records:
                continue  # TensorFlow has no type for it
            order = interleave(records, cycle, block)
            for calls in {1, min(2, cycle), cycle}:
                at_once = interleave(records, cycle, block, num_parallel_calls=calls, deterministic=True)
                assert order == at_once, (records, cycle, block, calls, order, at_once)
            woven.append({"records": records, "cycle": cycle, "block": block, "order": order})
    yield "interleave", woven


def main() -> None:
    kinds = {"torch": torch_vectors, "wide": wide_vectors, "tensorflow": tensorflow_vectors}
    kind, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    lines = []
    for name, value in kinds[kind]():
        # One case a line: what changes between two versions of a framework shows.
        if isinstance(value, list):
            cases = ",\n".join("  " + json.dumps(case, separators=(",", ":")) for case in value)
            lines.append(f'"{name}": [\n{cases}\n]')
        else:
            lines.append(f'"{name}": {json.dumps(value)}')
    (folder / f"{kind}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
