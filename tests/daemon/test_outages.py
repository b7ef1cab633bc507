"""Redis away, S3 in trouble, workers told to stop: everything goes on by itself, and what is in hand is not fetched twice.

Real processes, a Redis that is killed, paused and emptied, an S3 behind a proxy that misbehaves.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import s3proxy

from worker import fetch
from worker.collect import collect
from worker.demo.api2convert import OutputFile
from worker.demo.embedded import wait_until
from worker.demo.server import Content, Fault
from worker.discover import discover
from worker.model import OutputId

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
    assert set(in_flight.requested().values()) == {1}, "what is in hand outlives the outage"
    stage.assert_counts()
    assert in_flight.worker.poll() is None
    if how != "half-open":  # else a minute's outage would be followed by half a minute of waiting
        assert "it is looked for every second" in stage.logs()


MIB = 2**20
BUSY = itertools.cycle([s3proxy.answer(500, "InternalError"), s3proxy.answer(503, "SlowDown")])
TROUBLE = {
    "gone": s3proxy.Handler.reset,
    "busy": lambda handler: next(BUSY)(handler),  # noqa: PLW0108 - another one each time
    "credentials refused": s3proxy.answer(403, "InvalidAccessKeyId"),
}
TROUBLE_SECONDS = 6


@pytest.mark.parametrize("trouble", TROUBLE)
def test_bytes_in_hand_outlive_an_s3_in_trouble(running_stage, trouble):
    """The trouble begins in mid upload, when the vendor has sent everything."""
    stage = running_stage
    gate, reached = threading.Event(), threading.Event()
    counted = stage.api2convert.add_job(OutputFile("a.csv", Content(trouble, 20 * MIB)))
    stage.proxy.fault("PUT", f"/api2convert/.*/{counted.id}/.*partNumber=1", s3proxy.keep_request(gate, reached))
    assert reached.wait(20)
    output = next(name for name, truth in stage.truth().items() if truth.job_id == counted.id)
    wait_until(lambda: stage.truth()[output].full_downloads == 1, 20, "the vendor to have sent all")
    outage = stage.proxy.fault(".*", ".*", TROUBLE[trouble], times=10**6)
    gate.set()
    for number in range(20):
        stage.sellercloud.add_job(Content((trouble, number), 1000))
    time.sleep(TROUBLE_SECONDS)
    assert outage.seen < 50 * TROUBLE_SECONDS, "a storm of requests"
    if trouble == "credentials refused":
        status = stage.json("status")
        assert all("InvalidAccessKeyId" in row["paused_why"] for row in status["sources"].values())
    outage.times = 0
    stage.wait_archived(40)
    assert stage.requested()[output] == stage.spent(counted.id) == 1
    stage.assert_archived_once(downloads=2)
    stage.assert_counts()
    paused = re.findall(r'"event": "paused"', stage.logs())
    assert len(paused) == (1 if trouble == "credentials refused" else 0)


@pytest.mark.parametrize(
    "act", [s3proxy.reset_midway, s3proxy.lose_answer, s3proxy.slowly(4)], ids=["reset", "answer lost", "slow"]
)
def test_a_part_that_fails_is_sent_again_and_nothing_is_left_behind(running_stage, act):
    stage = running_stage
    job = stage.crayon.add_job(Content(repr(act), 20 * MIB, "xlsx"))
    fault = stage.proxy.fault("PUT|POST", f"/crayon/.*/{job.id}/.*uploadId=", act, times=2)
    stage.wait_archived()
    assert fault.seen == 2
    stage.assert_archived_once(downloads=2)
    assert stage.requested()[f"crayon/{job.id}/{job.id}"] == 1


def test_a_stop_gives_back_what_cannot_be_finished(stage):
    """One worker downloads slowly, waits for a link and lists a vendor that hangs; another is idle."""
    stage.start("beat")
    slow = stage.sellercloud.add_job(Content("slow", 400_000), fault=Fault(bytes_per_second=5_000))
    stage.spaaza.fail("mint", Fault(delay_seconds=60))
    stage.spaaza.add_task(Content("link", 1000))
    stage.crayon.add_job(Content("quick", 1000, "xlsx"))
    stage.crayon.standing["list"] = Fault(delay_seconds=60)
    busy = stage.workers(1)[0]
    held = [f"sellercloud/{slow.id}/{slow.id}", next(output for output in stage.truth() if output.startswith("spaaza/"))]
    wait_until(lambda: all(stage.vendors[name].requests(route) for name, route in HELD_AT), 20, "everything to be in its hands")
    idle = stage.workers(1)[0]
    idle.send_signal(signal.SIGTERM)
    assert idle.wait(10) == os.EX_OK
    busy.send_signal(signal.SIGTERM)
    assert busy.wait(30) == os.EX_OK
    for output in held:
        record = stage.ledger.record(OutputId.parse(output))
        assert record.state == "owed", output
        assert record.not_before is None, output
        assert "given back" in record.history[-1][1], output
    assert stage.logs().count('"event": "given back"') == 2
    assert stage.ledger.workers() == []
    assert stage.unfinished() == []
    assert "Traceback" not in stage.logs()


HELD_AT = (("sellercloud", "download"), ("spaaza", "mint"), ("crayon", "list"))


def collect_one(daemon) -> str:
    """Poll everything, then collect what may be claimed now, whatever its next try's time is."""
    for source in daemon.sources:
        assert discover(daemon, source, by_hand=True).result == "ok"
        for record in daemon.ledger.records(source):
            daemon.ledger.retry(record.output.id)
    return str(collect(daemon) or "")


