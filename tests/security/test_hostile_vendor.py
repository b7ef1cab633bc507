"""Vendors that mean harm, through a whole discover and collect: what they do spoils their own outputs at most."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from security.hostile import Account, Hostile, endless, http, job, output

from worker.collect import collect
from worker.demo.server import Content
from worker.discover import discover
from worker.model import OutputId

KEY, PASSWORD = "Zq9key", "Zq9password"


@pytest.fixture
def vendor():
    with Hostile() as server:
        yield server


@pytest.fixture
def elsewhere():
    with Hostile() as server:
        server.answer = lambda _: http("from elsewhere")
        yield server


@pytest.fixture
def hostile_world(world, vendor):
    """A source in bad hands beside one in good hands that has a file to give."""
    world.only("spaaza")
    world.spaaza.add_task(Content("good", 1000))
    world.sources["bad"] = {
        "vendor": "api2convert",
        "base_url": vendor.url("/v2"),
        "api_key": KEY,
        "download_password": PASSWORD,
        "download_hosts": ["127.0.0.1"],
        "allow_private_hosts": True,
        "requests_per_second": 500,
        "connect_timeout": "1s",
        "read_timeout": "1s",
    }
    world.tables["worker"]["max_output_bytes"] = "1MiB"
    return world


def poll(daemon, source: str = "bad") -> str:
    found = discover(daemon, source, by_hand=True)
    assert found is not None
    return found.result


def drain(daemon) -> list[str]:
    """Give each output that may be claimed now one try."""
    most = sum(daemon.ledger.status(source, timedelta()).owed for source in daemon.sources)
    return list(itertools.takewhile(bool, (collect(daemon) for _ in range(most))))


def states(daemon) -> dict[str, tuple[str, str]]:
    return {record.output.id.output_id: (str(record.state), record.last_error or "") for record in daemon.ledger.records("bad")}


def assert_the_good_one_goes_on(world, daemon) -> None:
    assert poll(daemon, "spaaza") == "ok"
    drain(daemon)
    assert [name for name in world.receipts() if name.startswith("spaaza/")], "the other source must not suffer"


# --- ids -------------------------------------------------------------------------------------------------------------

STRANGE = ["../../x", "a/b", "a%2Fb", "%2e%2e", "\x00", "a\nb\x1b[31m", "日本", "e\u0301", "é", "\u202egnp", " ", "A", "a"]
STRANGE += [
    "con",
    "*",
    "?x=1#y",
    "a\\b",
    "'\"<script>",
    "[red]x[/red]",
    "lastcall:*",
    "{0}",
    "%s",
    "-rf",
    "\ufeff",
    "x" * 200,
    7,
]
TOO_LONG = ["y" * 2000, "é" * 1000]


def test_ids_of_any_kind_have_places_of_their_own(hostile_world, vendor):
    world = hostile_world
    files = {f"/file/{number}": identity for number, identity in enumerate([*STRANGE, *TOO_LONG])}
    jobs = [job(identity, output(identity, vendor.url(path))) for path, identity in files.items()]
    vendor.answer = account = Account(*jobs, job("last", output("last", vendor.url("/file/last"))))
    account.files = {path: http(f"this is {path}") for path in (*files, "/file/last")}
    for one in account.jobs:
        one["id"] = str(one["id"])
    daemon = world.daemon()
    assert poll(daemon) == "ok"
    drain(daemon)
    found = states(daemon)
    assert len(found) == len(STRANGE) + len(TOO_LONG) + 1
    for identity in TOO_LONG:
        state, why = found.pop(identity)
        assert state == "held"
        assert "1024" in why
        assert len(why) < 300
    assert {state for state, _ in found.values()} == {"archived"}, found
    assert not [
        asked
        for asked in vendor.asked("/file")
        if asked.path in {path for path, identity in files.items() if identity in TOO_LONG}
    ]
    receipts = [receipt for name, receipt in world.receipts().items() if name.startswith("bad/")]
    assert len({receipt["key"] for receipt in receipts}) == len(receipts) == len(STRANGE) + 1
    for receipt in receipts:
        assert re.fullmatch(r"archive/bad/\d{4}/\d\d/\d\d/[A-Za-z0-9._~%-]+/[A-Za-z0-9._~%-]+/a\.csv", receipt["key"])
        assert not {".", ".."} & set(receipt["key"].split("/"))
        identity = OutputId("bad", receipt["job_id"], receipt["output_id"])
        assert OutputId.parse(str(identity)) == identity
    bodies = {body for key, body in world.objects().items() if key.startswith("archive/bad/")}
    assert len(bodies) == len(receipts), "each file under its own key"
    for command in (["outputs"], ["audit", "--json"]):
        done = world.run(*command)
        assert all(line.isprintable() for line in done.stdout.splitlines()), command
        assert done.stderr == ""
        assert "\N{REPLACEMENT CHARACTER}" not in done.stdout, "an id is written percent-encoded, an error in a line of its own"
    assert len(json.loads(done.stdout)["sources"]["bad"]["exceptions"]["held"]) == len(TOO_LONG)
    assert poll(daemon) == "ok", "and again"
    assert drain(daemon) == []


def test_two_outputs_of_one_id_are_told_and_the_first_is_kept(hostile_world, vendor):
    vendor.answer = account = Account(
        job("1", output("same", vendor.url("/one"), size=3), output("same", vendor.url("/two"), size=5)),
        job("2", output("other", vendor.url("/one"))),
        job("1", output("same", vendor.url("/two"))),
    )
    account.files = {"/one": http("one"), "/two": http("two, 2")}
    daemon = hostile_world.daemon()
    assert poll(daemon) == "ok"
    drain(daemon)
    assert {name: state for name, (state, _) in states(daemon).items()} == {"same": "archived", "other": "archived"}
    warnings = [
        warning for job in daemon.sources["bad"].jobs(daemon.ledger.now() - timedelta(days=1)) for warning in job.warnings
    ]
    assert "job 1: two outputs have the id 'same'; the first alone is archived" in warnings
    assert daemon.ledger.counters()["oddities"] == {"bad": 1}


# --- lists -----------------------------------------------------------------------------------------------------------


def rows(*, more: str) -> str:
    return f'[{{"id": "1", "status": {{"code": "completed"}}, "output": [], {more}}}]'


def many(value: str) -> bytes:
    return b"[" + b",".join([value.encode()] * 1_100_000) + b"]"


BOMB = gzip.compress(b" " * (64 << 20))

LISTS = {
    "NaN": http(rows(more='"a": NaN')),
    "infinity": http(rows(more='"a": 1e999')),
    "deep": http("[" * 200_000),
    "deep, whole": http("[" * 10_000 + "]" * 10_000),
    "a million values": http(many("0")),
    "larger than the bound": http(b" " * (17 << 20) + b"[]"),
    "endless": lambda: endless(b" " * 65536, first=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n["),
    "endless chunks": lambda: endless(
        b"10000\r\n" + b" " * 65536 + b"\r\n", first=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "endless chunk header": lambda: endless(b"1" * 65536, first=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "endless chunk extension": lambda: endless(
        b"x" * 65536, first=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x="
    ),
    "endless status line": lambda: endless(b"x" * 65536, first=b"HTTP/1.1 200 "),
    "endless header": lambda: endless(b"x" * 65536, first=b"HTTP/1.1 200 OK\r\nX: "),
    "endless headers": lambda: endless(b"Set-Cookie: a=b\r\n" * 1000, first=b"HTTP/1.1 200 OK\r\n"),
    "endless continues": lambda: endless(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "bomb": http(BOMB, Content_Encoding="gzip"),
    "brotli": http(b"\x8b\x02\x80[]\x03", Content_Encoding="br"),
    "twice packed": http(gzip.compress(BOMB), Content_Encoding="gzip, gzip"),
    "redirect": http(status="307 Temporary Redirect", Location="http://127.0.0.2/"),
    "a page": http("<html>"),
    "nothing": http(""),
    "no array": http('{"id": "1"}'),
    "negative length": http("[]", length=False, Content_Length="-1"),
    "two lengths": http("[]", Content_Length="3"),
    "not HTTP": b"\x00" * 100,
    "HTTP/9": b"HTTP/9.9 999999999 \xff\r\n\r\n",
}


def test_no_list_harms_anything_but_its_own_poll(hostile_world, vendor):
    daemon = hostile_world.daemon()
    daemon.sources["bad"]._session._patience_seconds = 0.1  # a second try of each would show nothing
    results = {}
    for name, answer in LISTS.items():
        vendor.answer = lambda _, answer=answer: answer() if callable(answer) else answer
        results[name] = poll(daemon)
    assert set(results.values()) <= {"malformed", "unavailable"}, results
    for asked in vendor.heard:
        assert asked.headers["accept-encoding"] == "identity"
    vendor.answer = Account()
    assert poll(daemon) == "ok"
    assert_the_good_one_goes_on(hostile_world, daemon)


ROWS = [
    *(None, 5, "x", [], {}, {"id": None}, {"id": []}, {"id": {"a": 1}}, {"id": ""}, {"id": True}, {"id": "no status"}),
    *({"id": f"s{n}", "status": status} for n, status in enumerate((None, 5, [], {}, {"code": 5}, {"code": ["completed"]}))),
    *({"id": f"w{n}", "status": "x" * n} for n in (0, 10_000)),
    *(job(f"o{n}", odd) for n, odd in enumerate((None, 5, "x", [], {}, {"id": 5}, {"id": ["a"]}, {"id": "no time"}))),
    *(
        job(f"t{n}", created_at=at, modified_at=at)
        for n, at in enumerate((5, "", "never", "9999-99-99", "0001-01-01T00:00:00", []))
    ),
    *(
        job(f"u{n}", output(f"u{n}", uri))
        for n, uri in enumerate((None, 5, "", "x", "javascript:x", "file:///etc/passwd", "//x", "http://"))
    ),
    *(job(f"z{n}", output(f"z{n}", "x", size=size)) for n, size in enumerate((-1, 1e300, "9" * 5000, [], "NaN"))),
    *(
        job(f"c{n}", output(f"c{n}", "x", checksum=checksum))
        for n, checksum in enumerate((5, "z" * 32, [], "0" * 64, "\u0660" * 32))
    ),
    *(
        job(f"n{n}", output(f"n{n}", "x", filename=name))
        for n, name in enumerate((5, [], "", "\x00", "../" * 5000, "\ud800", "a\r\nX: y"))
    ),
    *(job(f"d{n}", output(f"d{n}", "x", downloads_counter=count)) for n, count in enumerate((-5, 10**300, "x", None, []))),
    *(
        job(f"y{n}", output(f"y{n}", "x", content_type=kind))
        for n, kind in enumerate((5, "a/b\r\nX: y", "x" * 100_000, "\u202e/x"))
    ),
]


def test_no_row_harms_another_one(hostile_world, vendor):
    huge = '{"id": "huge", "status": {"code": "completed"}, "output": [], "spent": 1%s}' % ("0" * 1_000_000)
    good = output("good", vendor.url("/good"))
    vendor.answer = account = Account(job("first", {**good, "id": "first"}), *ROWS, job("last", {**good, "id": "last"}))
    account.files = {"/good": http("good")}
    for page in range(0, len(account.jobs), 49):
        account.jobs.insert(page + 10, json.loads(huge, parse_int=str))
    daemon = hostile_world.daemon()
    assert poll(daemon) == "ok"
    drain(daemon)
    found = states(daemon)
    assert found["first"][0] == found["last"][0] == "archived"
    assert {state for state, _ in found.values()} <= {"archived", "owed", "held"}
    assert "defect" not in str(found)
    assert_the_good_one_goes_on(hostile_world, daemon)
    assert hostile_world.run("audit").returncode in {0, 1}


@pytest.mark.timeout(60)
def test_a_job_of_many_outputs_fills_neither_redis_nor_the_log(hostile_world, vendor):
    rows = [*(output(f"o{number}", "x", size=-number) for number in range(1, 3000)), *({} for _ in range(50_000))]
    vendor.answer = Account(job("1", *rows, conversion=[{"junk": random.Random(1).randbytes(100_000).hex()}]))
    daemon = hostile_world.daemon()
    before = daemon.ledger._keys._redis.info("memory")["used_memory"]
    assert poll(daemon) == "ok"
    assert daemon.ledger.status("bad", timedelta()).owed == 2999
    assert daemon.ledger._keys._redis.info("memory")["used_memory"] - before < 16 << 20
    assert daemon.ledger.counters()["oddities"] == {"bad": 21}


def test_a_list_with_numbers_of_a_million_digits_is_read(hostile_world, vendor):
    digits = "9" * 1_000_000
    body = f'[{{"id": {digits}, "status": {{"code": "x"}}}}, {{"id": 1, "status": {digits}}}, {{"id": 2, "output": {digits}}}]'
    vendor.answer = lambda asked: http(body if "page=1" in asked.target else "[]")
    assert poll(hostile_world.daemon()) == "ok"


def test_a_list_without_end_is_read_so_far_and_told(hostile_world, vendor, monkeypatch):
    """Beyond its most pages a list is no list; what it has shown until then is owed all the same."""
    from worker.sources import api2convert

    monkeypatch.setattr(api2convert, "MAX_PAGES", 4)
    numbers = itertools.count()
    good = output("good", vendor.url("/good"))

    def answer(asked):
        if asked.path == "/v2/jobs":
            return http(json.dumps([job(f"j{n}", {**good, "id": f"o{n}"}) for n in itertools.islice(numbers, 50)]))
        return http("{}", "404 Not Found")

    vendor.answer = answer
    daemon = hostile_world.daemon()
    found = discover(daemon, "bad", by_hand=True)
    assert found is not None
    assert (found.result, found.owed) == ("malformed", 200)
    assert "no end after 4 pages" in found.error


# --- downloads -------------------------------------------------------------------------------------------------------


def test_no_header_of_ours_reaches_another_host(hostile_world, vendor, elsewhere):
    world = hostile_world
    world.sources["bad"]["download_hosts"] = ["127.0.0.1", "localhost"]
    ways = {"/same": vendor.url("/file"), "/port": elsewhere.url("/file"), "/host": elsewhere.url("/file", "localhost")}
    ways |= {"/back": elsewhere.url("/back"), "/api": elsewhere.url("/v2/jobs")}
    vendor.answer = account = Account(*(job(way[1:], output(way[1:], vendor.url(way))) for way in ways))
    account.files = {way: http(status="302 Found", Location=target) for way, target in ways.items()}
    account.files["/file"] = http("from home")
    account.files["/home"] = http("back home")
    elsewhere.answer = lambda asked: (
        http(status="302 Found", Location=vendor.url("/home")) if asked.path == "/back" else http("from elsewhere")
    )
    daemon = world.daemon()
    assert poll(daemon) == "ok"
    drain(daemon)
    assert {state for state, _ in states(daemon).values()} == {"archived"}, states(daemon)
    told = str([asked.headers for asked in elsewhere.heard])
    assert elsewhere.heard
    assert KEY not in told
    assert PASSWORD not in told
    assert KEY not in str([asked.headers for way in ways for asked in vendor.asked(way)]), "downloads need no key"
    assert PASSWORD in str(vendor.asked("/same")[0].headers)
    assert PASSWORD in str(vendor.asked("/file")[0].headers)
    assert PASSWORD not in str(vendor.asked("/home")[0].headers), "once away, never again"
    account.files["/v2/jobs"] = http(status="307 Temporary Redirect", Location=elsewhere.url("/v2/jobs"))
    before = len(elsewhere.heard)
    assert poll(daemon) == "malformed"
    assert len(elsewhere.heard) == before, "the API's redirects are never followed"


FILES = {
    "endless": (lambda: endless(b"x" * 65536, first=http(length=False)), "held", "max_output_bytes"),
    "too long": (lambda: http(length=False, Content_Length=str(10**15)), "held", "max_output_bytes"),
    "endless chunk header": (
        lambda: endless(b"1" * 65536, first=http(length=False, Transfer_Encoding="chunked")), "owed", "cut"),
    "endless trailer": (
        lambda: endless(b"X: y\r\n" * 1000, first=http(length=False, Transfer_Encoding="chunked") + b"1\r\nx\r\n0\r\n"),
        "owed",
        "cut",
    ),
    "endless header": (lambda: endless(b"x" * 65536, first=b"HTTP/1.1 200 OK\r\nX: "), "owed", "cannot be reached"),
    "endless cookies": (
        lambda: endless(b"Set-Cookie: a=b\r\n" * 1000, first=b"HTTP/1.1 200 OK\r\n"), "owed", "cannot be reached"),
    "loop": (lambda: http(status="302 Found", Location="/file/loop"), "held", "redirected"),
    "gzip": (lambda: http(gzip.compress(b"file"), Content_Encoding="gzip"), "archived", ""),
    "bomb": (lambda: http(BOMB, Content_Encoding="gzip"), "archived", ""),
    "brotli": (lambda: http(b"\x8b\x02\x80[]\x03", Content_Encoding="br"), "archived", ""),
    "name": (lambda: http(b"x", Content_Disposition='x; filename="../../\x1b[31m\xff"'), "archived", ""),
    "long name": (lambda: http(b"x", Content_Disposition="x; filename*=UTF-8''" + "%C3%A9" * 9000), "archived", ""),
    "type": (lambda: http(b"x", Content_Type="text/html; x=" + "y" * 60_000), "archived", ""),
}  # fmt: skip


def test_no_download_harms_anything_but_its_own_output(hostile_world, vendor):
    vendor.answer = account = Account(
        *(job(name, {**output(name, vendor.url(f"/file/{name}".replace(" ", "%20"))), "filename": None}) for name in FILES)
    )
    account.files = {}
    bare = account.__call__
    vendor.answer = lambda asked: FILES[asked.path[6:]][0]() if asked.path.startswith("/file/") else bare(asked)
    hostile_world.sources["bad"]["min_throughput"] = 0
    daemon = hostile_world.daemon()
    assert poll(daemon) == "ok"
    drain(daemon)
    found = states(daemon)
    for name, (_, state, why) in FILES.items():
        assert found[name][0] == state, (name, found[name])
        assert why in found[name][1], (name, found[name])
    stored = {key.split("/")[6]: body for key, body in hostile_world.objects().items() if key.startswith("archive/bad/")}
    assert stored["bomb"] == BOMB, "as it came, never inflated"
    assert all(len(key.encode()) <= 1024 and key.isprintable() for key in hostile_world.objects())
    assert_the_good_one_goes_on(hostile_world, daemon)


URLS = [
    *(
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://0.0.0.0:{port}/",
        "http://0:{port}/",
    ),
    *(
        "http://2130706433:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://0x7f.1:{port}/",
        "http://127.1:{port}/",
        "http://[::]:{port}/",
    ),
    *("http://vendor.example@127.0.0.1:{port}/", "http://127.0.0.1:{port}@vendor.example/", "http://localhost:{port}/"),
    *("http://127.0.0.1:{port}/", "http://127.0.0.1:{port}\\@vendor.example/", "http://vendor.example\\@127.0.0.1:{port}/"),
    *(
        "http://vendor.example#@127.0.0.1:{port}/",
        "http://①②⑦.0.0.1:{port}/",
        "http://127。0。0。1:{port}/",
        "ftp://vendor.example/",
    ),
    *("http://vendor.example.evil.example/", "http://xvendor.example/", "http://vendor.example%00.evil.example/"),
    *("http://[fe80::1%25lo]:{port}/", "http://[64:ff9b::7f00:1]:{port}/", "http://[::1]:{port}/", "file:///etc/passwd"),
    *(
        "gopher://127.0.0.1:{port}/",
        "http:///127.0.0.1:{port}/",
        "http:127.0.0.1:{port}/",
        "//127.0.0.1:{port}/",
        "http://[::1",
    ),
    *(
        "http://vendor.example:99999/",
        "http://vendor.example:0x50/",
        "http://vendor.example\r\nX: y/",
        "http://vendor.example\t/",
    ),
]


@pytest.mark.parametrize("redirected", [False, True], ids=["link", "redirect"])
def test_no_url_leads_anywhere_but_to_the_vendor(hostile_world, vendor, elsewhere, redirected):
    """The vendor is asked through a proxy, which is how it can have a public name here, without allow_private_hosts."""
    world, urls = hostile_world, [url.replace("{port}", str(elsewhere.port)) for url in URLS]
    world.sources["bad"] |= {
        "base_url": "http://vendor.example/v2",
        "proxy": vendor.url(),
        "allow_private_hosts": False,
        "download_hosts": ["127.0.0.1", "0.0.0.0", "localhost", "169.254.169.254", "::1"],
    }
    links = [f"http://vendor.example/link/{n}" if redirected else url for n, url in enumerate(urls)]
    account = Account(*(job(f"j{n}", output(f"o{n}", url)) for n, url in enumerate(links)))
    places = {f"/link/{n}": http(status="302 Found", Location=url.encode().decode("latin-1")) for n, url in enumerate(urls)}
    account.files = {path: place for path, place in places.items() if b"\r\nX: y/" not in place}
    vendor.answer = account
    daemon = world.daemon()
    assert poll(daemon) == "ok"
    drain(daemon)
    found = states(daemon)
    for number, url in enumerate(urls):
        state, why = found[f"o{number}"]
        assert state in {"held", "owed"}, (url, state, why)
        assert "Zq9" not in why
        assert state == "held" or "link" in why or "URL" in why or "cannot be reached" in why or "404" in why, (url, why)
    assert elsewhere.heard == []
    assert {urlsplit(asked.target).netloc for asked in vendor.heard} == {"vendor.example"}
