"""Starts a throw-away agent, for tests of code that reads through covey.

    with covey.testing.agent(mounts={"/data": "/mnt/data"}) as running:
        assert running.client.mounts()

    with covey.testing.mesh([{"/data": "/mnt/a"}, {"/data": "/mnt/b"}]) as (a, b):
        ...  # two members of a cluster, that read each other's cache

It needs the ``covey`` program and what that needs to mount, /dev/fuse above all.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from covey.agent import Agent, AgentUnavailable

__all__ = ["Running", "agent", "mesh", "program"]


@dataclass(frozen=True)
class Running:
    """An agent that runs: its socket, a client of it, and its process."""

    socket: str
    client: Agent
    process: subprocess.Popen[bytes]
    log: pathlib.Path


def program() -> str:
    """The ``covey`` program: COVEY_BIN, or the one on the PATH."""
    found = os.environ.get("COVEY_BIN") or shutil.which("covey")
    if not found or not os.access(found, os.X_OK):
        raise FileNotFoundError("the covey program is not on the PATH; set COVEY_BIN to where it is")
    return found


@contextmanager
def agent(
    mounts: Mapping[str | os.PathLike[str], str | os.PathLike[str]],
    *,
    cache: str = "256MiB",
    timeout: float = 30.0,
    options: Sequence[str] = (),
) -> Iterator[Running]:
    """Runs an agent of its own that has mounted everything, and ends it.

    ``mounts`` are sources and the directories to mount them on, made where they
    are missing. The agent is no member of a mesh, listens on loopback only, and
    leaves nothing behind but those directories. ``options`` are further ones of
    ``covey agent``. TimeoutError when it is not ready
    in time, RuntimeError with its last words when it ends first.
    """
    # Short, because a socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="covey-") as state:
        socket = os.path.join(state, "agent.sock")
        log = pathlib.Path(state, "log")
        command = [
            program(), "agent", "--api", f"unix://{socket}", "--state", os.path.join(state, "state"),
            "--cache", os.path.join(state, "cache") + ":" + cache, "--listen", "127.0.0.1:0", "--http", "off",
            *options,
        ]
        for source, directory in mounts.items():
            os.makedirs(directory, exist_ok=True)
            command += ["--mount", f"{os.fspath(source)}={os.fspath(directory)}"]
        # The settings of the user's own agent are not for this one.
        env = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)
        running = Running(socket, Agent(socket), process, log)
        try:
            _await_ready(running, timeout)
            yield running
        finally:
            _end(process)


@contextmanager
def mesh(
    mounts: Sequence[Mapping[str | os.PathLike[str], str | os.PathLike[str]]],
    *,
    cache: str = "256MiB",
    timeout: float = 30.0,
    options: Sequence[str] = (),
) -> Iterator[list[Running]]:
    """Runs one agent for each of ``mounts``, members of one new cluster.

    It returns when each knows all others. The rest is as with ``agent``.
    """
    with tempfile.TemporaryDirectory(prefix="covey-key-") as directory, ExitStack() as stack:
        key = os.path.join(directory, "cluster.key")
        with open(key, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as f:
            subprocess.run([program(), "cluster", "init"], stdout=f, check=True, timeout=timeout)
        running: list[Running] = []
        for i, wanted in enumerate(mounts):
            how = ["--cluster-key", key, "--host", f"node{i}", *options]
            if running:
                how += ["--join", running[0].client.status()["listen"][0]]
            running.append(stack.enter_context(agent(wanted, cache=cache, timeout=timeout, options=how)))
        deadline = time.monotonic() + timeout
        while any(len(r.client.peers()) < len(mounts) - 1 for r in running):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the agents did not all meet in {timeout:g} s")
            time.sleep(0.02)
        yield running


def _await_ready(running: Running, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        if running.process.poll() is not None:
            raise RuntimeError(f"the agent ended: {running.log.read_text(errors='replace')[-2000:]}")
        try:
            if running.client.ready():
                return
        except AgentUnavailable:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"the agent was not ready in {timeout:g} s: {running.log.read_text()[-2000:]}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM unmounts and leaves within 5 s; what takes twice that is killed."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
