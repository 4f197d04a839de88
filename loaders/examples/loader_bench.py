"""What a DataLoader gets from a warm mount, beside the native directory.

    python loader_bench.py [--images 1000] [--rounds 5] [--samples 1000000]

Prints images a second of torchvision's ImageFolder (JPEG files of some 100 KiB, two
worker processes) over a mount and over the directory behind it, in turn, with the
median of the rounds' ratios; and how long a DataLoader over a data set of a million
names takes to its first batch, and how many directories its workers listed.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import covey.testing
from covey.torch import CoveySampler, FileDataset


def write_images(root: pathlib.Path, number: int) -> int:
    rng = np.random.default_rng(1)
    total = 0
    for i in range(number):
        coarse = rng.integers(0, 256, (47, 63, 3), dtype=np.uint8)
        file = io.BytesIO()
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BILINEAR)
        image.save(file, "jpeg", quality=95)
        path = root / str(i % 10) / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
        total += file.tell()
    return total // number


def images_a_second(root: pathlib.Path, socket: str | None, epoch: int) -> float:
    picture = transforms.Compose([transforms.RandomResizedCrop(224), transforms.ToTensor()])
    data = ImageFolder(str(root), picture)
    sampler = CoveySampler(data, 1, 0, socket=socket, announce=socket is not None)
    sampler.set_epoch(epoch)
    loader = DataLoader(data, 32, sampler=sampler, num_workers=2)
    begun, seen = time.monotonic(), 0
    for images, _ in loader:
        seen += len(images)
    return seen / (time.monotonic() - begun)


_listings = 0


def _count_listings(worker: int) -> None:
    def hook(event: str, args: tuple) -> None:
        global _listings
        if event in ("os.scandir", "os.listdir"):
            _listings += 1

    sys.addaudithook(hook)


def _with_listings(batch: list[bytes]) -> tuple[int, int]:
    return len(batch), _listings


def first_batch(root: pathlib.Path, samples: int, have: int) -> tuple[float, int]:
    """Seconds to the first batch, from the names on, and listings by its worker."""
    names = [f"{i % have:05d}.bin" for i in range(samples)]
    begun = time.monotonic()
    data = FileDataset(root, names=names)
    sampler = CoveySampler(data, 8, 0, announce=False)
    loader = DataLoader(data, 64, sampler=sampler, num_workers=2, worker_init_fn=_count_listings, collate_fn=_with_listings)
    _, listings = next(iter(loader))
    return time.monotonic() - begun, listings


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--samples", type=int, default=1_000_000)
    asked = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        base = pathlib.Path(directory)
        size = write_images(base / "images", asked.images)
        for i in range(1000):
            path = base / "images" / "9" / "many" / f"{i:05d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(1000))
        with covey.testing.agent({base / "images": base / "mount"}, cache="1GiB") as agent:
            images_a_second(base / "mount", agent.socket, 0)
            images_a_second(base / "images", None, 0)
            ratios, native, mounted = [], [], []
            for r in range(1, asked.rounds + 1):
                native.append(images_a_second(base / "images", None, r))
                mounted.append(images_a_second(base / "mount", agent.socket, r))
                ratios.append(mounted[-1] / native[-1])
            print(f"ImageFolder, {asked.images} files of {size >> 10} KiB, 2 processes, median of {asked.rounds}:")
            print(f"  native {statistics.median(native):.0f}/s, mount {statistics.median(mounted):.0f}/s,"
                  f" ratio {statistics.median(ratios):.2f}")  # fmt: skip
            took = [first_batch(base / "mount" / "9" / "many", asked.samples, 1000) for _ in range(3)]
            print(f"first batch of {asked.samples:,} samples, 2 processes: median"
                  f" {statistics.median(t for t, _ in took):.2f} s, {max(n for _, n in took)} listings by a worker")  # fmt: skip


if __name__ == "__main__":
    main()
