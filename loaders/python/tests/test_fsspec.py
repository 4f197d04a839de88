from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pathlib
import pickle
import time
import warnings

import pytest

fsspec = pytest.importorskip("fsspec")

from covey.agent import Agent, AgentError  # noqa: E402
from covey.fsspec import CoveyFileSystem  # noqa: E402
from covey.paths import CoveyWarning, Resolver  # noqa: E402


def test_entry_point() -> None:
    """The installed package says who opens covey://, nobody has to import it."""
    assert fsspec.get_filesystem_class("covey") is CoveyFileSystem


def test_reads_through_the_mount(mounted) -> None:
    fs = fsspec.filesystem("covey", socket=mounted.socket)
    before = _opens(mounted)
    for root in (f"covey://{mounted.dir}", f"covey://{mounted.origin}", f"covey://file://{mounted.origin}"):
        found = {name.removeprefix(root.removeprefix("covey://") + "/") for name in fs.find(root)}
        assert found == set(mounted.files), root
        for name, data in mounted.files.items():
            assert fs.cat_file(f"{root}/{name}") == data
            with fs.open(f"{root}/{name}") as f:
                assert f.read() == data
    opened = _opens(mounted) - before
    assert opened == 2 * 3 * len(mounted.files), "some file was not opened through the mount"


def _opens(mounted) -> int:
    (m,) = [m for m in mounted.running.client.status()["mounts"] if m["dir"] == str(mounted.dir)]
    return m["opens_passthrough"] + m["opens_daemon"]


def test_listing(mounted) -> None:
    fs = CoveyFileSystem(socket=mounted.socket)
    root = str(mounted.dir)
    assert fs.ls(root, detail=False) == sorted(f"{root}/{n}" for n in os.listdir(mounted.origin))
    entries = {e["name"]: e for e in fs.ls(f"covey://{root}/", detail=True)}
    assert entries[f"{root}/class0"]["type"] == "directory"
    assert entries[f"{root}/note.txt"]["size"] == len(mounted.files["note.txt"])
    assert fs.ls(f"{root}/note.txt", detail=False) == [f"{root}/note.txt"]
    assert len(fs.glob(f"covey://{root}/class1/*.bin")) == 13
    assert fs.isdir(root) and fs.isfile(f"{root}/note.txt") and not fs.exists(f"{root}/none")
    assert fs.modified(f"{root}/note.txt").tzinfo is not None
    with pytest.raises(FileNotFoundError):
        fs.info(f"{root}/none")
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{root}/none")
    with pytest.raises(FileNotFoundError):
        fs.open(f"{root}/none")


@pytest.mark.parametrize(("start", "end"), [(None, None), (0, 10), (5, None), (-7, None), (3, -3), (10, 5), (10**9, None)])
def test_ranges(mounted, start, end) -> None:
    fs = CoveyFileSystem(socket=mounted.socket)
    data = mounted.files["class0/0000.bin"]
    assert fs.cat_file(f"{mounted.dir}/class0/0000.bin", start, end) == data[start:end]


def test_text_and_get(mounted, tmp_path: pathlib.Path) -> None:
    with fsspec.open(f"covey://{mounted.dir}/note.txt", "r", socket=mounted.socket) as f:
        assert f.read() == "no sample"
    fs = CoveyFileSystem(socket=mounted.socket)
    fs.get(f"{mounted.dir}/class0/", str(tmp_path / "got"), recursive=True)
    assert (tmp_path / "got" / "0003.bin").read_bytes() == mounted.files["class0/0003.bin"]


def test_only_reads(mounted) -> None:
    fs = CoveyFileSystem(socket=mounted.socket)
    name = f"{mounted.dir}/new"
    for write in (
        lambda: fs.open(name, "wb"),
        lambda: fs.pipe(name, b"x"),
        lambda: fs.touch(name),
        lambda: fs.mkdir(name),
        lambda: fs.makedirs(name),
        lambda: fs.rmdir(f"{mounted.dir}/class0"),
        lambda: fs.rm(f"{mounted.dir}/note.txt"),
        lambda: fs.cp_file(f"{mounted.dir}/note.txt", name),
        lambda: fs.mv(f"{mounted.dir}/note.txt", name),
    ):
        with pytest.raises(OSError) as refused:
            write()
        assert refused.value.errno == errno.EROFS
    fs.makedirs(f"{mounted.dir}/class0", exist_ok=True)
    assert (mounted.origin / "note.txt").exists()


