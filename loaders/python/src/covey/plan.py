"""Tells the agent what a job will read, so that it is there before it is asked for.

A plan is a manifest (which samples there are, and where), an order (40 bytes or a
list) and the ranks that read here. The agent answers with a cursor: a file with one
counter for each rank, which the loader advances and the agent reads ahead of.

    with covey.plan.post(agent, "/mnt/imagenet", Spec(samples=n, world=8), ranks=[0]) as plan:
        for taken, index in enumerate(order, 1):
            read(index)
            plan.advance(0, taken)

Plans are advice. A wrong one costs speed, never correctness.
"""

from __future__ import annotations

import base64
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from covey.agent import Agent, AgentError, AgentUnavailable
from covey.paths import warn_once
from covey.spec import Spec

__all__ = ["Cursor", "Manifest", "Plan", "encode_ranges", "post"]

_MAGIC = b"COVEYCUR"
_VERSION = 1
_ENDED = 16  # where the state is

# How long ending a plan may hold up a process that exits. The lease ends it too.
_CANCEL_TIMEOUT = 1.0

# How long a plan outlives a job that died, and how long a job may pause (for its
# validation, say) before its plan has to be posted again.
_LEASE_SECONDS = 300


@dataclass(frozen=True)
class Manifest:
    """Which samples there are.

    ``files`` are paths below the source in the order of their samples. Without
    them they are all files below it, or those whose names end in one of
    ``suffixes``, in the order of their paths' bytes. A file is one sample; or
    ``counts`` has how many it holds, all of one length; or ``ranges`` says where
    each lies (``encode_ranges``); or ``format`` has the agent look: "tfrecord",
    "webdataset" or "parquet".
    """

    files: Sequence[str] = ()
    suffixes: Sequence[str] = ()
    counts: Sequence[int] = ()
    ranges: bytes = b""
    format: str = ""

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {}
        for name in ("files", "suffixes", "counts"):
            if value := getattr(self, name):
                body[name] = list(value)
        if self.ranges:
            body["ranges"] = base64.b64encode(self.ranges).decode()
        if self.format:
            body["format"] = self.format
        return body


def encode_ranges(samples: Iterable[tuple[int, int, int]]) -> bytes:
    """Where samples lie, for ``Manifest.ranges``.

    Each sample is (file, offset, length), in the order of the files and, within a
    file, of the offsets; samples do not overlap. ValueError for anything else.
    """
    out = bytearray()
    last, end = 0, 0
    for file, offset, length in samples:
        if file < last or length < 0 or offset < (end if file == last else 0):
            raise ValueError(f"sample {(file, offset, length)} comes after byte {end} of file {last}")
        for number in (file - last, offset - (end if file == last else 0), length):
            while number >= 0x80:
                out.append(number & 0x7F | 0x80)
                number >>= 7
            out.append(number)
        last, end = file, offset + length
    return bytes(out)


class Cursor:
    """The counters of a plan's ranks, in a file that the agent reads.

    A counter says how many samples of its rank's order have been taken, in all
    epochs of the plan together. Setting one is a store to memory. Each counter has
    one writer; processes may map the same file. ValueError for a file that is no
    cursor, OSError when it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if sys.byteorder != "little":
            # Counters are little-endian and must be written in one store, which
            # struct's "<Q" does not promise.
            raise ValueError("cursor files need a little-endian machine")
        self.path = os.fspath(path)
        with open(self.path, "r+b") as f:
            size = os.fstat(f.fileno()).st_size
            if size < 64:
                raise ValueError(f"{self.path} has {size} bytes and is no cursor file")
            self._map = mmap.mmap(f.fileno(), size)
        head = memoryview(self._map)
        self._words = head.cast("I")
        number, first = self._words[3], self._words[5]
        if head[:8] != _MAGIC or self._words[2] != _VERSION or first % 8 or first + 8 * number > size:
            self.close()
            raise ValueError(f"{self.path} is no cursor file of version {_VERSION}")
        self._counters = head[first : first + 8 * number].cast("Q")

    def __len__(self) -> int:
        return len(self._counters)

    def __getitem__(self, index: int) -> int:
        return self._counters[index]

    def __setitem__(self, index: int, taken: int) -> None:
        self._counters[index] = taken

    @property
    def ended(self) -> bool:
        """Whether the agent has forgotten the plan; its counters do no more."""
        return self._words[_ENDED // 4] != 0

    def close(self) -> None:
        for view in ("_counters", "_words"):
            if (v := getattr(self, view, None)) is not None:
                v.release()
        try:
            self._map.close()
        except BufferError:
            pass  # a view lives on in an exception's frame; the collector has it


@dataclass
class Plan:
    """A plan that the agent holds, as it was when it was taken.

    It ends when it is closed, or collected, or when its process exits, and else a
    lease after its last counter moved. A forked process may advance its own ranks;
    only the one that posted the plan ends it.
    """

    id: str
    ranks: Sequence[int]
    cursor: Cursor
    agent: Agent = field(repr=False)

    def __post_init__(self) -> None:
        self._slots = {rank: i for i, rank in enumerate(self.ranks)}
        self._end = weakref.finalize(self, _cancel, self.agent.socket, self.id, os.getpid())

    def advance(self, rank: int, taken: int) -> None:
        """Says that a rank has taken so many samples since the plan's beginning."""
        self.cursor[self._slots[rank]] = taken

    @property
    def ended(self) -> bool:
        return self.cursor.ended

    def status(self) -> dict[str, Any]:
        """How far it is; AgentError with status 404 when it has ended."""
        return self.agent.plan(self.id)

    def renew(self, lease_seconds: int = 0) -> dict[str, Any]:
        """Lets the lease run from now, for another time unless that is 0."""
        return self.agent.renew_plan(self.id, lease_seconds)

    def close(self) -> None:
        self._end()

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _cancel(socket: str, id: str, pid: int) -> None:
    if pid != os.getpid():
        return  # a fork's copy
    try:
        Agent(socket, timeout=_CANCEL_TIMEOUT).cancel_plan(id)
    except (AgentUnavailable, AgentError):
        pass  # its lease ends


