"""A sampler and a data set for PyTorch; needs the extra ``covey[torch]``."""

from covey.torch.files import FileDataset
from covey.torch.sampler import CoveySampler

__all__ = ["CoveySampler", "FileDataset"]
