"""A ledger that is lost in the middle of a listing costs no download of what is archived already."""

from __future__ import annotations

from datetime import timedelta

import pytest
import redis

from worker.archive import Archive
from worker.audit import audit, rebuild
from worker.collect import collect
from worker.demo.api2convert import OutputFile
from worker.demo.embedded import wait_until
from worker.demo.server import Content
from worker.discover import discover
from worker.errors import ArchiveUnavailableError, StoppedError
from worker.model import Output, OutputId, timestamp
from worker.recovery import open_epoch, reclaim


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


def test_what_stood_without_a_receipt_when_redis_and_vendor_forgot_it_gets_one(
    world, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker died between object and receipt. No listing shows it any more, and nobody but the bucket knows that it was."""
    world.only("crayon")
    daemon = world.daemon()
    item = world.crayon.add_job(Content("report", 4321, "xlsx"))
    whole = world.truth()
    discover(daemon, "crayon", by_hand=True)
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "write_receipt", _died)
        assert "owed again" in str(collect(daemon))
    files = _files(world)
    (key,) = files
    foreign = key.replace("/2437/2437/", "/9/9/")
    world.s3.put_object(Bucket=world.bucket, Key=foreign, Body=b"somebody put it there")
    del world.crayon.items[item.id]
    redis_client.flushall()
    (finding,) = audit(daemon, "crayon").missing
    assert (str(finding.output), finding.why[:35]) == ("crayon/2437/2437", "its object stands, its receipt does")

    def archived() -> bool:
        discover(daemon, "crayon", by_hand=True)
        collect(daemon)
        return bool(world.receipts())

    wait_until(archived, 15, "its receipt")
    (output, receipt), (expected_output, expected) = *world.receipts().items(), *whole.items()
    assert output == expected_output
    assert (receipt["size"], receipt["sha256"]) == (expected.size, expected.sha256)
    assert receipt["completed_at"] == timestamp(expected.completed_at)
    assert receipt["deadline"] > receipt["completed_at"]
    assert (receipt["proof"], receipt["job"]) == (["stored-whole"], {})
    assert _files(world) == {**files, foreign: b"somebody put it there"}
    assert not audit(daemon, "crayon").bad
    assert daemon.ledger.strays_due("crayon") is None, "looked for once in each epoch"


def _files(world) -> dict[str, bytes]:
    return {key: body for key, body in world.objects().items() if not key.startswith(("archive/_receipts/", "archive/_state/"))}


def _died(*_: object) -> None:
    raise ArchiveUnavailableError("the worker is gone")


def test_what_a_listing_says_of_an_output_is_not_forgotten_for_what_its_object_says(
    world, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vendor offers it all the time, and tells its size and its checksum."""
    world.only("api2convert")
    daemon = world.daemon()
    world.api2convert.add_job(OutputFile("a.csv", Content("a", 1000)))
    discover(daemon, "api2convert", by_hand=True)
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "write_receipt", _died)
        assert "owed again" in str(collect(daemon))
    redis_client.flushall()
    discover(daemon, "api2convert", by_hand=True)
    wait_until(lambda: daemon.ledger.strays_due("api2convert") is not None, 15, "claims are given")
    (known,) = daemon.ledger.records("api2convert")
    assert reclaim(daemon, "api2convert") == 0
    assert list(daemon.ledger.records("api2convert")) == [known]
    assert known.output.size == 1000
    assert "archived" in str(collect(daemon))
    (receipt,) = world.receipts().values()
    assert receipt["vendor_size"] == 1000
    assert receipt["job"]


def test_rebuild_finds_what_stands_without_a_receipt_however_old_it_is(world, monkeypatch: pytest.MonkeyPatch) -> None:
    world.only("crayon")
    daemon = world.daemon()
    item = world.crayon.add_job(Content("report", 4321, "xlsx"))
    discover(daemon, "crayon", by_hand=True)
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "write_receipt", _died)
        collect(daemon)
    del world.crayon.items[item.id]
    daemon.ledger.clear()
    monkeypatch.setattr(type(daemon.settings.sources["crayon"]), "retention", timedelta(days=-30), raising=False)
    rebuild(daemon)

    def archived() -> bool:
        collect(daemon)
        return bool(world.receipts())

    wait_until(archived, 15, "its receipt")


def test_a_receipt_that_cannot_be_read_is_damage_and_its_object_no_stray(world, redis_client: redis.Redis) -> None:
    """An audit that names it goes on, though neither vendor nor ledger knows of the output."""
    world.only("crayon")
    daemon = world.daemon()
    item = world.crayon.add_job(Content("report", 4321, "xlsx"))
    discover(daemon, "crayon", by_hand=True)
    assert "archived" in str(collect(daemon))
    del world.crayon.items[item.id]
    redis_client.flushall()
    world.s3.put_object(Bucket=world.bucket, Key=f"archive/_receipts/crayon/{item.id}/{item.id}.json", Body=b"{}")
    found = audit(daemon, "crayon")
    assert (found.error, found.missing) == (None, [])
    assert [finding.why for finding in found.damaged] == ["its receipt cannot be read any more"]


def test_looking_for_what_has_no_receipt_ends_when_the_process_is_to_stop(world) -> None:
    daemon = world.daemon()
    output = Output(id=OutputId("crayon", "1", "1"), completed_at=daemon.ledger.now(), deadline=daemon.ledger.now())
    world.s3.put_object(Bucket=world.bucket, Key=daemon.archive.key(output, "a"), Body=b"")
    daemon.keeper.request_stop()
    with pytest.raises(StoppedError):
        reclaim(daemon, "crayon")
