"""The sampler and the agent agree about what is read."""

from __future__ import annotations

import gc
import itertools
import pickle
import time

import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from covey.agent import Agent  # noqa: E402
from covey.plan import Manifest  # noqa: E402
from covey.torch import CoveySampler, FileDataset  # noqa: E402


@pytest.fixture
def data(mounted) -> FileDataset:
    return FileDataset(mounted.dir, suffixes=[".bin"], socket=mounted.socket)


def planned(agent: Agent, sampler: CoveySampler, **want) -> dict:
    """The sampler's plan, once it is as wanted."""
    assert sampler.plan is not None
    deadline = time.monotonic() + 20
    while True:
        plan = agent.plan(sampler.plan.id)
        if plan["state"] == "active" and all(plan[k] == v for k, v in want.items()):
            return plan
        assert time.monotonic() < deadline, plan
        time.sleep(0.02)


def position(agent: Agent, sampler: CoveySampler, want: int) -> None:
    deadline = time.monotonic() + 20
    while (ranks := agent.plan(sampler.plan.id)["ranks"])[0]["position"] != want:
        assert time.monotonic() < deadline, ranks
        time.sleep(0.02)


def test_follows_every_epoch(mounted, data) -> None:
    agent = Agent(mounted.socket)
    sampler = CoveySampler(data, 3, 1, seed=7, socket=mounted.socket, job="digits")
    per = len(sampler)
    assert sampler.plan is None

    def ours() -> list[str]:
        return [p["id"] for p in agent.plans() if p.get("job") == "digits"]

    for epoch in range(3):
        sampler.set_epoch(epoch)
        for taken, _ in enumerate(sampler, 1):
            assert sampler.plan.cursor[0] == epoch * per + taken
        plan = planned(agent, sampler, samples=len(data), world=3, job="digits")
        assert plan["ranks"][0]["rank"] == 1
    position(agent, sampler, 3 * per)
    assert ours() == [sampler.plan.id], "one plan for all epochs"
    first = sampler.plan.id
    # Back to an epoch that was: the counter cannot go back, so it is another plan.
    sampler.set_epoch(1)
    next(iter(sampler))
    assert sampler.plan.id != first
    assert ours() == [sampler.plan.id]
    assert sampler.plan.cursor[0] == 1
    # And on over an epoch that was not read.
    second = sampler.plan.id
    sampler.set_epoch(3)
    next(iter(sampler))
    assert (sampler.plan.id, sampler.plan.cursor[0]) == (second, 2 * per + 1)
    del sampler
    gc.collect()  # a sampler and its pass know each other
    assert ours() == []


def test_unshuffled_passes_follow_each_other(mounted, data) -> None:
    sampler = CoveySampler(data, 1, 0, shuffle=False, socket=mounted.socket)
    list(itertools.islice(sampler, 5))
    first = sampler.plan.id
    list(sampler)
    assert (sampler.plan.id, sampler.plan.cursor[0]) == (first, 2 * len(data))


def test_resumes_with_another_world(mounted, data) -> None:
    agent = Agent(mounted.socket)
    before = CoveySampler(data, 2, 0, seed=1, socket=mounted.socket)
    before.set_epoch(4)
    list(itertools.islice(before, 6))
    after = CoveySampler(data, 3, 2, seed=1, socket=mounted.socket)
    after.load_state_dict(before.state_dict())
    after.set_epoch(4)
    rest = list(after)
    plan = planned(agent, after, world=3, epoch=4)
    assert plan["ranks"][0]["rank"] == 2
    assert after.plan.cursor[0] == len(rest)
    kept = after.plan.id
    after.set_epoch(5)
    next(iter(after))
    assert (after.plan.id, after.plan.cursor[0]) == (kept, len(rest) + 1)


def test_a_plan_that_ended_is_posted_again(mounted, data) -> None:
    agent = Agent(mounted.socket)
    sampler = CoveySampler(data, 1, 0, socket=mounted.socket)
    list(sampler)
    gone = sampler.plan
    agent.cancel_plan(gone.id)
    deadline = time.monotonic() + 10
    while not gone.ended:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sampler.set_epoch(1)
    list(sampler)
    assert sampler.plan.id != gone.id
    assert sampler.plan.cursor[0] == len(data)


def test_dataloader_with_processes(mounted, data) -> None:
    sampler = CoveySampler(data, 1, 0, socket=mounted.socket)
    for context in ("fork", "spawn"):
        loader = DataLoader(data, 4, sampler=sampler, num_workers=2, multiprocessing_context=context, collate_fn=len)
        assert sum(loader) == len(data)
        assert not sampler.plan.ended, "a worker that exits does not end the plan"


def test_image_folder_and_others(mounted, data, tmp_path) -> None:
    class Folder:
        root = str(mounted.dir)
        samples = [(f"{mounted.dir}/{n}", 0) for n in ("UPPER.BIN", "note.txt", "class1/0001.bin")]

        def __len__(self) -> int:
            return len(self.samples)

    agent = Agent(mounted.socket)
    for dataset, how in (
        (Folder(), {}),
        (range(3), dict(source=str(mounted.dir), manifest=Manifest(files=["UPPER.BIN", "note.txt", "empty.bin"]))),
        (FileDataset(mounted.dir, names=["note.txt", "UPPER.BIN", "empty.bin"], socket=mounted.socket), {}),
    ):
        sampler = CoveySampler(dataset, 1, 0, socket=mounted.socket, **how)
        assert sorted(sampler) == [0, 1, 2]
        assert planned(agent, sampler, samples=3)["files"] == 3
    for unknown in (range(5), [1, 2]):
        sampler = CoveySampler(unknown, 1, 0, socket=mounted.socket)
        assert len(list(sampler)) == len(unknown) and sampler.plan is None
    assert CoveySampler(data, 1, 0, announce=False, socket=mounted.socket)._announced is None
    with pytest.raises(ValueError, match="go together"):
        CoveySampler(data, 1, 0, source="/x")


def test_pickled_without_its_plan(mounted, data) -> None:
    sampler = CoveySampler(data, 1, 0, socket=mounted.socket)
    list(sampler)
    copy = pickle.loads(pickle.dumps(CoveySampler(data, 1, 0, socket=mounted.socket)))
    assert list(copy) == list(sampler)
    assert copy.plan is not None


def test_no_agent(tree, tmp_path) -> None:
    root, _ = tree
    nobody = str(tmp_path / "none")
    with pytest.warns(UserWarning) as warned:
        data = FileDataset(root, socket=nobody)
        sampler = CoveySampler(data, 1, 0, socket=nobody)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            assert sorted(sampler) == list(range(len(data)))
    assert len(warned) == 1
