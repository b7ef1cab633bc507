"""The whole daemon for a benchmark: a real Redis, what the Procfile starts, and what each process costs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from bench.loopback import Server
from bench.wire import Wire
from worker.demo.embedded import Child, RedisServer, free_port, wait_until
from worker.ledger import Ledger, SourceStatus

SOURCE = "bench"
BUCKET = "bucket"
TICKS = 100  # of /proc, a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """An S3 to write to."""

    name: str
    url: str
    access_key: str = "bench"
    secret_key: str = "benchbench"  # noqa: S105 - no secret: a server that is gone in a minute
    region: str = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Where a worker runs (a command that starts its own) and at which address it finds what is on 127.0.0.1 here."""

    address: str
    command: tuple[str, ...] = ()


@dataclass(slots=True)
class House:
    """Redis and all processes of the Procfile, `workers` of them workers, for one or more sources at `vendor`.

    A context manager: everything runs inside the block and is gone after it. `others`: what is started beside the workers.
    """

    folder: Path
    vendor: Server
    store: Store
    workers: int = 1
    processes: int = 1  # of each worker
    concurrency: int | None = None
    others: tuple[str, ...] = ("beat", "flower", "web")
    sources: tuple[str, ...] = (SOURCE,)
    at_once: int = 64
    poll_every: str = "60s"
    lease: str = "60s"
    ways: Sequence[Way] = ()  # of the first workers: where each of them runs, and how it reaches everything
    delay_ms: float = 0  # of each way, in each direction
    cut: bool = False  # whether the ways are cut now and then
    redis: RedisServer = field(init=False)
    config: Path = field(init=False)
    children: dict[str, Child] = field(init=False)
    started_at: float = field(init=False)
    _open: ExitStack = field(init=False, default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.redis = self._open.enter_context(RedisServer(self.folder / "redis", durable=True))
        for way in self.ways:
            self._open.enter_context(
                Wire(self.folder / f"wire-{way.address}", way.address, self.ports, self.delay_ms, cut=self.cut)
            )
        self.config = self._write("lastcall.toml", "127.0.0.1")
        names = [f"worker-{number}" for number in range(self.workers)] + list(self.others)
        self.children = {}
        self.started_at = time.monotonic()
        for place, name in enumerate(names):
            own = self.ways[place] if place < len(self.ways) else None
            config = self._write(f"{name}.toml", own.address) if own else self.config
            command = [*(own.command if own else ()), sys.executable, "-m", "worker", name.partition("-")[0]]
            if place < self.workers:
                command += ["--processes", str(self.processes)]
            child = Child(name, command, self.folder, environment={"LASTCALL_CONFIG": str(config)})
            self.children[name] = self._open.enter_context(child)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    @property
    def ports(self) -> list[int]:
        """Where on 127.0.0.1 a worker finds Redis, the vendor and the bucket."""
        return [self.redis.port, self.vendor.port, int(self.store.url.rpartition(":")[2])]

    def _write(self, name: str, address: str) -> Path:
        path = self.folder / name
        path.write_text(self._configuration().replace("://127.0.0.1:", f"://{address}:"), encoding="utf-8")
        return path

    def _configuration(self) -> str:
        store = self.store
        concurrency = f"concurrency = {self.concurrency}\n" if self.concurrency else ""
        text = f"""redis_url = "{self.redis.url}"

[archive]
bucket = "{BUCKET}"
endpoint_url = "{store.url}"
region = "{store.region}"
access_key_id = "{store.access_key}"
secret_access_key = "{store.secret_key}"

[worker]
lease = "{self.lease}"
{concurrency}
[web]
listen = "127.0.0.1:{free_port()}"

[flower]
listen = "127.0.0.1:{free_port()}"
"""
        for name in self.sources:
            text += f"""
[sources.{name}]
vendor = "sellercloud"
base_url = "{self.vendor.url}/rest"
username = "bench"
password = "bench"
timezone = "UTC"
requests_per_second = 1000
max_concurrent_downloads = {self.at_once}
poll_every = "{self.poll_every}"
allow_private_hosts = true
"""
        return text

    # --- looking -----------------------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """A ledger to look with."""
        return Ledger(self.redis.url, lease=timedelta(seconds=60), worker="bench")

    def status(self, ledger: Ledger, source: str = SOURCE) -> SourceStatus:
        """One source's row."""
        return ledger.status(source, timedelta(minutes=15))

    def poll_soon(self) -> None:
        """Let the next tick find that every source's interval is over."""
        with redis.Redis.from_url(self.redis.url) as client:
            client.delete(*(f"lastcall:{key}:{name}" for name in self.sources for key in ("polled", "once:poll")))

    def first_poll(self, within_seconds: float = 60.0) -> float:
        """Wait until every source was listed; gives the seconds since the first process was started."""
        ledger = self.ledger()
        wait_until(lambda: all(self.status(ledger, one).last_poll_at for one in self.sources), within_seconds, "the first poll")
        return time.monotonic() - self.started_at

    def ready(self) -> None:
        """Return when every process does its work and every source was listed."""
        self.first_poll()
        ledger = self.ledger()
        wait_until(lambda: len(ledger.workers()) == self.workers * self.processes, 60, "all workers are alive")
        # A bucket that shows half-written objects may look as if it had seen a ledger before: then claims wait for a lease.
        wait_until(ledger.claims_given, 90, "claims are given")


def family(pid: int) -> list[int]:
    """A process and its living children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split())]


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes so far, and of their children."""
    total = 0
    for pid in (one for parent in pids for one in family(parent)):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))
    return total / TICKS


def memory_mib(pid: int, what: str = "VmHWM") -> float:
    """Resident memory of a process: ``VmHWM`` its peak, ``VmRSS`` now, ``Pss`` its fair share now."""
    if what == "Pss":
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    else:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024
