"""Nothing is lost and nothing is stored twice, whatever dies: workers killed at any point, Redis emptied or older, zombies.

Each test has outputs at nine points of their way in the hands of one worker (`InFlight.jobs` names the points) when disaster
strikes. Real processes, a real Redis, an S3 server, SIGKILL.
"""

from __future__ import annotations

import itertools
import signal
import time

import pytest
import redis

from worker.demo.api2convert import OutputFile
from worker.demo.embedded import wait_until
from worker.demo.server import Content
from worker.model import OutputId

RETURN_SECONDS = 10  # within which everything goes on once Redis is back


def flush(stage) -> None:
    with redis.Redis.from_url(stage.redis_url) as client:
        client.flushall()


def save(stage) -> None:
    """Let Redis keep what it knows now, for its next start; else it keeps nothing."""
    with redis.Redis.from_url(stage.redis_url) as client:
        client.save()


def all_known(stage, in_flight) -> bool:
    """Whether the ledger knows of every output that a worker holds it; one whose receipt stands may be known as archived."""
    outputs = {point: OutputId.parse(output) for point, output in in_flight.outputs().items()}
    states = stage.ledger.states(outputs.values())
    archived = {"has a receipt, unknown to the ledger"}
    return all(
        states[output] == "claimed" or (point in archived and states[output] == "archived") for point, output in outputs.items()
    )


@pytest.mark.parametrize("ledger", ["kept", "flushed"])
def test_a_worker_killed_at_any_point_loses_nothing(stage, in_flight, ledger):
    stage.workers(1)
    stage.kill(in_flight.worker)
    if ledger == "flushed":
        flush(stage)
    in_flight.go_on()
    seconds = in_flight.seconds_to_takeover()
    if ledger == "kept":
        assert seconds < 2 * stage.settings.worker.lease.total_seconds() + 1
    in_flight.assert_whole(further=1)
    assert len(stage.receipts()) == 9


@pytest.mark.parametrize("loss", ["FLUSHALL", "rebuild"])
def test_an_emptied_ledger_costs_what_is_in_flight_nothing(stage, in_flight, loss):
    if loss == "FLUSHALL":
        flush(stage)
    else:
        done = stage.run("rebuild")
        assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: all_known(stage, in_flight), 10, "claims to be asserted again")
    in_flight.go_on()
    in_flight.assert_whole(further=0)


def test_a_redis_that_comes_back_older_costs_what_is_in_flight_one_download_at_most(stage, make_in_flight):
    """Nine points of the way: five outputs were owed when Redis was saved, four did not exist; others were archived since."""
    assert stage.run("poll").returncode == 0  # what a first pass finds would be looked for anyway

    def listed() -> None:
        for number in range(3):
            stage.crayon.add_job(Content(f"archived {number}", 3000, "xlsx"))
        assert stage.run("poll").returncode == 0
        save(stage)

    in_flight = make_in_flight(listed=listed)
    wait_until(lambda: len(stage.receipts()) == 4, 20, "the others to be archived")
    before = stage.requested()
    stage.workers(1)
    stage.redis.kill()
    stage.redis.start()
    late = stage.sellercloud.add_job()
    wait_until(lambda: f"sellercloud/{late.id}/{late.id}" in stage.receipts(), RETURN_SECONDS, "a new output to be archived")
    in_flight.go_on()
    in_flight.assert_whole(further=1)
    after = stage.requested()
    idle = set(before) - set(in_flight.outputs().values())
    assert {output: after[output] for output in idle} == {output: before[output] for output in idle}


def test_a_zombie_changes_nothing(stage, in_flight):
    stage.workers(1)
    in_flight.worker.send_signal(signal.SIGSTOP)
    in_flight.go_on()
    in_flight.seconds_to_takeover()
    stage.wait_archived(40)
    before = stage.objects()
    in_flight.worker.send_signal(signal.SIGCONT)
    wait_until(lambda: "lease lost" in stage.logs(), 15, "the zombie to find its leases lost")
    in_flight.worker.send_signal(signal.SIGTERM)
    assert in_flight.worker.wait(30) == 0
    in_flight.assert_whole(further=1)
    assert {key: body for key, body in stage.objects().items() if "/_state/" not in key} == {
        key: body for key, body in before.items() if "/_state/" not in key
    }


def test_what_no_vendor_lists_survives_an_emptied_redis(stage):
    """Watched jobs, losses, and what people said about them; idle otherwise: nothing is downloaded again."""
    watched = stage.api2convert.add_job(OutputFile("w.csv", Content("w", 500)), lasts=None, listed=False)
    lost = [stage.sellercloud.add_job(), stage.sellercloud.add_job()]
    stage.crayon.add_job()
    assert stage.run("watch", "api2convert", watched.id).returncode == 0
    assert stage.run("poll").returncode == 0
    for job in lost:
        job.deleted = True
    stage.start("beat")
    stage.workers(1)
    names = [f"sellercloud/{job.id}/{job.id}" for job in lost]
    wait_until(lambda: all(stage.ledger.record(OutputId.parse(name)).state == "lost" for name in names), 40, "two losses")
    assert stage.run("acknowledge", names[0], "--reason", "known").returncode == 0
    before, requested = stage.json("status", code=1)["totals"], stage.requested()
    assert (before["archived"], before["lost"], before["acknowledged"]) == (1, 1, 1)

    flush(stage)
    watched.lasts = stage.api2convert.now() - watched.created_at
    wait_until(lambda: len(stage.receipts()) == 2, 30, "the watched job's output to be archived")

    def counted_again() -> bool:
        after = stage.json("status", code=1)["totals"]
        return (after["archived"], after["lost"], after["acknowledged"]) == (2, 1, 1)

    wait_until(counted_again, 20, "the counts to be right again")
    after = stage.requested()
    assert {output: after[output] for output in requested} == requested
    assert "Traceback" not in stage.logs()


def test_any_number_of_beats_and_workers_keep_the_intervals(stage, fill):
    """Two beats, three workers: no two listings of a source too close or too far apart, one log-in, no double download. Audits
    by schedule are among these listings.
    """
    every = 4.0  # so that a busy machine may be late by as much
    for table in stage.sources.values():
        table["poll_every"] = f"{every:g}s"
    stage.tables["audit"] = {"every": "1s", "verify_every": "1s"}
    fill(stage)
    for name in ("beat", "beat"):
        stage.start(name)
    stage.workers(3)
    stage.wait_archived()
    time.sleep(4 * every)
    proofs = {*(f"audit:{name}" for name in stage.sources), "verify"}
    wait_until(lambda: all(state.at for state in stage.ledger.proofs(proofs).values()), 30, "every proof to succeed")
    for name, (route, is_first) in FIRST_PAGE.items():
        asked = [entry.at for entry in stage.vendors[name].requests(route) if is_first(entry.query)]
        gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(asked)]
        assert len(gaps) >= 3, name
        assert min(gaps) >= every, f"{name}: {gaps}"
        assert max(gaps) <= 2 * every, f"{name}: {gaps}"
    assert len(stage.sellercloud.requests("token")) == 1
    assert len(stage.crayon.requests("token")) == 1
    assert stage.json("audit", "--history")["ok"]
    stage.assert_archived_once(downloads=1)
    stage.assert_counts()


FIRST_PAGE = {
    "sellercloud": ("list", lambda query: query["model.pageNumber"] == ["1"]),
    "api2convert": ("jobs", lambda query: query["page"] == ["1"]),
    "spaaza": ("tasks", lambda query: query["offset"] == ["0"]),
    "crayon": ("list", lambda query: query.get("Page", query.get("page", ["1"])) == ["1"]),
}
