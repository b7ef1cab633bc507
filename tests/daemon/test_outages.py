"""Redis away, S3 in trouble, workers told to stop: everything goes on by itself, and what is in hand is not fetched twice.

Real processes, a Redis that is killed, paused and emptied, an S3 behind a proxy that misbehaves.
"""

from __future__ import annotations

import time

import pytest

from worker.demo.embedded import wait_until

OUTAGE_SECONDS = 10  # five leases of these tests
RETURN_SECONDS = 10  # within which everything goes on once Redis is back


def be_away(stage, how: str) -> None:
    """Take Redis away for a while; half-open: it takes connections, and answers nothing."""
    stage.redis.pause() if how == "half-open" else stage.redis.kill()
    began = time.monotonic()
    done = stage.run("status")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Redis" in done.stderr
    assert time.monotonic() - began < 8, "the CLI must not hang"
    time.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - began)))
    stage.redis.resume() if how == "half-open" else stage.redis.start()


@pytest.mark.parametrize(("stage", "how"), [("durable", "killed"), ("", "emptied"), ("", "half-open")], indirect=["stage"])
def test_redis_comes_back_and_everything_goes_on(stage, in_flight, how):
    be_away(stage, how)
    in_flight.go_on()
    late = stage.sellercloud.add_job()
    began = time.monotonic()
    wait_until(lambda: f"sellercloud/{late.id}/{late.id}" in stage.receipts(), 30, "a new output to be archived")
    assert time.monotonic() - began < RETURN_SECONDS
    stage.wait_archived(40)
    stage.assert_archived_once(downloads=1)
    print(in_flight.requested())
    stage.assert_counts()
    assert in_flight.worker.poll() is None
