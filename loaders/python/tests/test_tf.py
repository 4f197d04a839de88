from __future__ import annotations

import gc
import pathlib
import random
import shutil
import time
from collections.abc import Iterator

import pytest

tf = pytest.importorskip("tensorflow")

import covey.tf  # noqa: E402
from covey.agent import Agent  # noqa: E402
from covey.records import tfrecords  # noqa: E402


def write(path: pathlib.Path, shard: int, records: int, how: str = "") -> list[bytes]:
    rng = random.Random(shard)
    data = [b"%d/%d/" % (shard, i) + rng.randbytes(rng.randrange(3000)) for i in range(records)]
    with tf.io.TFRecordWriter(str(path), how) as out:
        for d in data:
            out.write(d)
    return data


@pytest.fixture(scope="module")
def made(mounted) -> Iterator[dict[str, list[bytes]]]:
    (mounted.origin / "tf").mkdir()
    yield {f"{i:02d}.tfrecord": write(mounted.origin / "tf" / f"{i:02d}.tfrecord", i, 5 + i) for i in range(9)}
    shutil.rmtree(mounted.origin / "tf")


def test_written_by_tensorflow(mounted, made) -> None:
    for name, want in made.items():
        assert list(tfrecords(mounted.dir / "tf" / name)) == want


def test_each_record_once(mounted, made) -> None:
    want = sorted(r for records in made.values() for r in records)
    for shards in (1, 2, 4):
        got: list[bytes] = []
        for index in range(shards):
            data = covey.tf.records(mounted.dir / "tf", seed=2, epoch=1, shards=shards, index=index, socket=mounted.socket)
            first = list(data.as_numpy_iterator())
            assert first == list(data.as_numpy_iterator()), "a pass is like the one before it"
            got += first
        assert sorted(got) == want


def test_order_and_interleave(mounted, made) -> None:
    names = sorted(made)
    data = covey.tf.records(mounted.dir / "tf", shuffle=False, cycle_length=1, socket=mounted.socket)
    assert list(data.as_numpy_iterator()) == [r for n in names for r in made[n]]
    epochs = [covey.tf.order(9, seed=2, epoch=e) for e in (0, 1)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1]) == list(range(9))
    # An order that went into a plan must not change with a version of Python.
    assert covey.tf.order(9, seed=1, epoch=0) == GOLDEN
    data = covey.tf.records(mounted.dir / "tf", seed=2, epoch=1, cycle_length=1, socket=mounted.socket)
    assert list(data.as_numpy_iterator()) == [r for i in epochs[1] for r in made[names[i]]]
    plain = tf.data.Dataset.from_tensor_slices([str(mounted.origin / "tf" / names[i]) for i in epochs[1]])
    want = list(plain.interleave(tf.data.TFRecordDataset, cycle_length=3, block_length=2).as_numpy_iterator())
    data = covey.tf.records(mounted.dir / "tf", seed=2, epoch=1, cycle_length=3, block_length=2, socket=mounted.socket)
    assert list(data.as_numpy_iterator()) == want
    with pytest.raises(ValueError, match="shard 2 of 2"):
        covey.tf.order(9, seed=1, epoch=0, shards=2, index=2)
    with pytest.raises(FileNotFoundError, match="ends in"):
        covey.tf.records(mounted.dir / "tf", suffixes=[".none"])


GOLDEN = [1, 4, 5, 8, 2, 3, 0, 7, 6]


def test_the_agent_follows(mounted, made) -> None:
    agent = Agent(mounted.socket)
    data = covey.tf.records(mounted.dir / "tf", cycle_length=1, shards=2, index=1, socket=mounted.socket, job="tf")
    names = covey.tf.order(9, seed=0, epoch=0, shards=2, index=1)
    reading = data.batch(2).as_numpy_iterator()
    next(reading)
    deadline = time.monotonic() + 20
    plan = None
    while plan is None or plan["state"] != "active":
        assert time.monotonic() < deadline, plan
        (plan,) = [p for p in agent.plans() if p.get("job") == "tf"]
    assert [(r["rank"], r["samples"]) for r in plan["ranks"]] == [(1, len(names))]
    list(reading)
    while agent.plan(plan["id"])["ranks"][0]["position"] < len(names) - 1:
        assert time.monotonic() < deadline, agent.plan(plan["id"])
        time.sleep(0.02)
    del reading, data
    gc.collect()


def test_compressed(mounted, tmp_path: pathlib.Path) -> None:
    want = write(tmp_path / "a.tfrecord", 3, 20, "GZIP")
    with pytest.warns(UserWarning):
        data = covey.tf.records(tmp_path, compression="GZIP", socket=str(tmp_path / "none"))
        assert list(data.as_numpy_iterator()) == want
