"""What the demo runs: a real Redis, an S3, and lastcall's own processes as its Procfile has them, in one folder."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO, Self

from worker.demo.embedded import Child, RedisServer, S3Server, free_port
from worker.demo.scene import Scene
from worker.errors import ConfigurationError, StoppedError
from worker.ledger import Ledger
from worker.settings import Settings, child_environment, load

BUCKET, PREFIX = "exports", "archive"
WORKERS = 2
OTHERS = ("beat", "flower", "web")  # with the workers, what the Procfile has
_PAUSE_SECONDS = 0.05
_STOP_SECONDS = 30.0  # CONTRACT section 6
_COMMAND = [sys.executable, "-m", "worker"]


class Interrupt:
    """Ctrl-C, SIGTERM and a closed terminal, noted until somebody asks, so that nothing is left half begun."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        for number in self._SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = self.number or number

    def check(self) -> None:
        """Raise `StoppedError` when we were asked to stop."""
        if self.number is not None:
            raise StoppedError("stopped by hand" if self.number == signal.SIGINT else "asked to stop")

    def pause(self, seconds: float) -> None:
        """Let time pass. Raises `StoppedError` as soon as we are asked to stop."""
        limit = time.monotonic() + seconds
        while True:
            self.check()
            left = limit - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _PAUSE_SECONDS))

    def wait_until(self, condition: Callable[[], bool], within_seconds: float, what: str) -> None:
        """Return as soon as `condition` holds. Raises `StoppedError`, or `ConfigurationError` that names `what`."""
        limit = time.monotonic() + within_seconds
        while not condition():
            if time.monotonic() > limit:
                raise ConfigurationError([f"{what}: not within {within_seconds:g} s"])
            self.pause(_PAUSE_SECONDS)


class Stage:
    """All processes of the demo. `stop` ends every one of them, whatever happened before."""

    def __init__(self, scene: Scene, folder: Path, interrupt: Interrupt) -> None:
        """Prepare, without starting anything."""
        if find_spec("moto") is None or find_spec("flask") is None:
            raise ConfigurationError(["the embedded S3 of the demo is not installed; pip install 'lastcall[demo]'"])
        self.scene = scene
        self.folder = folder
        self.config = folder / "lastcall.toml"
        self.logs = folder / "logs"
        self._interrupt = interrupt
        self.redis = RedisServer(self.logs)
        self.s3 = S3Server(self.logs)
        self.web_port, self.flower_port = free_port(), free_port()
        environment = {"LASTCALL_CONFIG": str(self.config)}

        def child(name: str, command: str) -> Child:
            return Child(name, [*_COMMAND, command], self.logs, environment=environment)

        self.workers = [child(f"worker-{number + 1}", "worker") for number in range(WORKERS)]
        self.processes = [*self.workers, *(child(name, name) for name in OTHERS)]
        self._tails: dict[Path, IO[bytes]] = {}
        self._settings: Settings | None = None
        self._ledger: Ledger | None = None

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything; returns when all of it works. Raises `ConfigurationError` or `StoppedError`."""
        preparing = threading.Thread(target=self.scene.prepare, name="scene")
        preparing.start()
        try:
            self.redis.start()
            self.s3.start()
            self.s3.create_bucket(BUCKET)
            self.s3.let_all_read(BUCKET)
        finally:
            preparing.join()
        self.config.write_text(self._configuration(), encoding="utf-8")
        self._interrupt.check()
        self._settings = load(self.config)
        self._ledger = Ledger(self.redis.url, lease=self._settings.worker.lease, worker="demo")
        for process in self.processes:
            process.start()
        self._interrupt.wait_until(self._ready, 60, "the processes of lastcall are ready")

    def stop(self, *, politely: bool) -> list[str]:
        """End everything: lastcall's processes first, then what they use. Not politely means at once.

        Gives the names of those that a polite request did not end in time, or that ended badly.
        """
        with ThreadPoolExecutor(max_workers=len(self.processes)) as pool:
            list(pool.map(lambda process: process.stop(_STOP_SECONDS) if politely else process.kill(), self.processes))
        for tail in self._tails.values():
            tail.close()
        self.s3.kill()
        self.redis.kill()
        self.scene.stop()
        return [process.name for process in self.processes if process.returncode != 0] if politely else []

    def _ready(self) -> bool:
        for process in self.processes:
            if not process.running:
                raise ConfigurationError([f"{process.name} ended with code {process.returncode}; its log says why"])
        urls = self.urls
        answers = _status(urls["board"] + "/healthz") == 200 and _status(urls["Flower"] + "/healthcheck") == 200
        return answers and len(self.ledger.workers()) == WORKERS and self.ledger.beat_at() is not None

    def _configuration(self) -> str:
        secrets = self.folder / "secrets"
        secrets.mkdir(mode=0o700)
        scale = self.scene.scale
        general = f"""\