CUT = Fault(cut_fraction=0.5)


def test_a_cut_download_is_resumed_where_ranges_are_honoured(world):
    world.only("spaaza")
    world.spaaza.add_task(Content("x", 3 * MIB))
    world.spaaza.fail("storage", CUT, times=2)
    assert "archived" in collect_one(world.daemon())
    first, second, third = world.spaaza.requests("storage")
    assert first.sent + second.sent + third.sent == 3 * MIB
    assert (second.status, third.status) == (206, 206)
    assert len(world.spaaza.requests("mint")) == 1
    world.assert_archived_once(downloads=0)


def test_a_download_that_trickles_is_cut_and_resumed(world, monkeypatch):
    """`min_throughput` ends it after a window of a minute, here a second; what came is kept."""
    monkeypatch.setattr(fetch, "open_download", partial(fetch.open_download, window_seconds=1.0))
    world.only("spaaza")
    world.sources["spaaza"]["min_throughput"] = "50KiB"
    world.spaaza.add_task(Content("x", 3 * MIB))
    world.spaaza.fail("storage", Fault(bytes_per_second=20_000))
    assert "archived" in collect_one(world.daemon())
    first, second = world.spaaza.requests("storage")
    assert (first.status, second.status) == (200, 206)
    assert first.sent > 10_000
    assert second.sent < 3 * MIB
    world.assert_archived_once(downloads=0)


def test_a_link_that_expires_in_mid_download_is_minted_again_and_resumed(world):
    world.only("spaaza")
    world.spaaza.switches.link_seconds = 2
    world.spaaza.add_task(Content("x", 300_000))
    world.spaaza.fail("storage", Fault(bytes_per_second=70_000, cut_fraction=0.75))
    assert "archived" in collect_one(world.daemon())
    assert [entry.status for entry in world.spaaza.requests("storage")] == [200, 206]
    assert len(world.spaaza.requests("mint")) == 2
    world.assert_archived_once(downloads=0)


