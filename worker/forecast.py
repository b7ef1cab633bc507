"""What will miss its deadline, before it does, and what would save it: more workers, or more of a source's own limits.

The backlog is worked off in virtual time as `Ledger.claim` would do it: the latest start first, over all sources, with the
slots that the living workers have, the slots and the pace of each source, and the times that its outputs were measured to
take. What is not known is not guessed: a source none of whose outputs was timed has no figure.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from math import ceil, inf

from worker.ledger import Backlog, Ledger, SourceStatus, Waiting
from worker.model import JsonObject
from worker.settings import Settings

LATE_TURNS, SOON_SECONDS = 16, 900.0  # as ledger.lua claims
_MOST_ROWS = 4000  # over all sources; each forecast is some runs over them
_FEWEST_MEASURED = 3
_MOST_SLOTS = 1000  # of max_concurrent_downloads, as the settings allow
_MOST_CALLS = 1000  # a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What one source owes and how fast it may be collected. Times are epoch seconds."""

    backlog: Backlog
    slots: int
    calls_per_second: float
    begins_at: float = 0.0  # the end of a pause


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceForecast:
    """Of one source: `missed` of its `open` outputs will miss their deadline (None: not known yet); those overdue not counted.

    `limit`: the setting of the source that is too low for some of them, whatever the workers; `needed`: what it would have to
    be, None where nothing helps: the time left is too short.
    """

    open: int
    missed: int | None
    limit: str | None = None
    needed: float | None = None

    def to_json(self) -> JsonObject:
        """Give the ``forecast`` object of a source in ``status --json``."""
        return {"open": self.open, "missed": self.missed, "limit": self.limit, "needed": self.needed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Of all sources. `more_workers` save `saved` of the missed ones; None while nothing is known."""

    sources: Mapping[str, SourceForecast]
    more_workers: int | None
    saved: int

    @property
    def missed(self) -> int | None:
        """How many will miss their deadline, of those sources of which that is known; None where that is none that owes."""
        known = [source for source in self.sources.values() if source.missed is not None]
        if len(known) < len(self.sources) and not any(source.open for source in known):
            return None
        return sum(source.missed or 0 for source in known)

    @property
    def open(self) -> int:
        """How many outputs are owed or being collected."""
        return sum(source.open for source in self.sources.values())

    @property
    def lines(self) -> list[str]:
        """Say it in an operator's words, what is to be done included."""
        unknown = [name for name, source in self.sources.items() if source.missed is None]
        lines = []
        if self.missed is not None:
            known = sum(source.open for source in self.sources.values() if source.missed is not None)
            lines.append(self._verdict(known) if self.missed else f"all of {known:,} will meet their deadline")
        if unknown:
            lines.append(f"not known yet, until outputs were timed: {', '.join(unknown)}")
        lines += [_advice(name, source) for name, source in self.sources.items() if source.missed and source.limit]
        return lines

    def _verdict(self, known: int) -> str:
        said = f"{self.missed:,} of {known:,} will miss their deadline"
        if not self.saved:
            return said
        them = "them" if self.saved == self.missed else f"{self.saved:,} of them"
        return f"{said}; {_more_workers(self.more_workers or 0)} {them}"

    def to_json(self) -> JsonObject:
        """Give the ``forecast`` object of the totals in ``status --json``."""
        return {
            "open": self.open,
            "missed": self.missed,
            "workers_needed": self.more_workers,
            "saved": self.saved,
            "not_known": [name for name, source in self.sources.items() if source.missed is None],
            "text": "; ".join(self.lines),
        }


def _more_workers(number: int) -> str:
    words = {1: "one", 2: "two", 3: "three"}
    return f"{words.get(number, f'{number:,}')} more worker{'' if number == 1 else 's'} save{'s' if number == 1 else ''}"


def _advice(name: str, source: SourceForecast) -> str:
    if source.needed is None:
        return f"{name}: some come too late whatever is done; {source.limit}"
    return f"raise {source.limit} of {name} to {source.needed:g}, if the vendor bears it"


def read(ledger: Ledger, settings: Settings, status: Mapping[str, SourceStatus]) -> Forecast:
    """Forecast from the ledger; `status` is that of each source. Quick whatever the backlog: a large one is judged by some."""
    enabled = {name: source for name, source in settings.sources.items() if source.enabled}
    most = max(100, _MOST_ROWS // max(1, len(enabled)))
    queues = {}
    for name, source in enabled.items():
        paused_until = status[name].paused_until
        queues[name] = Queue(
            backlog=ledger.backlog(name, most),
            slots=source.max_concurrent_downloads,
            calls_per_second=source.requests_per_second,
            begins_at=paused_until.timestamp() if paused_until else 0.0,
        )
    return forecast(queues, ledger.now().timestamp(), ledger.capacity(), settings.worker.concurrency)


def forecast(queues: Mapping[str, Queue], now: float, capacity: int, concurrency: int) -> Forecast:
    """Forecast what misses its deadline when `capacity` outputs at once are collected, and how many more workers, of
    `concurrency` outputs at once each, or which limit of a source, would help.
    """
    known = {name: queue for name, queue in queues.items() if _known(queue)}
    missed = run(known, now, capacity)
    best = run(known, now, inf)  # sources do not wait for each other then, so what is missed is for their own limits
    more = 0
    if sum(best.values()) < sum(missed.values()):
        most = ceil(max(1, sum(queue.slots for queue in known.values()) - capacity) / concurrency)
        enough = sum(best.values())
        more = _least(1, most, lambda extra: sum(run(known, now, capacity + extra * concurrency).values()) <= enough)
    sources = {}
    for name, queue in queues.items():
        figure = missed.get(name)
        limit, needed = _limit(queue, now) if best.get(name) else (None, None)
        sources[name] = SourceForecast(open=queue.backlog.open, missed=figure, limit=limit, needed=needed)
    return Forecast(
        sources=sources,
        more_workers=more if any(queue.backlog.open for queue in known.values()) or len(known) == len(queues) else None,
        saved=sum(missed.values()) - sum(best.values()) if more else 0,
    )


def _known(queue: Queue) -> bool:
    return queue.backlog.open == 0 or queue.backlog.measured >= _FEWEST_MEASURED


def _limit(queue: Queue, now: float) -> tuple[str | None, float | None]:
    """Which setting of the source keeps outputs from being collected in time, and what would do."""

    def misses(slots: int = queue.slots, calls: float = queue.calls_per_second) -> int:
        return run({"": replace(queue, slots=slots, calls_per_second=calls)}, now, inf)[""]

    least = misses(_MOST_SLOTS, _MOST_CALLS)
    if least >= misses():
        return ("it is paused" if queue.begins_at > now else "the time left is too short"), None
    if misses(_MOST_SLOTS) <= least:
        return "max_concurrent_downloads", _least(queue.slots + 1, _MOST_SLOTS, lambda n: misses(n) <= least)
    # Where both limits are too low, the pace comes first, and the next forecast names the other.
    slots = queue.slots if misses(calls=_MOST_CALLS) < misses() else _MOST_SLOTS
    enough = misses(slots, _MOST_CALLS)
    tenths = _least(int(queue.calls_per_second * 10) + 1, _MOST_CALLS * 10, lambda n: misses(slots, n / 10) <= enough)
    return "requests_per_second", tenths / 10


def _least(low: int, high: int, enough: Callable[[int], bool]) -> int:
    """The least number from `low` on that is enough; `high` is taken to be."""
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def run(queues: Mapping[str, Queue], now: float, capacity: float) -> dict[str, int]:
    """Work the backlogs off in virtual time. Gives of each source how many outputs miss a deadline that has not passed yet."""
    lines = {name: _Line(queue, now) for name, queue in queues.items()}
    busy: list[tuple[float, str]] = []
    time, turn = now, 0
    for name, line in lines.items():
        for row in line.claimed:
            heapq.heappush(busy, (line.finish(row, now), name))
    while True:
        while busy and busy[0][0] <= time:
            lines[heapq.heappop(busy)[1]].taken -= 1
        if len(busy) < capacity:
            late = min(((line.head(time, late=True), name) for name, line in lines.items()), default=(inf, ""))
            in_time = min(((line.head(time, late=False), name) for name, line in lines.items()), default=(inf, ""))
            is_late = late[0] < inf
            if is_late and in_time[0] <= time + SOON_SECONDS:
                turn += 1
                is_late = turn % LATE_TURNS == 1
            start, name = late if is_late else in_time
            if start < inf:
                heapq.heappush(busy, (lines[name].start(time, late=is_late), name))
                continue
        # Nothing can begin now: go on to the next end, or to when a source may begin again.
        later = [line.next_at(time) for line in lines.values()] if capacity > 0 and len(busy) < capacity else []
        time = min([*later, *(end for end, _ in busy[:1])], default=inf)
        if time == inf:
            break
    return {name: round(line.missed + line.left()) for name, line in lines.items()}


class _Line:
    """One source in virtual time. A row that stands for several outputs takes as long as they would, one after the other."""

    def __init__(self, queue: Queue, now: float) -> None:
        rows = queue.backlog.rows
        self._weight = queue.backlog.open / len(rows) if rows else 1.0
        self._now = now
        self._slots = queue.slots
        self._spacing = self._weight / queue.calls_per_second  # each needs at least one call: for its link
        self._turn_at = max(now, queue.begins_at)
        self._number = count()
        self._in_time: list[tuple[float, int, Waiting]] = []
        self._late: list[tuple[float, int, Waiting]] = []
        self._later = [(row.not_before, next(self._number), row) for row in rows if not row.claimed]
        heapq.heapify(self._later)
        self.claimed = [row for row in rows if row.claimed]
        self.taken = len(self.claimed)
        self.missed = 0.0

    def head(self, time: float, *, late: bool) -> float:
        """The latest start of what this source would begin at `time`, of what is late or of what is not; inf for nothing."""
        while self._later and self._later[0][0] <= time:
            row = heapq.heappop(self._later)[2]
            heapq.heappush(self._in_time, (row.deadline - row.seconds, next(self._number), row))
        while self._in_time and self._in_time[0][0] <= time:
            heapq.heappush(self._late, heapq.heappop(self._in_time))
        waiting = self._late if late else self._in_time
        if self.taken >= self._slots or self._turn_at > time or not waiting:
            return inf
        return waiting[0][0]

    def start(self, time: float, *, late: bool) -> float:
        """Begin it; gives when it ends."""
        self._turn_at = time + self._spacing
        self.taken += 1
        return self.finish(heapq.heappop(self._late if late else self._in_time)[2], time)

    def finish(self, row: Waiting, time: float) -> float:
        """When a row that begins at `time` ends; counts it when that is too late."""
        if row.deadline > self._now:
            # The outputs that it stands for end one after the other, with deadlines about as far apart as the rows are.
            self.missed += self._weight * (time + row.seconds > row.deadline)
        return time + row.seconds * self._weight

    def next_at(self, time: float) -> float:
        """When this source may begin something, if it has a free slot and cannot begin anything at `time`."""
        if self.taken >= self._slots:
            return inf
        times = [self._turn_at] if (self._late or self._in_time) and self._turn_at > time else []
        if self._later:
            times.append(max(self._later[0][0], self._turn_at))
        return min(times, default=inf)

    def left(self) -> float:
        """How many are never begun: there is no worker."""
        waiting = [row for _, _, row in (*self._late, *self._in_time, *self._later)]
        return self._weight * sum(row.deadline > self._now for row in waiting)
