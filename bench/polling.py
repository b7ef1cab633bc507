"""How often vendors are asked for each output, and how soon an output is found: the real rules in virtual time.

A week of jobs at each vendor; when to list and which jobs to ask for is decided by `worker.polling` itself. And what a listing
of ten thousand jobs costs, measured on a real ledger.
"""

from __future__ import annotations

import heapq
import logging
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import redis
import structlog

from bench.ledger import _output
from bench.page import Section, table
from worker import discover, polling
from worker.daemon import Daemon
from worker.demo.embedded import RedisServer
from worker.ledger import Ledger
from worker.model import Job, JobState, OutputId

DAYS = 7
TICK_SECONDS = 2.0
START = datetime(2026, 3, 23, tzinfo=UTC)
LISTED, NEW = 10_000, 100


@dataclass(frozen=True)
class Vendor:
    """What happens at a vendor: `a_day` jobs, of them `by_night` at once, the others by day; their run at the median."""

    name: str
    every: timedelta
    retention: timedelta
    a_day: int
    by_night: int
    runs_for: timedelta
    asks_for_one: bool = True  # as its source does


VENDORS = (
    Vendor("sellercloud", timedelta(seconds=60), timedelta(days=10), 200, 100, timedelta(seconds=104)),
    Vendor("api2convert", timedelta(seconds=60), timedelta(hours=24), 1000, 0, timedelta(seconds=20)),
    Vendor("spaaza", timedelta(seconds=60), timedelta(hours=1), 48, 20, timedelta(minutes=8.5)),
    Vendor("crayon", timedelta(seconds=60), timedelta(days=7), 12, 10, timedelta(minutes=3), asks_for_one=False),
    Vendor("sellercloud", timedelta(minutes=15), timedelta(days=10), 200, 100, timedelta(minutes=20)),
    Vendor("spaaza", timedelta(minutes=5), timedelta(hours=1), 48, 20, timedelta(minutes=8.5)),
)


@dataclass
class _Job:
    begins: datetime
    ends: datetime
    found: datetime | None = None
    polls: int = 0  # listings and looks that met it, the one that found its output included
    calls: float = 0.0  # its part of these: a listing serves all jobs that it meets


@dataclass
class Week:
    """What came of a week."""

    jobs: list[_Job] = field(default_factory=list)
    listings: int = 0
    looks: int = 0

    @property
    def seconds(self) -> list[float]:
        """From ready to found, shortest first."""
        return sorted((job.found - job.ends).total_seconds() for job in self.jobs if job.found)


def _jobs(vendor: Vendor, dice: random.Random) -> list[_Job]:
    made = []
    for day in range(DAYS):
        midnight = START + timedelta(days=day)
        begins = [midnight + timedelta(hours=2)] * vendor.by_night
        begins += [midnight + timedelta(hours=dice.triangular(7, 20, 13)) for _ in range(vendor.a_day - vendor.by_night)]
        made += [_Job(at, at + vendor.runs_for * dice.lognormvariate(0, 0.4)) for at in begins]
    return made


def week(vendor: Vendor, *, adaptive: bool) -> Week:
    """Poll for a week. Not `adaptive`: plain listings, `poll_every` apart and a little."""
    dice = random.Random(vendor.name)
    done = Week(_jobs(vendor, dice))
    open_jobs = dict(enumerate(done.jobs))
    running: dict[str, tuple[datetime, datetime]] = {}
    runs: list[float] = []
    looks: list[tuple[datetime, str]] = []
    next_listing, busy_at = START, START
    end = START + timedelta(days=DAYS)
    while min([next_listing, *(at for at, _ in looks[:1])]) < end:
        late = timedelta(seconds=dice.uniform(0, TICK_SECONDS))
        if looks and looks[0][0] < next_listing:
            now, names = looks[0][0] + late, [heapq.heappop(looks)[1]]
            done.looks += 1
        else:
            now = next_listing + late
            names = [str(number) for number, job in open_jobs.items() if job.begins <= now]
            done.listings += 1
            wait = polling.interval(vendor.every, quiet=now - busy_at, retention=vendor.retention)
            next_listing = now + (wait if adaptive else vendor.every * dice.uniform(1, 1 + polling.JITTER))
            looks = []
        for name in names:
            job = open_jobs.get(int(name))
            if job is None:
                continue
            job.polls += 1
            job.calls += 1 / len(names)
            busy_at = now
            if job.ends > now:
                running[name] = running.get(name, (now, now))[0], now
                continue
            job.found = now
            del open_jobs[int(name)]
            if name in running:
                runs = [*runs, polling.seconds_of_run(*running.pop(name), now, None)][-polling.RUNS_KEPT :]
        if adaptive and vendor.asks_for_one and not looks and next_listing > now:
            since = {name: first for name, (first, _) in running.items()}
            looks = [(at, name) for name, at in polling.looks(since, runs, now, min(next_listing, now + vendor.every))]
            heapq.heapify(looks)
    return done


