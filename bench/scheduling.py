"""Missed deadlines when there is as much to fetch as time, or more: lastcall's own claims against FIFO and Celery's priorities.

A discrete simulation in virtual time. Ours is the real ledger on a real Redis with a clock of the simulation's own: owe,
claim and archived are the very calls that the daemon makes. The others are modelled on the same arrivals, and kindly: they
pass over a source whose slots are taken, lose no message and restart in no time.

**Load, by construction.** For each load a plan is made first that fits `SLOTS` x load slots without a gap, and each output is
then given a time when it becomes ready, before its place in the plan, and a deadline at least `MARGIN` after it. So up to
100 % a schedule that misses nothing exists, known to one who knows the future; nobody here does. Above 100 % no schedule
saves all: what a plan on more slots than there are would have saved.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import redis

from bench.page import Section, bars, table
from worker.demo.embedded import RedisServer
from worker.ledger import Ledger
from worker.model import Output, OutputId

SEEDS = (1, 2)  # of the dice; the same arrivals for all
LOADS = (60, 80, 90, 100, 110, 120)
SLOTS = 10  # of all workers together
ACCOUNTS = "ab"  # sources for each kind of deadline
SLOTS_OF_A_SOURCE = 7  # its max_concurrent_downloads
HOUR, DAY = 3600.0, 86400.0
HORIZON = DAY
BYTES_PER_SECOND = 4e6  # of one slot
SHORTEST, LONGEST = 120.0, 900.0  # seconds of one download
MARGIN = 1800.0
START = 1_800_000_000.0


@dataclass(frozen=True, slots=True)
class Mix:
    """What there is to fetch: `lives`, kinds of deadline, each with its seconds from ready to due; `shares` of each."""

    name: str
    lives: dict[str, float]
    shares: tuple[float, ...]

    @property
    def slots(self) -> dict[str, int]:
        """The sources, each with its limit."""
        return {f"{life}-{account}": SLOTS_OF_A_SOURCE for life in self.lives for account in ACCOUNTS}

    def share(self, source: str) -> float:
        """Which share of all outputs a source has."""
        return dict(zip(self.lives, self.shares, strict=True))[life_of(source)]


LONG = Mix(
    "links of 1 h, retention of 24 h, 7 d and 10 d", {"1h": HOUR, "24h": DAY, "7d": 7 * DAY, "10d": 10 * DAY}, (5, 6, 5, 4)
)
SHORT = Mix("all due within hours", {"1h": HOUR, "3h": 3 * HOUR, "6h": 6 * HOUR, "12h": 12 * HOUR}, (1, 1, 1, 1))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One output: when it is ready and due, and how long its download takes. `known`: the listing tells its size."""

    name: str
    source: str
    ready: float
    deadline: float
    seconds: float
    known: bool


def arrivals(mix: Mix, load: int, seed: int) -> list[Arrival]:
    """Make a plan that fills ``SLOTS * load`` slots within the limits of the sources, then arrivals that it serves in time."""
    dice = random.Random(f"{load} {seed}")
    lanes = [(0.0, "")] * round(SLOTS * load / 100)  # when each is free again, and whose output it had
    free = mix.slots
    made = []
    while lanes[0][0] < HORIZON:
        begin, before = heapq.heappop(lanes)
        if before:
            free[before] += 1
        open_to = [source for source, slots in free.items() if slots]
        source = dice.choices(open_to, [mix.share(source) for source in open_to])[0]
        life, seconds = mix.lives[life_of(source)], SHORTEST * (LONGEST / SHORTEST) ** dice.random()
        free[source] -= 1
        heapq.heappush(lanes, (begin + seconds, source))
        # Due somewhere between its end in the plan and the end of all; ready a life before that, but not before the start.
        end = begin + seconds
        latest = min(begin + life, max(end, HORIZON) + MARGIN)
        deadline = end + MARGIN + dice.random() * (latest - end - MARGIN)
        ready = max(0.0, deadline - life)
        # Many at once, since exports are made by the hour and by night.
        together = min(life / 4, 6 * 3600.0)
        batch = math.ceil(ready / together) * together
        made.append((min(batch, begin), source, deadline, seconds, dice.random() < 0.5))
    made.sort()
    return [
        Arrival(f"{number}", source, START + ready, START + deadline, seconds, known)
        for number, (ready, source, deadline, seconds, known) in enumerate(made)
    ]


