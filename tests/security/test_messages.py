"""What somebody who can write to Redis may put into our queues: pickles, garbage, unknown tasks, hostile names, a typo."""

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


NO_MESSAGES = [
    *(b"garbage", b"", b"5", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"properties": {}}'),
    *(b'{"properties": {"delivery_tag": %s}}' % tag for tag in (b"[]", b"null", b'"a"', b"5")),
    *(
        b'{"body": %s, "properties": {"delivery_tag": "a", "body_encoding": %s}}' % body
        for body in ((b'"%%%"', b'"base64"'), (b"5", b'"base64"'), (b'"x"', b'"rot13"'), (b"[]", b"[]"), (b'"x"', b"null"))
    ),
]
HEADERS = ("task", "id", "eta", "expires", "retries", "timelimit", "origin", "stamped_headers")
WRONG = (None, [], {"a": 1}, "\x00", 1e308, {"__type__": "uuid", "__value__": {"hex": "x"}})


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
        message(pickle.dumps(Exploit(str(path))), "application/data"),
        *NO_MESSAGES,
        *(message(call("x"), JSON, encoding=UTF8, **{name: value}) for name in HEADERS for value in WRONG),
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
    for each in NO_MESSAGES:
        wait_until(lambda each=each: redis_client.publish("/0.celery.pidbox", each) == 1, 30, "the worker to hear it")
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
    assert "what stood in a queue is no message" in logs
    assert "a message makes no sense" in logs
    assert all(row["result"] in {"ok", "busy"} for row in world.json("poll").values())