def _row(vendor: Vendor) -> tuple[str, ...]:
    plain, ours = week(vendor, adaptive=False), week(vendor, adaptive=True)

    def figures(one: Week) -> tuple[float, float, float, float]:
        seconds = one.seconds
        polls = statistics.median(job.polls for job in one.jobs if job.found)
        calls = statistics.median(job.calls for job in one.jobs if job.found)
        return polls, calls, seconds[len(seconds) // 2], seconds[len(seconds) * 95 // 100]

    both = list(zip(figures(plain), figures(ours), strict=True))
    return (
        vendor.name,
        f"{vendor.every.total_seconds():.0f}",
        f"{vendor.runs_for.total_seconds():.0f}",
        f"{vendor.a_day}",
        f"{plain.listings / DAYS:,.0f} / {ours.listings / DAYS:,.0f}",
        f"{ours.looks / DAYS:,.0f}",
        f"{both[0][0]:.0f} / {both[0][1]:.0f}",
        f"{both[1][0]:.1f} / {both[1][1]:.1f}",
        *(f"{before:.0f} / {after:.0f}" for before, after in both[2:]),
        f"{(vendor.every + timedelta(seconds=5)).total_seconds():.0f}",
    )


def _listing_cost() -> tuple[str, ...]:
    """Tell a real ledger of ten thousand jobs, nearly all archived, as a listing does; gives calls and CPU seconds."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        ledger = Ledger(server.url, lease=timedelta(seconds=60), worker="bench")
        epoch, _ = ledger.epoch()
        now = datetime.now(UTC).replace(microsecond=0)
        outputs = [replace(_output(number, now), id=OutputId("source", str(number), str(number))) for number in range(LISTED)]
        for output in outputs[NEW:]:
            ledger.adopt(output, "key")
        ledger.owe_all((output, False) for output in outputs[:NEW])
        jobs = [Job(id=one.id.job_id, state=JobState.COMPLETED, outputs=(one,)) for one in outputs]
        nothing_new = SimpleNamespace(may_have_receipts=lambda outputs: outputs)
        daemon = cast("Daemon", SimpleNamespace(ledger=ledger, archive=nothing_new))
        with redis.Redis.from_url(server.url) as client:
            before, cpu = _info(client), time.process_time()
            for first in range(0, LISTED, discover._BATCH):  # noqa: SLF001 - as `discover` does
                found = discover.Discovery("source")
                discover._note_jobs(daemon, "source", jobs[first : first + discover._BATCH], found, recheck=False, epoch=epoch)  # noqa: SLF001
            cpu = time.process_time() - cpu
            after = _info(client)
    calls, redis_cpu = (new - old for new, old in zip(after, before, strict=True))
    return f"{LISTED:,}", f"{NEW:,}", f"{calls:,.0f}", f"{cpu:.2f}", f"{redis_cpu:.2f}"


def _info(client: Any) -> tuple[float, float]:
    info = client.info("commandstats")
    cpu = client.info("cpu")
    return info["cmdstat_evalsha"]["calls"], cpu["used_cpu_user"] + cpu["used_cpu_sys"]


def run() -> Section:
    """Poll for a week at each vendor, and list ten thousand jobs once."""
    random.seed(1)
    columns: tuple[str, ...] = ("vendor", "poll_every, s", "a job runs, s", "jobs a day", "listings a day", "looks a day")
    columns += ("polls of an output", "calls for it", "ready to found p50, s", "p95, s", "aim, s")
    costs = table(("jobs listed", "not archived", "calls to Redis", "CPU of the worker, s", "of Redis, s"), [_listing_cost()])
    return Section("What polling costs and how soon it finds", f"{table(columns, map(_row, VENDORS))}\n{_SETTING}\n{costs}", {})


_SETTING = f"""
Each pair: plain listings, `poll_every` apart / what lastcall does. {DAYS} days in virtual time with the rules of
`worker/polling.py` themselves and ticks of {TICK_SECONDS:.0f} s; runs are log-normal (sigma 0.4), and of the jobs of
Sellercloud, Spaaza and Crayon many begin at once at two at night. *Polls of an output*, at the median: listings that met its
job until the output was found, and looks at it alone. *Calls for it*: the same, where a listing counts as a part of a call for
each open job that it met. *Aim*: `poll_every` and 5 s. From found to archived it takes a second when slots are free
([below](#what-one-sick-vendor-costs-the-others)). A longer list is a call for each of its pages.

What a listing costs here, where nearly everything that it shows is archived:
"""