def life_of(source: str) -> str:
    """The kind of deadline that the outputs of a source have."""
    return source.partition("-")[0]


class Order(Protocol):
    """A scheduler: it is told what is ready and what is done, and says what comes next."""

    def ready(self, one: Arrival, now: float) -> None:
        """Take up an output."""

    def next(self, free: dict[str, int], now: float) -> Arrival | None:
        """Give what is begun now; `free`: slots of each source that are not taken."""

    def done(self, one: Arrival, now: float) -> None:
        """Its download has ended."""


class Steps:
    """Lists tried in order, each first in, first out: with one list FIFO, with four Celery's priorities on Redis.

    kombu makes four lists (priority_steps 0, 3, 6, 9), tries them in that order, and a message's step is fixed when it is
    sent (docs/decisions, FACTS 8). Its step here is the best that one can do: by the time left.
    """

    def __init__(self, *limits: float) -> None:
        self._limits = (*limits, float("inf"))
        self._lists: list[dict[str, deque[tuple[int, Arrival]]]] = [defaultdict(deque) for _ in self._limits]
        self._number = itertools.count()

    def ready(self, one: Arrival, now: float) -> None:
        step = next(step for step, limit in enumerate(self._limits) if one.deadline - now <= limit)
        self._lists[step][one.source].append((next(self._number), one))

    def next(self, free: dict[str, int], now: float) -> Arrival | None:
        for waiting in self._lists:
            heads = [(line[0][0], source) for source, line in waiting.items() if line and free[source] > 0]
            if heads:
                return waiting[min(heads)[1]].popleft()[1]
        return None

    def done(self, one: Arrival, now: float) -> None:
        pass


