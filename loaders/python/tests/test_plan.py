from __future__ import annotations

import os
import pathlib
import pickle
import random
import struct
import time

import pytest

import covey.testing
from covey.agent import Agent, AgentError, AgentUnavailable
from covey.plan import Announcer, Cursor, Manifest, encode_ranges, post
from covey.spec import Spec


def cursor_file(path: pathlib.Path, n: int = 2, magic: bytes = b"COVEYCUR", version: int = 1, first: int = 64) -> pathlib.Path:
    path.write_bytes(struct.pack("<8sIIII", magic, version, n, 0, first).ljust(64, b"\0") + bytes(8 * n))
    return path


def test_cursor(tmp_path: pathlib.Path) -> None:
    path = cursor_file(tmp_path / "c", 3)
    cursor = Cursor(path)
    assert (len(cursor), list(cursor), cursor.ended) == (3, [0, 0, 0], False)
    cursor[1] = 2**40 + 7
    other = Cursor(path)
    assert other[1] == 2**40 + 7
    assert struct.unpack_from("<3Q", path.read_bytes(), 64) == (0, 2**40 + 7, 0)
    with path.open("r+b") as f:
        f.seek(16)
        f.write(b"\1")
    assert cursor.ended
    path.unlink()
    cursor[0] = 5  # as when the plan has ended
    assert other[0] == 5
    cursor.close()
    other.close()
    with pytest.raises(IndexError):
        Cursor(cursor_file(path, 1))[1] = 0


@pytest.mark.parametrize(
    "what", [dict(magic=b"COVEYCUX"), dict(version=2), dict(first=60), dict(first=1 << 20), dict(n=0, first=72)]
)
def test_no_cursor(tmp_path: pathlib.Path, what) -> None:
    with pytest.raises(ValueError, match="no cursor"):
        Cursor(cursor_file(tmp_path / "c", **what))


def test_short_cursor(tmp_path: pathlib.Path) -> None:
    for size in (0, 63):
        (tmp_path / "c").write_bytes(bytes(size))
        with pytest.raises(ValueError, match="no cursor"):
            Cursor(tmp_path / "c")
    with pytest.raises(FileNotFoundError):
        Cursor(tmp_path / "none")


def decode(ranges: bytes) -> list[tuple[int, int, int]]:
    numbers, shift, value = [], 0, 0
    for byte in ranges:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            shift = value = 0
    samples, file, end = [], 0, 0
    for skip, gap, length in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        end = gap if skip else end + gap
        file += skip
        samples.append((file, end, length))
        end += length
    return samples


def test_ranges() -> None:
    rng = random.Random(3)
    for _ in range(200):
        want, file, end = [], 0, 0
        for _ in range(rng.randrange(30)):
            if rng.random() < 0.3:
                file, end = file + rng.randrange(1, 4), 0
            sample = (file, end + rng.choice((0, 16, 2**33)), rng.choice((0, 1, 127, 128, 2**20)))
            want.append(sample)
            end = sample[1] + sample[2]
        assert decode(encode_ranges(want)) == want
    for wrong in ([(0, 0, 5), (0, 4, 1)], [(1, 0, 1), (0, 0, 1)], [(0, 0, -1)]):
        with pytest.raises(ValueError, match="comes after"):
            encode_ranges(wrong)


def settled(agent: Agent, id: str, state: str = "active", timeout: float = 20) -> dict:
    deadline = time.monotonic() + timeout
    while True:
        plan = agent.plan(id)
        if plan["state"] == state:
            return plan
        assert time.monotonic() < deadline, plan
        time.sleep(0.02)


def test_post(mounted) -> None:
    agent = Agent(mounted.socket)
    files = sorted((n for n in mounted.files if n.lower().endswith(".bin")), key=os.fsencode)
    spec = Spec(samples=len(files), world=2, seed=3)
    with post(agent, str(mounted.dir), spec, [1, 0], manifest=Manifest(suffixes=[".bin"]), epochs=2, job="a job") as plan:
        status = settled(agent, plan.id)
        assert (status["samples"], status["world"], status["job"]) == (len(files), 2, "a job")
        plan.advance(0, 3)
        plan.advance(1, 1)
        deadline = time.monotonic() + 10
        while [r["position"] for r in plan.status()["ranks"]] != [1, 3]:
            assert time.monotonic() < deadline, plan.status()
            time.sleep(0.02)
        assert plan.id in [p["id"] for p in agent.plans()]
        assert plan.renew(30)["lease_seconds"] == 30
        assert not plan.ended
    deadline = time.monotonic() + 10
    while not plan.ended:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(AgentError) as caught:
        plan.status()
    assert caught.value.status == 404


def test_post_ranges_and_orders(mounted) -> None:
    agent = Agent(mounted.socket)
    names = [n for n in sorted(mounted.files) if len(mounted.files[n]) > 100]
    samples = [(i, at, 50) for i in range(len(names)) for at in (0, 50)]
    manifest = Manifest(files=names, ranges=encode_ranges(samples))
    with post(agent, str(mounted.dir), [list(range(0, len(samples), 2))], [0], manifest=manifest) as plan:
        assert settled(agent, plan.id)["samples"] == len(samples)


def test_refused(mounted, tmp_path: pathlib.Path) -> None:
    agent = Agent(mounted.socket)
    with pytest.raises(AgentError) as caught:
        post(agent, str(mounted.dir), Spec(samples=4, world=1), [1])
    assert caught.value.status == 400
    with pytest.raises(AgentUnavailable):
        post(Agent(tmp_path / "none"), str(mounted.dir), Spec(samples=4, world=1), [0])
    with post(agent, str(mounted.dir), Spec(samples=4, world=1), [0]) as plan:
        assert "samples" in settled(agent, plan.id, "failed")["reason"]


def test_fork_does_not_end_it(mounted) -> None:
    agent = Agent(mounted.socket)
    with post(agent, str(mounted.dir), Spec(samples=len(mounted.files), world=1), [0]) as plan:
        pid = os.fork()
        if pid == 0:
            plan.advance(0, 2)
            plan.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert plan.cursor[0] == 2
        assert agent.plan(plan.id)


def test_announcer_warns_once(tmp_path: pathlib.Path) -> None:
    announcer = pickle.loads(pickle.dumps(Announcer(tmp_path / "none")))
    with pytest.warns(UserWarning, match="does not know what will be read") as warned:
        for _ in range(3):
            assert announcer.post("/data", Manifest(), Spec(1, 1), [0]) is None
    assert len(warned) == 1
