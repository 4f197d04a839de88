from __future__ import annotations

import io
import os
import pathlib
import pickle
import random
import struct
import tarfile
import time
from collections.abc import Iterator

import pytest

from covey.records import ShardError, reader_for, tar_samples, tfrecords


def make_tar(path: pathlib.Path, shard: int, samples: int = 20, mode: str = "w") -> list[dict]:
    rng, want = random.Random(shard), []
    with tarfile.open(path, mode) as tar:
        for i in range(samples):
            key = f"train/{shard:02d}-{i:04d}"
            sample = {"__key__": key, "jpg": rng.randbytes(rng.randrange(5000)), "cls": str(i % 7).encode()}
            for extension in ("jpg", "cls"):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(sample[extension])
                tar.addfile(info, io.BytesIO(sample[extension]))
            want.append(sample)
    return want


def record(data: bytes) -> bytes:
    return struct.pack("<QI", len(data), 0) + data + bytes(4)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar(tmp_path: pathlib.Path, mode: str) -> None:
    path = tmp_path / "a.tar"
    want = make_tar(path, 1, mode=mode)
    assert list(tar_samples(path)) == want


def test_tar_as_webdataset_reads_it(tmp_path: pathlib.Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for i in range(30):
            sink.write({"__key__": f"a/b.c/{i}", "JPG": os.urandom(100), "seg.png": b"x" * i, "txt": f"n {i}"})
    theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False))
    ours = list(tar_samples(tmp_path / "a.tar"))
    assert len(ours) == 30
    for t, o in zip(theirs, ours, strict=True):
        assert {k: v for k, v in t.items() if k not in ("__url__", "__local_path__")} == o


