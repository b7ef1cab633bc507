"""Flower over a real worker: results in words, and neither a secret nor a way in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
from celery import Celery
from flower.urls import handlers

from tests.browser import Page
from worker.demo.embedded import Child, RedisServer, free_port

PLANTED = "planted-Pa55word"
PASSWORD = ("operator", "correct horse")


class Flower(Child):
    """``lastcall flower``, and with `workers` a worker and a beat, over one configuration whose one vendor is away."""

    def __init__(
        self, folder: Path, redis_url: str, *, table: str = "", s3_url: str = "http://127.0.0.1:1", bucket: str = "exports"
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "lastcall.toml"
        config.write_text(
            f'redis_url = "{redis_url}"\n[archive]\nbucket = "{bucket}"\nendpoint_url = "{s3_url}"\nregion = "eu-west-1"\n'
            f'access_key_id = "{PLANTED}"\nsecret_access_key = "{PLANTED}"\n'
            f'[flower]\nlisten = "127.0.0.1:{self.port}"\n{table}\n'
            '[sources.acme]\nvendor = "sellercloud"\nbase_url = "http://127.0.0.1:1/rest"\nallow_private_hosts = true\n'
            f'username = "operator"\npassword = "{PLANTED}"\n'
        )
        self.environment = {"LASTCALL_CONFIG": str(config)}
        super().__init__("flower", [sys.executable, "-m", "worker", "flower"], folder, environment=self.environment)

    def other(self, name: str) -> Child:
        """Give another process over the same configuration."""
        return Child(name, [sys.executable, "-m", "worker", name], self.log.parent, environment=self.environment)

    def ready(self) -> bool:
        try:
            return requests.get(self.url + "/healthcheck", timeout=5).status_code in {200, 401}
        except requests.ConnectionError:
            return False

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=20, **options)

    def tasks(self) -> dict[str, dict[str, Any]]:
        tasks: dict[str, dict[str, Any]] = self.get("/api/tasks").json()
        return tasks


@pytest.fixture
def start_flower(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., Flower]]:
    started: list[Flower] = []

    def start(**options: str) -> Flower:
        flower = Flower(tmp_path, **{"redis_url": redis_url, **options})
        started.append(flower)
        flower.start()
        return flower

    yield start
    for flower in started:
        flower.stop()


def test_flower_tells_tasks_in_words_and_no_secret(
    start_flower: Callable[..., Flower], redis_server: RedisServer, s3_url: str, bucket: str, eventually: Callable[..., None]
) -> None:
    """Neither page nor API answer nor log of any process shows the password of Redis or the bucket's keys."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("requirepass", PLANTED)
    flower = start_flower(redis_url=redis_server.url.replace("redis://", f"redis://:{PLANTED}@"), s3_url=s3_url, bucket=bucket)
    with flower.other("worker") as worker, flower.other("beat") as beat:

        def done() -> dict[str, dict[str, Any]]:
            return {task["name"]: task for task in flower.tasks().values() if task["state"] == "SUCCESS"}

        eventually(lambda: "poll" in done(), 30, "Flower shows a listing")
        assert done()["poll"]["args"] == "('acme',)"
        assert (
            done()["poll"]["result"] == "'acme: unavailable: log-in: the vendor cannot be reached: no connection could be made'"
        )
        assert "tick" not in {task["name"] for task in flower.tasks().values()}, "one each two seconds would bury the others"

        names: list[str] = []

        def answered() -> bool:
            names[:] = flower.get("/api/workers?refresh=1").json()
            return bool(names)

        eventually(answered, 30, "the worker answers Flower's inspection")
        assert len(names) == 1
        shown = {}
        for path in (
            "/", "/workers", "/workers?json=1", "/broker", "/tasks", "/metrics", "/healthcheck", "/api/workers", "/api/tasks",
            "/api/task/types", "/api/queues/length", f"/worker/{names[0]}", f"/api/workers?workername={names[0]}",
            f"/task/{next(iter(flower.tasks()))}", f"/api/task/info/{next(iter(flower.tasks()))}", "/not-here",
        ):  # fmt: skip
            reply = flower.get(path)
            assert reply.status_code == (404 if path == "/not-here" else 200), path
            shown[path] = reply.text
        assert "broker_url" in shown["/api/workers"], "the configuration is shown, without what must not be seen"
        assert "redis://:**@127.0.0.1" in shown["/broker"]
    flower.stop()
    shown |= {process.name: process.log.read_text() for process in (flower, worker, beat)}
    assert [where for where, text in shown.items() if PLANTED in text] == []


HOSTILE = "<img src=x onerror=alert(1)>\u202e'\"><script>alert(2)</script>"


