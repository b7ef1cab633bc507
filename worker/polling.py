"""When a source is asked: how long until its next listing, and which running jobs are asked for one by one before that.

Listing is what finds everything, at `poll_every`. A call for a single job is worth it where that job is likely to have ended
and the next listing is far: how long jobs of the source run is learnt from those that were seen to end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

JITTER = 0.05  # of an interval, so that sources which began together do not stay in step
QUIET_AFTER = timedelta(hours=25)  # idle: nothing ran and nothing came for so long; not even what comes every night
SLOWEST = 1.5  # intervals between listings of an idle source; the rest of the promised two is for ticks, queues, slow answers,
_LEAST_SPARE = timedelta(seconds=5)  # and is at least so much
SHORT_LIVES = 100  # a source whose outputs live for no more than so many intervals is never idle

RUNS_KEPT = 20  # of each source
_FEWEST_RUNS = 5
_SHARES = (0.5, 0.8, 0.95)  # a job is asked for when so many of the source's recent jobs had ended,
_GAP = timedelta(seconds=15)  # no sooner than this after the last look at it, and not when a listing comes as soon
LOOKS_BETWEEN_LISTINGS = 5  # of one source


def interval(every: timedelta, *, quiet: timedelta, retention: timedelta) -> timedelta:
    """Give the time until the next listing: `every` and a little, or about half as much again for a source that is idle.

    `quiet`: since when nothing ran and nothing new came. `retention`: how long the source's outputs live. Never below `every`.
    """
    idle = quiet > QUIET_AFTER and retention > SHORT_LIVES * every and every * (2 - SLOWEST) >= _LEAST_SPARE
    return every * (SLOWEST if idle else 1) * (1 + random.uniform(-JITTER if idle else 0, 0 if idle else JITTER))


def seconds_of_run(since: datetime, last: datetime, now: datetime, completed_at: datetime | None) -> float:
    """Give how long a job ran after it was first seen, at `since`. It was seen running at `last`, and has ended by `now`."""
    ended = completed_at if completed_at and last <= completed_at <= now else last + (now - last) / 2
    return (ended - since).total_seconds()


def looks(running: Mapping[str, datetime], runs: Sequence[float], now: datetime, until: datetime) -> list[tuple[str, datetime]]:
    """Give which jobs to ask for, and when, before the next listing at `until`; at most `LOOKS_BETWEEN_LISTINGS`.

    `running`: since when each was seen; `runs`: seconds that earlier ones ran after they were first seen. A job that has run
    longer than nearly all of them is left to the listings, so an endless or a broken one costs nothing more.
    """
    if len(runs) < _FEWEST_RUNS:
        return []
    ordered = sorted(runs)
    ages = [timedelta(seconds=ordered[math.ceil(share * len(ordered)) - 1]) for share in _SHARES]
    found: list[tuple[str, datetime]] = []
    for job, since in running.items():
        earliest = now + _GAP
        for age in ages:
            at = max(since + age, earliest)
            if since + age > now and at <= until - _GAP:
                found.append((job, at))
                earliest = at + _GAP
    return sorted(found, key=lambda look: look[1])[:LOOKS_BETWEEN_LISTINGS]
