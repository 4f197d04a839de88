from __future__ import annotations

import array
import hashlib
import itertools
import json
import pickle
import random

import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, DistributedSampler  # noqa: E402

from covey.torch import CoveySampler  # noqa: E402


def both(n: int, **how):
    return DistributedSampler(range(n), **how), CoveySampler(range(n), **how)


@pytest.mark.parametrize(("shuffle", "drop_last"), list(itertools.product((True, False), (True, False))))
def test_equals_distributed_sampler(shuffle: bool, drop_last: bool) -> None:
    for n, world in itertools.product((0, 1, 2, 10, 17, 1000, 65537), (1, 2, 3, 8, 64)):
        for rank, seed in itertools.product({0, world // 2, world - 1}, (0, 42, -7, 2**32 + 5)):
            theirs, ours = both(n, num_replicas=world, rank=rank, seed=seed, shuffle=shuffle, drop_last=drop_last)
            for epoch in (0, 0, 3):
                theirs.set_epoch(epoch)
                ours.set_epoch(epoch)
                assert list(ours) == list(theirs), (n, world, rank, seed, epoch)
                assert len(ours) == len(theirs)
                assert (ours.num_samples, ours.total_size) == (theirs.num_samples, theirs.total_size)


def test_golden(vectors) -> None:
    for case in json.loads((vectors / "torch.json").read_text())["distributed"]:
        ours = CoveySampler(
            range(case["n"]), case["world"], case["rank"], case["shuffle"], int(case["seed"]), case["drop_last"]
        )
        ours.set_epoch(case["epoch"])
        order = list(ours)
        if "order" in case:
            assert order == case["order"]
        else:
            assert hashlib.sha256(array.array("I", order).tobytes()).hexdigest() == case["sha256"]
        assert ours.spec.per_rank == len(order)


def test_is_one() -> None:
    assert isinstance(CoveySampler(range(4), 2, 0), DistributedSampler)
    for wrong in (-1, 2):
        with pytest.raises(ValueError):
            CoveySampler(range(4), 2, wrong)
    with pytest.raises((RuntimeError, ValueError)):
        CoveySampler(range(4))  # no process group


def test_resume_same_world() -> None:
    for n, world, drop_last, shuffle in itertools.product((1, 10, 1000, 9000), (1, 3, 8), (False, True), (False, True)):
        how = dict(num_replicas=world, shuffle=shuffle, drop_last=drop_last, seed=5)
        theirs = DistributedSampler(range(n), rank=world - 1, **how)
        theirs.set_epoch(2)
        want = list(theirs)
        for stop in sorted({0, 1, len(want) // 2, len(want)}):
            if stop > len(want):
                continue
            first = CoveySampler(range(n), rank=world - 1, **how)
            first.set_epoch(2)
            got = list(itertools.islice(iter(first), stop))
            state = json.loads(json.dumps(first.state_dict()))
            second = CoveySampler(range(n), rank=world - 1, **how)
            second.load_state_dict(state)
            second.set_epoch(2)  # as a training loop does
            assert len(second) == len(want) - stop
            assert got + list(second) == want
            # The next pass and the next epoch are whole again.
            assert len(second) == len(want)
            assert list(second) == want
            second.set_epoch(3)
            theirs.set_epoch(3)
            assert list(second) == list(theirs)
            theirs.set_epoch(2)


def test_changed_world() -> None:
    """Every sample once, whatever worlds the epoch goes through."""
    rng = random.Random(7)
    for trial in range(200):
        n, seed, drop_last = rng.randrange(1, 300), rng.randrange(-50, 50), rng.random() < 0.5
        shuffle = rng.random() < 0.8
        how = dict(shuffle=shuffle, seed=seed, drop_last=drop_last)
        whole = CoveySampler(range(n), 1, 0, shuffle, seed)
        want, got, state = list(whole), [], None
        while True:
            world = rng.randrange(1, 17)
            ranks = [CoveySampler(range(n), world, r, **how) for r in range(world)]
            if state is not None:
                for r in ranks:
                    r.load_state_dict(state)
            stop = len(ranks[0]) if rng.random() < 0.4 else rng.randrange(len(ranks[0]) + 1)
            over = stop == len(ranks[0])
            passes = [iter(r) for r in ranks]
            for _ in range(stop):
                got += [next(p) for p in passes]
            states = [r.state_dict(consumed=stop) for r in ranks]
            assert all(s == states[0] for s in states)
            state = states[0]
            if over:
                break
        assert got[:n] == want[: len(got[:n])], trial
        assert got[n:] == [want[i % n] for i in range(len(got) - n)]
        if drop_last:
            assert len(got) <= n and n - len(got) < world
        else:
            assert len(got) >= n


def test_state_is_small_and_checked() -> None:
    s = CoveySampler(range(10**6), 8, 3, seed=1)
    next(iter(s))
    state = s.state_dict()
    assert len(json.dumps(state)) < 200
    assert state["position"] == 8
    for key, other in {"samples": 5, "seed": 2, "shuffle": False, "drop_last": True, "version": 2}.items():
        with pytest.raises(ValueError, match=str(key)):
            CoveySampler(range(10**6), 8, 3, seed=1).load_state_dict({**state, key: other})
    with pytest.raises(ValueError):
        CoveySampler(range(10**6), 8, 3, seed=1).load_state_dict({**state, "position": -1})
    with pytest.raises(ValueError):
        s.state_dict(consumed=10**6)
    with pytest.raises(ValueError):
        CoveySampler(range(10), 2, 0).state_dict(consumed=1)


def test_pickled() -> None:
    s = CoveySampler(range(100), 2, 1)
    reading = iter(s)
    for _ in range(5):
        next(reading)
    assert pickle.loads(pickle.dumps(s)).state_dict() == s.state_dict()


class Numbers(torch.utils.data.Dataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        return i


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader_resumes_by_consumed(workers: int) -> None:
    """Workers run ahead; what was trained on is what counts."""
    data = Numbers(500)
    want = list(DistributedSampler(data, 2, 1, seed=3))
    first = CoveySampler(data, 2, 1, seed=3)
    got = []
    for batches, batch in enumerate(DataLoader(data, batch_size=16, sampler=first, num_workers=workers), 1):
        got += batch.tolist()
        if batches == 5:
            break
    second = CoveySampler(data, 2, 1, seed=3)
    second.load_state_dict(first.state_dict(consumed=len(got)))
    loader = DataLoader(data, batch_size=16, sampler=second, num_workers=workers)
    assert len(loader) == -(-(250 - 80) // 16)
    for batch in loader:
        got += batch.tolist()
    assert got == want


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_data_loader(workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    data = Numbers(500)
    want = list(DistributedSampler(data, 2, 1, seed=3))

    def loader():
        sampler = CoveySampler(data, 2, 1, seed=3)
        return stateful.StatefulDataLoader(data, batch_size=16, sampler=sampler, num_workers=workers)

    first, got = loader(), []
    for batches, batch in enumerate(first, 1):
        got += batch.tolist()
        if batches == 5:
            state = first.state_dict()
            break
    second = loader()
    second.load_state_dict(state)
    for batch in second:
        got += batch.tolist()
    assert got == want
    assert [x for batch in second for x in batch.tolist()] == want
