"""The images of the examples, and the table they end with."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


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


def table(rows: list[tuple[str, list[float], list[float], list[int]]]) -> str:
    """Runs, their losses and their seconds by epoch, and what the origin gave."""
    lines = [f"{'':<18}{'epoch':>6}{'loss':>22}{'seconds':>9}{'origin bytes':>14}"]
    for name, losses, seconds, origin in rows:
        for epoch, loss in enumerate(losses):
            lines.append(f"{name if epoch == 0 else '':<18}{epoch:>6}{loss:>22.17g}{seconds[epoch]:>9.2f}{origin[epoch]:>14,}")
    return "\n".join(lines)
