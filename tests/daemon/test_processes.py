"""The Procfile's processes against the simulated vendors: everything archived exactly once, by real Celery workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import celery.beat
import pytest
from celery.apps.beat import Beat

from worker import app
from worker.demo.embedded import wait_until
from worker.demo.server import Content


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
    monkeypatch.setattr(app._Process, "beat_stopping", threading.Event())
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
