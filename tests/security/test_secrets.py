"""A whole day of the daemon with a marker in every secret, faults and defects included; then everything that it left behind is
searched for the markers, as they are, in hex and in base64: logs, answers of commands, Redis and all that was ever said to it
(Celery's messages and events too), Flower, the board, metrics, the bucket, alerts, arguments of processes, other vendors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from security.conftest import Monitor, leaks

from tests.receiver import Receiver
from worker.demo.api2convert import OutputFile
from worker.demo.embedded import wait_until
from worker.demo.sellercloud import Sellercloud
from worker.demo.server import Content, Fault
from worker.ledger import Ledger

BROKEN = """
import sys
from worker import fetch
from worker.cli import main

left = [3]
whole = fetch.Download.chunks

def chunks(self):
    if left[0]:
        left[0] -= 1
        raise ValueError(f"defect at {self._link.url} with {self._link.headers}")
    return whole(self)

fetch.Download.chunks = chunks
sys.argv = ["lastcall", sys.argv[1]]
main()
"""


class Recording(dict):
    """A vendor's tokens, remembered after they were revoked."""

    def __init__(self) -> None:
        super().__init__()
        self.all: set[str] = set()

    def __setitem__(self, key: str, value: object) -> None:
        self.all.add(key)
        super().__setitem__(key, value)


class Secrets:
    """Makes a marker for each secret, in each of the three places where one can be kept. `named`: all of them."""

    def __init__(self, world) -> None:
        self.world = world
        self.named: dict[str, str] = {}

    def mark(self, name: str) -> str:
        self.named[name] = f"Zq9{len(self.named):02}x{name.replace('.', 'x').replace('_', 'x')}Q9z"
        return self.named[name]

    def env(self, name: str, value: str | None = None) -> dict[str, str]:
        variable = name.upper().replace(".", "_")
        self.world.env[variable] = value or self.mark(name)
        return {"env": variable}

    def file(self, name: str) -> dict[str, str]:
        path = self.world.folder / f"{len(self.named)}.secret"
        path.write_text(self.mark(name) + "\n")
        path.chmod(0o600)
        return {"file": str(path)}


@pytest.fixture
def secrets(guarded_world, guarded_redis) -> Secrets:
    made = Secrets(guarded_world)
    made.named["redis"] = guarded_redis.password
    return made


@pytest.fixture
def stranger(guarded_world) -> Iterator[Sellercloud]:
    with Sellercloud() as vendor:
        yield vendor


def configure(world, secrets: Secrets, receiver: Receiver, stranger: Sellercloud) -> None:
    """Put a marker into every secret that there is, and tell the vendors theirs."""
    sources, mark = world.sources, secrets.named
    sources["sellercloud"] |= {"username": secrets.env("sc.username"), "password": secrets.file("sc.password")}
    world.sellercloud.username, world.sellercloud.password = mark["sc.username"], mark["sc.password"]
    sources["api2convert"] |= {"api_key": secrets.mark("a2c.key"), "download_password": secrets.env("a2c.password")}
    world.api2convert.api_key = mark["a2c.key"]
    sources["spaaza"] |= {"access_token_id": secrets.env("sp.id"), "access_token_secret": secrets.file("sp.secret")}
    sources["spaaza"]["download_hosts"] = ["127.0.0.1"]
    world.spaaza.token_id, world.spaaza.token_secret = mark["sp.id"], mark["sp.secret"]
    for key in ("client_id", "client_secret", "username", "password"):
        sources["crayon"][key] = secrets.env(f"cr.{key}")
        setattr(world.crayon, key, mark[f"cr.{key}"])
    sources["refused"] = {
        **sources["sellercloud"],
        "base_url": stranger.base_url,
        "username": secrets.mark("no.username"),
        "password": secrets.env("no.password"),
    }
    echo = json.dumps({"Message": "Invalid username or password", "You": [mark["no.username"], mark["no.password"]]})
    stranger.standing["token"] = Fault.answer(401, echo, "application/json", X_Echo=mark["no.password"])
    world.tables["archive"] |= {"access_key_id": secrets.env("s3.id"), "secret_access_key": secrets.file("s3.secret")}
    world.tables["web"] |= {"username": secrets.env("web.user"), "password": secrets.file("web.password")}
    world.tables["flower"] |= {"username": secrets.env("flower.user"), "password": secrets.mark("flower.password")}
    receiver.heartbeat_status = 404  # the dead man's switch is told, and does not answer as it should, which is logged
    host = receiver.origin
    good = f"json://{secrets.mark('alert.user')}:{secrets.mark('alert.password')}@{host}/{secrets.mark('alert.path')}"
    bad = [f"nosuch://{secrets.mark('alert.unknown')}", f"json://127.0.0.1:1/{secrets.mark('alert.away')}"]
    beat = f"http://{host}/ping/{secrets.mark('alert.ping')}?key={secrets.mark('alert.key')}"
    world.tables["alerts"] = {"urls": [secrets.env("alert.url", good), *bad], "heartbeat_url": secrets.env("alert.beat", beat)}


