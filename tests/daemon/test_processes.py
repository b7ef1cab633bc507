"""The Procfile's processes against the simulated vendors: everything archived exactly once, by real Celery workers."""

from __future__ import annotations

import os
import signal

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


def test_a_warm_stop_ends_cleanly_and_signs_off(world):
    process = world.start("worker")
    world.start("beat")
    world.sellercloud.add_job(Content("x", 10_000))
    world.wait_archived()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == os.EX_OK
    assert world.json("status")["workers"] == 0
    assert "Traceback" not in world.logs()