# Written by `lastcall demo`.
redis_url = "{self.redis.url}"

[archive]
bucket = "{BUCKET}"
prefix = "{PREFIX}"
endpoint_url = "{self.s3.url}"
region = "eu-west-1"
access_key_id = {{ file = {json.dumps(str(_written(secrets / "s3.id", "demo")))} }}
secret_access_key = {{ file = {json.dumps(str(_written(secrets / "s3.key", "demo")))} }}

[worker]
lease = "{scale.lease}"
concurrency = 8

[web]
listen = "127.0.0.1:{self.web_port}"

[flower]
listen = "127.0.0.1:{self.flower_port}"

"""
        return general + self.scene.configuration(secrets)

    # --- looking -----------------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> Ledger:
        """The ledger, to look at."""
        if self._ledger is None:
            raise RuntimeError("the stage was not started")
        return self._ledger

    @property
    def settings(self) -> Settings:
        """The configuration, read back."""
        if self._settings is None:
            raise RuntimeError("the stage was not started")
        return self._settings

    @property
    def urls(self) -> dict[str, str]:
        """Where to look with a browser, by what it is."""
        return {
            "board": f"http://127.0.0.1:{self.web_port}",
            "Flower": f"http://127.0.0.1:{self.flower_port}",
            "bucket": f"{self.s3.url}/{BUCKET}",
        }

    def all_logs(self) -> list[Path]:
        """The logs of all processes."""
        return sorted(self.logs.glob("*.log"))

    def worker_of(self, name: str | None) -> Child | None:
        """Find the process of a worker by the name that the ledger knows it by, HOST-PID-RANDOM."""
        match = re.fullmatch(r".*-(\d+)-[0-9a-f]+", name or "")
        return next((child for child in self.workers if match and child.running and child.pid == int(match[1])), None)

    def news(self) -> list[dict[str, str]]:
        """Give what the workers have logged since the last call, oldest first of each."""
        events = []
        for worker in self.workers:
            if worker.log not in self._tails:
                self._tails[worker.log] = worker.log.open("rb")
            tail = self._tails[worker.log]
            for line in iter(tail.readline, b""):
                if not line.endswith(b"\n"):  # half written; it is whole the next time
                    tail.seek(-len(line), 1)
                    break
                with suppress(ValueError):  # Celery's banner is no JSON
                    events.append({"worker": worker.name} | {key: str(value) for key, value in json.loads(line).items()})
        return events

    # --- acting ------------------------------------------------------------------------------------------------------

    def flush_redis(self) -> None:
        """Throw away all that Redis knows. Raises `ConfigurationError` when it does not answer."""
        with socket.create_connection(("127.0.0.1", self.redis.port), timeout=5) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            if not connection.recv(64).startswith(b"+OK"):
                raise ConfigurationError(["Redis did not take FLUSHALL"])

    def command(self, name: str, *, color: bool) -> tuple[int, str]:
        """Run one of lastcall's commands as its user would; gives its exit code and what it printed."""
        look: Mapping[str, str] = {"FORCE_COLOR": "1"} if color else {}
        environment = child_environment({"COLUMNS": "80", **look})
        with (
            (self.logs / f"{name}.log").open("ab") as log,
            subprocess.Popen(
                [*_COMMAND, "--config", str(self.config), name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            ) as process,
        ):
            printed: list[bytes] = []
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            reading = threading.Thread(target=lambda stream: printed.append(stream.read()), args=(process.stdout,))
            reading.start()
            try:
                self._interrupt.wait_until(lambda: process.poll() is not None, 120, f"lastcall {name}")
            finally:
                process.kill()
                reading.join()
        return process.returncode, b"".join(printed).decode()


def _written(path: Path, secret: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(secret, encoding="utf-8")
    return path


def _status(url: str) -> int | None:
    """Give the status that a URL on loopback answers with, None when nobody answers."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=5)
    try:
        connection.request("GET", f"/{path}")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
