from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator

import pytest

import covey.paths
import covey.testing

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
VECTORS = REPOSITORY / "fetch" / "plan" / "testdata"


@pytest.fixture(autouse=True)
def _forget_the_warning() -> Iterator[None]:
    covey.paths._warned.clear()
    yield


@pytest.fixture
def vectors() -> pathlib.Path:
    return VECTORS


def fill(root: pathlib.Path, files: int = 40) -> dict[str, bytes]:
    """Files of odd sizes and names, the same each time."""
    rng = random.Random(1)
    made = {"empty.bin": b"", "sub/näme with spaces %3F#.bin": b"x", "UPPER.BIN": b"upper", "note.txt": b"no sample"}
    for i in range(files):
        made[f"class{i % 3}/{i:04d}.bin"] = rng.randbytes(rng.randrange(1, 100_000))
    for name, data in made.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return made


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> tuple[pathlib.Path, dict[str, bytes]]:
    root = tmp_path / "origin"
    root.mkdir()
    return root, fill(root)


class Mounted:
    def __init__(self, running: covey.testing.Running, origin: pathlib.Path, dir: pathlib.Path, files: dict[str, bytes]):
        self.running, self.origin, self.dir, self.files = running, origin, dir, files
        self.socket = running.socket


@pytest.fixture(scope="session")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A real agent that has a directory mounted."""
    try:
        covey.testing.program()
    except FileNotFoundError as err:
        pytest.skip(str(err))
    if not pathlib.Path("/dev/fuse").exists():
        pytest.skip("/dev/fuse is missing")
    base = tmp_path_factory.mktemp("mounted")
    origin, dir = base / "origin", base / "mount"
    origin.mkdir()
    files = fill(origin)
    # The tests add files to the origin, and read them at once.
    with covey.testing.agent({origin: dir}, options=["--max-age", "0s"]) as running:
        yield Mounted(running, origin, dir, files)
    assert running.process.returncode == 0, "the agent did not leave in peace"
    assert not dir.is_mount()
