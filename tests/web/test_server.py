"""The web process from the outside: health, passwords, headers, and a Redis that is away."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import requests

from tests.web.kept import Kept
from tests.web.story import Web, open_ledger, output, tell_story
from worker.demo.embedded import RedisServer
from worker.ledger import Ledger

PASSWORD = 'username = "operator"\npassword = "correct horse"'
PAGES = ("/", "/metrics", "/api/board", "/static/board.js", "/nothing-here")


def health(web: Web) -> tuple[int, dict[str, object]]:
    reply = web.get("/healthz")
    return reply.status_code, reply.json()


def test_healthz_names_what_is_missing_and_is_200_once_nothing_is(start_web: Callable[..., Web], ledger: Ledger) -> None:
    web = start_web()
    status, answer = health(web)
    assert (status, answer["ok"]) == (503, False)
    assert "beat" in str(answer["reason"])
    assert "worker" in str(answer["reason"])

    ledger.stamp_beat()
    status, answer = health(web)
    assert (status, answer["ok"]) == (503, False)
    assert answer["reason"] == "no worker is alive; start `lastcall worker`"

    ledger.stamp_worker(16)
    status, answer = health(web)
    assert (status, answer["ok"], answer["workers"]) == (200, True, 1)


def test_healthz_knows_a_beat_that_stopped(start_web: Callable[..., Web], ledger: Ledger) -> None:
    ledger.stamp_worker(16)
    ledger._keys._redis.set("lastcall:beat", time.time() - 16)
    status, answer = health(start_web())
    assert status == 503
    assert re.fullmatch(r"no beat ticked since \S+Z; start `lastcall beat`", str(answer["reason"]))


def test_healthz_knows_a_worker_that_died(start_web: Callable[..., Web], ledger: Ledger) -> None:
    """A worker that was killed signs nothing off: its stamp ages."""
    ledger.stamp_beat()
    ledger._keys._redis.zadd("lastcall:workers", {"dead": time.time() - 16})
    status, answer = health(start_web())
    assert (status, answer["reason"]) == (503, "no worker is alive; start `lastcall worker`")


def test_without_redis_every_page_says_so_and_comes_back_with_it(
    start_web: Callable[..., Web], redis_server: RedisServer
) -> None:
    web = start_web(redis_url=redis_server.url)
    redis_server.kill()
    status, answer = health(web)
    assert (status, answer["ok"]) == (503, False)
    assert "Redis" in str(answer["reason"])
    for path in ("/metrics", "/api/board"):
        reply = web.get(path)
        assert reply.status_code == 503, path
        assert "Redis" in reply.json()["error"]
    assert web.get("/").status_code == 200, "the page itself stands, and says what is wrong"

    redis_server.start()
    ledger = open_ledger(redis_server.url)
    ledger.stamp_beat()
    ledger.stamp_worker(1)
    assert health(web)[0] == 200
    assert web.get("/api/board").status_code == 200
    assert "redis://" not in web.log.read_text()


def test_a_redis_that_hangs_hangs_no_page(
    start_web: Callable[..., Web], redis_server: RedisServer, eventually: Callable[..., None]
) -> None:
    """Each answer comes in seconds, however many ask; when Redis goes on, so does the board."""
    web = start_web(redis_url=redis_server.url)
    redis_server.pause()
    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=12) as pool:
        replies = list(pool.map(web.get, ["/healthz", "/metrics", "/api/board"] * 4))
        assert web.get("/").status_code == 200
    assert time.monotonic() - began < 8
    assert {reply.status_code for reply in replies} == {503}
    assert replies[0].json() == {"ok": False, "reason": "Redis did not answer within 4 s"}
    redis_server.resume()
    eventually(lambda: web.get("/metrics").status_code == 200, 30, "the board comes back")
    redis_server.pause()
    assert web.get("/metrics").status_code == 503
    web._signal(signal.SIGTERM)
    web._reap(5)
    assert web.returncode == 0, "a Redis that hangs keeps nobody from ending it"


def test_with_a_password_everything_but_healthz_needs_it(start_web: Callable[..., Web]) -> None:
    web = start_web(web=PASSWORD)
    assert web.get("/healthz").status_code == 503, "open, and honest"
    for path in PAGES:
        reply = web.get(path)
        assert reply.status_code == 401, path
        assert reply.headers["WWW-Authenticate"].startswith("Basic")
        assert reply.json() == {"error": "Unauthorized"}
    right = ("operator", "correct horse")
    assert [web.get(path, auth=right).status_code for path in PAGES] == [200, 200, 200, 200, 404]
    assert web.get("/", headers={"Authorization": "Basic ****"}).status_code == 401
    assert web.get("/", headers={"Authorization": "Bearer correct horse"}).status_code == 401
    assert web.get("/", auth=("operator", "correct horsf")).status_code == 401
    assert "correct horse" not in web.log.read_text()


def test_guessing_is_throttled(start_web: Callable[..., Web]) -> None:
    """After five wrong passwords in a minute not even the right one is taken from that address."""
    web = start_web(web=PASSWORD)
    answers = [web.get("/metrics", auth=("operator", f"guess {number}")).status_code for number in range(7)]
    assert answers == [401] * 5 + [429] * 2
    reply = web.get("/", auth=("operator", "correct horse"))
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "60")
    elsewhere = requests.Session()
    elsewhere.mount("http://", _From("127.0.0.2"))
    assert elsewhere.get(web.url + "/", auth=("operator", "correct horse"), timeout=5).status_code == 200
    assert web.get("/healthz").status_code == 503, "probes go on"


class _From(requests.adapters.HTTPAdapter):
    """Connects from another address of this machine."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *arguments: object, **options: object) -> None:
        super().init_poolmanager(*arguments, **options, source_address=(self._address, 0))


