"""What somebody who can write to Redis may put into our queues: pickles, garbage, unknown tasks, hostile names."""

from __future__ import annotations

import base64
import json
import os
import pickle
import uuid

import pytest

from worker.demo.embedded import wait_until
from worker.demo.server import Content


class Exploit:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def message(body: bytes, kind: str, *, task: str = "poll", encoding: str = "binary", **headers: object) -> bytes:
    """Write a message as kombu's Redis transport does."""
    identity = str(uuid.uuid4())
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": encoding,
            "content-type": kind,
            "headers": {"lang": "py", "task": task, "id": identity, "root_id": identity, **headers},
            "properties": {
                "correlation_id": identity,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "lastcall.poll"},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": identity,
            },
        }
    ).encode()


def call(*arguments: object, **named: object) -> bytes:
    return json.dumps([arguments, named, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()


JSON, UTF8 = "application/json", "utf-8"


@pytest.fixture
def planted(tmp_path):
    """Give messages that nobody of ours would send, and the file that must not come to be."""
    path = tmp_path / "owned"
    exploit = pickle.dumps(([Exploit(str(path))], {}, {}))
    names = ["../../etc", "nobody", "a\n\x1b[31m", "x" * 100_000, "lastcall:*", "", {"a": 1}, ["poll"], None, 1e308]
    messages = [
        message(exploit, "application/x-python-serialize"),
        message(exploit, "application/x-python-serialize", task="collect"),
        message(exploit, "application/x-yaml", encoding=UTF8),
        message(exploit, JSON),
        message(b"!!python/object/apply:os.system ['touch %s']" % str(path).encode(), "application/x-yaml", encoding=UTF8),
        message(b"\xff\xfe", JSON, encoding=UTF8),
        message(b"{" * 5000, JSON, encoding=UTF8),
        message(call(), JSON, task="celery.backend_cleanup", encoding=UTF8),
        message(call("touch"), JSON, task="os.system", encoding=UTF8),
        message(call(1, 2, 3, x=4), JSON, encoding=UTF8),
        message(call(), JSON, task="tick", encoding=UTF8, eta="9999-12-31T23:59:59+00:00"),
        message(call(), JSON, task="tick", encoding=UTF8, expires="yesterday"),
        *(message(call(name), JSON, encoding=UTF8) for name in names),
    ]
    return messages, path


def test_no_message_harms_a_worker(world, redis_client, planted):
    messages, path = planted
    worker = world.start("worker")
    world.start("beat")
    world.sellercloud.add_job(Content("before", 1000))
    world.wait_archived()
    for queue in ("lastcall.collect", "lastcall.poll", "lastcall.tick"):
        for each in messages:
            redis_client.lpush(queue, each)
    world.sellercloud.add_job(Content("after", 1000))
    world.wait_archived()
    wait_until(lambda: redis_client.llen("lastcall.poll") == 0, 30, "the messages to be read")
    world.crayon.add_job(Content("later", 1000, "xlsx"))
    world.wait_archived()
    assert not path.exists(), "a message was run"
    assert worker.poll() is None
    world.assert_archived_once()
    logs = world.logs()
    assert "not a source" in logs or "nobody" not in logs
    assert "\x1b[31m" not in logs
    assert all(row["result"] in {"ok", "busy"} for row in world.json("poll").values())


def test_what_is_no_message_at_all_harms_one_worker_once(world, redis_client, tmp_path):
    """kombu cannot read it, and Celery ends the worker, as remote control could too (SECURITY.md). The next one works."""
    exploit = message(pickle.dumps(Exploit(str(tmp_path / "owned"))), "application/data")
    for raw in (b"garbage", exploit):
        redis_client.lpush("lastcall.poll", raw)
        world.start("worker").wait(30)
        assert redis_client.llen("lastcall.poll") == 0
    worker = world.start("worker")
    world.start("beat")
    world.spaaza.add_task(Content("after", 100))
    world.wait_archived()
    assert worker.poll() is None
    assert not (tmp_path / "owned").exists(), "a message was run"
