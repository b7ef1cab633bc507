"""The order of claims, proved by the simulation of ``make bench``: what can be in time is in time."""

from __future__ import annotations

import pytest

from bench.scheduling import LONG, SHORT, Mix, Ours, Steps, arrivals, missed


@pytest.mark.parametrize("mix", [LONG, SHORT], ids=["long", "short"])
def test_no_deadline_is_missed_while_a_schedule_exists_that_misses_none(mix: Mix, redis_url: str) -> None:
    """At full load, where a queue and Celery's four priorities miss some."""
    outputs = arrivals(mix, 100, seed=7)
    assert missed(mix, Steps(), outputs) > 0
    assert missed(mix, Steps(*list(mix.lives.values())[:-1]), outputs) > 0
    assert missed(mix, Ours(mix, redis_url), outputs) == 0


def test_with_more_than_can_be_in_time_most_still_is(redis_url: str) -> None:
    """At 110 %, late outputs do not make all others late."""
    outputs = arrivals(SHORT, 110, seed=7)
    assert missed(SHORT, Ours(SHORT, redis_url), outputs) < len(outputs) / 5