def test_tar_with_more_than_samples(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("d/.hidden", None), ("d/plain", None), ("d/l.txt", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind or tarfile.REGTYPE
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("d/s.txt"))
    assert list(tar_samples(path)) == [{"__key__": "d/s", "txt": b""}]


def test_damaged(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, 1)
    whole = path.read_bytes()
    for cut in (700, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match="a.tar"):
            list(tar_samples(path))
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(ShardError, match="a.tar"):
        list(tar_samples(path))
    with tarfile.open(path, "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(ShardError, match="twice"):
        list(tar_samples(path))


def test_tfrecords(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tfrecord"
    want = [random.Random(i).randbytes(i * 1000) for i in range(20)]
    path.write_bytes(b"".join(map(record, want)))
    assert list(tfrecords(path)) == want
    whole = path.read_bytes()
    for cut in (5, 11, 15, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match="cut off"):
            list(tfrecords(path))
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ShardError, match="is it a TFRecord"):
        list(tfrecords(path))
    path.write_bytes(b"")
    assert list(tfrecords(path)) == []


def test_reader_for() -> None:
    assert reader_for("a/B.TAR") is reader_for("x.tgz") is tar_samples
    assert reader_for("train.tfrecord-00001-of-00010") is tfrecords
    with pytest.raises(ValueError, match="read="):
        reader_for("a.bin")


torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from covey.agent import Agent  # noqa: E402
from covey.torch import ShardDataset  # noqa: E402


@pytest.fixture
def shards(tmp_path: pathlib.Path) -> tuple[pathlib.Path, dict[str, list[dict]]]:
    root = tmp_path / "shards"
    root.mkdir()
    return root, {f"{i:03d}.tar": make_tar(root / f"{i:03d}.tar", i, samples=10 + i) for i in range(7)}


def keys(samples) -> list[str]:
    return [s["__key__"] for s in samples]


@pytest.mark.filterwarnings("ignore::covey.paths.CoveyWarning")
@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_each_sample_once(shards, context) -> None:
    root, made = shards
    want = sorted(k for s in made.values() for k in keys(s))
    for world in (1, 3):
        seen = []
        for rank in range(world):
            data = ShardDataset(root, num_replicas=world, rank=rank, seed=5, announce=False)
            data.set_epoch(2)
            how = dict(num_workers=2, multiprocessing_context=context) if context else {}
            seen += keys(DataLoader(data, batch_size=None, **how))
        assert sorted(seen) == want


@pytest.mark.filterwarnings("ignore::covey.paths.CoveyWarning")
def test_orders(shards) -> None:
    root, made = shards
    data = ShardDataset(root, announce=False, seed=1)
    first = keys(data)
    data.set_epoch(1)
    second = keys(data)
    assert first != second and sorted(first) == sorted(second)
    again = ShardDataset(root, announce=False, seed=1)
    again.set_epoch(1)
    assert keys(again) == second
    plain = ShardDataset(root, announce=False, shuffle=False)
    assert keys(plain) == [k for n in sorted(made) for k in keys(made[n])]
    named = ShardDataset(root, names=["002.tar"], announce=False, transform=lambda s: s["cls"])
    assert list(named) == [s["cls"] for s in made["002.tar"]]
    with pytest.raises(FileNotFoundError, match="no shard"):
        ShardDataset(root, suffixes=[".zip"])
    with pytest.raises(ValueError, match="read="):
        ShardDataset(root, names=["x.zip"])
    with pytest.raises(ValueError, match="rank"):
        ShardDataset(root, num_replicas=2, rank=2)


@pytest.mark.filterwarnings("ignore::covey.paths.CoveyWarning")
def test_resumes(shards) -> None:
    root, _ = shards
    data = ShardDataset(root, announce=False, seed=3)
    data.set_epoch(4)
    whole = keys(data)
    for stop in (0, 1, 9, 10, 40, len(whole)):
        part = ShardDataset(root, announce=False, seed=3)
        part.set_epoch(4)
        reading = iter(part)
        got = [next(reading)["__key__"] for _ in range(stop)]
        state = part.state_dict()
        rest = pickle.loads(pickle.dumps(ShardDataset(root, announce=False, seed=3)))
        rest.load_state_dict(state)
        rest.set_epoch(4)
        assert got + keys(rest) == whole, stop
        assert keys(rest) == whole, "the pass after it is whole"
    for wrong in ({"version": 2}, {**state, "seed": 4}, {**state, "names": 1}):
        with pytest.raises(ValueError):
            data.load_state_dict(wrong)


@pytest.mark.filterwarnings("ignore::covey.paths.CoveyWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_data_loader(shards, workers) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    root, _ = shards

    def loader():
        return stateful(ShardDataset(root, announce=False, seed=3), batch_size=None, num_workers=workers)

    whole = keys(loader())
    first = loader()
    reading = iter(first)
    got = [next(reading)["__key__"] for _ in range(23)]
    state = first.state_dict()
    del reading
    second = loader()
    second.load_state_dict(state)
    assert got + keys(second) == whole


@pytest.fixture
def five(mounted) -> Iterator[list[str]]:
    names = [f"s{i}.tar" for i in range(5)]
    for i, name in enumerate(names):
        make_tar(mounted.origin / name, i)
    yield names
    for name in names:
        (mounted.origin / name).unlink()


def test_announces_over_the_mount(mounted, five) -> None:
    agent = Agent(mounted.socket)
    data = ShardDataset(mounted.dir, num_replicas=2, rank=1, socket=mounted.socket, job="shards", names=five)
    mine = data.shards(1, 2)
    reading = iter(data)
    next(reading)
    (plan,) = [p for p in agent.plans() if p.get("job") == "shards"]
    for _ in range(20):
        next(reading)  # into the next shard
    deadline = time.monotonic() + 20
    while True:
        plan = agent.plan(plan["id"])
        (rank,) = plan["ranks"]
        if plan["state"] == "active" and (rank["rank"], rank["position"], rank["samples"]) == (1, 1, len(mine)):
            break
        assert time.monotonic() < deadline, plan
        time.sleep(0.02)
    # Each process of a DataLoader has a plan of its own, which ends with its pass.
    again = ShardDataset(mounted.dir, names=data.names, socket=mounted.socket, job="processes")
    assert len(list(DataLoader(again, batch_size=None, num_workers=2))) == 100
    assert [p for p in agent.plans() if p.get("job") == "processes"] == []
