"""Trains a CNN over two agents with two ranks each (gloo), and on the directory.

    python torch_digits.py

Prints the loss of each epoch, its time, and what the origin was asked for, and
fails unless both runs have the same losses to the last bit.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from digits import Run, compare, write_folder
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import covey.testing
from covey.torch import CoveySampler

EPOCHS, RANKS = 3, 4


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def train(rank: int, store: str, roots: list[str], sockets: list[str], results: mp.Queue) -> None:
    """One rank: an ordinary DDP loop, but for the sampler."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    node = rank * len(roots) // RANKS
    picture = transforms.Compose([transforms.Grayscale(), transforms.ToTensor()])
    data = ImageFolder(roots[node], picture)
    if sockets:
        sampler = CoveySampler(data, seed=1, socket=sockets[node], job="digits")
    else:
        sampler = CoveySampler(data, seed=1, announce=False)
    loader = DataLoader(data, batch_size=32, sampler=sampler, num_workers=1)
    net = DistributedDataParallel(model())
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        begun, total = time.monotonic(), torch.zeros(1, dtype=torch.float64)
        for images, classes in loader:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(images), classes)
            loss.backward()
            optimiser.step()
            total += loss.detach().double()
        dist.all_reduce(total)
        if rank == 0:
            results.put((total.item() / len(loader) / RANKS, time.monotonic() - begun))
        dist.barrier()
    planned = sampler.plan is not None and sampler.plan.status()["state"] == "active"
    assert planned or not sockets, "the agent did not take the plan"
    dist.destroy_process_group()


def run(roots: list[str], agents: list[covey.testing.Running]) -> Run:
    """The losses, seconds and origin bytes of each epoch."""
    losses, seconds, origin = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        context = mp.get_context("spawn")
        results = context.Queue()
        ranks = mp.spawn(
            train,
            (os.path.join(directory, "store"), roots, [a.socket for a in agents], results),
            nprocs=RANKS,
            join=False,
        )
        before = 0
        for _ in range(EPOCHS):
            while results.empty():
                ranks.join(0.05)  # raises what a rank raised
            loss, took = results.get()
            now = sum(a.client.status()["origin_bytes"] for a in agents)
            losses.append(loss), seconds.append(took), origin.append(now - before)
            before = now
        while not ranks.join():
            pass
    return losses, seconds, origin


if __name__ == "__main__":
    sys.exit(compare(write_folder, run))
