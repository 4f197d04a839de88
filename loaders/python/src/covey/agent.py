"""A client of the agent's HTTP API on its unix socket, on the standard library."""

from __future__ import annotations

import http.client
import json
import os
import socket as sockets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

__all__ = ["Agent", "AgentError", "AgentUnavailable", "Mount", "default_socket"]

_SYSTEM_SOCKET = "/run/covey/agent.sock"

# The longest answer is the table of mounts or peers, a few hundred bytes a line.
# What is longer comes from something that is no agent.
_LONGEST_ANSWER = 64 << 20


class AgentUnavailable(ConnectionError):
    """No agent answers on the socket."""


class AgentError(RuntimeError):
    """The agent answered that it cannot. ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Mount:
    """One mounted data set: a source URL and the directory that shows it."""

    source: str
    dir: str
    passthrough: bool = False


def default_socket(environ: Mapping[str, str] | None = None) -> str:
    """The socket that the ``covey`` command would ask.

    That is ``COVEY_API`` (``unix:///PATH``) where it is set, the user's own agent
    where its socket exists, and else the system's.
    """
    env = os.environ if environ is None else environ
    api = env.get("COVEY_API", "")
    if api:
        path = api.removeprefix("unix://")
        if path == api or not os.path.isabs(path):
            raise ValueError(f"COVEY_API is {api!r}: write it like unix:///run/covey/agent.sock")
        return path
    run = env.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(run):
        own = os.path.join(run, "covey", "agent.sock")
        if os.path.exists(own) or not os.path.exists(_SYSTEM_SOCKET):
            return own
    return _SYSTEM_SOCKET


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class Agent:
    """Asks the agent of this machine.

    Each call opens a connection of its own, so an ``Agent`` may be shared by
    threads, inherited by forked processes and pickled. ``timeout`` is in seconds
    and bounds each wait for the agent.

    Calls raise ``AgentUnavailable`` when nobody answers and ``AgentError`` when
    the agent refuses.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, timeout: float = 5.0) -> None:
        self.socket = default_socket() if socket is None else os.fspath(socket)
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"Agent({self.socket!r})"

    def ready(self) -> bool:
        """Whether the agent is a member of its mesh and has mounted everything."""
        try:
            self._ask("GET", "/readyz")
        except AgentError as err:
            if err.status == 503:
                return False
            raise
        return True

    def status(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self._json("GET", "/api/v1/status"))

    def peers(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self._json("GET", "/api/v1/peers"))

    def mounts(self) -> list[Mount]:
        """The mounted data sets."""
        table = self._json("GET", "/api/v1/mounts")
        try:
            return [Mount(m["source"], m["dir"], bool(m.get("passthrough"))) for m in table]
        except (TypeError, KeyError, AttributeError) as err:
            raise AgentError(200, f"the answer of {self.socket} is no table of mounts: {table!r}"[:200]) from err

    def mount(self, source: str, dir: str) -> Mount:
        """Mounts a source and returns when the kernel answers from it."""
        m = self._json("POST", "/api/v1/mounts", {"source": source, "dir": dir}, timeout=70.0)
        return Mount(m["source"], m["dir"], bool(m.get("passthrough")))

    def unmount(self, dir: str) -> None:
        self._ask("DELETE", "/api/v1/mounts?dir=" + quote(dir, safe=""), timeout=70.0)

    def locate(self, path: str) -> dict[str, Any]:
        """Where the blocks of a file are."""
        return cast("dict[str, Any]", self._json("GET", "/api/v1/locate?path=" + quote(path, safe=""), timeout=70.0))

    def prefetch(self, path: str, *, replicas: int = 0, rate_bytes: int = 0) -> dict[str, Any]:
        """Begins to fetch everything below a path and returns the job."""
        body = {"path": path, "replicas": replicas, "rate_bytes": rate_bytes}
        return cast("dict[str, Any]", self._json("POST", "/api/v1/prefetch", body, timeout=70.0))

    def job(self, id: str) -> dict[str, Any]:
        return cast("dict[str, Any]", self._json("GET", "/api/v1/jobs/" + quote(id, safe="")))

    def cancel(self, id: str) -> None:
        self._ask("DELETE", "/api/v1/jobs/" + quote(id, safe=""))

    def post_plan(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Posts the body of a plan; ``covey.plan.post`` makes one."""
        return cast("dict[str, Any]", self._json("POST", "/api/v1/plans", plan))

    def plans(self) -> list[dict[str, Any]]:
        """The plans that the agent holds, oldest first."""
        return cast("list[dict[str, Any]]", self._json("GET", "/api/v1/plans"))

    def plan(self, id: str) -> dict[str, Any]:
        """How far a plan is; AgentError with status 404 when it has ended."""
        return cast("dict[str, Any]", self._json("GET", _plan_path(id)))

    def renew_plan(self, id: str, lease_seconds: int = 0) -> dict[str, Any]:
        """Lets a plan's lease run from now, for another time unless that is 0."""
        return cast("dict[str, Any]", self._json("POST", _plan_path(id) + "/renew", {"lease_seconds": lease_seconds}))

    def cancel_plan(self, id: str) -> None:
        self._ask("DELETE", _plan_path(id))

    def _json(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Any:
        answer = self._ask(method, path, body, timeout)
        try:
            return json.loads(answer)
        except ValueError as err:
            raise AgentError(200, f"the answer of {self.socket} is no JSON: {answer[:80]!r}") from err

    def _ask(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> bytes:
        conn = _Connection(self.socket, self.timeout if timeout is None else timeout)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            conn.request(method, path, None if body is None else json.dumps(body), headers)
            response = conn.getresponse()
            answer = response.read(_LONGEST_ANSWER + 1)
            if response.length and len(answer) <= _LONGEST_ANSWER:
                raise http.client.IncompleteRead(answer, response.length)
        except (OSError, http.client.HTTPException) as err:
            raise AgentUnavailable(f"no agent answers on {self.socket}: {err or type(err).__name__}") from err
        finally:
            conn.close()
        if len(answer) > _LONGEST_ANSWER:
            raise AgentError(response.status, f"the answer of {self.socket} has no end")
        if not 200 <= response.status < 300:
            raise AgentError(response.status, _complaint(response.status, answer))
        return answer


def _plan_path(id: str) -> str:
    return "/api/v1/plans/" + quote(id, safe="")


def _complaint(status: int, answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        line = answer.decode("utf-8", "replace").strip()
        return line or f"HTTP status {status}"