def test_a_name_that_is_not_ours_is_refused_on_loopback(start_web: Callable[..., Web]) -> None:
    """A page elsewhere that gives its own name our address (DNS rebinding) reads nothing."""
    web = start_web()
    for path in PAGES:
        assert web.get(path, headers={"Host": f"evil.example:{web.port}"}).status_code == 421, path
    for host in ("localhost", f"localhost:{web.port}", "127.0.0.1", "[::1]:80"):
        assert web.get("/", headers={"Host": host}).status_code == 200, host


def test_behind_a_password_any_name_will_do(start_web: Callable[..., Web]) -> None:
    """A reverse proxy hands on its public name, and a page elsewhere has no password."""
    reply = start_web(web=PASSWORD).get("/", auth=("operator", "correct horse"), headers={"Host": "board.example.com"})
    assert reply.status_code == 200


def test_every_answer_carries_the_headers(start_web: Callable[..., Web]) -> None:
    web = start_web()
    for path in (*PAGES, "/healthz"):
        headers = web.get(path).headers
        assert "'unsafe" not in headers["Content-Security-Policy"], path
        assert headers["Content-Security-Policy"].startswith("default-src 'none';")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "Server" not in headers


def test_only_get_and_head(start_web: Callable[..., Web]) -> None:
    web = start_web()
    for path in ("/", "/metrics", "/healthz", "/api/board"):
        reply = requests.post(web.url + path, timeout=5)
        assert (reply.status_code, reply.headers["Allow"]) == (405, "GET, HEAD"), path
        head = requests.head(web.url + path, timeout=5)
        assert (head.status_code, head.content) == (web.get(path).status_code, b"")


@pytest.mark.parametrize(
    "path", ["/static/", "/static/../server.py", "/static/index.html", "/static/%2e%2e/access.py", "/api/board?source=nope"]
)
def test_nothing_else_is_served(start_web: Callable[..., Web], path: str) -> None:
    web = start_web()
    assert requests.Session().send(requests.Request("GET", web.url + path).prepare(), timeout=5).status_code == 404


def test_the_board_tells_the_story(start_web: Callable[..., Web], ledger: Ledger) -> None:
    """Owed ones by urgency, with lost and held ones apart, each with what to do."""
    tell_story(ledger)
    board = start_web().get("/api/board").json()
    assert [(row["job_id"], row["urgency"], row["state"]) for row in board["outputs"]["rows"]] == [
        ("5", "overdue", "owed"),
        ("6", "overdue", "claimed"),
        ("7", "overdue", "owed"),
        ("8", "at-risk", "owed"),
        ("9", "fine", "owed"),
    ]
    assert [row["id"] for row in board["lost"]["rows"]] == ["acme-exports/3/3"], "an acknowledged loss is no bad news"
    assert board["lost"]["rows"][0]["commands"] == [
        "lastcall retry acme-exports/3/3",
        'lastcall acknowledge acme-exports/3/3 --reason "…"',
    ]
    assert board["held"]["rows"][0]["commands"] == ["lastcall show acme-exports/2/2", "lastcall retry acme-exports/2/2"]
    assert "in reserve" in board["held"]["rows"][0]["last_error"]
    outlook = board["totals"].pop("forecast")
    assert (outlook["missed"], outlook["text"]) == (None, "not known yet, until outputs were timed: acme-exports")
    assert board["totals"] == {
        "owed": 4, "claimed": 1, "archived": 1, "lost": 1, "acknowledged": 1, "held": 1, "empty": 1, "at_risk": 4, "overdue": 3,
    }  # fmt: skip
    assert board["health"]["ok"] is True
    acme, conversions = board["sources"]
    assert (acme["name"], acme["vendor"], acme["last_poll_result"]) == ("acme-exports", "sellercloud", "ok")
    assert (conversions["paused_why"], conversions["last_poll_at"]) == ("the vendor refuses the log-in", None)


