"""discover and collect against the four simulated vendors, a real Redis and an S3 server, in one process."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta

import pytest

from worker import app
from worker.collect import Outcome, collect
from worker.demo.api2convert import OutputFile
from worker.demo.server import Content, Fault
from worker.discover import discover, watch
from worker.errors import LedgerUnavailableError
from worker.model import OutputId, OutputState


def drain(daemon, most: int = 200) -> list[str]:
    """Collect until nothing is left that may be claimed now."""
    outcomes = []
    while (outcome := collect(daemon)) and len(outcomes) < most:
        outcomes.append(str(outcome))
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


def test_a_link_to_a_host_that_is_not_allowed_is_held_and_spends_no_download(world):
    world.only("api2convert")
    world.sources["api2convert"] |= {
        "base_url": world.api2convert.base_url.replace("127.0.0.1", "localhost"),
        "download_hosts": [],
    }
    world.api2convert.add_job(OutputFile("a.csv", Content("a", 10)))
    daemon = world.daemon()
    poll_all(daemon)
    (outcome,) = drain(daemon)
    assert "download_hosts" in outcome
    (record,) = daemon.ledger.records("api2convert")
    assert (record.state, record.downloads) == ("held", 0)
    assert not [key for key in world.objects() if "/_state/spent/" in key]


def test_json_on_a_terminal_commands_nothing(world):
    world.only("api2convert")
    world.api2convert.add_job(OutputFile("K\u00f6ln\u009b31m\x7f\u202egpj.csv", Content("a", 10)))
    poll_all(world.daemon())
    done = world.run("outputs", "--json")
    assert done.returncode == 0, done.stderr
    assert all(letter.isprintable() or letter == "\n" for letter in done.stdout)
    assert "K\u00f6ln" in done.stdout
    assert json.loads(done.stdout)[0]["source"] == "api2convert"


def test_what_was_listed_before_an_error_is_owed(world):
    world.only("sellercloud")
    for number in range(60):
        world.sellercloud.add_job(Content(f"n{number}", 10))
    daemon = world.daemon()
    world.sellercloud.fail("list", Fault(), Fault(status=404), times=1)
    found = discover(daemon, "sellercloud", by_hand=True)
    assert found.result == "malformed"
    assert daemon.ledger.status("sellercloud", timedelta(0)).owed == 50


def test_what_a_long_list_shows_is_collected_while_it_is_still_read(world):
    world.only("sellercloud")
    for number in range(130):
        world.sellercloud.add_job(Content(f"n{number}", 10))
    daemon = world.daemon()
    listed, archived_after = [], []

    def collect_one() -> None:
        assert collect(daemon).archived == 10
        archived_after.append(len(listed))

    found = discover(daemon, "sellercloud", by_hand=True, seen=listed.append, owed=collect_one)
    assert found.owed == len(listed) == 130
    assert archived_after[0] < 130
    archived_after.clear()
    discover(daemon, "sellercloud", by_hand=True, owed=collect_one)
    assert archived_after == []


def test_a_wake_up_that_cannot_be_sent_ends_no_listing(world):
    """The broker may be in trouble while the ledger is not; the next tick sends what is missing."""
    world.only("sellercloud")
    for number in range(230):
        world.sellercloud.add_job(Content(f"n{number}", 10))

    def fail() -> None:
        raise LedgerUnavailableError("Redis: the message could not be sent")

    assert discover(world.daemon(), "sellercloud", owed=fail).owed == 230


def test_a_listing_that_redis_broke_off_is_not_called_well(world):
    world.only("sellercloud")
    world.sellercloud.add_job(Content("x", 10))
    daemon = world.daemon()

    def fail(_: object) -> None:
        raise LedgerUnavailableError("Redis: no answer")

    with pytest.raises(LedgerUnavailableError):
        discover(daemon, "sellercloud", seen=fail)
    assert daemon.ledger.status("sellercloud", timedelta(0)).last_poll_result == "ledger-unavailable"


def test_a_watched_job_is_found_and_is_watched_no_more_once_it_is_archived(world):
    world.only("api2convert")
    job = world.api2convert.add_job(OutputFile("a.csv", Content("a", 10)), listed=False)
    daemon = world.daemon()
    poll_all(daemon)
    assert drain(daemon) == []
    watch(daemon, "api2convert", job.id)
    watch(daemon, "api2convert", "no-such-job")
    poll_all(daemon)
    assert len(drain(daemon)) == 1
    poll_all(daemon)
    assert set(daemon.ledger.watched("api2convert")) == {"no-such-job"}
    world.assert_archived_once()


def test_a_watched_job_that_cannot_be_read_ends_no_pass(world):
    world.only("sellercloud")
    world.sellercloud.add_job(Content("a", 10))
    daemon = world.daemon()
    watch(daemon, "sellercloud", "77")
    world.sellercloud.standing["single"] = Fault.answer(200, "<html>", "text/html")
    poll_all(daemon)
    assert len(drain(daemon)) == 1


def test_an_audit_is_written_down_and_counted_downloads_are_spread(world):
    world.only("api2convert")
    world.api2convert.add_job(OutputFile("a.csv", Content("a", 1000)))
    world.api2convert.fail("download", Fault(cut_fraction=0.5), times=3)
    daemon = world.daemon()
    poll_all(daemon)
    waits = []
    for _ in range(3):
        drain(daemon)
        record = next(daemon.ledger.records("api2convert"))
        waits.append((record.not_before - daemon.ledger.now()).total_seconds())
        daemon.ledger.retry(record.output.id)
    assert waits[0] < 8
    assert waits[1] > 14
    assert waits[2] > 50
    drain(daemon)
    world.assert_archived_once()
    assert world.json("audit")["ok"]
    (entry,) = daemon.archive.proofs.entries()
    assert entry.document["ok"]
    assert entry.document["sources"]["api2convert"]["archived"] == 1


def test_a_receipt_that_somebody_spoiled_keeps_no_other_output_from_its_way(world):
    world.only("spaaza")
    bodies = (b"{}", b"[" * 100_000, b'{"schema": 1, "size": Infinity}', b"\xff")
    for body in bodies:
        task = str(world.spaaza.add_task(Content(body, 10)).id)
        spoiled = next(truth for truth in world.spaaza.truth() if truth.job_id == task)
        key = f"archive/_receipts/spaaza/{task}/{spoiled.output_id}.json"
        world.s3.put_object(Bucket=world.bucket, Key=key, Body=body)
    world.spaaza.add_task(Content("whole", 10))
    daemon = world.daemon()
    poll_all(daemon)
    drain(daemon)
    held = list(daemon.ledger.records("spaaza", OutputState.HELD))
    assert len(held) == len(bodies)
    assert all("its receipt cannot be read" in record.last_error for record in held)
    assert len(list(daemon.ledger.records("spaaza", OutputState.ARCHIVED))) == 1


def test_an_event_that_somebody_spoiled_keeps_no_source_from_being_listed(world):
    world.only("spaaza")
    world.spaaza.add_task(Content("x", 10))
    at = "20260101T000000.000000Z-00000000"
    for kind, body in itertools.product(("lost", "watch", "acknowledged"), (b"{}", b"[1]", b"[" * 100_000, b'{"reason": []}')):
        name = f"archive/_state/{kind}/spaaza/{len(body)}/1/{at}.json"
        world.s3.put_object(Bucket=world.bucket, Key=name, Body=body)
    daemon = world.daemon()
    poll_all(daemon)
    assert len(drain(daemon)) == 1
    assert daemon.ledger.status("spaaza", timedelta()).archived == 1


def test_a_wake_up_goes_on_for_a_moment_and_begins_nothing_once_it_is_over_or_the_process_stops(world) -> None:
    world.only("sellercloud")
    for _ in range(6):
        world.sellercloud.add_job()
    daemon = world.daemon()
    poll_all(daemon)
    assert len(app.collect_for(daemon, 0)) == 1
    daemon.keeper.request_stop()
    assert len(app.collect_for(daemon, 60)) == 1
    rest = app.collect_for(world.daemon(), 60)
    assert len(rest) == 4
    assert app.collect_for(world.daemon(), 60) == []
    world.assert_archived_once()


def test_a_task_tells_its_troubles_in_full_and_counts_what_went_well() -> None:
    def output(number: int) -> OutputId:
        return OutputId("acme", str(number), "1")

    well = [Outcome(output(number), f"archived {number}.csv, 500 bytes in 0.1 s", 500) for number in range(3)]
    bad = Outcome(output(9), "held: the key is taken")
    assert app.told(well[:1]) == "acme/0/1: archived 0.csv, 500 bytes in 0.1 s"
    assert app.told([bad]) == "acme/9/1: held: the key is taken"
    assert app.told([well[0], bad, *well[1:]]) == (
        "acme/9/1: held: the key is taken; 3 outputs archived, 1,500 bytes, the last one acme/2/1"
    )