def produce(world, secrets: Secrets) -> None:
    """Let the vendors make outputs whose documents are full of secrets, and then misbehave."""
    mark = secrets.mark
    world.sellercloud._tokens, world.crayon._tokens = Recording(), Recording()
    for number in range(2):
        world.sellercloud.add_job(Content(f"s{number}", 3000))
        world.crayon.add_job(Content(f"c{number}", 3000, "xlsx"))
        world.spaaza.add_task(Content(f"p{number}", 3000), description=f"see https://x.example/?sig={mark(f'sp.text{number}')}")
    job = world.api2convert.add_job(
        OutputFile("a.csv", Content("a", 700)),
        OutputFile("locked.csv", Content("b", 700), password=secrets.named["a2c.password"]),
        token=mark("a2c.token"),
        callback=f"https://x.example/{mark('a2c.callback')}",
        inputs=[
            {"id": "i", "source": f"https://x.example/?sig={mark('a2c.input')}", "credentials": {"p": mark("a2c.credentials")}}
        ],
        conversions=[{"target": "csv", "category": "document", "options": {"user_password": mark("a2c.option")}}],
        warnings=[{"code": 1, "message": f"could not read https://u:{mark('a2c.warning')}@x.example/"}],
    )
    world.api2convert.add_job(OutputFile("gone.csv", Content("g", 100), status="disabled"))
    assert job.token == secrets.named["a2c.token"]
    told = " ".join(secrets.named[name] for name in ("sp.secret", "cr.password", "sc.password"))
    page = f"<html>token expired, {told}</html>"
    refusals = [Fault.answer(status, page, X_Token=secrets.named["sp.secret"]) for status in (403, 500, 200)]
    world.spaaza.fail("storage", *refusals)
    world.crayon.fail("download", *refusals)
    world.sellercloud.fail("download", *refusals, Fault.answer(302, Location=f"http://10.1.2.3/?sig={mark('redirect')}"))
    world.crayon.fail("token", Fault.answer(500, page))
    world.sellercloud.fail("list", Fault.answer(200, page), Fault.answer(200, f'{{"Items": "{page}"}}', "application/json"))
    world.crayon.fail("list", Fault.answer(302, Location=f"http://10.1.2.3/?sig={secrets.named['redirect']}"))


def web_pages(world, secrets: Secrets) -> Iterator[tuple[str, bytes]]:
    """Ask the board and Flower for everything that they show, with their passwords and without."""
    mark = secrets.named
    board, flower = (f"http://{world.tables[name]['listen']}" for name in ("web", "flower"))
    wanted = [(board, path, "web") for path in ("/", "/api/board", "/metrics", "/healthz", "/static/board.js", "/nothing")]
    wanted += [
        (flower, path, "flower") for path in ("/", "/workers", "/tasks", "/broker", "/metrics", "/healthcheck", "/nothing")
    ]
    wanted += [
        (flower, path, "flower")
        for path in ("/api/workers?refresh=1", "/api/tasks?limit=1000", "/api/task/types", "/api/queues/length")
    ]
    with requests.Session() as session:
        session.trust_env = False
        log_in = {name: (mark[f"{name}.user"], mark[f"{name}.password"]) for name in ("web", "flower")}
        tasks = session.get(f"{flower}/api/tasks", auth=log_in["flower"], timeout=30).json()
        workers = session.get(f"{flower}/api/workers?refresh=1", auth=log_in["flower"], timeout=30).json()
        assert tasks
        assert any("conf" in worker and "stats" in worker for worker in workers.values()), workers
        wanted += [(flower, f"/task/{uuid}", "flower") for uuid in list(tasks)[:20]]
        wanted += [(flower, f"/task/{uuid}", "flower") for uuid, task in tasks.items() if task["state"] == "FAILURE"]
        wanted += [(flower, f"/worker/{name}", "flower") for name in workers]
        for base, path, name in wanted:
            for auth in (log_in[name], None, ("me", mark["redis"])):
                answer = session.get(base + path, auth=auth, timeout=30)
                yield f"{name} {path}", str(answer.headers).encode() + answer.content
        assert any(task["state"] == "FAILURE" for task in tasks.values()), "the defect must have been seen"