@pytest.mark.parametrize("why", ["Range ignored", "ETag changed"])
def test_what_cannot_be_resumed_is_downloaded_anew(world, why):
    world.only("spaaza")
    task = world.spaaza.add_task(Content("x", 300_000))
    if why == "Range ignored":
        world.spaaza.switches.ranges = False
    else:
        change_while_downloading(world.spaaza, task)
    world.spaaza.fail("storage", CUT)
    daemon = world.daemon()
    assert "owed again" in collect_one(daemon)
    assert [key for key in world.objects() if "/_" not in key] == []
    assert "archived" in collect_one(daemon)
    assert [entry.status for entry in world.spaaza.requests("storage")] == [200, 200, 200]
    world.assert_archived_once(downloads=2)  # the answer to Range is dropped, although it was whole


def change_while_downloading(spaaza, task) -> None:
    """Let the storage hold other bytes of the same run once the first download has begun."""
    original = spaaza._storage

    def storage(request, **groups):
        reply = original(request, **groups)
        task.runs[-1].content = Content("changed", 300_000)
        return reply

    for number, route in enumerate(spaaza._routes):
        if route.name == "storage":
            spaaza._routes[number] = replace(route, handler=storage)


def test_a_wrapped_body_is_never_resumed(world):
    """Base64: neither a byte of the text nor of the file is guessed; the whole download is made again."""
    world.only("sellercloud")
    world.sellercloud.add_job(Content("x", 300_000))
    world.sellercloud.fail("download", CUT)
    daemon = world.daemon()
    assert "owed again" in collect_one(daemon)
    assert "archived" in collect_one(daemon)
    assert [entry.headers.get("range") for entry in world.sellercloud.requests("download")] == [None, None]
    world.assert_archived_once()


def test_a_counted_download_is_never_resumed_and_the_reserve_is_kept(world):
    """Each GET counts; after nine of ten the output is held."""
    world.only("api2convert")
    world.api2convert.switches.counting = "all"
    world.api2convert.switches.ranges = True
    world.api2convert.add_job(OutputFile("x.csv", Content("x", 300_000)))
    world.api2convert.standing["download"] = CUT
    daemon = world.daemon()
    outcomes = [collect_one(daemon) for _ in range(10)]
    assert all("owed again" in outcome for outcome in outcomes[:9])
    assert "held" in outcomes[9]
    downloads = world.api2convert.requests("download")
    assert len(downloads) == 9
    assert not any("range" in entry.headers for entry in downloads)


@pytest.mark.parametrize(("used", "outcome", "downloads"), [(8, "archived", 1), (9, "held", 0)])
def test_the_vendors_own_count_of_downloads_is_believed_where_it_is_higher(world, used, outcome, downloads):
    """Others download too, such as a person in the vendor's own page: the last of ten stays for them."""
    world.only("api2convert")
    world.api2convert.switches.counting = "all"
    file = OutputFile("x.csv", Content("x", 3000))
    world.api2convert.add_job(file)
    file.requests = used
    assert outcome in collect_one(world.daemon())
    assert len(world.api2convert.requests("download")) == downloads


def test_a_counted_download_is_not_made_while_the_bucket_takes_no_word_of_it(stage):
    """The event is what proves the bucket before a download is spent, the last one too."""
    stage.only("api2convert")
    job = stage.api2convert.add_job(OutputFile("x.csv", Content("x", 3000)))
    daemon = stage.daemon()
    refusal = stage.proxy.fault("PUT", "_state/spent", s3proxy.answer(403, "AccessDenied"), times=10**6)
    assert "owed again" in collect_one(daemon)
    assert stage.api2convert.requests("download") == []
    refusal.times = 0
    assert "archived" in collect_one(daemon)
    assert len(stage.api2convert.requests("download")) == stage.spent(job.id) == 1


def test_a_beat_that_begins_while_redis_is_away_ticks_soon_after_its_return(stage):
    """As after a power cut, when Redis reads its file for longer than the daemon needs to begin."""
    stage.redis.kill()
    stage.start("beat")
    wait_until(lambda: "looked for every second" in stage.logs(), 20, "beat to miss Redis")
    time.sleep(7)  # Celery's own patience grows by two seconds at each look, so that it would look again in five
    stage.redis.start()
    wait_until(lambda: stage.ledger.beat_at() is not None, 4, "a tick")
