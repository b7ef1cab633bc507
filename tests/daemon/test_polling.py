"""When vendors are asked: a pause that one names is kept by all workers, and running jobs are asked for one by one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from worker.demo.embedded import wait_until
from worker.demo.server import Content, Fault
from worker.demo.spaaza import throttled
from worker.discover import discover, look
from worker.errors import ArchiveUnavailableError
from worker.model import OutputId, OutputState
from worker.polling import RUNS_KEPT
from worker.settle import look_after_bucket

PAUSE = timedelta(seconds=4)
UNDER_WAY = timedelta(seconds=0.5)  # a call of the other worker that the vendor had before it refused this one


def test_a_pause_that_a_vendor_names_is_kept_by_all_workers(stage):
    """Retry-After in seconds and as a date, and Sellercloud's own time: no call in between, everything archived after it."""
    stage.start("beat")
    stage.workers(2)
    wait_until(lambda: all(stage.vendors[name].requests() for name in stage.sources), 20, "every source to be listed")
    until = datetime.now(UTC).replace(microsecond=0) + PAUSE
    stage.spaaza.fail("tasks", throttled(str(int(PAUSE.total_seconds()))))
    stage.api2convert.fail("jobs", Fault.answer(429, "slow down", Retry_After=format_datetime(until, usegmt=True)))
    named = {"Error": "Too many requests.", "RateLimitResetTime": f"{until:%Y-%m-%dT%H:%M:%S}.0000000Z"}
    stage.sellercloud.fail("list", Fault.answer(409, json.dumps(named), "application/json"))
    stage.spaaza.add_task(Content("p", 1000))
    stage.sellercloud.add_job(Content("s", 1000))
    stage.wait_archived()
    for vendor, status in ((stage.spaaza, 429), (stage.api2convert, 429), (stage.sellercloud, 409)):
        requests = vendor.requests()
        refused = next(entry for entry in requests if entry.status == status)
        end = refused.at + PAUSE if vendor is stage.spaaza else until
        wait_until(lambda v=vendor, e=end: any(entry.at > e for entry in v.requests()), 20, "the vendor to be asked again")
        early = [entry for entry in requests if refused.at + UNDER_WAY < entry.at < end]
        assert early == [], vendor
    assert "Traceback" not in stage.logs()


def running_tasks(world, number: int):
    """A source that is listed every quarter of an hour, whose tasks run for two minutes, and some that run."""
    world.only("spaaza")
    world.sources["spaaza"]["poll_every"] = "15m"
    tasks = [world.spaaza.add_task(Content(f"x{one}", 1000), lasts=None) for one in range(number)]
    daemon = world.daemon()
    daemon.ledger.learn_runs("spaaza", [110.0, 115.0, 120.0, 125.0, 130.0], RUNS_KEPT)
    found = discover(daemon, "spaaza")
    assert (found.running, found.owed) == (number, 0)
    return daemon, tasks


def test_a_job_that_ends_between_two_listings_is_owed_at_once(world, redis_client):
    daemon, (ends, goes_on) = running_tasks(world, 2)
    planned = redis_client.zrange("lastcall:looks:spaaza", 0, -1, withscores=True)
    ages = [at - daemon.ledger.running("spaaza")[str(ends.id)][0].timestamp() for _, at in planned]
    assert all(115 < age < 160 for age in ages)
    assert {job.split()[1].decode() for job, _ in planned} == {str(ends.id), str(goes_on.id)}
    assert daemon.ledger.looks_due(daemon.sources) == []
    daemon.ledger.plan_looks("spaaza", [(str(task.id), daemon.ledger.now()) for task in (ends, goes_on)])
    assert daemon.ledger.looks_due(daemon.sources) == ["spaaza"]
    ends.runs[-1].lasts = world.spaaza.now() - ends.runs[-1].begins_at
    lists = len(world.spaaza.requests("tasks"))
    assert look(daemon, "spaaza") == 1
    (record,) = daemon.ledger.records("spaaza", OutputState.OWED)
    assert record.output.id.job_id == str(ends.id)
    assert len(world.spaaza.requests("tasks")) == lists
    assert list(daemon.ledger.running("spaaza")) == [str(goes_on.id)]
    assert len(daemon.ledger.learn_runs("spaaza", [], RUNS_KEPT)) == 6


