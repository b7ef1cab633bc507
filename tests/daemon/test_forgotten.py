"""A ledger that is lost in the middle of a listing costs no download of what is archived already."""

from __future__ import annotations

import pytest
import redis

from worker.collect import collect
from worker.demo.embedded import wait_until
from worker.discover import discover
from worker.model import OutputId
from worker.recovery import open_epoch


def test_what_was_archived_before_a_flushall_amid_a_listing_is_not_downloaded_again(
    world, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.only("sellercloud")
    daemon = world.daemon()
    for _ in range(3):
        world.sellercloud.add_job()
    discover(daemon, "sellercloud", by_hand=True)
    assert [collect(daemon) is not None for _ in range(4)] == [True, True, True, False]

    receipt, asked = daemon.archive.receipt, []

    def lost_meanwhile(output: OutputId) -> object:
        """The states of all listed outputs were asked for already; now the receipt of the new one is."""
        if not asked:
            redis_client.flushall()
        asked.append(output)
        return receipt(output)

    new = world.sellercloud.add_job()
    monkeypatch.setattr(type(daemon.archive), "receipt", lambda _, output: lost_meanwhile(output))
    discover(daemon, "sellercloud", by_hand=True)
    assert asked == [OutputId("sellercloud", str(new.id), str(new.id))]
    open_epoch(daemon)
    assert daemon.ledger.is_first_pass("sellercloud")

    def archived() -> bool:
        collect(daemon)
        return daemon.ledger.status("sellercloud", daemon.settings.worker.at_risk).owed == 0

    wait_until(archived, 15, "everything is archived again")
    assert [truth.full_downloads + truth.partial_downloads for truth in world.sellercloud.truth()] == [1, 1, 1, 1]
