"""A Redis that comes back older than it was: what it has forgotten costs nothing that is archived, and nothing that is known.

A real Redis that is killed and started again with what it had saved before (docs/decisions/0017).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
import redis

from worker.collect import collect
from worker.demo.api2convert import OutputFile
from worker.demo.embedded import RedisServer, wait_until
from worker.demo.server import Content
from worker.discover import acknowledge, discover, watch
from worker.errors import OutputGoneError
from worker.model import OutputId
from worker.settle import settle


@pytest.fixture
def old_world(world, redis_server: RedisServer):
    """A world whose Redis is its own."""
    world.redis_url = redis_server.url
    return world


def save(server: RedisServer) -> None:
    """Let Redis keep what it knows now; without, it keeps nothing."""
    with redis.Redis.from_url(server.url) as client:
        client.save()


def come_back_older(server: RedisServer) -> None:
    server.kill()
    server.start()


def all_archived(daemon, sources: list[str]) -> Callable[[], bool]:
    def archived() -> bool:
        for source in sources:
            discover(daemon, source, by_hand=True)
        while collect(daemon):
            pass
        states = [daemon.ledger.status(source, timedelta()) for source in sources]
        return not any(row.owed or row.claimed for row in states)

    return archived


def lose(daemon) -> OutputId:
    """The vendor says of the most urgent export that its bytes are gone, as often as it takes."""
    claim = daemon.ledger.claim({"sellercloud": 1})
    with daemon.keeper.holding(claim) as lease:
        gone = OutputGoneError("gone", reason="deleted", answers=1, over=timedelta(0))
        assert "lost" in settle(daemon, claim, lease, gone)
    return claim.output.id


def test_what_was_told_since_is_read_back_or_looked_for(old_world, redis_server):
    """Archived, lost, explained, held, watched, counted: all that Redis has forgotten is known again, nothing is downloaded."""
    world = old_world
    world.only("sellercloud", "api2convert")
    daemon = world.daemon()
    sources = list(daemon.sources)
    for _ in range(2):
        world.sellercloud.add_job()
    discover(daemon, "sellercloud", by_hand=True)
    explained = lose(daemon)
    was_held = daemon.ledger.claim({"sellercloud": 1})
    assert daemon.ledger.hold(was_held.output.id, was_held.fence, "a test")
    for _ in range(3):
        world.sellercloud.add_job()
    world.api2convert.add_job(OutputFile("a.csv", Content("a", 700)))
    for source in sources:
        discover(daemon, source, by_hand=True)
    save(redis_server)

    acknowledge(daemon, explained, "known")
    lost = lose(daemon)
    daemon.ledger.retry(was_held.output.id)
    watched = world.api2convert.add_job(OutputFile("w.csv", Content("w", 500)), lasts=None, listed=False)
    watch(daemon, "api2convert", watched.id)
    world.sellercloud.add_job()
    all_archived(daemon, sources)()
    epoch, _ = daemon.ledger.epoch()
    known = {name: daemon.ledger.status(name, timedelta()) for name in sources}
    assert (known["sellercloud"].archived, known["sellercloud"].lost, known["sellercloud"].acknowledged) == (4, 1, 1)
    asked = {output: truth.full_downloads + truth.partial_downloads for output, truth in world.truth().items()}
    spent = len([key for key in world.objects() if "/_state/spent/" in key])

    come_back_older(redis_server)
    assert daemon.ledger.claim(daemon.slots) is None, "nothing is claimed before it is known that Redis was restarted"
    assert daemon.ledger.epoch()[0] != epoch
    wait_until(all_archived(daemon, sources), 15, "everything to be known again")
    assert {name: daemon.ledger.status(name, timedelta()).archived for name in sources} == {"sellercloud": 4, "api2convert": 1}
    assert asked == {output: truth.full_downloads + truth.partial_downloads for output, truth in world.truth().items()}
    assert len([key for key in world.objects() if "/_state/spent/" in key]) == spent
    assert daemon.ledger.record(explained).acknowledged == "known"
    assert daemon.ledger.record(lost).state == "lost"
    assert set(daemon.ledger.watched("api2convert")) == {watched.id}
