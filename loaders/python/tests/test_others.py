"""Readers of others, unchanged, over a mount."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

import covey.testing

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402


@pytest.fixture
def shown(mounted, tmp_path: pathlib.Path) -> Iterator[Callable[[pathlib.Path], pathlib.Path]]:
    """Mounts a directory that is written, by an agent of its own."""
    with ExitStack() as stack:

        def show(origin: pathlib.Path) -> pathlib.Path:
            stack.enter_context(covey.testing.agent({origin: tmp_path / "mount"}))
            return tmp_path / "mount"

        yield show


def test_webdataset(shown, tmp_path: pathlib.Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    origin = tmp_path / "origin"
    origin.mkdir()
    with webdataset.ShardWriter(str(origin / "wds-%02d.tar"), maxcount=10, verbose=0) as sink:
        for i in range(35):
            sink.write({"__key__": f"{i:04d}", "bin": random.Random(i).randbytes(5000), "cls": str(i)})
    dir = shown(origin)
    urls = [str(dir / f"wds-{i:02d}.tar") for i in range(4)]
    data = webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple("bin", "cls")
    seen = dict((int(cls), raw) for raw, cls in DataLoader(data, batch_size=None, num_workers=2))
    assert seen == {i: random.Random(i).randbytes(5000) for i in range(35)}


def test_mosaicml_streaming(shown, tmp_path: pathlib.Path) -> None:
    streaming = pytest.importorskip("streaming")
    columns = {"id": "int", "data": "bytes"}
    out = tmp_path / "mds"
    with streaming.MDSWriter(out=str(out), columns=columns, size_limit=1 << 16, hashes=["xxh64"]) as sink:
        for i in range(200):
            sink.write({"id": i, "data": random.Random(i).randbytes(1000)})
    assert len(list(out.glob("shard.*.mds"))) > 2
    data = streaming.StreamingDataset(local=str(shown(out)), batch_size=8, shuffle=True, validate_hash="xxh64")
    seen = {s["id"]: s["data"] for s in data}
    assert seen == {i: random.Random(i).randbytes(1000) for i in range(200)}
