"""discover and collect against the four simulated vendors, a real Redis and an S3 server, in one process."""

from __future__ import annotations

from datetime import timedelta

from worker.collect import collect
from worker.demo.server import Content, Fault
from worker.discover import discover


def drain(daemon, most: int = 200) -> list[str]:
    """Collect until nothing is left that may be claimed now."""
    outcomes = []
    while (outcome := collect(daemon)) and len(outcomes) < most:
        outcomes.append(outcome)
    return outcomes


def poll_all(daemon) -> None:
    for source in daemon.sources:
        found = discover(daemon, source, by_hand=True)
        assert found is not None
        assert found.result == "ok", str(found)


def test_every_vendor_every_output_once(world, fill):
    fill(world)
    daemon = world.daemon()
    poll_all(daemon)
    outcomes = drain(daemon)
    assert len(outcomes) == len(world.truth()) == 15, outcomes
    world.assert_archived_once()
    assert all(daemon.ledger.status(name, timedelta(minutes=15)).archived for name in daemon.sources)


def test_asking_again_changes_nothing(world, fill):
    fill(world)
    daemon = world.daemon()
    poll_all(daemon)
    drain(daemon)
    before = world.objects()
    poll_all(daemon)
    assert drain(daemon) == []
    assert world.objects() == before


def test_the_most_urgent_first(world):
    world.only("sellercloud", "spaaza")
    late = world.sellercloud.add_job()
    soon = world.spaaza.add_task(Content("x", 10))
    daemon = world.daemon()
    poll_all(daemon)
    first, second = drain(daemon)
    assert first.startswith(f"spaaza/{soon.id}/")
    assert second.startswith(f"sellercloud/{late.id}/")


def test_a_cut_body_is_tried_again_and_never_stored(world):
    world.only("sellercloud")
    world.sellercloud.add_job(Content("x", 100_000))
    world.sellercloud.fail("download", Fault(cut_fraction=0.5))
    daemon = world.daemon()
    poll_all(daemon)
    (outcome,) = drain(daemon)
    assert "owed again" in outcome
    assert [key for key in world.objects() if "/_" not in key] == []
    record = next(daemon.ledger.records("sellercloud"))
    daemon.ledger.retry(record.output.id)
    drain(daemon)
    world.assert_archived_once()
