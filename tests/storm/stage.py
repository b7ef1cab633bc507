"""Where a storm rages: four simulated vendors, a real Redis, an S3 behind a misbehaving proxy, workers and beats as processes.

`Stage.add` and `Stage.strike` do what a plan says. What a fault began, a later step of `Stage.tend` ends.
"""

from __future__ import annotations

import heapq
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import boto3
import redis
from botocore.config import Config

from tests import config_file
from tests.storm import s3proxy
from tests.storm.plan import Addition, Blow
from worker.demo.api2convert import Api2convert, OutputFile
from worker.demo.crayon import Crayon, CrayonSwitches
from worker.demo.embedded import Child, RedisServer, S3Server, free_port, wait_until
from worker.demo.sellercloud import Sellercloud, SellercloudSwitches
from worker.demo.server import Content, Fault, Truth, Vendor
from worker.demo.spaaza import Spaaza, Task
from worker.settings import child_environment

BUCKET, PREFIX = "exports", "archive"
RETENTION = {"sellercloud": timedelta(days=10), "api2convert": timedelta(hours=24), "crayon": timedelta(days=7)}
FILES = {"sellercloud": "download", "api2convert": "download", "spaaza": "storage", "crayon": "download"}  # routes
STOP_SECONDS = 30.0
PROCESSES = 2  # of the first worker
START_SECONDS = 5.0
PACE = Fault(bytes_per_second=1_000_000, delay_seconds=0.1)  # a vendor's good days: slow enough to be struck in mid download


