"""The dead man's switch is told once a minute while outputs can be collected, and not otherwise."""

from __future__ import annotations

from datetime import timedelta

import pytest

from worker import app
from worker.demo.embedded import free_port, wait_until


@pytest.fixture
def daemon(world, receiver):
    world.tables["alerts"] = {"heartbeat_url": f"http://{receiver.origin}/ping"}
    return world.daemon()


def test_all_workers_together_tell_it_once_a_minute(world, daemon, receiver, redis_client):
    daemon.ledger.stamp_beat()
    other = world.daemon()
    for one in (daemon, other, daemon):
        app.tell_that_all_is_well(one)
    wait_until(lambda: receiver.asked == ["/ping"], 5, "the switch to be told")
    redis_client.delete("lastcall:once:heartbeat")  # a minute later
    app.tell_that_all_is_well(other)
    wait_until(lambda: receiver.asked == ["/ping"] * 2, 5, "the switch to be told again")


@pytest.mark.parametrize("trouble", ["no beat", "no worker", "a bucket that refuses us", "an emptied Redis"])
def test_it_is_not_told_while_outputs_cannot_be_collected(daemon, receiver, redis_client, trouble):
    ledger = daemon.ledger
    ledger.stamp_beat()
    if trouble == "no beat":
        redis_client.delete("lastcall:beat")
    elif trouble == "no worker":
        daemon.keeper.end()
    elif trouble == "a bucket that refuses us":
        ledger.pause(None, ledger.now() - timedelta(seconds=1), "allow s3:PutObject", times=1, fingerprint="")
    else:
        redis_client.flushall()
        ledger.stamp_beat()
        ledger.stamp_worker(8)
    app.tell_that_all_is_well(daemon)
    assert not redis_client.exists("lastcall:once:heartbeat")
    assert receiver.asked == []


def test_a_tick_of_the_running_daemon_tells_it(world, receiver):
    world.tables["alerts"] = {"heartbeat_url": f"http://{receiver.origin}/ping"}
    world.only("sellercloud")
    world.start("beat")
    world.start("worker")
    wait_until(lambda: receiver.asked == ["/ping"], 30, "the switch to be told")
    assert world.json("health") == world.json("health", "worker") == world.json("health", "beat") == {"ok": True}


def test_health_says_what_is_missing_and_of_a_single_process_nothing_bad_while_redis_is_away(world, daemon):
    """A worker that was killed because Redis is away would have finished what it has in hand."""
    assert world.json("health", code=1)["reason"].startswith("no beat has ticked yet")
    assert world.json("health", "beat", code=1)["reason"].startswith("no beat has ticked yet")
    assert world.json("health", "worker") == {"ok": True}
    daemon.ledger.stamp_beat()
    daemon.keeper.end()
    assert world.json("health", "worker", code=1)["reason"].startswith("no worker of this host is alive")
    world.redis_url = f"redis://127.0.0.1:{free_port()}/0"
    assert world.json("health", "worker")["reason"].startswith("nothing is known: Redis: no answer")
    assert world.run("health").returncode == 1
