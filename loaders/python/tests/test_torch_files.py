from __future__ import annotations

import os
import pathlib
import pickle
import time

import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from covey.torch import CoveySampler, FileDataset  # noqa: E402


def named(name: str, data: bytes) -> tuple[str, bytes]:
    return name, data


def together(batch):
    return batch


@pytest.mark.filterwarnings("ignore::covey.paths.CoveyWarning")
def test_lists_in_order(tree) -> None:
    root, files = tree
    os.symlink("note.txt", root / "link.bin")
    os.symlink(".", root / "circle.bin")
    os.symlink("nowhere", root / "dangling.bin")
    os.mkfifo(root / "pipe.bin")
    data = FileDataset(root, suffixes=[".bin"], transform=named)
    want = sorted((n for n in [*files, "link.bin"] if n.lower().endswith(".bin")), key=os.fsencode)
    assert [data.name(i) for i in range(len(data))] == want
    assert len(FileDataset(root)) == len(files) + 1
    for i, name in enumerate(want):
        assert data[i] == (name, files.get(name, files["note.txt"]))
    assert data[-1] == data[len(data) - 1]
    for wrong in (len(data), -len(data) - 1):
        with pytest.raises(IndexError):
            data[wrong]
    assert data.__getitems__([3, 1, 1, 0]) == [data[3], data[1], data[1], data[0]]
    assert data.__getitems__([]) == []


def test_name_that_is_no_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / os.fsdecode(b"\xff\xfe")).write_bytes(b"odd")
    with pytest.warns(UserWarning, match="not through covey"):
        data = FileDataset(tmp_path, socket=str(tmp_path / "none"))
    assert data[0] == b"odd"


@pytest.mark.filterwarnings("ignore::covey.paths.CoveyWarning")
def test_faults_reach_the_caller(tree) -> None:
    root, _ = tree
    with pytest.raises(FileNotFoundError):
        FileDataset(root / "none")
    with pytest.raises(ValueError):
        FileDataset(root, threads=0)
    data = FileDataset(root, names=["class0/0000.bin", "gone"])
    with pytest.raises(FileNotFoundError):
        data.__getitems__([0, 1])
    assert len(data[0])


@pytest.mark.parametrize("how", [None, "fork", "spawn"])
def test_data_loader_over_the_mount(mounted, how: str | None) -> None:
    data = FileDataset(f"covey://file://{mounted.origin}", transform=named, socket=mounted.socket)
    assert data.root == str(mounted.dir)
    data.__getitems__([0, 1, 2])  # has threads when it is forked
    got: dict[str, bytes] = {}
    for rank in range(2):
        loader = DataLoader(
            data,
            batch_size=8,
            sampler=CoveySampler(data, 2, rank),
            num_workers=2 if how else 0,
            multiprocessing_context=how,
            collate_fn=together,
        )
        for batch in loader:
            got.update(batch)
    assert got == mounted.files


@pytest.mark.filterwarnings("ignore::covey.paths.CoveyWarning")
def test_a_million_names_start_quickly() -> None:
    """No listing, and little to send to a spawned worker."""
    data = FileDataset("/", names=(f"train/n{i // 1300:08d}/n{i:08d}.JPEG" for i in range(1_000_000)), socket="/none")
    began = time.monotonic()
    copy = pickle.loads(pickle.dumps(data))
    took = time.monotonic() - began
    assert copy.name(999_999) == data.name(999_999)
    assert took < 1, f"{took:.2f} s"