class Crew:
    """One process of the Procfile, started again whenever it ends."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        self.child = Child(name, [sys.executable, "-m", "worker", *command], folder, environment=environment)
        self.name, self.frozen, self.told_to_stop, self.killed = name, False, 0.0, False
        self.started = 0.0

    @property
    def at_work(self) -> bool:
        return self.child.running and not self.frozen and not self.told_to_stop

    def start(self) -> None:
        self.frozen, self.told_to_stop, self.killed = False, 0.0, False
        self.started = time.monotonic()
        self.child.start()

    def kill(self) -> None:
        self.killed = True
        self.child.kill()

    def terminate(self) -> None:
        self.told_to_stop = time.monotonic()
        os.kill(self.child.pid, signal.SIGTERM)


class Stage:
    """Everything that runs. `wrong` gathers what should never have happened; `counts` what did."""

    def __init__(self, folder: Path, *, workers: int, beats: int, lease: float, poll_every: float) -> None:
        self.folder = folder
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.stop_seconds: list[float] = []
        self.lease = lease
        self.sellercloud, self.api2convert, self.spaaza, self.crayon = Sellercloud(), Api2convert(), Spaaza(), Crayon()
        self.vendors: dict[str, Vendor] = {
            "sellercloud": self.sellercloud,
            "api2convert": self.api2convert,
            "spaaza": self.spaaza,
            "crayon": self.crayon,
        }
        self.redis = RedisServer(folder / "redis", durable=True)
        self.s3_server = S3Server(folder)
        self.proxy = s3proxy.S3Proxy(self.s3_server.port)
        self.gone_at: dict[str, float] = {}  # output id -> when its bytes will be gone, where that is soon
        self.fates: dict[str, str] = {}  # why they are gone
        self.preset_downloads: dict[str, int] = {}  # what the vendor had counted before we came
        self.never: dict[str, list[str]] = {"empty": [], "invalid": []}  # ids of what is done and has no bytes
        self.tokens: list[str] = []
        self.frozen: list[tuple[float, float]] = []
        self.forgot: list[tuple[float, float]] = []  # when Redis lost what it was told, and since when it was told that
        self.began = time.time()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []  # the ends of faults
        self._fates: list[tuple[float, int, Callable[[], object]]] = []  # what vendors do with what they made
        self._order = itertools.count()
        self._gates: list[threading.Event] = []
        self._takeovers = 0.0
        self._poll_every = poll_every
        self._sizes = (workers, beats)
        self.crew: list[Crew] = []

    # --- life

    def __enter__(self) -> Self:
        try:
            for name, vendor in self.vendors.items():
                vendor.start()
                vendor.standing[FILES[name]] = PACE
            self.redis.start()
            self.redis_client = redis.Redis.from_url(self.redis.url, socket_timeout=1, socket_connect_timeout=1)
            self.s3_server.start()
            self.s3_server.create_bucket(BUCKET)
            self.proxy.start()
            self.config = self.folder / "lastcall.toml"
            self.config.write_text(self._configuration())
            self.environment = {"LASTCALL_CONFIG": str(self.config), "COLUMNS": "200"}
            workers, beats = self._sizes
            commands = {f"worker-{number}": ["worker"] for number in range(workers)}
            commands["worker-0"] += ["--processes", str(PROCESSES)]
            commands |= {f"beat-{number}": ["beat"] for number in range(beats)}
            self.crew = [Crew(name, command, self.folder, self.environment) for name, command in commands.items()]
            for crew in self.crew:
                crew.start()
            wait_until(
                lambda: self.redis_client.zcard("lastcall:workers") == workers - 1 + PROCESSES, 60, "the workers to be alive"
            )
        except BaseException:
            self.__exit__()
            raise
        self.s3 = boto3.client(
            "s3",
            endpoint_url=self.s3_server.url,
            region_name="eu-west-1",
            aws_access_key_id="dummy",
            aws_secret_access_key="dummy",
            config=Config(retries={"total_max_attempts": 3}, max_pool_connections=20),
        )
        return self

    def __exit__(self, *_: object) -> None:
        for crew in self.crew:
            crew.child.kill()
        for gate in self._gates:
            gate.set()
        self.proxy.stop()
        for vendor in self.vendors.values():
            vendor.stop()
        self.redis.kill()
        self.s3_server.kill()

    def _configuration(self) -> str:
        tables: dict[str, dict[str, Any]] = {
            "archive": {
                "bucket": BUCKET,
                "prefix": PREFIX,
                "endpoint_url": self.proxy.url,
                "region": "eu-west-1",
                "access_key_id": "dummy",
                "secret_access_key": "dummy",
            },
            "worker": {"lease": f"{int(self.lease)}s", "concurrency": 8},
            "audit": {"every": "5s", "verify_every": "9s", "verify_sample": 20},
            "web": {"listen": f"127.0.0.1:{free_port()}"},
            "flower": {"listen": f"127.0.0.1:{free_port()}"},
        }
        sources: dict[str, dict[str, Any]] = {
            name: {
                "vendor": name,
                "base_url": vendor.base_url,
                "poll_every": f"{int(self._poll_every)}s",
                "requests_per_second": 500,
                "connect_timeout": "2s",
                "read_timeout": "4s",
                "allow_private_hosts": True,
                "max_concurrent_downloads": 6,
                **vendor.credentials,
            }
            for name, vendor in self.vendors.items()
        }
        sources["api2convert"]["download_hosts"] = ["127.0.0.1"]
        return config_file.text_of(self.redis.url, tables, sources)

    def run(self, *arguments: str, within_seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run one command of lastcall to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "worker", *arguments],
            env=child_environment(self.environment),
            capture_output=True,
            text=True,
            timeout=within_seconds,
            check=False,
        )
        if "Traceback" in done.stderr:
            self.wrong.append(f"lastcall {' '.join(arguments)} ended in a traceback:\n{done.stderr[-3000:]}")
        return done

    # --- the clockwork

    def later(self, seconds: float, step: Callable[[], object]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), step))

    def _in_time(self, seconds: float, step: Callable[[], object]) -> None:
        heapq.heappush(self._fates, (time.monotonic() + seconds, next(self._order), step))

    def tend(self) -> None:
        """Do what is due: end faults, start again what was killed, note what ended by itself."""
        now = time.monotonic()
        for timers in (self._timers, self._fates):
            while timers and timers[0][0] <= now:
                heapq.heappop(timers)[2]()
        for crew in self.crew:
            if crew.child.running:
                if crew.told_to_stop and not crew.frozen and now - crew.told_to_stop > STOP_SECONDS + 2:
                    self.wrong.append(f"{crew.name} did not end within {STOP_SECONDS:g} s of SIGTERM")
                    crew.kill()
            elif crew.told_to_stop:
                self.stop_seconds.append(now - crew.told_to_stop)
                # One that was just started may not be able to listen yet, and holds nothing.
                unborn = crew.child.returncode == -signal.SIGTERM and crew.told_to_stop - crew.started < START_SECONDS
                if crew.child.returncode != 0 and not unborn:
                    self.wrong.append(f"{crew.name} ended with {crew.child.returncode} after SIGTERM")
                crew.start()
            elif not crew.killed:
                self.wrong.append(f"{crew.name} ended by itself with {crew.child.returncode}")
                crew.start()
        with suppress(redis.RedisError, ValueError):
            seen = sum(map(float, self.redis_client.hvals("lastcall:m:takeovers")))
            self.counts["takeovers"] += max(0, round(seen - self._takeovers))
            self._takeovers = seen

    @property
    def produced_all(self) -> bool:
        """Whether nothing will be made or deleted any more."""
        return not self._fates and all(truth_at <= time.time() for truth_at in self.gone_at.values())

    # --- outputs

    def add(self, addition: Addition) -> None:
        """Let a vendor produce what `addition` says."""
        contents = [
            Content(f"{addition.at} {number}", size, addition.kind)  # type: ignore[arg-type]
            for number, size in enumerate(addition.sizes)
        ]
        getattr(self, f"_add_{addition.vendor}")(addition, contents)

    def _soon_gone(self, vendor: str, addition: Addition, *identity: str) -> None:
        self.gone_at["/".join((vendor, *identity))] = time.time() + addition.life
        self.fates["/".join((vendor, *identity))] = addition.fate

    def _add_sellercloud(self, addition: Addition, contents: list[Content]) -> None:
        now, fate = datetime.now(UTC), addition.fate
        how: dict[str, Any] = {"switches": SellercloudSwitches(body=addition.form or "base64")}  # type: ignore[arg-type]
        match fate:
            case "empty":
                how |= {"output_file": "empty" if addition.life > 10 else "null"}
            case "failed":
                how |= {"final": 4, "output_file": "empty"}
            case "partial":
                how |= {"final": 5}
            case "running":
                how |= {"submitted_at": now, "completed_at": now + timedelta(seconds=addition.life)}
            case "short":
                submitted = now - RETENTION["sellercloud"] + timedelta(seconds=addition.life)
                how |= {"submitted_at": submitted, "completed_at": submitted + timedelta(seconds=30)}
        job = self.sellercloud.add_job(contents[0], **how)
        if fate == "empty":
            self.never["empty"].append(f"sellercloud/{job.id}/{job.id}")
        if fate == "deleted":
            self._in_time(addition.life, lambda: setattr(job, "deleted", True))
        if fate in {"short", "deleted"}:
            self._soon_gone("sellercloud", addition, str(job.id), str(job.id))

    def _add_api2convert(self, addition: Addition, contents: list[Content]) -> None:
        now, fate = datetime.now(UTC), addition.fate
        outputs = [
            OutputFile(f"{number}.{content.kind}", content, "application/octet-stream")
            for number, content in enumerate(contents)
        ]
        how: dict[str, Any] = {}
        match fate:
            case "empty":
                outputs = []
            case "failed":
                outputs, how = [], {"ends": "failed"}
            case "running":
                how = {"lasts": timedelta(seconds=addition.life)}
            case "short":
                how = {"created_at": now - RETENTION["api2convert"] + timedelta(seconds=addition.life)}
            case "expired":
                how = {"created_at": now - RETENTION["api2convert"] - timedelta(hours=1)}
            case "overused" | "tight":
                used = 10 if fate == "overused" else 8
                self.api2convert.served[outputs[0].id].full = used
        job = self.api2convert.add_job(*outputs, **how)
        self.tokens.append(job.token)
        if fate == "empty":
            self.never["empty"].append(f"api2convert/{job.id}/{job.id}")
        for output in outputs:
            identity = f"api2convert/{job.id}/{output.id}"
            self.preset_downloads[identity] = {"overused": 10, "tight": 8}.get(fate, 0)
            if fate in {"short", "deleted"}:
                self._soon_gone("api2convert", addition, job.id, output.id)
            if fate == "expired":
                self.gone_at[identity] = time.time()
        if fate == "deleted":
            self._in_time(addition.life, lambda: [setattr(output, "deleted", True) for output in outputs])

    def _add_spaaza(self, addition: Addition, contents: list[Content]) -> None:
        content, fate = contents[0], addition.fate
        how: dict[str, Any] = {}
        match fate:
            case "failed":
                how = {"ends": "ERROR"}
            case "running":
                how = {"lasts": timedelta(seconds=addition.life)}
            case "late":
                how = {"invalid_mints": 2}
        task = self.spaaza.add_task(None if fate == "invalid" else content, **how)
        identity = self._run_identity(task)
        if fate == "invalid":
            self.never["invalid"].append(identity)
        if fate == "superseded":
            self.gone_at[identity] = time.time() + addition.life
            self.fates[identity] = fate
            again = Content(f"{content.seed} again", content.size + 1)
            self._in_time(addition.life, lambda: self.spaaza.rerun(task, again))

    @staticmethod
    def _run_identity(task: Task) -> str:
        return f"spaaza/{task.id}/{task.runs[-1].named_at:%Y%m%dT%H%M%SZ}"

    def _add_crayon(self, addition: Addition, contents: list[Content]) -> None:
        now, fate = datetime.now(UTC), addition.fate
        how: dict[str, Any] = {"switches": CrayonSwitches(form=addition.form or "raw")}  # type: ignore[arg-type]
        match fate:
            case "empty":
                how |= {"created_at": now - timedelta(days=2), "processed_at": now, "downloadable_after": None}
            case "failed":
                how |= {"final": 8}
            case "running":
                how |= {"created_at": now, "processed_at": now + timedelta(seconds=addition.life)}
            case "short":
                created = now - RETENTION["crayon"] + timedelta(seconds=addition.life)
                how |= {"created_at": created, "processed_at": created + timedelta(seconds=30)}
        item = self.crayon.add_job(contents[0], **how)
        if fate == "empty":
            self.never["empty"].append(f"crayon/{item.id}/{item.id}")
        if fate == "deleted":
            self._in_time(addition.life, lambda: setattr(item, "status", 4))
        if fate in {"short", "deleted"}:
            self._soon_gone("crayon", addition, str(item.id), str(item.id))

    def truth(self) -> dict[str, Truth]:
        """What the vendors really produced, by output id as lastcall writes it."""
        return {
            f"{name}/{truth.job_id}/{truth.output_id}": truth
            for name, vendor in self.vendors.items()
            for truth in vendor.truth()
        }

    # --- faults

    def strike(self, blow: Blow) -> None:
        """Begin a fault, and see to its end."""
        self.counts[blow.kind] += 1
        group, _, kind = blow.kind.partition("-")
        getattr(self, f"_strike_{group}")(kind, blow)

    def _victim(self, command: str, blow: Blow) -> Crew | None:
        able = [crew for crew in self.crew if crew.name.startswith(command) and crew.at_work]
        return able[blow.target % len(able)] if able else None

    def _strike_worker(self, kind: str, blow: Blow) -> None:
        victim = self._victim("worker", blow)
        if victim is None:
            self.counts[f"{blow.kind} (nobody left)"] += 1
        elif kind == "kill":
            victim.kill()
            self.later(blow.lasts / 3, victim.start)
        elif kind == "term":
            victim.terminate()
        else:
            victim.frozen = True
            victim.child.pause()
            began = time.time()

            def thaw() -> None:
                victim.frozen = False
                victim.child.resume()
                self.frozen.append((began, time.time()))

            self.later(self.lease * 1.3 + blow.lasts, thaw)

    def _strike_beat(self, kind: str, blow: Blow) -> None:
        del kind
        if victim := self._victim("beat", blow):
            victim.kill()
            self.later(blow.lasts / 3, victim.start)

    def _strike_redis(self, kind: str, blow: Blow) -> None:
        if not self.redis.running:
            return
        if kind == "drop":
            with suppress(redis.RedisError):
                for skip in ("normal", "pubsub"):
                    self.redis_client.execute_command("CLIENT", "KILL", "TYPE", skip, "SKIPME", "yes")
        elif kind == "freeze":
            self.redis.pause()
            self.later(blow.lasts, self.redis.resume)
        elif kind == "older":
            kept, copied_at = self.folder / "redis-older", time.time()
            _copy_files(self.redis.log.parent, kept)

            def go_back() -> None:
                self.forgot.append((time.time(), copied_at))
                self.redis.kill()
                _empty(self.redis.log.parent)
                _copy_files(kept, self.redis.log.parent)
                self.later(0.3, self._start_redis)

            self.later(0.5 + blow.lasts / 3, go_back)
        else:
            self.redis.kill()
            if kind == "empty":
                self.forgot.append((time.time(), 0.0))
                _empty(self.redis.log.parent)
            self.later(blow.lasts, self._start_redis)

    def _start_redis(self) -> None:
        if not self.redis.running:
            self.redis.start()

    def _strike_flushall(self, kind: str, blow: Blow) -> None:
        del kind, blow
        self.forgot.append((time.time(), 0.0))
        with suppress(redis.RedisError):
            self.redis_client.flushall()

    def _strike_s3(self, kind: str, blow: Blow) -> None:
        proxy = self.proxy
        match kind:
            case "error":
                self._stand(s3proxy.error(500, "InternalError"), blow.lasts)
            case "slowdown":
                self._stand(s3proxy.error(503, "SlowDown", ("Retry-After", "1")), blow.lasts)
            case "reset":
                proxy.once.extend([s3proxy.reset] * blow.times * 2)
            case "lost":
                proxy.once.extend([s3proxy.lose_answer] * blow.times * 2)
            case "cut":
                proxy.once.extend([s3proxy.cut_answer] * blow.times * 2)
            case "held":
                gate = threading.Event()
                self._gates.append(gate)
                self._stand(s3proxy.hold(gate), blow.lasts, gate.set)
            case "restart":
                proxy.stop()
                self.later(blow.lasts / 2, proxy.start)

    def _stand(self, act: s3proxy.Act, seconds: float, then: Callable[[], object] = lambda: None) -> None:
        self.proxy.standing = act

        def end() -> None:
            if self.proxy.standing is act:
                self.proxy.standing = None
            then()

        self.later(seconds, end)

    def _strike_vendor(self, kind: str, blow: Blow) -> None:
        name = list(self.vendors)[blow.target % len(self.vendors)]
        vendor, files = self.vendors[name], FILES[name]
        listing = {"sellercloud": "list", "api2convert": "jobs", "spaaza": "tasks", "crayon": "list"}[name]
        fraction = 0.05 + blow.lasts / 7
        match kind:
            case "error":
                fault = Fault.answer(500 + blow.times % 4, "<html>no</html>")
                vendor.standing.update({"*": fault, files: fault})
                self.later(blow.lasts, lambda: self._vendor_is_well(name))
            case "throttle":
                vendor.fail("*", Fault.answer(429, "{}", "application/json", Retry_After="2"), times=1 + blow.times // 3)
            case "cut":
                vendor.fail(files, Fault(cut_fraction=fraction), times=blow.times)
            case "reset":
                vendor.fail(files, Fault(cut_fraction=fraction, reset=True), times=blow.times)
            case "trickle":
                vendor.fail(files, Fault(bytes_per_second=100_000), times=blow.times)
            case "slow":
                vendor.fail("*", Fault(delay_seconds=blow.lasts), times=blow.times)
            case "page":
                vendor.fail(files, Fault.answer(200, "<!DOCTYPE html><html><body>Sorry</body></html>"), times=1)
            case "list":
                vendor.fail(listing, Fault(cut_fraction=fraction), times=min(2, blow.times))
            case "down":
                vendor.stop()
                self.later(blow.lasts / 2, vendor.start)

    def _vendor_is_well(self, name: str) -> None:
        self.vendors[name].standing.pop("*", None)
        self.vendors[name].standing[FILES[name]] = PACE

    def _strike_token(self, kind: str, blow: Blow) -> None:
        del kind
        (self.sellercloud, self.crayon)[blow.target % 2].revoke_tokens()

    def _strike_link(self, kind: str, blow: Blow) -> None:
        del kind
        self.spaaza.switches.lapsed_links = blow.times

    def end_faults(self) -> None:
        """Let everything that is still wrong be well, but leave the processes as they are."""
        while self._timers:
            _, _, step = heapq.heappop(self._timers)
            step()
        self.proxy.once.clear()
        for name, vendor in self.vendors.items():
            vendor._once.clear()
            self._vendor_is_well(name)
            vendor.stop()  # what still trickles would do so for minutes
            vendor.start()
        self.spaaza.switches.lapsed_links = 0


def _copy_files(source: Path, target: Path) -> None:
    _empty(target)
    target.mkdir(exist_ok=True)
    for path in source.glob("appendonly*"):
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copy(path, target / path.name)


def _empty(folder: Path) -> None:
    for path in folder.glob("appendonly*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
