"""The images of the examples, and the table they end with."""

from __future__ import annotations

import io
import pathlib
import sys
import tempfile
from collections.abc import Callable

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import covey.testing

# What a run gives for each epoch: losses, seconds, bytes from the origin.
Run = tuple[list[float], list[float], list[int]]


def pictures() -> list[tuple[bytes, int]]:
    """1,797 handwritten digits as PNG files, and what they show."""
    digits = load_digits()
    made = []
    for pixels, shown in zip(digits.images, digits.target, strict=True):
        file = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).save(file, "png")
        made.append((file.getvalue(), int(shown)))
    return made


def write_folder(root: pathlib.Path) -> int:
    """One directory a class, as ImageFolder wants it; returns the bytes."""
    total = 0
    for i, (png, shown) in enumerate(pictures()):
        path = root / str(shown) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
        total += len(png)
    return total


def table(rows: list[tuple[str, Run]]) -> str:
    """Runs, their losses and their seconds by epoch, and what the origin gave."""
    lines = [f"{'':<18}{'epoch':>6}{'loss':>22}{'seconds':>9}{'origin bytes':>14}"]
    for name, (losses, seconds, origin) in rows:
        for epoch, loss in enumerate(losses):
            lines.append(f"{name if epoch == 0 else '':<18}{epoch:>6}{loss:>22.17g}{seconds[epoch]:>9.2f}{origin[epoch]:>14,}")
    return "\n".join(lines)


def compare(
    write: Callable[[pathlib.Path], int], run: Callable[[list[str], list[covey.testing.Running]], Run]
) -> int:
    """Runs on the directory that ``write`` fills and over two agents that mount it.

    Prints both and returns the exit code: 1 unless the losses are equal and the
    origin was read once.
    """
    with tempfile.TemporaryDirectory() as directory:
        base = pathlib.Path(directory)
        size = write(base / "data")
        native = run([str(base / "data")], [])
        mounts = [base / "node0", base / "node1"]
        with covey.testing.mesh([{base / "data": m} for m in mounts]) as agents:
            meshed = run([str(m) for m in mounts], agents)
    print(table([("native directory", native), ("two agents", meshed)]))
    print(f"data set {size:,} bytes; origin/data set {sum(meshed[2]) / size:.4f}")
    if meshed[0] != native[0]:
        print("the losses differ", file=sys.stderr)
        return 1
    if sum(meshed[2]) > 1.01 * size:
        print("the origin was read more than once", file=sys.stderr)
        return 1
    return 0