def test_in_a_browser_flower_shows_hostile_names_and_runs_nothing(
    start_flower: Callable[..., Flower], page: Page, redis_url: str, eventually: Callable[..., None]
) -> None:
    """Whatever a vendor names a file: no page of Flower makes markup of it, and none could run it."""
    flower = start_flower()
    uuid = "0b5c2b0e-0000-4000-8000-000000000000"
    client = Celery(broker=redis_url, set_as_current=False)

    def told() -> bool:
        with (
            client.connection() as connection,
            client.events.Dispatcher(connection, hostname=f"worker-{HOSTILE}@host") as events,
        ):
            events.send("worker-online")
            events.send("task-received", uuid=uuid, name="collect", args=f"('{HOSTILE}',)", kwargs="{}")
            events.send("task-started", uuid=uuid)
            events.send("task-failed", uuid=uuid, exception=f"HeldError('{HOSTILE}')", traceback=f"at {HOSTILE}")
        return uuid in flower.tasks()

    eventually(told, 30, "Flower listens")
    for path, shown in (("/tasks", True), (f"/task/{uuid}", True), ("/workers", True), ("/broker", False)):
        page.open(flower.url + path)
        if shown:
            page.until("document.body.innerText.includes('onerror=alert(1)')")
        assert page.see("document.querySelectorAll('img[src=x]').length") == 0, path
        assert page.complaints == [], path
        if path == "/tasks":
            assert page.see(f"document.querySelectorAll('td a[href=\"/task/{uuid}\"]').length") == 1, "the way to all of it"
    assert flower.get("/tasks").headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self' 'sha256-")


def test_flower_waits_for_redis_and_ends_while_redis_hangs(
    start_flower: Callable[..., Flower], redis_server: RedisServer, eventually: Callable[..., None]
) -> None:
    """Pages are given without Redis, tasks are shown once it is there, and SIGTERM always ends it."""
    redis_server.kill()
    flower = start_flower(redis_url=redis_server.url)
    assert flower.get("/tasks").status_code == 200
    redis_server.start()
    with flower.other("worker"), flower.other("beat"):
        eventually(lambda: bool(flower.tasks()), 40, "Flower shows a task")
    redis_server.pause()
    assert flower.get("/tasks").status_code == 200
    flower.stop(within_seconds=10)
    assert flower.returncode == 0


def test_with_a_password_every_handler_of_flower_needs_it(start_flower: Callable[..., Flower]) -> None:
    """Also those that Flower's own basic auth leaves open: metrics, health check, static files, log-in."""
    flower = start_flower(table=f'username = "{PASSWORD[0]}"\npassword = "{PASSWORD[1]}"')
    patterns = [handler.regex.pattern if hasattr(handler, "regex") else handler[0] for handler in handlers]
    paths = [
        pattern.rstrip("$").replace("(.+)", "x").replace("(.*)", "x").replace("/?", "").replace(".*", "/x")
        for pattern in patterns
    ]
    assert {"/metrics", "/healthcheck", "/api/workers", "/static/x", "/login"} <= set(paths)
    for path in (*paths, "/static/js/flower.js", "/tasks/datatable?draw=1&start=0&length=5"):
        for method in ("GET", "POST", "OPTIONS"):
            reply = requests.request(method, flower.url + path, timeout=5)
            assert (reply.status_code, reply.text) == (401, ""), f"{method} {path}"
    for path in ("/", "/metrics", "/healthcheck", "/api/tasks", "/static/js/flower.js"):
        assert flower.get(path, auth=PASSWORD).status_code == 200, path
    assert [flower.get("/", auth=("operator", f"guess {number}")).status_code for number in range(6)] == [401] * 5 + [429]
    arguments = Path(f"/proc/{flower.pid}/cmdline").read_text()
    assert PASSWORD[1] not in arguments


def test_without_a_password_flower_can_be_read_from_here_and_nothing_can_be_done(start_flower: Callable[..., Flower]) -> None:
    """No page of another site can read it, by its own name or by asking across origins, and nobody can stop a worker."""
    flower = start_flower()
    assert flower.get("/api/tasks").json() == {}
    assert flower.get("/api/tasks", headers={"Host": f"evil.example:{flower.port}"}).status_code == 421
    reply = flower.get("/api/tasks", headers={"Origin": "http://evil.example"})
    assert not [name for name in reply.headers if name.lower().startswith("access-control")]
    for path in ("/api/worker/shutdown/x", "/api/task/send-task/lastcall.collect", "/api/task/async-apply/tick"):
        assert requests.post(flower.url + path, timeout=5).status_code == 405, path
    table = {"draw": 1, "start": 0, "length": 5, "order[0][column]": 0, "columns[0][data]": "name"}
    assert requests.post(flower.url + "/tasks/datatable", data=table, timeout=5).status_code == 200
