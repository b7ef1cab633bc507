"""What all simulated vendors share: contents, framing, faults, ranges, the log and the counts."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import socket
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
import requests

from worker.demo.server import (
    MIB,
    Base64,
    Clock,
    Content,
    Fault,
    First,
    Joined,
    Raw,
    Reply,
    Request,
    Stream,
    Vendor,
    gzipped,
    json_member,
)

SIZES = (0, 1, 5, 100, 1000, MIB, 3 * MIB + 17)
KINDS = ("csv", "json", "bytes", "xlsx", "zip", "pdf", "html")


def read(stream: Stream, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(stream.read(start, end))


class Shop(Vendor):
    """One file, and a crash."""

    base_path = "/shop"

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.file = Content("file", 3 * MIB + 5, "bytes")
        self.route("file", "GET", "/shop/file", self._file)
        self.route("crash", "GET", "/shop/crash", lambda _: Reply.json(1 / 0))

    def _file(self, request: Request) -> Reply:
        return Reply(body=self.file, ranges=not request.first("no_ranges"), etag='"v1"', counts="file")


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop() as shop:
        yield shop


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


# --- contents ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_contents_have_their_size_their_digests_and_equal_slices(kind):
    for size in SIZES:
        content = Content("seed", size, kind)
        data = read(content)
        assert len(data) == size
        assert content.sha256 == hashlib.sha256(data).hexdigest()
        assert content.md5 == hashlib.md5(data).hexdigest()
        assert content.sha1 == hashlib.sha1(data).hexdigest()
        for start, end in ((0, 10), (3, 90), (size // 2, None), (max(size - 5, 0), size), (MIB - 3, MIB + 500), (size, None)):
            assert read(content, start, end) == data[start:end], (size, start, end)
        assert read(Content("seed", size, kind)) == data


def test_contents_of_other_seeds_and_later_blocks_differ():
    assert Content("a", 1000).sha256 != Content("b", 1000).sha256
    data = read(Content("a", 2 * MIB, "bytes"))
    assert data[:MIB] != data[MIB:]


def test_contents_are_what_their_kind_says():
    assert "rows" in json.loads(read(Content(1, MIB, "json")))
    for kind in ("xlsx", "zip"):
        with zipfile.ZipFile(io.BytesIO(read(Content(1, MIB, kind)))) as archive:
            assert archive.testzip() is None
    lines = read(Content(1, MIB)).decode().splitlines()
    assert lines[0] == "sku,quantity,batch"
    assert read(Content(1, 100, "pdf")).startswith(b"%PDF")
    with pytest.raises(ValueError, match="base64"):
        base64.b64decode(read(Content(1, 4000)), validate=True)


def test_a_large_content_never_stands_in_memory():
    tracemalloc.start()
    for _ in Base64(Content("large", 40 * MIB)).read():
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * MIB


@pytest.mark.parametrize("size", SIZES)
def test_wrapped_streams_have_the_size_that_they_say_and_equal_slices(size):
    inner = Content("wrapped", size, "bytes")
    data = read(inner)
    text = base64.b64encode(data)
    document = json_member({"FileName": 'a"b', "Content": ""}, "Content", Base64(inner))
    for stream, expected in (
        (Base64(inner), text),
        (Base64(inner, 76), b"".join(text[at : at + 76] + b"\r\n" for at in range(0, len(text), 76))),
        (Joined((Raw(b"<"), inner, Raw(b">"))), b"<" + data + b">"),
        (First(inner, size // 2), data[: size // 2]),
        (document, json.dumps({"FileName": 'a"b', "Content": text.decode()}).encode()),
    ):
        assert stream.size == len(expected)
        assert read(stream) == expected
        assert read(stream, 2, size // 2) == expected[2 : size // 2]
    packed = gzipped(inner)
    assert gzip.decompress(read(packed)) == data
    assert packed.size == len(read(packed))


# --- the wire ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_every_framing_carries_the_file(shop, session, framing):
    shop.fail("file", Fault(framing=framing))
    reply = session.get(f"{shop.base_url}/file")
    assert reply.content == read(shop.file)
    assert ("Content-Length" in reply.headers) == (framing == "length")
    assert (shop.served["file"].full, shop.served["file"].partial) == (1, 0)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_after=1000),
        Fault(cut_after=0),
        Fault(cut_fraction=0.5, framing="chunked"),
        Fault(cut_fraction=0.5, reset=True),
        Fault(length_off_by=1),
    ],
)
def test_a_cut_body_is_seen_as_cut(shop, session, fault):
    shop.fail("file", fault)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        session.get(f"{shop.base_url}/file")
    assert session.get(f"{shop.base_url}/file").content == read(shop.file)


def test_a_close_delimited_body_that_is_cut_looks_whole(shop, session):
    shop.fail("file", Fault(framing="close", cut_after=1000))
    assert len(session.get(f"{shop.base_url}/file").content) == 1000
    assert (shop.served["file"].full, shop.served["file"].partial) == (0, 1)


def test_a_declared_length_that_is_too_small_loses_the_rest(shop, session):
    shop.fail("file", Fault(length_off_by=-5))
    assert session.get(f"{shop.base_url}/file").content == read(shop.file)[:-5]


def test_one_off_faults_come_in_order_then_standing_ones_hold(shop, session):
    shop.fail("file", Fault.answer(503, "busy", Retry_After="7"), times=2)
    shop.fail("*", Fault.answer(500))
    shop.standing["file"] = Fault.answer(429)
    replies = [session.get(f"{shop.base_url}/file") for _ in range(4)]
    assert [reply.status_code for reply in replies] == [503, 503, 500, 429]
    assert (replies[0].headers["Retry-After"], replies[0].text) == ("7", "busy")
    shop.standing.clear()
    assert session.get(f"{shop.base_url}/file").status_code == 200


def test_slow_answers_and_trickling_bodies(shop, session):
    shop.fail("file", Fault(delay_seconds=0.15), Fault(bytes_per_second=15 * MIB))
    assert session.get(f"{shop.base_url}/file").elapsed > timedelta(seconds=0.14)
    begun = time.monotonic()
    assert session.get(f"{shop.base_url}/file").content == read(shop.file)
    assert 0.1 < time.monotonic() - begun < 2


def test_ranges_are_honoured_for_the_same_etag_alone(shop, session):
    data = read(shop.file)
    for value, expected in (("bytes=100-199", data[100:200]), ("bytes=3000000-", data[3_000_000:]), ("bytes=-7", data[-7:])):
        reply = session.get(f"{shop.base_url}/file", headers={"Range": value, "If-Range": '"v1"'})
        assert (reply.status_code, reply.content, reply.headers["ETag"]) == (206, expected, '"v1"')
        assert reply.headers["Content-Range"].endswith(f"/{len(data)}")
    assert session.get(f"{shop.base_url}/file", headers={"Range": "bytes=0-9", "If-Range": '"v0"'}).status_code == 200
    assert session.get(f"{shop.base_url}/file", params={"no_ranges": "1"}, headers={"Range": "bytes=0-9"}).status_code == 200
    beyond = session.get(f"{shop.base_url}/file", headers={"Range": f"bytes={len(data)}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(data)}")


def test_head_costs_nothing_and_many_requests_share_a_connection(shop, session):
    for _ in range(3):
        reply = session.head(f"{shop.base_url}/file")
        assert (reply.status_code, int(reply.headers["Content-Length"])) == (200, shop.file.size)
    assert session.get(f"{shop.base_url}/file").status_code == 200
    assert shop.served["file"].full == 1
    assert len(session.adapters["http://"].poolmanager.pools) == 1


def test_a_client_that_leaves_is_a_partial_download(shop):
    shop.fail("file", Fault(bytes_per_second=MIB))  # else the whole file may be on its way before the client leaves
    with socket.create_connection(("127.0.0.1", int(shop.origin().rpartition(":")[2]))) as connection:
        connection.sendall(b"GET /shop/file HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    limit = time.monotonic() + 5
    while shop.served["file"].partial == 0 and time.monotonic() < limit:
        time.sleep(0.01)
    assert (shop.served["file"].full, shop.served["file"].partial) == (0, 1)


def test_the_log_tells_what_came_and_what_went_out(shop, session):
    session.get(f"{shop.base_url}/file?a=1&a=2", headers={"X-Secret": "s"})
    (entry,) = shop.requests("file")
    assert (entry.method, entry.path, entry.query, entry.status) == ("GET", "/shop/file", {"a": ["1", "2"]}, 200)
    assert entry.headers["x-secret"] == "s"
    limit = time.monotonic() + 5
    while not entry.whole and time.monotonic() < limit:
        time.sleep(0.01)
    assert (entry.sent, entry.whole) == (shop.file.size, True)


def test_a_handlers_bug_is_a_500_and_is_remembered(shop, session):
    assert session.get(f"{shop.base_url}/crash").status_code == 500
    assert "ZeroDivisionError" in shop.crashes[0]
    assert session.get(f"{shop.base_url}/nothing").status_code == 404


def test_a_vendor_that_stops_refuses_connections_and_comes_back_on_its_port(session):
    clock = Clock()
    shop = Shop(now=clock, hosts=("127.0.0.1", "127.0.0.2"))
    with shop:
        url = f"{shop.base_url}/file"
        assert session.get(f"{shop.origin(1)}/shop/file").status_code == 200
    with pytest.raises(requests.ConnectionError):
        session.get(url)
    with shop:
        assert session.get(url).status_code == 200
        clock.advance(timedelta(days=1))
        date = parsedate_to_datetime(session.get(url).headers["Date"])
        assert abs(date - datetime.now(UTC) - timedelta(days=1)) < timedelta(seconds=30)


def test_many_clients_at_once(shop):
    shop.file = Content("small", 20_000)
    wrong: list[bytes] = []

    def client() -> None:
        with requests.Session() as session:
            session.trust_env = False
            bodies = [session.get(f"{shop.base_url}/file").content for _ in range(10)]
        wrong.extend(body for body in bodies if hashlib.sha256(body).hexdigest() != shop.file.sha256)

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert shop.served["file"].full == 160