def test_the_board_stays_quick_with_5000_owed(start_web: Callable[..., Web], ledger: Ledger) -> None:
    """Two hundred rows are enough for anyone; the rest is a number."""
    for number in range(5_000):
        left = timedelta(hours=1, seconds=(number * 7919) % 5_000)
        ledger.owe(output("conversions", number, ready=timedelta(hours=1), left=left), recheck=False)
    web = start_web()
    web.get("/api/board")
    time.sleep(1.1)  # what was just read is good for a second
    began = time.monotonic()
    board = web.get("/api/board").json()
    assert time.monotonic() - began < 1.5
    assert (len(board["outputs"]["rows"]), board["outputs"]["more"]) == (200, 4_800)
    deadlines = [row["deadline"] for row in board["outputs"]["rows"]]
    assert deadlines == sorted(deadlines)


def test_a_kept_file_is_given_to_the_board_alone(start_web: Callable[..., Web], ledger: Ledger, kept: Kept) -> None:
    """A page elsewhere that uses the link, as the source of a script say, comes without the cookie or says where it began."""
    one = kept.put("export.csv", b"secret,rows")
    web = start_web(archive=kept.table, web=PASSWORD)
    right, link = ("operator", "correct horse"), {"params": {"output": str(one.id)}, "allow_redirects": False}
    here = web.get("/", auth=right)
    assert "HttpOnly" in here.headers["Set-Cookie"]
    assert "SameSite=Strict" in here.headers["Set-Cookie"]
    cookies = here.cookies.get_dict()
    assert web.get("/open", cookies=cookies, **link).status_code == 401
    for headers, more in (
        ({}, {}),
        *(({"Sec-Fetch-Site": site}, {"cookies": cookies}) for site in ("cross-site", "same-site")),
    ):
        reply = web.get("/open", auth=right, headers=headers, **more, **link)
        assert (reply.status_code, reply.text) == (403, "Open this file from the board.")
    given = web.get("/open", auth=right, cookies=cookies, headers={"Sec-Fetch-Site": "same-origin"}, **link)
    assert (given.status_code, given.headers["Cache-Control"], given.text) == (303, "no-store", "")
    saved = requests.get(given.headers["Location"], timeout=5)
    assert (saved.content, saved.headers["Content-Disposition"]) == (b"secret,rows", "attachment; filename*=UTF-8''export.csv")
    assert "X-Amz-Expires=300" in given.headers["Location"]
    for name, status, words in (
        ("acme-exports/9/9", 404, "acme-exports/9/9 has no receipt in the bucket."),
        ("../../x", 404, "%2E%2E/%2E%2E/x has no receipt in the bucket."),
        ("nonsense", 404, "This is not an output; expected SOURCE/JOB_ID/OUTPUT_ID."),
    ):
        reply = web.get("/open", auth=right, cookies=cookies, params={"output": name})
        assert (reply.status_code, reply.text) == (status, words)
    assert "amz" not in web.log.read_text().lower()


def test_a_bucket_that_refuses_is_told_in_words(start_web: Callable[..., Web], ledger: Ledger) -> None:
    """The board goes on: only the click needs the bucket and its credentials."""
    table = 'bucket = "exports"\naccess_key_id = { env = "NOT_SET" }\nsecret_access_key = { env = "NOT_SET" }'
    web = start_web(archive=table)
    assert web.get("/api/board").status_code == 200
    reply = web.get("/open", cookies={"lastcall-board": "open"}, params={"output": "acme-exports/1/1"})
    assert (reply.status_code, reply.headers["Content-Type"]) == (503, "text/plain; charset=utf-8")
    assert reply.text == "the bucket's credentials cannot be read: environment variable NOT_SET is not set"


def test_it_ends_with_sigterm(start_web: Callable[..., Web]) -> None:
    web = start_web()
    with requests.get(web.url + "/healthz", timeout=5):
        web._signal(signal.SIGTERM)
        web._reap(5)
    assert web.returncode == 0


def test_a_port_in_use_is_told_in_words(start_web: Callable[..., Web]) -> None:
    """Exit 2, as for every wrong configuration, and no traceback."""
    first = start_web()
    second = Web(first.log.parent / "second", "redis://127.0.0.1:1/0", web="")
    config = second.log.parent / "lastcall.toml"
    config.write_text(config.read_text().replace(str(second.port), str(first.port)))
    with pytest.raises(Exception, match=f"web.listen: cannot listen on 127.0.0.1:{first.port}: Address already in use"):
        second.start()
    assert second.returncode == 2