class Deadlines:
    """The nearest deadline first, whatever happens: what claims would be without sizes and without turns for what is late."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[float, int, Arrival]]] = defaultdict(list)

    def ready(self, one: Arrival, now: float) -> None:
        heapq.heappush(self._waiting[one.source], (one.deadline, int(one.name), one))

    def next(self, free: dict[str, int], now: float) -> Arrival | None:
        heads = [(waiting[0], source) for source, waiting in self._waiting.items() if waiting and free[source] > 0]
        return heapq.heappop(self._waiting[min(heads)[1]])[2] if heads else None

    def done(self, one: Arrival, now: float) -> None:
        pass


class Ours:
    """The real ledger."""

    def __init__(self, mix: Mix, url: str) -> None:
        self._slots = mix.slots
        with redis.Redis.from_url(url) as client:
            client.flushall()
        self._now = START
        self._ledger = Ledger(url, lease=timedelta(days=30), worker="bench", clock=lambda: self._now)
        self._ledger.open_epoch(self._ledger.epoch()[0], timedelta(0))
        self._arrivals: dict[str, Arrival] = {}

    def ready(self, one: Arrival, now: float) -> None:
        self._now = now
        self._arrivals[one.name] = one
        self._ledger.owe(
            Output(
                id=OutputId(one.source, one.name, one.name),
                completed_at=datetime.fromtimestamp(one.ready, UTC),
                deadline=datetime.fromtimestamp(one.deadline, UTC),
                size=int(one.seconds * BYTES_PER_SECOND) if one.known else None,
            ),
            recheck=False,
        )

    def next(self, free: dict[str, int], now: float) -> Arrival | None:
        self._now = now
        claim = self._ledger.claim(self._slots)
        return self._arrivals[claim.output.id.job_id] if claim else None

    def done(self, one: Arrival, now: float) -> None:
        self._now = now
        size = int(one.seconds * BYTES_PER_SECOND)
        self._ledger.archived(OutputId(one.source, one.name, one.name), "key", size, unproven=False, seconds=one.seconds)


def missed(mix: Mix, order: Order, outputs: list[Arrival]) -> int:
    """Work them off in virtual time; gives how many ended after their deadline."""
    free = mix.slots
    busy: list[tuple[float, int, Arrival]] = []
    late = 0
    arriving: Iterator[Arrival] = iter(outputs)
    coming = next(arriving, None)
    while coming or busy:
        now = min(coming.ready if coming else float("inf"), busy[0][0] if busy else float("inf"))
        while coming and coming.ready <= now:
            order.ready(coming, now)
            coming = next(arriving, None)
        while busy and busy[0][0] <= now:
            _, _, one = heapq.heappop(busy)
            order.done(one, now)
            free[one.source] += 1
            late += now > one.deadline
        while len(busy) < SLOTS and (begun := order.next(free, now)):
            free[begun.source] -= 1
            heapq.heappush(busy, (now + begun.seconds, int(begun.name), begun))
    return late


FIFO, CELERY, NEAREST, OURS = "first in, first out", "Celery's priorities", "nearest deadline", "lastcall"


def _compare(mix: Mix, url: str) -> dict[str, list[tuple[int, int]]]:
    """Give for each order one (missed, of how many) for each load, all seeds together."""
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in (FIFO, CELERY, NEAREST, OURS)}
    for load in LOADS:
        runs = [arrivals(mix, load, seed) for seed in SEEDS]
        limits = tuple(mix.lives.values())[:-1]
        makers: dict[str, Callable[[], Order]] = {
            FIFO: Steps,
            CELERY: partial(Steps, *limits),
            NEAREST: Deadlines,
            OURS: partial(Ours, mix, url),
        }
        for name, make in makers.items():
            found[name].append((sum(missed(mix, make(), run) for run in runs), sum(map(len, runs))))
    return found


def run() -> Section:
    """Compare over both mixes and all loads."""
    text, plots = [_SETTING], dict[str, str]()
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        for mix, file in ((LONG, "missed-deadlines.svg"), (SHORT, "missed-deadlines-short.svg")):
            found = _compare(mix, server.url)
            rows = [
                [f"{load} %", f"{found[OURS][place][1]:,}", *(f"{found[name][place][0]:,}" for name in found)]
                for place, load in enumerate(LOADS)
            ]
            percent = {name: [100 * late / total for late, total in pairs] for name, pairs in found.items()}
            plots[file] = bars(f"Missed deadlines, % of outputs: {mix.name}", [f"{load} %" for load in LOADS], percent, " %")
            text.append(f"### {mix.name[0].upper()}{mix.name[1:]}\n\n{table(('load', 'outputs', *found), rows)}\n")
            text.append(f"![Missed deadlines by load](images/{file})\n")
    return Section("Which files are in time when there is more to fetch than time", "\n".join(text), plots)


_SETTING = f"""Outputs that ended after their deadline, by load. A discrete simulation in virtual time
(a day of arrivals, seeds {", ".join(map(str, SEEDS))} together): *lastcall* is the real ledger on a real Redis, with its own
`owe`, `claim` and `archived`; the others are modelled on the same arrivals, and kindly.

* {SLOTS} slots of workers, eight sources with at most {SLOTS_OF_A_SOURCE} each. A download takes
  {SHORTEST:.0f} to {LONGEST:.0f} s (log-uniform). Half of the listings tell a size.
* **Load by construction**: a plan is made first that fills as many slots as the load says ({SLOTS} at 100 %), without a gap
  and within the limits of the sources; then each output gets a deadline at least {MARGIN / 60:.0f} minutes (twice the longest
  download) after its end in the plan, and is ready one life before that, or at the start. So up to 100 % a schedule exists
  that misses nothing, for one who knows the future. Above 100 % that schedule needs more slots than there are.
* *First in, first out* is a plain queue. *Celery's priorities* are its four steps on Redis: lists tried in order, fixed when
  sent, each message in the best step for its time left.
* *Nearest deadline* is exact earliest-deadline-first with nothing else: as good as ours up to 100 %, and a landslide above it,
  since each late output makes the next one late. That is why what is late takes turns
  ([decision 16](decisions/0016-the-order-of-claims.md)).
"""
