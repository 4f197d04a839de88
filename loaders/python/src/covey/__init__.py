"""Reads training data through covey, a cache mesh among the nodes of a cluster.

Nothing here is needed to use covey: its mounts are ordinary directories. The
modules save the steps around them:

- ``covey.agent`` asks the agent of this machine what is mounted, and more.
- ``covey.fsspec`` opens ``covey://`` names in pandas, pyarrow and the like.
- ``covey.torch`` has a sampler and a data set for PyTorch.
- ``covey.spec`` describes the order of an epoch in 40 bytes.
- ``covey.testing`` starts an agent for tests.

Importing ``covey`` imports no framework, and where no agent runs, the data is
read from where it lies.
"""

from covey.agent import Agent, AgentError, AgentUnavailable
from covey.spec import Spec

__all__ = ["Agent", "AgentError", "AgentUnavailable", "Spec", "__version__"]

__version__ = "0.1.0"
