"""Audits and verifications: by window, by schedule, written down, told once; against real vendors, Redis and S3."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from worker import proving
from worker.archive import breaks
from worker.audit import Window, audit, verify
from worker.cli import main
from worker.cli.rooms import interruptible
from worker.collect import collect
from worker.demo.server import Content, Fault
from worker.discover import discover


def archived(world, number=2):
    """Give a daemon whose one source has archived so many outputs."""
    world.only("sellercloud")
    for index in range(number):
        world.sellercloud.add_job(Content(str(index), 10 + index))
    daemon = world.daemon()
    discover(daemon, "sellercloud", by_hand=True)
    while collect(daemon):
        pass
    return daemon


def key_of(world, number=0):
    return sorted(receipt["key"] for receipt in world.receipts().values())[number]


def command(world, *arguments, code=0):
    """Run a command in this process, as its user would; give its document."""
    done = CliRunner().invoke(main, ["--config", str(world.config), *arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def make_due(daemon, name, client):
    """Let a period pass."""
    client.hset(f"lastcall:proof:{name}", mapping={"since": 1, "at": 1, "tried": 1})


def due_and_proved(daemon, client, *names):
    for name in names:
        make_due(daemon, name, client)
    daemon.ledger._keys._redis.delete("lastcall:polled:sellercloud")
    return proving.prove(daemon)


def test_an_audit_of_a_window_is_about_what_was_completed_in_it(world):
    world.only("sellercloud")
    day = timedelta(days=1)
    now = datetime.now(UTC)
    for days in (1, 3, 5):
        world.sellercloud.add_job(Content(str(days), days), completed_at=now - days * day)
    daemon = world.daemon()
    discover(daemon, "sellercloud", by_hand=True)
    while collect(daemon):
        pass
    world.sellercloud.add_job(Content("late", 1), completed_at=now - 3 * day)
    for window, archived_in_it, missing in (
        (Window(), 3, 1),
        (Window(since=now - 4 * day), 2, 1),
        (Window(until=now - 4 * day), 1, 0),
        (Window(since=now - 4 * day, until=now - 2 * day), 1, 1),
        (Window(since=now - day / 2), 0, 0),
    ):
        found = audit(daemon, "sellercloud", window)
        assert (found.archived, len(found.missing), found.receipts) == (archived_in_it, missing, archived_in_it), window
    oldest = key_of(world)
    world.s3.delete_object(Bucket=world.bucket, Key=oldest)
    assert not audit(daemon, "sellercloud", Window(since=now - 4 * day)).damaged
    assert [finding.why for finding in audit(daemon, "sellercloud").damaged] == [f"no object at {oldest}"]


def test_an_output_archived_while_the_audit_lists_is_not_damaged(world, monkeypatch):
    daemon = archived(world)
    monkeypatch.setattr(daemon.archive, "inventory", lambda *_: iter(()))  # as it was before they were archived
    assert not audit(daemon, "sellercloud").bad


def test_commands_take_windows_and_write_down_what_they_find(world):
    archived(world)
    found = command(world, "audit", "--last", "30d")
    assert found["sources"]["sellercloud"]["archived"] == 2
    assert found["record"] == 1
    assert found["window"]["since"]
    assert command(world, "audit", "--until", "2020-01-01")["sources"]["sellercloud"]["receipts"] == 0
    assert command(world, "verify", "--sample", "1")["checked"] == 1
    key = key_of(world)
    world.s3.put_object(Bucket=world.bucket, Key=key, Body=b"x" * 10)
    assert command(world, "verify", "--source", "sellercloud", code=1)["sources"] == {
        "sellercloud": {"checked": 2, "damaged": 1}
    }
    history = command(world, "audit", "--history")
    assert history["ok"]
    assert [(row["number"], row["proof"], row["ok"]) for row in history["records"]] == [
        (1, "audit", True),
        (2, "audit", True),
        (3, "verify", True),
        (4, "verify", False),
    ]
    world.s3.delete_object(Bucket=world.bucket, Key="archive/_state/audit/00000002.json")
    assert command(world, "audit", "--history", code=1)["broken"] == [{"number": 2, "why": "it is missing"}]
    shown = CliRunner().invoke(main, ["--config", str(world.config), "audit", "--history"])
    assert "record 2: it is missing" in shown.stdout
    for wrong in (("--since", "yesterday"), ("--last", "30"), ("--last", "1d", "--since", "2026-01-01")):
        assert CliRunner().invoke(main, ["--config", str(world.config), "audit", *wrong]).exit_code == 2


def test_reading_back_needs_no_redis_and_is_written_down(world):
    archived(world)
    world.redis_url = "redis://127.0.0.1:1/0"
    assert command(world, "verify")["checked"] == 2
    assert [row["proof"] for row in command(world, "audit", "--history")["records"]] == ["verify"]


def test_the_first_scheduled_proof_comes_after_one_period(world, redis_client):
    daemon = archived(world)
    assert proving.due(daemon) == ["audit:sellercloud"]
    assert proving.prove(daemon) == []
    assert proving.due(daemon) == []
    make_due(daemon, "audit:sellercloud", redis_client)
    assert proving.due(daemon) == ["audit:sellercloud"]


def test_a_scheduled_audit_is_the_poll_and_knows_what_was_completed_a_moment_ago(world, redis_client):
    daemon = archived(world)
    world.sellercloud.add_job(Content("new", 5))
    began = len(world.sellercloud.requests("list"))
    assert due_and_proved(daemon, redis_client, "audit:sellercloud") == [
        "audit of sellercloud: 0 missing, 0 damaged, 0 held, 0 lost"
    ]
    assert len(world.sellercloud.requests("list")) == began + 1
    (entry,) = daemon.archive.proofs.entries()
    row = entry.document["sources"]["sellercloud"]
    assert (row["archived"], row["pending"], entry.document["by"]) == (2, 1, "schedule")
    assert not daemon.ledger.poll_due("sellercloud")  # the next listing is one interval away
    assert proving.due(daemon) == []


def test_an_emptied_ledger_reads_from_the_bucket_when_a_proof_last_succeeded(world, redis_client):
    daemon = archived(world)
    due_and_proved(daemon, redis_client, "audit:sellercloud")
    before = daemon.ledger.proofs(["audit:sellercloud"])["audit:sellercloud"]
    for number, body in ((2, b'{"proof": "audit", "by": 3}'), (3, b"{}"), (4, b'{"proof": "verify"}'), (5, b"no JSON")):
        world.s3.put_object(Bucket=world.bucket, Key=f"archive/_state/audit/{number:08d}.json", Body=body)
    redis_client.flushall()
    assert proving.prove(daemon) == []
    after = daemon.ledger.proofs(["audit:sellercloud"])["audit:sellercloud"]
    assert abs(after.at - before.at) < timedelta(seconds=5)
    assert after.counts == before.counts


def test_people_are_told_once_of_what_is_missing_or_damaged(world, redis_client):
    world.tables["audit"] = {"verify_every": "1d", "verify_sample": 0}
    daemon = archived(world)
    first, second = key_of(world, 0), key_of(world, 1)
    world.s3.delete_object(Bucket=world.bucket, Key=first)
    due_and_proved(daemon, redis_client, "audit:sellercloud")
    (alert,) = daemon.ledger.take_alerts()
    assert f"no object at {first}" in alert
    assert "lastcall audit --source sellercloud" in alert
    due_and_proved(daemon, redis_client, "audit:sellercloud")
    assert daemon.ledger.take_alerts() == []
    world.s3.put_object(Bucket=world.bucket, Key=second, Body=b"other")
    due_and_proved(daemon, redis_client, "audit:sellercloud")
    (alert,) = daemon.ledger.take_alerts()
    assert first not in alert
    due_and_proved(daemon, redis_client, "verify")
    (alert,) = daemon.ledger.take_alerts()
    assert "verification found 2" in alert
    assert daemon.ledger.proofs(["verify"])["verify"].counts == {"checked": 2, "damaged": 2}


def test_an_audit_that_fails_is_no_proof_and_people_learn_when_it_fails_for_long(world, redis_client):
    world.tables["audit"] = {"every": "1s"}
    daemon = archived(world)
    proving.prove(daemon)
    world.sellercloud.standing["list"] = Fault.answer(500, "")
    time.sleep(1)  # the period passes
    (result,) = proving.prove(daemon)
    assert "its listing ended as unavailable" in result
    assert daemon.archive.proofs.entries() == []
    assert proving.due(daemon) == []  # one period after the try
    time.sleep(1.1)
    proving.tell_late(daemon)
    proving.tell_late(daemon)
    (alert,) = daemon.ledger.take_alerts()
    assert alert.startswith("no audit of sellercloud has succeeded since ")
    assert "its listing ended as unavailable" in alert
    world.sellercloud.standing.clear()
    assert len(proving.prove(daemon)) == 1
    assert len(daemon.archive.proofs.entries()) == 1


def test_a_bucket_that_is_away_fails_a_proof_and_is_not_asked_all_the_time(world):
    daemon = archived(world)
    name, daemon.archive._bucket.name = daemon.archive._bucket.name, "nowhere"
    (result,) = proving.prove(daemon)
    assert result.startswith("audit:sellercloud: bucket nowhere does not exist")
    assert proving.due(daemon) == []
    assert not daemon.ledger.proofs(["audit:sellercloud"])["audit:sellercloud"].since
    daemon.archive._bucket.name = name


def test_a_removed_end_of_the_record_is_told_and_stands_in_the_next_one(world, redis_client):
    daemon = archived(world)
    for _ in range(2):
        due_and_proved(daemon, redis_client, "audit:sellercloud")
    world.s3.delete_object(Bucket=world.bucket, Key="archive/_state/audit/00000002.json")
    assert command(world, "audit", "--history", code=1)["broken"] == [{"number": 2, "why": "it was written and is gone"}]
    due_and_proved(daemon, redis_client, "audit:sellercloud")
    (alert,) = daemon.ledger.take_alerts()
    assert alert.startswith("the record of audits is broken, at 2: it was written and is gone")
    entries = daemon.archive.proofs.entries()
    assert breaks(entries) == []
    assert command(world, "audit", "--history", code=1)["broken"][0]["number"] == 2


def test_a_stop_ends_a_proof_at_once_and_leaves_it_to_another_worker(world, redis_client):
    world.tables["audit"] = {"verify_every": "1d"}
    daemon, other = archived(world), world.daemon()
    for name in ("audit:sellercloud", "verify"):
        make_due(daemon, name, redis_client)
    daemon.keeper.request_stop()
    assert proving.prove(daemon) == []
    assert set(proving.due(other)) == {"audit:sellercloud", "verify"}
    with pytest.raises(proving.StoppedError):
        verify(daemon, ["sellercloud"], None)


def test_ctrl_c_ends_reading_back_and_a_second_one_would_kill(world):
    daemon = archived(world)
    before = signal.getsignal(signal.SIGINT)
    with interruptible(daemon):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(proving.StoppedError):
            verify(daemon, ["sellercloud"], None)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is before


def test_one_worker_at_a_time_runs_a_proof(world, redis_client):
    daemon, other = archived(world), world.daemon()
    make_due(daemon, "audit:sellercloud", redis_client)
    turn = other.ledger.take_turn("proving:audit:sellercloud")
    assert proving.due(daemon) == []
    assert proving.prove(daemon) == []
    other.ledger.end_turn(turn)
    assert len(proving.prove(daemon)) == 1