def test_a_job_that_cannot_be_read_harms_no_other_and_is_not_asked_for_again(world):
    daemon, (broken, ends) = running_tasks(world, 2)
    daemon.ledger.plan_looks("spaaza", [(str(task.id), daemon.ledger.now()) for task in (broken, ends)])
    ends.runs[-1].lasts = world.spaaza.now() - ends.runs[-1].begins_at
    world.spaaza.fail("task", Fault.answer(200, "<html>", "text/html"))
    assert look(daemon, "spaaza") == 1
    assert look(daemon, "spaaza") == 0
    assert len(world.spaaza.requests("task")) == 2
    assert daemon.ledger.record(OutputId("spaaza", str(broken.id), str(broken.id))) is None


def test_the_interval_counts_from_an_empty_answer_too(world, redis_client):
    """However long the log-in before it took."""
    world.only("spaaza")
    daemon = world.daemon()
    listing = daemon.sources["spaaza"].jobs

    def late(since):
        assert redis_client.delete("lastcall:polled:spaaza") == 1  # the interval from the turn on has passed
        yield from listing(since)

    daemon.sources["spaaza"].jobs = late
    assert discover(daemon, "spaaza").jobs == 0
    assert not daemon.ledger.poll_due("spaaza")


def test_no_listing_waits_for_the_count_of_the_receipts(world, redis_client, monkeypatch):
    """They are counted again whenever Redis was started anew, and millions take minutes."""
    world.only("spaaza")
    daemon = world.daemon()
    counted = []

    def receipts(source):
        counted.append((len(world.spaaza.requests("tasks")), redis_client.exists("lastcall:polling:spaaza")))
        return iter(())

    monkeypatch.setattr(daemon.archive, "receipts", receipts)
    assert discover(daemon, "spaaza").result == "ok"
    assert counted == [(1, 0)]
    assert daemon.ledger.recovered("spaaza")


def test_a_bucket_that_hangs_keeps_one_tick_and_not_each(world, monkeypatch):
    """A new ledger waits for the bucket, and ticks come faster than a bucket times out: they would fill every thread."""
    daemon = world.daemon()
    asked = []

    def hang(*_):
        asked.append(daemon.ledger.epoch()[1])
        look_after_bucket(daemon)  # the next tick comes meanwhile
        raise ArchiveUnavailableError("S3 did not answer")

    monkeypatch.setattr(daemon.archive, "begin_epoch", hang)
    daemon.ledger.clear()
    look_after_bucket(daemon)
    assert asked == [False]


def test_a_vendor_that_only_has_a_list_is_asked_for_no_single_job(world, redis_client):
    """Crayon: asking for one job would be a listing out of turn."""
    world.only("crayon")
    world.sources["crayon"]["poll_every"] = "15m"
    world.crayon.add_job(Content("x", 1000, "xlsx"), status=1)
    daemon = world.daemon()
    daemon.ledger.learn_runs("crayon", [110.0, 115.0, 120.0, 125.0, 130.0], RUNS_KEPT)
    assert discover(daemon, "crayon").running == 1
    assert redis_client.exists("lastcall:looks:crayon") == 0


def test_a_running_job_is_archived_long_before_the_next_listing(stage):
    """By beat and a worker: the tick sees that it is to be asked for."""
    stage.only("spaaza")
    stage.sources["spaaza"]["poll_every"] = "15m"
    task = stage.spaaza.add_task(Content("x", 1000), lasts=None)
    stage.start("beat")
    stage.workers(1)
    wait_until(lambda: stage.ledger.status("spaaza", PAUSE).last_poll_result == "ok", 20, "the end of a listing")
    assert list(stage.ledger.running("spaaza")) == [str(task.id)]
    task.runs[-1].lasts = stage.spaaza.now() - task.runs[-1].begins_at
    lists = len(stage.spaaza.requests("tasks"))
    stage.ledger.plan_looks("spaaza", [(str(task.id), stage.ledger.now())])
    stage.wait_archived()
    assert len(stage.spaaza.requests("tasks")) == lists
    assert "Traceback" not in stage.logs()
