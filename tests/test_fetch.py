"""A body is whole or an error, whatever the server does on the wire; headers and requests go only where they may."""

from __future__ import annotations

import hashlib
import itertools
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest

from worker.connect import open_session
from worker.errors import (
    BlockedAddressError,
    IncompleteBodyError,
    LeaseLostError,
    RefusedError,
    StoppedError,
    TooLargeError,
    TooSlowError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.fetch import open_download
from worker.model import Link, Wrapping
from worker.settings import CrayonSettings

BODY = hashlib.sha256(b"seed").digest() * 10_000  # 320,000 bytes


class Server:
    """Answers each connection with the next of `answers`: a function of (socket, request) that writes raw bytes."""

    def __init__(self, *answers, host="127.0.0.1"):
        self.answers = answers
        self.requests = []
        self._ends = threading.Event()
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        for number in itertools.count():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            answer = self.answers[min(number, len(self.answers) - 1)]
            threading.Thread(target=self._answer, args=(connection, answer), daemon=True).start()

    def _answer(self, connection, answer):
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                piece = connection.recv(65536)
                if not piece:
                    return
                request += piece
            self.requests.append(request.decode())
            with suppress(OSError):  # the client has hung up, as some tests want it to
                answer(connection, request.decode())

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def serving(*answers, **options):
    server = Server(*answers, **options)
    try:
        yield server
    finally:
        server.close()


def says(head, *pieces, status="200 OK", then=None):
    """Answer with `head` (lines of headers) and `pieces`, then do `then`, then close."""

    def answer(connection, request):
        lines = [f"HTTP/1.1 {status}", *head]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        for piece in pieces:
            connection.sendall(piece)
        if then:
            then(connection)

    return answer


def reset(connection):
    """Close with RST instead of FIN."""
    time.sleep(0.05)  # let what was sent arrive: a reset throws away what the client has not read
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def bare(raw=b"", then=None):
    """Answer with `raw` alone."""

    def answer(connection, request):
        connection.sendall(raw)
        if then:
            then(connection)

    return answer


def whole(body=BODY, *more):
    return says([f"Content-Length: {len(body)}", *more], body)


def chunked(*pieces, end=b"0\r\n\r\n"):
    return says(["Transfer-Encoding: chunked"], *(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces), end)


class Lease:
    """A lease that ends when `error` is set."""

    error = None

    def check(self):
        if self.error:
            raise self.error


def source_of(base, **more):
    more = {"read_timeout": "5s", "connect_timeout": "2s", "allow_private_hosts": True, **more}
    return CrayonSettings(vendor="crayon", base_url=base, client_id="i", client_secret="s", username="u", password="p", **more)


def fetch(server, *, path="/file", lease=None, max_bytes=10**9, new_link=None, window_seconds=60.0, link=None, **more):
    """Download and give (body, the finished download)."""
    source = source_of(server.url, **more)
    link = link or Link(url=server.url + path)
    got = []
    with open_download(
        open_session(source),
        source,
        link,
        lease or Lease(),
        max_bytes=max_bytes,
        new_link=new_link,
        window_seconds=window_seconds,
    ) as download:
        got.extend(bytes(piece) for piece in download.chunks())
    assert all(len(piece) <= 1024 * 1024 for piece in got)
    return b"".join(got), download


def fails(error, *answers, **options):
    """Whether the answers lead to `error`, and a good answer after them to the file."""
    with serving(*answers) as server:
        with pytest.raises(error) as raised:
            fetch(server, **options)
        server.answers = (whole(),)
        assert fetch(server)[0] == BODY
        assert str(server.port) not in str(raised.value)
        return raised.value


# --- whole or an error -----------------------------------------------------------------------------------------------


def test_a_body_of_the_right_length_is_proved_by_it():
    with serving(
        whole(BODY, "Content-Type: text/csv", 'Content-Disposition: attachment; filename="a b.csv"', 'ETag: "x"')
    ) as server:
        body, download = fetch(server)
    assert body == BODY
    assert download.proof() == ("content-length",)
    assert (download.filename, download.content_type) == ('attachment; filename="a b.csv"', "text/csv")
    assert (download.length, download.etag, download.content_encoding) == (len(BODY), '"x"', None)
    assert "GET /file HTTP/1.1" in server.requests[0]
    assert "accept-encoding: identity" in server.requests[0].lower()


def test_an_empty_body_is_whole():
    with serving(whole(b"")) as server:
        body, download = fetch(server)
    assert (body, download.proof()) == (b"", ("content-length",))


def test_a_chunked_body_is_proved_by_its_end():
    with serving(chunked(BODY[:1], BODY[1:100_000], BODY[100_000:])) as server:
        body, download = fetch(server)
    assert (body, download.proof()) == (BODY, ("chunked-end",))


def test_a_body_that_ends_with_its_connection_has_no_proof():
    with serving(says([], BODY)) as server:
        body, download = fetch(server)
    assert (body, download.proof()) == (BODY, ())


def test_a_compressed_body_is_kept_as_it_came():
    with serving(whole(BODY, "Content-Encoding: gzip")) as server:
        body, download = fetch(server)
    assert (body, download.content_encoding) == (BODY, "gzip")


@pytest.mark.parametrize(
    "answer",
    [
        says([f"Content-Length: {len(BODY)}"], BODY[:-1]),
        says([f"Content-Length: {len(BODY)}"], BODY[:100_000], then=reset),
        says([f"Content-Length: {len(BODY)}"]),
        says([f"Content-Length: {len(BODY) - 10}"], BODY),
        says([f"Content-Length: {len(BODY) - 10}", "Connection: close"], BODY),
        chunked(BODY, end=b""),  # cut exactly between two chunks
        chunked(BODY, end=b"0"),  # perhaps the start of 0001000
        chunked(BODY, end=b"ff"),
        chunked(BODY, end=b"ff\r\nabc"),
        chunked(BODY, end=b"ff\r\nabc\r\n0\r\n\r\n"),
        chunked(BODY, end=b"-1\r\n\r\n"),
        chunked(BODY, end=b"zz\r\n\r\n"),
        chunked(end=b"5\r\nhello"),
        says([], BODY, then=reset),
    ],
    ids=itertools.count(),
)
def test_a_cut_or_wrong_body_is_an_error(answer):
    fails(IncompleteBodyError, answer)


@pytest.mark.parametrize(
    "head",
    [
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 6"],
        ["Content-Length: 5, 5"],
        ["Content-Length: -5"],
        ["Content-Length: +5"],
        ["Content-Length: five"],
        ["Content-Length:"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: identity"],
    ],
)
def test_a_frame_that_contradicts_itself_is_refused(head):
    fails(VendorReplyError, says(head, b"5\r\nhello\r\n0\r\n\r\n"))


@pytest.mark.parametrize(
    "status",
    ["201 Created", "204 No Content", "206 Partial Content", "304 Not Modified", "302 Found", "404 Not Found", "500 Oops"],
)
def test_an_answer_other_than_200_is_given_to_the_source(status):
    body = b"" if status[:3] in {"204", "304"} else b"x" * 100_000
    error = fails(RefusedError, says(["X-Why: Because", f"Content-Length: {len(body)}"], body, status=status))
    assert f"{error.status} {error.reason}" == status
    assert error.headers["x-why"] == "Because"
    assert error.body == body[: 64 * 1024]


def test_a_refusal_whose_body_is_cut_is_still_a_refusal():
    error = fails(RefusedError, says(["Content-Length: 100"], b"gone", status="410 Gone"))
    assert (error.status, error.body) == (410, b"gone")


HEADER = b"X: " + b"y" * 10_000 + b"\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\n" + HEADER * 7,
        b"HTTP/1.1 200 OK\r\nX: y\r\n" + b" folded\r\n" * 10_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
    ],
    ids=["many", "folded", "continue"],
)
def test_headers_of_an_answer_are_bounded_together(raw):
    fails(VendorUnavailableError, bare(raw + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"))
    with serving(whole(BODY, *(["X: " + "y" * 10_000] * 6))) as server:
        assert fetch(server)[0] == BODY


@pytest.mark.parametrize("raw", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_no_answer_is_the_vendors_absence(raw):
    fails(VendorUnavailableError, bare(raw))


def test_nobody_there():
    with serving(whole()) as server:
        pass
    with pytest.raises(VendorUnavailableError):
        fetch(server)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_too_large_by_its_length_is_not_read():
    fails(TooLargeError, whole(), max_bytes=len(BODY) - 1)


def test_too_large_without_a_length_ends_while_streaming():
    fails(TooLargeError, chunked(*[BODY] * 5), max_bytes=len(BODY) * 2)


def test_a_wrapped_body_may_be_larger_than_its_file():
    with serving(whole()) as server:
        link = Link(url=server.url + "/file", wrapping=Wrapping.CRAYON)
        assert fetch(server, link=link, max_bytes=len(BODY) // 2)[0] == BODY


def test_exactly_as_large_as_allowed():
    with serving(chunked(BODY)) as server:
        assert fetch(server, max_bytes=len(BODY))[0] == BODY


def trickle(connection):
    for _ in range(400):
        connection.sendall(b"x")
        time.sleep(0.05)


def stall(connection):
    time.sleep(20)


def test_a_trickle_is_too_slow():
    began = time.monotonic()
    fails(TooSlowError, says(["Content-Length: 1000"], then=trickle), min_throughput="1KiB", window_seconds=1.0)
    assert time.monotonic() - began < 4


def test_a_trickle_inside_a_chunk_size_is_too_slow_as_well():
    answer = says(["Transfer-Encoding: chunked"], b"5;", then=trickle)
    fails(TooSlowError, answer, min_throughput="1KiB", window_seconds=1.0)


def test_slow_is_well_where_no_throughput_is_asked_for():
    with serving(
        says(["Content-Length: 20"], then=lambda c: [(time.sleep(0.1), c.sendall(b"x")) for _ in range(20)])
    ) as server:
        assert fetch(server, min_throughput="0B", window_seconds=0.5)[0] == b"x" * 20


def test_a_slow_reader_is_not_the_vendors_fault():
    with serving(whole()) as server:
        source = source_of(server.url, min_throughput="1GiB")
        link = Link(url=server.url + "/file")
        with open_download(open_session(source), source, link, Lease(), max_bytes=10**9, window_seconds=0.5) as download:
            got = 0
            for piece in download.chunks():
                got += len(piece)
                time.sleep(0.4)
    assert got == len(BODY)


def test_silence_is_bounded_by_the_read_timeout():
    began = time.monotonic()
    fails(IncompleteBodyError, says(["Content-Length: 1000"], b"x", then=stall), read_timeout="500ms")
    fails(VendorUnavailableError, bare(then=stall), read_timeout="500ms")
    assert time.monotonic() - began < 4


def test_headers_that_trickle_are_bounded_in_total():
    def answer(connection, request):
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        trickle(connection)

    began = time.monotonic()
    fails(VendorUnavailableError, answer, read_timeout="500ms", connect_timeout="500ms")
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("error", [LeaseLostError("lost"), StoppedError("stopping")])
@pytest.mark.parametrize("answer", [says(["Content-Length: 1000"], then=trickle), says([], b"x", then=stall), bare(then=stall)])
def test_a_lost_lease_or_a_stop_ends_a_transfer_that_waits(error, answer):
    lease = Lease()
    threading.Timer(0.3, lambda: setattr(lease, "error", error)).start()
    began = time.monotonic()
    with serving(answer) as server, pytest.raises(type(error)):
        fetch(server, lease=lease)
    assert time.monotonic() - began < 2


# --- redirects -------------------------------------------------------------------------------------------------------


def to(url, status="302 Found"):
    return says([f"Location: {url}", "Content-Length: 0"], status=status)


def test_a_redirect_on_the_same_origin_keeps_the_headers():
    with serving(to("/other?a=%2f~b"), whole()) as server:
        link = Link(url=server.url + "/file", headers={"Authorization": "Bearer t", "Accept": "application/octet-stream"})
        assert fetch(server, link=link)[0] == BODY
    assert server.requests[1].startswith("GET /other?a=%2F~b HTTP/1.1") or "GET /other?a=%2f~b" in server.requests[1]
    assert all("Authorization: Bearer t" in request for request in server.requests)
    assert all("Accept: application/octet-stream" in request for request in server.requests)


def test_headers_are_dropped_where_the_origin_changes_and_not_restored():
    with serving(whole()) as first, serving(whole()) as second:
        first.answers = (to(second.url + "/there"), whole())
        second.answers = (to(first.url + "/back"),)
        link = Link(url=first.url + "/file", headers={"Authorization": "Bearer t", "X-Api-Key": "k"})
        assert fetch(first, link=link)[0] == BODY
        requests = [*first.requests, *second.requests]
    assert len(requests) == 3
    assert "Bearer t" in requests[0]
    assert not any("Bearer" in request or "X-Api-Key" in request for request in requests[1:])


def test_a_link_to_another_host_needs_leave():
    with serving(whole()) as server:
        link = Link(url=server.url + "/file")
        other = type("Other", (), {"url": "http://elsewhere.example", "port": 0})
        with pytest.raises(BlockedAddressError):
            fetch(other, link=link)
        assert fetch(other, link=link, download_hosts=("127.0.0.1",))[0] == BODY


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:1/",
        "http://169.254.169.254/latest",
        "//elsewhere.example/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "http://u:p@127.0.0.1/",
    ],
)
def test_a_redirect_elsewhere_is_blocked(location):
    fails(BlockedAddressError, to(location))


def test_a_redirect_to_a_private_address_is_blocked_by_the_connection():
    with serving(whole(), host="127.0.0.1") as server, pytest.raises(BlockedAddressError):
        fetch(server, allow_private_hosts=False)
    assert not server.requests


def test_a_loop_ends():
    with serving(to("/file")) as server, pytest.raises(BlockedAddressError):
        fetch(server)
    assert len(server.requests) == 11


def test_ten_redirects_are_allowed():
    with serving(*[to("/file")] * 10, whole()) as server:
        assert fetch(server)[0] == BODY


def test_a_redirect_to_nowhere_is_the_vendors_fault():
    fails(VendorReplyError, to("http://[::1/x"))


# --- resume ----------------------------------------------------------------------------------------------------------

SIZE, CUT = len(BODY), 100_000


def cut_after(count=CUT, *more, body=BODY):
    return says([f"Content-Length: {len(body)}", 'ETag: "one"', *more], body[:count])


def rest(start=CUT, *, last=SIZE - 1, total=SIZE, etag='"one"', length=None, cut=None, more=()):
    body = BODY[start:]
    length = len(body) if length is None else length
    head = [f"Content-Range: bytes {start}-{last}/{total}", f"Content-Length: {length}", f"ETag: {etag}", *more]
    return says(head, body[:cut], status="206 Partial Content")


def test_a_cut_body_is_resumed_where_it_ended():
    with serving(cut_after(), rest(CUT, cut=10), rest(CUT + 10)) as server:
        body, download = fetch(server)
    assert (body, download.proof()) == (BODY, ("content-length",))
    assert "Range: bytes=100000-\r\n" in server.requests[1]
    assert 'If-Range: "one"\r\n' in server.requests[1]
    assert "Range: bytes=100010-\r\n" in server.requests[2]
    assert "Range" not in server.requests[0]


def test_a_chunked_body_is_resumed_when_the_rest_names_the_total():
    first = says(
        ["Transfer-Encoding: chunked", "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT"], b"%x\r\n%s\r\n" % (CUT, BODY[:CUT])
    )
    with serving(first, rest()) as server:
        assert fetch(server)[0] == BODY
    assert "If-Range: Thu, 01 Jan 2026 00:00:00 GMT\r\n" in server.requests[1]


@pytest.mark.parametrize(
    "answer",
    [
        whole(BODY, 'ETag: "one"'),  # the range was ignored
        rest(etag='"two"'),
        rest(CUT - 1),
        rest(CUT + 1),
        rest(last=SIZE - 2),
        rest(total=SIZE + 1),
        rest(length=SIZE - CUT - 1),
        rest(more=["Content-Encoding: gzip"]),
        says([f"Content-Length: {len(BODY) - CUT}"], BODY[CUT:], status="206 Partial Content"),
        says(["Content-Range: bytes */320000", "Content-Length: 0"], status="416 Range Not Satisfiable"),
    ],
    ids=itertools.count(),
)
def test_what_is_not_provably_the_rest_is_an_error(answer):
    fails(IncompleteBodyError, cut_after(), answer)


@pytest.mark.parametrize(
    ("first", "options"),
    [
        (cut_after(), {"counted": True}),
        (cut_after(), {"resumable": False}),
        (cut_after(CUT, "Accept-Ranges: none"), {}),
        (says([f"Content-Length: {len(BODY)}", 'ETag: W/"weak"'], BODY[:CUT]), {}),
        (says([f"Content-Length: {len(BODY)}"], BODY[:CUT]), {}),
    ],
    ids=itertools.count(),
)
def test_no_second_request_where_a_resume_may_not_or_cannot_be(first, options):
    with serving(first, rest()) as server, pytest.raises(IncompleteBodyError):
        fetch(server, link=Link(url=server.url + "/file", **options))
    assert len(server.requests) == 1


def test_resumes_without_progress_end():
    with serving(cut_after(), rest(cut=0)) as server, pytest.raises(IncompleteBodyError):
        fetch(server)
    assert 2 <= len(server.requests) <= 6


def slowly_after(count):
    """Send so many bytes at once, and then a byte every 50 ms."""

    def drip(connection):
        for byte in BODY[count : count + 400]:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    return says([f"Content-Length: {SIZE}", 'ETag: "one"'], BODY[:count], then=drip)


def test_a_trickle_is_cut_and_resumed():
    """Another connection may be another server, or another way."""
    with serving(slowly_after(CUT), answer_the_rest) as server:
        assert fetch(server, min_throughput="1KiB", window_seconds=1.0)[0] == BODY
    assert len(server.requests) == 2


def test_a_silent_connection_is_cut_and_resumed():
    with serving(says([f"Content-Length: {SIZE}", 'ETag: "one"'], BODY[:CUT], then=stall), answer_the_rest) as server:
        assert fetch(server, read_timeout="1s")[0] == BODY
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("error", "then", "limits"),
    [
        (TooSlowError, trickle, {"min_throughput": "1KiB", "window_seconds": 1.0}),
        (IncompleteBodyError, stall, {"read_timeout": "1s"}),
    ],
)
def test_what_stands_still_twice_is_given_up(error, then, limits):
    """So a slot is held for two windows, not for as many as there are resumes."""

    def answer(connection, request):
        says([f"Content-Length: {SIZE}", 'ETag: "one"'], BODY[:CUT])(connection, request)
        then(connection)

    def rest_stands_still(connection, request):
        says(rest_head(request), status="206 Partial Content", then=then)(connection, request)

    with serving(answer, rest_stands_still) as server, pytest.raises(error):
        fetch(server, **limits)
    assert len(server.requests) == 2


def rest_head(request):
    start = int(request.partition("Range: bytes=")[2].partition("-")[0])
    return [f"Content-Range: bytes {start}-{SIZE - 1}/{SIZE}", f"Content-Length: {SIZE - start}", 'ETag: "one"']


def answer_the_rest(connection, request):
    start = int(request.partition("Range: bytes=")[2].partition("-")[0])
    says(rest_head(request), BODY[start:], status="206 Partial Content")(connection, request)


def test_a_server_that_is_away_for_a_moment_is_asked_again():
    with serving(cut_after(), bare(), rest()) as server:
        assert fetch(server)[0] == BODY


@pytest.mark.parametrize("answers", [(), (says(["Content-Length: 0"], status="403 Forbidden"),)])
def test_a_link_that_expired_meanwhile_is_got_anew(answers):
    with serving(cut_after(), *answers, rest()) as server:
        minted = []

        def new_link():
            minted.append(Link(url=server.url + "/again", headers={"X-New": "1"}))
            return minted[-1]

        expires_at = datetime.now(UTC) + (timedelta(hours=1) if answers else timedelta(0))
        link = Link(url=server.url + "/file", expires_at=expires_at)
        assert fetch(server, link=link, new_link=new_link)[0] == BODY
    assert len(minted) == 1
    assert "GET /again " in server.requests[-1]
    assert "X-New: 1" in server.requests[-1]


def test_a_refusal_that_a_new_link_does_not_heal_goes_to_the_source():
    refusal = says(["Content-Length: 4"], b"gone", status="404 Not Found")
    with serving(cut_after(), refusal) as server, pytest.raises(RefusedError) as error:
        fetch(server, new_link=lambda: Link(url=server.url + "/again"))
    assert (error.value.status, error.value.body) == (404, b"gone")


def test_every_request_is_a_get():
    with serving(cut_after(), rest()) as server:
        fetch(server)
    assert all(re.match("GET ", request) for request in server.requests)
