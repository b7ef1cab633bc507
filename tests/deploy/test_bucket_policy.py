"""deploy/s3/policy.json is all that lastcall needs, and nothing that it does not: the daemon and every command run under it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import s3proxy
from daemon.conftest import World

from worker.demo.api2convert import OutputFile
from worker.demo.server import Content

POLICY = json.loads((Path(__file__).parents[2] / "deploy/s3/policy.json").read_text())
ACTIONS = {action for statement in POLICY["Statement"] for action in statement["Action"]}
# What S3 calls each request; one that is not here is none that lastcall may make.
REQUESTS = (
    ("GET", True, "uploadId", "s3:ListMultipartUploadParts"),
    ("DELETE", True, "uploadId", "s3:AbortMultipartUpload"),
    ("POST", True, "uploads", "s3:PutObject"),
    ("POST", True, "uploadId", "s3:PutObject"),
    ("PUT", True, "partNumber", "s3:PutObject"),
    ("PUT", True, None, "s3:PutObject"),
    ("GET", True, None, "s3:GetObject"),
    ("HEAD", True, None, "s3:GetObject"),
    ("GET", False, "uploads", "s3:ListBucketMultipartUploads"),
    ("GET", False, "list-type", "s3:ListBucket"),
    ("HEAD", False, None, "s3:ListBucket"),
)


def action_of(method: str, path: str) -> tuple[str, str]:
    """Give the action that a request needs, and the resource that it needs it on."""
    parts = urlsplit(path)
    bucket, _, key = parts.path.lstrip("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    for verb, on_object, parameter, action in REQUESTS:
        if verb == method and on_object == bool(key) and (parameter in query if parameter else not query.keys() - {"x-id"}):
            return action, f"arn:aws:s3:::{bucket}/{key}".rstrip("/")
    return f"{method} {sorted(query)}", path


class Guard(s3proxy.Proxy):
    """Passes on what the policy allows, and refuses the rest."""

    def __init__(self, url: str, bucket: str) -> None:
        super().__init__(url)
        text = json.dumps(POLICY).replace("my-exports", bucket)
        self.statements = json.loads(text)["Statement"]
        self.used: set[str] = set()
        self.refused: list[str] = []

    def take(self, method: str, path: str) -> s3proxy.Fault | None:
        action, resource = action_of(method, path)
        if any(action in one["Action"] and fnmatchcase(resource, one["Resource"]) for one in self.statements):
            self.used.add(action)
            return super().take(method, path)
        self.refused.append(f"{action} on {resource}")
        return s3proxy.Fault(method, path, s3proxy.answer(403, "AccessDenied"), times=1)


@pytest.fixture
def guard(s3_url: str, bucket: str) -> Iterator[Guard]:
    guard = Guard(s3_url, bucket)
    threading.Thread(target=guard.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield guard
    guard.shutdown()
    guard.server_close()


@pytest.fixture
def world(tmp_path: Path, redis_url: str, s3_url: str, bucket: str, guard: Guard) -> Iterator[World]:
    made = World(tmp_path, redis_url, s3_url, bucket)
    made.tables["archive"]["endpoint_url"] = guard.url
    try:
        yield made
    finally:
        made.close()


def test_the_daemon_and_every_command_need_each_action_of_the_policy_and_no_other(world: World, guard: Guard) -> None:
    """With a file in parts, one of which S3 refuses at first, a counted download, a kill and a second attempt."""
    world.only("sellercloud", "api2convert")
    world.sellercloud.add_job(Content("small", 1000))
    world.sellercloud.add_job(Content("large", 9 * 2**20))
    world.api2convert.add_job(OutputFile("a.csv", Content("a", 700)))
    guard.fault("PUT", "partNumber=1", s3proxy.answer(500, "InternalError"))
    world.start("beat")
    world.start("worker")
    world.wait_archived()
    output = next(iter(world.truth()))
    watch = ["watch", "sellercloud", "4711"]
    for command in (["check"], ["show", output], watch, ["retry", output], ["audit"], ["verify"], ["rebuild"]):
        done = world.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    world.assert_archived_once()
    assert guard.refused == []
    assert guard.used == ACTIONS


def test_the_policy_lets_nobody_delete_or_change_the_bucket() -> None:
    assert not [action for action in ACTIONS if re.search(r"Delete|Policy|Lifecycle|Acl|Versioning|Tagging|\*", action)]
    assert {statement["Effect"] for statement in POLICY["Statement"]} == {"Allow"}
