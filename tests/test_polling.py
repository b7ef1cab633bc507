"""When a source is listed again, and which running jobs are asked for before that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.polling import LOOKS_BETWEEN_LISTINGS, interval, looks, seconds_of_run

NOW = datetime(2026, 3, 26, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
RUNS = [100.0, 200.0, 300.0, 400.0, 500.0]  # half within 300 s, all within 500


@given(
    st.timedeltas(timedelta(seconds=1), DAY),
    st.timedeltas(timedelta(0), 3 * DAY),
    st.timedeltas(timedelta(minutes=1), 30 * DAY),
)
def test_a_source_is_listed_after_one_interval_and_well_before_two(every: timedelta, quiet: timedelta, life: timedelta) -> None:
    wait = interval(every, quiet=quiet, retention=life)
    assert every <= wait <= max(1.5 * every, 1.05 * every)
    if wait > 1.05 * every:
        assert 2 * every - wait >= timedelta(seconds=5)  # for ticks, queues, and an answer that comes late


@pytest.mark.parametrize(
    ("quiet", "life", "slow"),
    [
        (2 * DAY, 10 * DAY, True),
        (DAY, 10 * DAY, False),  # what comes every night is due
        (2 * DAY, HOUR, False),  # what comes will not live for long
    ],
)
def test_a_source_is_listed_more_slowly_when_it_is_idle_and_its_outputs_live_long(
    quiet: timedelta, life: timedelta, slow: bool
) -> None:
    waits = {interval(MINUTE, quiet=quiet, retention=life) for _ in range(50)}
    assert len(waits) > 1, "jitter"
    assert all((wait > 1.4 * MINUTE) == slow for wait in waits)


def ages(since: float, runs: list[float] = RUNS, *, every: timedelta = 15 * MINUTE) -> list[float]:
    """How old a job that was first seen so many seconds ago is when it is asked for."""
    began = NOW - timedelta(seconds=since)
    return [(at - began).total_seconds() for _, at in looks({"1": began}, runs, NOW, NOW + every)]


def test_a_running_job_is_asked_for_when_others_had_ended() -> None:
    assert ages(0) == [300, 400, 500]
    assert ages(350) == [400, 500]


def test_a_job_that_runs_longer_than_others_did_is_left_to_the_listings() -> None:
    """So an endless one, an unknown status or one that cannot be read costs at most three calls, ever."""
    assert ages(500) == []
    assert ages(100_000) == []


def test_nobody_is_asked_where_nothing_was_learnt_or_the_next_listing_is_near() -> None:
    assert ages(0, RUNS[:4]) == []
    assert ages(0, every=timedelta(seconds=310)) == []
    assert ages(0, [20.0] * 5, every=timedelta(seconds=30)) == []


def test_jobs_that_run_alike_are_asked_for_a_quarter_of_a_minute_apart() -> None:
    assert ages(0, [100.0, 101.0, 102.0, 103.0, 104.0]) == [102, 117, 132]


@given(st.dictionaries(st.text(), st.floats(0, 1000), max_size=50), st.lists(st.floats(0, 1000), max_size=20))
def test_looks_are_few_in_order_and_before_the_next_listing(running: dict[str, float], runs: list[float]) -> None:
    since = {job: NOW - timedelta(seconds=age) for job, age in running.items()}
    planned = looks(since, runs, NOW, NOW + 5 * MINUTE)
    assert len(planned) <= LOOKS_BETWEEN_LISTINGS
    assert all(a[1] <= b[1] for a, b in pairwise(planned))
    assert all(NOW < at < NOW + 5 * MINUTE for _, at in planned)


def test_a_run_ends_when_the_vendor_says_or_between_two_looks() -> None:
    since, last = NOW - 10 * MINUTE, NOW - 2 * MINUTE
    assert seconds_of_run(since, last, NOW, NOW - MINUTE / 2) == 570
    assert seconds_of_run(since, last, NOW, since - HOUR) == 540  # a time of another thing, or by another clock
    assert seconds_of_run(since, last, NOW, None) == 540
