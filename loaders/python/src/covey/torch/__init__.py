"""A sampler and data sets for PyTorch; needs the extra ``covey[torch]``."""

from covey.torch.files import FileDataset
from covey.torch.sampler import CoveySampler
from covey.torch.shards import ShardDataset

__all__ = ["CoveySampler", "FileDataset", "ShardDataset"]