def test_agent_absent(tree, tmp_path: pathlib.Path) -> None:
    root, files = tree
    nobody = str(tmp_path / "nobody.sock")
    fs = CoveyFileSystem(socket=nobody)
    with pytest.warns(CoveyWarning, match="nobody.sock") as told:
        for name, data in files.items():
            assert fs.cat_file(f"covey://{root}/{name}") == data
    assert len(told) == 1
    with pytest.raises(FileNotFoundError, match="covey mount s3://bucket/key"):
        fs.cat_file("covey://s3://bucket/key")


def test_not_mounted(mounted, tree) -> None:
    root, files = tree
    with pytest.warns(CoveyWarning, match="no mount covers"):
        assert CoveyFileSystem(socket=mounted.socket).cat_file(f"{root}/note.txt") == files["note.txt"]


def test_resolver_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    from covey.agent import Agent, Mount

    table = [
        Mount("s3://b/imagenet/?endpoint=http://h:9000&region=r", "/mnt/i"),
        Mount("s3://b/imagenet/val/", "/mnt/val"),
        Mount("file:///nfs/a%20b", "/mnt/nfs"),
        Mount("file:///", "/mnt/all"),
    ]
    monkeypatch.setattr(Agent, "mounts", lambda self: table)
    for name, want in {
        "s3://b/imagenet/train/x.jpg": "/mnt/i/train/x.jpg",
        "s3://b/imagenet/": "/mnt/i",
        "s3://b/imagenet/50%25 a?b#c": "/mnt/i/50%25 a?b#c",
        "s3://b/imagenet/val/y": "/mnt/val/y",
        "/nfs/a b/c": "/mnt/nfs/c",
        "/nfs/a bc": "/mnt/all/nfs/a bc",
        "file:///nfs/a b/c": "/mnt/nfs/c",
        "file:///nfs/a%20b/c": "/mnt/all/nfs/a%20b/c",
        "/mnt/i/x": "/mnt/i/x",
        "/mnt/i/../../etc/x": "/mnt/all/etc/x",
    }.items():
        assert Resolver("/none").resolve(name) == want, name
    for name in ("s3://b/imagenet2/x", "s3://c/imagenet/x"):
        with pytest.raises(FileNotFoundError, match="no mount covers"):
            Resolver("/none").resolve(name)


def _read(fs, name, into) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        into.put(fs.cat_file(name))


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_other_processes(mounted, how: str) -> None:
    fs = pickle.loads(pickle.dumps(CoveyFileSystem(socket=mounted.socket)))
    name = f"covey://{mounted.origin}/class0/0000.bin"
    fs.cat_file(name)
    context = multiprocessing.get_context(how)
    answers = context.Queue()
    child = context.Process(target=_read, args=(fs, name, answers))
    child.start()
    assert answers.get(timeout=30) == mounted.files["class0/0000.bin"]
    child.join(30)
    assert child.exitcode == 0


def test_pandas_and_pyarrow(mounted, tmp_path: pathlib.Path) -> None:
    pandas = pytest.importorskip("pandas")
    dataset = pytest.importorskip("pyarrow.dataset")
    frame = pandas.DataFrame({"a": range(1000), "b": [f"row {i}" for i in range(1000)]})
    for part in range(2):
        frame.to_parquet(tmp_path / f"part-{part}.parquet")
    client = mounted.running.client
    source, mount = tmp_path, tmp_path.parent / (tmp_path.name + "-mount")
    mount.mkdir()
    client.mount(str(source), str(mount))
    try:
        options = {"socket": mounted.socket}
        read = pandas.read_parquet(f"covey://{source}/part-0.parquet", storage_options=options)
        assert read.equals(frame)
        fs = CoveyFileSystem(socket=mounted.socket)
        table = dataset.dataset([f"{mount}/part-{part}.parquet" for part in range(2)], filesystem=fs).to_table()
        assert table.num_rows == 2000 and table.column("a").to_pylist() == 2 * list(range(1000))
    finally:
        _unmount(client, mount)


def _unmount(client: Agent, mount: pathlib.Path) -> None:
    """pyarrow's threads close their files a moment after the result is there."""
    deadline = time.monotonic() + 10
    while True:
        gc.collect()
        try:
            return client.unmount(str(mount))
        except AgentError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)
