from __future__ import annotations

import multiprocessing
import pathlib
import pickle
import socket
import threading

import pytest

import covey.testing
from covey.agent import Agent, AgentError, AgentUnavailable, default_socket


def test_default_socket(tmp_path: pathlib.Path) -> None:
    assert default_socket({"COVEY_API": "unix:///a/b.sock"}) == "/a/b.sock"
    assert default_socket({}) == "/run/covey/agent.sock"
    run = tmp_path / "covey"
    run.mkdir()
    (run / "agent.sock").touch()
    assert default_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == str(run / "agent.sock")
    assert default_socket({"XDG_RUNTIME_DIR": "relative"}) == "/run/covey/agent.sock"
    for wrong in ("/a/b.sock", "unix://a", "http://x"):
        with pytest.raises(ValueError, match="unix:///run"):
            default_socket({"COVEY_API": wrong})


def test_nobody_answers(tmp_path: pathlib.Path) -> None:
    missing = tmp_path / "none.sock"
    with pytest.raises(AgentUnavailable, match="none.sock"):
        Agent(missing).mounts()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(missing))  # never listens
        with pytest.raises(AgentUnavailable):
            Agent(missing).status()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", AgentUnavailable),
        (b"", AgentUnavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html", AgentError),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n[{"a"1]', AgentError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull", AgentError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[", AgentUnavailable),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", AgentError),
    ],
)
def test_something_else_answers(tmp_path: pathlib.Path, answer: bytes, error: type[Exception]) -> None:
    path = str(tmp_path / "other.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            conn, _ = server.accept()
            with conn:
                conn.recv(4096)
                conn.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(error):
            Agent(path, timeout=5).mounts()
        thread.join()


def test_silence_ends(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "silent.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        with pytest.raises(AgentUnavailable, match="timed out"):
            Agent(path, timeout=0.1).mounts()


def test_real_agent(mounted) -> None:
    agent = Agent(mounted.socket)
    assert agent.ready()
    assert agent.status()["ready"] is True
    assert agent.peers() == []
    (mount,) = agent.mounts()
    assert (mount.source, mount.dir) == (f"file://{mounted.origin}", str(mounted.dir))
    where = agent.locate(str(mounted.dir / "class0" / "0000.bin"))
    assert where["size"] == len(mounted.files["class0/0000.bin"])
    with pytest.raises(AgentError) as refused:
        agent.locate("/nowhere/at all")
    assert refused.value.status == 404
    assert "\n" not in str(refused.value)


def test_real_mount_and_prefetch(mounted, tmp_path: pathlib.Path) -> None:
    agent = Agent(mounted.socket)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a").write_bytes(b"a")
    other = tmp_path / "m & m"
    other.mkdir()
    mount = agent.mount(str(tmp_path / "src"), str(other))
    assert (other / "a").read_bytes() == b"a"
    job = agent.prefetch(mount.dir)
    assert agent.job(job["id"])["path"]
    agent.unmount(mount.dir)
    assert not (other / "a").exists()
    with pytest.raises(AgentError):
        agent.cancel("no such job")


def _count_mounts(agent: Agent, into) -> None:
    into.put(len(agent.mounts()))


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_other_processes(mounted, how: str) -> None:
    agent = pickle.loads(pickle.dumps(Agent(mounted.socket)))
    agent.mounts()
    context = multiprocessing.get_context(how)
    answers = context.Queue()
    child = context.Process(target=_count_mounts, args=(agent, answers))
    child.start()
    assert answers.get(timeout=30) >= 1
    child.join(30)
    assert child.exitcode == 0


def test_agent_that_cannot_start(mounted, tmp_path: pathlib.Path) -> None:
    with pytest.raises((RuntimeError, TimeoutError), match="no-such-scheme"):
        with covey.testing.agent({"no-such-scheme://x": tmp_path / "m"}, timeout=15):
            pass
