"""How often vendors are asked for each output, and how soon an output is found: the real rules in virtual time.

A week of jobs at each vendor; when to list and which jobs to ask for is decided by `worker.polling` itself. And what a listing
of ten sources with ten thousand jobs each costs, measured in the whole daemon.
"""

from __future__ import annotations

import heapq
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis

from bench.house import House, Store, cpu_seconds
from bench.loopback import Server
from bench.page import Section, table
from worker import polling
from worker.daemon import open_daemon
from worker.demo.embedded import wait_until
from worker.settings import load

DAYS = 7
TICK_SECONDS = 2.0
START = datetime(2026, 3, 23, tzinfo=UTC)
SOURCES, LISTED = 10, 10_000


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


def _listing_costs(listed: int = LISTED, rounds: int = 3) -> list[tuple[str, ...]]:
    """Let one worker list every source over and over, by its own poll tasks, when all that is listed was archived long ago."""
    names = tuple(f"source-{number}" for number in range(SOURCES))
    with (
        tempfile.TemporaryDirectory(prefix="lastcall-bench-") as root,
        Server("vendor", Path(root) / "v", 1024) as vendor,
        Server("sink", Path(root) / "s") as sink,
        House(
            Path(root) / "h", vendor, Store(name="sink", url=sink.url), sources=names, others=("beat",), poll_every="10m"
        ) as house,
        redis.Redis.from_url(house.redis.url) as client,
    ):
        house.ready()
        vendor.release(listed)
        before = client.info("memory")["used_memory"]
        _adopt(house)
        held = client.info("memory")["used_memory"] - before
        _round(house, client, listed)  # which counts the receipts once, since it meets some that it did not write
        found = []
        for number in range(rounds):
            found.append(_round(house, client, listed))
            sys.stderr.write(f"  round {number + 1}: {', '.join(f'{figure:.2f}' for figure in found[-1])}\n")
    seconds, worker, redis_cpu, calls = (statistics.median(figures) for figures in zip(*found, strict=True))
    one = (f"{seconds:.1f}", f"{worker:.1f}", f"{redis_cpu:.2f}", f"{calls:,.0f}", f"{held / 1e6:.0f}")
    return [(f"{SOURCES} × {listed:,}", *one, f"{100 * (worker + redis_cpu) / 60:.0f}")]


def _adopt(house: House) -> None:
    """Let the ledger know everything that is listed as archived, for every source."""
    daemon = open_daemon(load(house.config))
    listed = list(daemon.sources[house.sources[0]].jobs(datetime.now(UTC) - timedelta(days=11)))
    for name in house.sources:
        for job in listed:
            for output in job.outputs:
                daemon.ledger.adopt(replace(output, id=replace(output.id, source=name)), "key")


def _round(house: House, client: Any, listed: int) -> tuple[float, float, float, float]:
    """Have every source listed once; gives seconds, CPU seconds of worker and Redis, and calls of the ledger's script."""

    def polls() -> list[Any]:
        return [client.hgetall(f"lastcall:poll:{name}") for name in house.sources]

    def costs() -> tuple[float, float, float, float]:
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        return time.monotonic(), cpu_seconds([house.children["worker-0"].pid]), cpu_seconds([house.redis.pid]), calls

    last, before = [poll[b"at"] for poll in polls()], costs()
    house.poll_soon()
    wait_until(lambda: all(poll[b"at"] != at for poll, at in zip(polls(), last, strict=True)), 300, "every source is listed")
    spent = costs()
    for poll in polls():
        detail = json.loads(poll[b"detail"])
        if (poll[b"result"], detail["jobs"], detail["owed"]) != (b"ok", listed, 0):
            raise RuntimeError(f"a listing came to {poll}")
    seconds, worker, redis_cpu, calls = (new - old for new, old in zip(spent, before, strict=True))
    return seconds, worker, redis_cpu, calls


def run() -> Section:
    """Poll for a week at each vendor, and list ten sources of ten thousand jobs."""
    random.seed(1)
    columns: tuple[str, ...] = ("vendor", "poll_every, s", "a job runs, s", "jobs a day", "listings a day", "looks a day")
    columns += ("polls of an output", "calls for it", "ready to found p50, s", "p95, s", "aim, s")
    costs = table(
        (
            "jobs listed",
            "s",
            "CPU of the worker, s",
            "of Redis, s",
            "calls of Redis",
            "Redis holds, MB",
            "% of a core, each minute",
        ),
        _listing_costs(),
    )
    return Section("What polling costs and how soon it finds", f"{table(columns, map(_row, VENDORS))}\n{_SETTING}\n{costs}", {})


_SETTING = f"""
Each pair: plain listings, `poll_every` apart / what lastcall does. {DAYS} days in virtual time with the rules of
`worker/polling.py` themselves and ticks of {TICK_SECONDS:.0f} s; runs are log-normal (sigma 0.4), and of the jobs of
Sellercloud, Spaaza and Crayon many begin at once at two at night. *Polls of an output*, at the median: listings that met its
job until the output was found, and looks at it alone. *Calls for it*: the same, where a listing counts as a part of a call for
each open job that it met. *Aim*: `poll_every` and 5 s. From found to archived it takes a second when slots are free
([below](#what-one-sick-vendor-costs-the-others)). A longer list is a call for each of its pages.

What a listing costs where everything that it shows was archived before: one worker and beat, each source by its own poll task,
{LISTED // 50:,} pages each, from a vendor without latency that shares the cores; one round of all sources, the median of three.
*Redis holds*: what the ledger keeps of these outputs, so that no receipt is asked for again. The last column: worker and Redis
together with a `poll_every` of 60 s.
"""
