"""The Procfile's processes against the simulated vendors: everything archived exactly once, by real Celery workers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import celery.beat
import pytest
from celery.apps.beat import Beat

from worker import app
from worker.demo.embedded import wait_until
from worker.demo.server import Content
from worker.ledger import Ledger


def test_the_procfile_archives_every_output_exactly_once(world, fill):
    fill(world)
    for name in ("worker", "worker", "beat", "beat"):
        world.start(name)
    world.wait_archived()
    world.sellercloud.add_job(Content("later", 2_000_000))
    world.wait_archived()
    world.assert_archived_once()
    status = world.json("status")
    assert status["totals"]["archived"] == len(world.truth())
    assert status["workers"] == 2
    assert world.json("audit")["ok"]
    assert "Traceback" not in world.logs()


@pytest.mark.parametrize("redis", ["answers", "hangs", "is gone"])
def test_beat_ends_when_it_is_asked_to_whatever_redis_does(stage, redis):
    """A signal says so and raises nothing: what is raised in the middle of a send may get lost there."""
    beat = stage.start("beat")
    wait_until(lambda: stage.ledger.beat_at() is not None, 20, "beat to tick")
    if redis == "hangs":
        stage.redis.pause()
    elif redis == "is gone":
        stage.redis.kill()
    time.sleep(1)  # into the next send, or between two looks
    beat.send_signal(signal.SIGTERM)
    assert beat.wait(20) == os.EX_OK
    assert "Traceback" not in stage.logs()


def test_a_signal_that_meets_beat_amid_a_tick_is_not_lost_there(world, monkeypatch):
    monkeypatch.setattr(app._Process, "settings", world.settings)
    monkeypatch.setattr(app._Process, "beat_ledger", None)
    monkeypatch.setattr(app._Process, "beat_stopping", False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    service = celery.beat.Service(app.app)
    service.scheduler = _Losing()
    try:
        Beat(app=app.app).install_sync_handler(service)
        service.start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert service.scheduler.ticks == 1


class _Losing:
    """A schedule whose sending is met by a signal, and loses what that raises: a connection is closed, which fails."""

    max_interval = 0.01
    ticks = 0

    def tick(self) -> float:
        self.ticks += 1
        assert self.ticks < 9, "beat goes on"
        with suppress(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        return 0.01

    def should_sync(self) -> bool:
        return False

    def close(self) -> None:
        pass


def test_a_warm_stop_ends_cleanly_and_signs_off(world):
    process = world.start("worker")
    world.start("beat")
    world.sellercloud.add_job(Content("x", 10_000))
    world.wait_archived()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == os.EX_OK
    assert world.json("status")["workers"] == 0
    assert "Traceback" not in world.logs()


def test_two_processes_of_one_worker_archive_everything_once_and_stop_together(world, fill):
    fill(world)
    process = world.start("worker", "--processes", "2")
    world.start("beat")
    world.wait_archived()
    world.assert_archived_once()
    assert world.json("status")["workers"] == 2
    siblings = _children(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == os.EX_OK
    assert world.json("status")["workers"] == 0
    assert not any(map(_runs, siblings))
    assert "Traceback" not in world.logs()


def test_a_worker_that_is_killed_leaves_no_process_behind(world):
    process = world.start("worker", "--processes", "2")
    ledger = Ledger(world.redis_url, lease=timedelta(seconds=3), worker="test")
    wait_until(lambda: len(ledger.workers()) == 2, 20, "both to be alive")
    siblings = _children(process)
    assert len(siblings) == 2
    world.kill(process)
    wait_until(lambda: not any(map(_runs, siblings)), 20, "none outlives the one that was started")
    assert ledger.workers() == [], "they have signed off"


def test_a_worker_of_which_one_process_dies_ends_and_says_so(world):
    process = world.start("worker", "--processes", "2")
    ledger = Ledger(world.redis_url, lease=timedelta(seconds=3), worker="test")
    wait_until(lambda: len(ledger.workers()) == 2, 20, "both to be alive")
    first, second = _children(process)
    os.kill(second, signal.SIGKILL)
    assert process.wait(30) == os.EX_SOFTWARE
    assert not _runs(first)
    assert "a worker process ended by itself, or not well; all are told to stop" in world.logs()


@pytest.mark.parametrize("after_seconds", [0.2, 0.7, 1.1, 1.5])
def test_processes_that_are_stopped_while_they_start_end_well(world, after_seconds):
    process = world.start("worker", "--processes", "2")
    wait_until(lambda: process.poll() is not None or len(_children(process)) == 2, 20, "both to be begun")
    siblings = _children(process)
    time.sleep(after_seconds)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == os.EX_OK
    assert not any(map(_runs, siblings))


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
