"""A ledger that is lost in the middle of a listing costs no download of what is archived already."""

from __future__ import annotations

import pytest
import redis

from worker.archive import Archive
from worker.collect import collect
from worker.demo.api2convert import OutputFile
from worker.demo.embedded import wait_until
from worker.demo.server import Content
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


def test_what_was_taken_over_and_archived_before_a_flushall_is_not_downloaded_by_its_first_holder(
    world, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new ledger lets the first holder assert its claim: it cannot know that another one was through with it."""
    world.only("api2convert")
    first, second = world.daemon(), world.daemon()
    world.api2convert.add_job(OutputFile("a.csv", Content("a", 1000)))
    discover(first, "api2convert", by_hand=True)
    spend, held = Archive.spend, first.keeper._held
    first.keeper.end()  # it is stopped (SIGSTOP), and so is its heartbeat

    def taken_over_meanwhile(archive: Archive, output: OutputId, *arguments: object) -> int:
        if archive is first.archive:
            redis_client.flushall()
            discover(second, "api2convert", by_hand=True)
            wait_until(lambda: collect(second) is not None, 15, "the second one archives it")
            assert second.archive.receipt(output)
            redis_client.flushall()
            first.keeper.renew(list(held))
        return spend(archive, output, *arguments)

    monkeypatch.setattr(Archive, "spend", taken_over_meanwhile)
    assert "archived" in str(collect(first))
    assert [truth.full_downloads + truth.partial_downloads for truth in world.api2convert.truth()] == [1]