def post(
    agent: Agent,
    source: str,
    order: Spec | Sequence[Sequence[int]],
    ranks: Sequence[int],
    *,
    manifest: Manifest | None = None,
    epochs: int = 1,
    nodes: Sequence[str] = (),
    job: str = "",
    lease_seconds: int = _LEASE_SECONDS,
) -> Plan:
    """Posts a plan and returns when the agent has taken it.

    ``order`` is a Spec, which holds for ``epochs`` epochs from its own on, or for
    each rank a list of sample numbers. ``nodes`` has each rank's host name or peer
    ID where the job knows them; the agents find each other without. The manifest
    is looked up in the background: a plan may still fail, which ``Plan.status``
    tells.

    AgentUnavailable when no agent answers, AgentError when it refuses.
    """
    body: dict[str, Any] = {
        "source": source,
        "manifest": (manifest or Manifest()).to_json(),
        "ranks": list(ranks),
        "job": job,
        "lease_seconds": lease_seconds,
    }
    if nodes:
        body["nodes"] = list(nodes)
    if isinstance(order, Spec):
        body["spec"] = base64.b64encode(order.to_bytes()).decode()
        body["epochs"] = epochs
    else:
        body["orders"] = [list(o) for o in order]
    taken = agent.post_plan(body)
    try:
        cursor = Cursor(taken["cursor"])
    except (OSError, ValueError, KeyError) as err:
        _cancel(agent.socket, str(taken.get("id")), os.getpid())
        raise AgentError(200, f"the plan's cursor cannot be used: {err}") from err
    return Plan(taken["id"], tuple(ranks), cursor, agent)


class Announcer:
    """Keeps one plan posted for a loader, or explains once why it cannot.

    Nothing here raises: a job without its plan reads the same bytes, later.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, job: str = "") -> None:
        self._socket = socket
        self._job = job
        self.plan: Plan | None = None  # the one that is posted
        self._silent = threading.Event()

    def post(
        self,
        source: str,
        manifest: Manifest,
        order: Spec | Sequence[Sequence[int]],
        ranks: Sequence[int],
        *,
        epochs: int = 1,
    ) -> Plan | None:
        """Replaces the plan. None when there is no agent or it does not take it."""
        self.close()
        if self._silent.is_set():
            return None
        try:
            # A loader waits for this, so not for long.
            agent = Agent(self._socket, timeout=2.0)
            self.plan = post(agent, source, order, ranks, manifest=manifest, epochs=epochs, job=self._job)
        except (AgentUnavailable, AgentError, ValueError) as err:
            self._complain(source, err)
        return self.plan

    def _complain(self, source: str, err: Exception) -> None:
        self._silent.set()
        warn_once(f"the agent does not know what will be read of {source}: {err}")

    def close(self) -> None:
        if self.plan is not None:
            self.plan.close()
            self.plan = None

    def __reduce__(self) -> Any:
        return Announcer, (self._socket, self._job)