def commands(world, secrets: Secrets) -> Iterator[tuple[str, bytes]]:
    """Run every command, right and wrong."""
    outputs = [row["id"] for row in world.json("outputs")]
    reading = [["check"], ["status"], ["outputs"], ["poll"], ["audit"], ["verify"], ["rebuild"], ["poll", "refused"]]
    wanted = [[*command, *more] for command in reading for more in ([], ["--json"])]
    wanted += [["show", output, *more] for output in outputs for more in ([], ["--json"])]
    wanted += [
        ["retry", "--held"],
        ["retry", "--lost"],
        ["acknowledge", "--lost", "--reason", "tried"],
        ["watch", "spaaza", "99"],
    ]
    wanted += [["show", "no/such/output"], ["poll", "nobody"], ["--help"], ["check", "--config", "/nonexistent"]]
    for command in wanted:
        done = world.run(*command)
        yield f"lastcall {' '.join(command)}", (done.stdout + done.stderr).encode()
    for url in (world.redis_url + "x", world.redis_url.replace("@", "wrong@"), world.redis_url.replace("/0", "/zero")):
        done = world.run("status", LASTCALL_REDIS_URL=url)
        assert done.returncode in {1, 2}
        yield "lastcall status with a wrong Redis URL", (done.stdout + done.stderr).encode()
    broken = world.folder / "broken.toml"
    for text in (world.config.read_text() + "\nx = [", world.config.read_text().replace("password", "pasword")):
        broken.write_text(text)
        done = world.run("--config", str(broken), "check")
        assert done.returncode == 2
        yield "lastcall check of a broken file", (done.stdout + done.stderr).encode()


def redis_contents(world, admin) -> Iterator[tuple[str, bytes]]:
    """Give every key and value, and every document as the ledger reads it."""
    readers = {b"string": admin.get, b"hash": admin.hgetall, b"set": admin.smembers}
    for key in admin.scan_iter():
        kind = admin.type(key)
        if kind in readers:
            value = readers[kind](key)
        else:
            value = admin.zrange(key, 0, -1) if kind == b"zset" else admin.lrange(key, 0, -1)
        flat = [*value, *value.values()] if isinstance(value, dict) else value
        yield f"Redis {key!r}", key + (value if isinstance(value, bytes) else b"\n".join(flat or ()))
    ledger = Ledger(world.redis_url, lease=timedelta(seconds=3), worker="test")
    for source in world.sources:
        for record in ledger.records(source):
            yield f"record {record.output.id}", json.dumps([record.to_json(), record.output.job], default=str).encode()
    for what in ("SLOWLOG GET 1000", "ACL LOG 1000", "CLIENT LIST"):
        yield f"Redis {what}", repr(admin.execute_command(*what.split())).encode()


def bucket_contents(world) -> Iterator[tuple[str, bytes]]:
    """Give all keys and metadata, and every object that is not a vendor's file."""
    for key, body in world.objects().items():
        head = world.s3.head_object(Bucket=world.bucket, Key=key)
        ours = key.startswith(("archive/_receipts/", "archive/_state/"))
        yield f"object {key}", f"{key} {head}".encode() + (body if ours else b"")


def arguments(world) -> Iterator[tuple[str, bytes]]:
    for process in world._processes:
        yield f"arguments of {process.pid}", Path(f"/proc/{process.pid}/cmdline").read_bytes()


def vendors_heard(world, stranger: Sellercloud) -> Iterator[tuple[str, bytes]]:
    """Give what each vendor was told; its own secrets are for it alone."""
    for name, vendor in {**world.vendors, "refused": stranger}.items():
        told = [f"{entry.path} {entry.query} {entry.headers}" for entry in vendor.requests()]
        yield name, "\n".join(told).encode()


@pytest.mark.timeout(300)
def test_no_secret_is_left_behind_anywhere(guarded_world, guarded_redis, admin, secrets, receiver, stranger):
    world = guarded_world
    configure(world, secrets, receiver, stranger)
    produce(world, secrets)
    monitor = Monitor(guarded_redis)
    world.start_program("worker", BROKEN)
    world.start("worker")
    for name in ("beat", "web", "flower"):
        world.start(name)
    ledger = Ledger(world.redis_url, lease=timedelta(seconds=3), worker="test")

    def settled() -> bool:
        rows = [ledger.status(name, timedelta()) for name in world.sources if name != "refused"]
        waiting, held, lost = (sum(getattr(row, what) for row in rows) for what in ("owed", "held", "lost"))
        return (waiting, held, lost) == (0, 1, 1) and len(world.receipts()) == 7

    wait_until(settled, 120, "all but one lost and one held output to be archived")
    wait_until(
        lambda: len(b"".join(receiver.bodies).split(b"paused")) > 1 and b"lost" in b"".join(receiver.bodies), 40, "alerts"
    )
    wait_until(lambda: bool(receiver.asked), 20, "the dead man's switch to be told")
    assert receiver.asked[0] == f"/ping/{secrets.named['alert.ping']}?key={secrets.named['alert.key']}"
    pages = list(web_pages(world, secrets))
    evidence = [*pages, *commands(world, secrets), *arguments(world)]
    acl_log = admin.execute_command("ACL", "LOG", "100")
    evidence += [*redis_contents(world, admin), *bucket_contents(world)]
    for process in world._processes:
        process.terminate()
    for process in world._processes:
        process.wait(40)
    monitor.close()
    evidence += [(path.name, path.read_bytes()) for path in world.folder.glob("*.log")]
    evidence += [("everything said to Redis", bytes(monitor.heard)), ("alerts", b"\n".join(receiver.bodies))]

    tokens = {
        f"token {number}": token
        for number, token in enumerate(sorted(world.sellercloud._tokens.all | world.crayon._tokens.all))
    }
    assert len(tokens) >= 2
    signed = {"signature": "X-Amz-Signature", "signed credentials": "X-Amz-Security-Token", "output uri": "download-file"}
    searched = {**secrets.named, **tokens, **signed}
    found = [(where, leaks(searched, data)) for where, data in evidence]
    assert [(where, names) for where, names in found if names] == []

    own = {"sellercloud": "sc.", "api2convert": "a2c.", "spaaza": "sp.", "crayon": "cr.", "refused": "no."}
    for vendor, told in vendors_heard(world, stranger):
        others = {name: secret for name, secret in secrets.named.items() if not name.startswith(own[vendor])}
        assert leaks(others, told) == [], vendor
    assert leaks(
        {"key": secrets.named["a2c.key"]},
        b"".join(told for name, told in vendors_heard(world, stranger) if name == "api2convert"),
    )
    logs = world.logs()
    assert "defect" in logs, "or the worst case was not tried"
    assert "ValueError" in logs
    refused = {(entry[b"object"], entry[b"username"]) for entry in acl_log if entry[b"reason"] != b"auth"}
    assert {what for what, user in refused if user == b"lastcall"} <= {b"client"}, "deploy/redis/users.acl is too narrow"


def test_the_search_finds_what_it_looks_for():
    import base64

    secret = {"it": "Zq9marker"}
    for text in (
        b"Zq9marker",
        b"xZq9markerx",
        base64.b64encode(b"a Zq9marker b"),
        base64.b64encode(b"ab Zq9marker"),
        b"Zq9marker".hex().encode(),
    ):
        assert leaks(secret, text) == ["it"], text
    assert leaks(secret, b"Zq9marke") == []
