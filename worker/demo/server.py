"""What all simulated vendors share: an HTTP server that can misbehave, contents made from a seed, a clock that tests can turn.

Nothing here knows the product. A vendor registers routes whose handlers return a `Reply`; the server sends it, as well or as
badly as a `Fault` says, and keeps a log and counts from the vendor's side of the wire.
"""

from __future__ import annotations

import binascii
import contextlib
import functools
import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
import traceback
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, Self, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

MIB = 1 << 20


# --- bodies ----------------------------------------------------------------------------------------------------------


class Stream(Protocol):
    """A body of known size that is made while it is sent; reading it twice gives the same bytes."""

    @property
    def size(self) -> int:
        """Number of bytes."""

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to, not including, `end` (None: to the end), in chunks of any size."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that are in memory already."""

    data: bytes

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self.data)

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the slice, unless it is empty."""
        if piece := self.data[start:end]:
            yield piece


Kind = Literal["csv", "json", "bytes", "xlsx", "zip", "pdf", "html"]


@functools.cache
def _template(kind: Kind) -> bytes:
    """Give the 1 MiB block that a kind's contents repeat; binary for `bytes`, printable lines of 64 for the others."""
    data = random.Random(f"lastcall {kind}").randbytes(MIB)
    if kind == "bytes":
        return data
    text = binascii.b2a_base64(data[: MIB * 3 // 4], newline=False)
    if kind == "csv":
        return b"".join(text[at : at + 20] + b"," + text[at + 21 : at + 63] + b"\n" for at in range(0, MIB, 64))
    return text


@dataclass(frozen=True)
class Content:
    """A file made from a seed: any size, never in memory, the same bytes for the same (seed, size, kind).

    The kinds look like what they are called: `json` parses, `xlsx` and `zip` are real archives of stored members (below
    4 GiB), the others begin as such files do. Contents too short for that are filler of the right first bytes.
    """

    seed: Hashable
    size: int
    kind: Kind = "csv"

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 in hex."""
        return self._digests[0]

    @functools.cached_property
    def md5(self) -> str:
        """The MD5 in hex."""
        return self._digests[1]

    @functools.cached_property
    def sha1(self) -> str:
        """The SHA-1 in hex."""
        return digest(self, "sha1")

    @functools.cached_property
    def _digests(self) -> tuple[str, str]:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        for chunk in self.read():
            sha256.update(chunk)
            md5.update(chunk)
        return sha256.hexdigest(), md5.hexdigest()

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the slice in chunks of at most 1 MiB."""
        end = self.size if end is None else min(end, self.size)
        head, middle, tail_size = self._layout
        if start < len(head):
            yield from Raw(head).read(start, min(end, len(head)))
        first, last = max(start - len(head), 0), min(end - len(head), middle)
        yield from self._filler(first, last)
        if tail_size and end > len(head) + middle:
            offset = len(head) + middle
            yield from Raw(self._tail).read(max(start - offset, 0), end - offset)

    @functools.cached_property
    def _layout(self) -> tuple[bytes, int, int]:
        """The bytes in front, the number of bytes of filler, the number of bytes behind."""
        head, tail_size = self._head_and_tail_size()
        if self.size < len(head) + tail_size:
            return (b"1" * self.size if self.kind == "json" else head[: self.size]), max(self.size - len(head), 0), 0
        return head, self.size - len(head) - tail_size, tail_size

    def _head_and_tail_size(self) -> tuple[bytes, int]:
        match self.kind:
            case "csv":
                return b"sku,quantity,batch\n", 0
            case "json":
                return b'{"rows": ["', 3
            case "pdf":
                return b"%PDF-1.4\n%", 0
            case "html":
                return b"<!DOCTYPE html>\n<html><body><pre>", len(b"</pre></body></html>\n")
            case "bytes":
                return b"", 0
            case "xlsx" | "zip":
                small, large = self._members
                directory = sum(46 + len(name) for name, _ in (small, large)) + 22
                return b"".join((_local_header(*small), small[1], _local_header(large[0], b""))), directory

    @property
    def _members(self) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
        if self.kind == "xlsx":
            types = b'<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'
            return (b"[Content_Types].xml", types), (b"xl/worksheets/sheet1.xml", b"")
        return (b"report-1.xlsx", b"PK\x03\x04 the first report"), (b"report-2.xlsx", b"")

    @functools.cached_property
    def _tail(self) -> bytes:
        if self.kind == "json":
            return b'"]}'
        if self.kind == "html":
            return b"</pre></body></html>\n"
        head, middle, _ = self._layout
        (small_name, small), (large_name, _) = self._members
        crc = 0
        for chunk in self._filler(0, middle):
            crc = zlib.crc32(chunk, crc)
        second = len(_local_header(small_name, small)) + len(small)
        directory = _central_header(small_name, zlib.crc32(small), len(small), 0, 0)
        directory += _central_header(large_name, crc, middle, second, 8)
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), (len(head) + middle) & 0xFFFFFFFF, 0)
        return directory + end

    def _filler(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the slice of an endless row of blocks, each the template under a first line of its own."""
        template = _template(self.kind)
        while start < end:
            number, offset = divmod(start, MIB)
            mark = hashlib.sha256(repr((self.seed, self.kind, number)).encode()).hexdigest()[:63].encode()
            block = mark + (b"\n" if self.kind == "csv" else b"0") + template[64:]
            piece = block[offset : offset + end - start]
            yield piece
            start += len(piece)


def _local_header(name: bytes, data: bytes) -> bytes:
    """Make a zip member's header; a member without data yet is marked as sized by the central directory alone."""
    flags = 0 if data else 8
    fields = (b"PK\x03\x04", 20, flags, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
    return struct.pack("<4s5H3L2H", *fields) + name


def _central_header(name: bytes, crc: int, size: int, offset: int, flags: int) -> bytes:
    size &= 0xFFFFFFFF
    fields = (b"PK\x01\x02", 20, 20, flags, 0, 0, 33, crc, size, size, len(name), 0, 0, 0, 0, 0, offset)
    return struct.pack("<4s6H3L5H2L", *fields) + name


@dataclass(frozen=True)
class Base64:
    """A stream as base64 text, in one line or in lines of `line_length` (a multiple of 4) that end in CR LF."""

    inner: Stream
    line_length: int = 0

    @property
    def size(self) -> int:
        """Number of characters, line ends included."""
        characters = (self.inner.size + 2) // 3 * 4
        return characters + (2 * -(-characters // self.line_length) if self.line_length else 0)

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the text, skipping what lies outside the slice."""
        yield from _slice(self._encoded(), start, self.size if end is None else end)

    def _encoded(self) -> Iterator[bytes]:
        width = self.line_length
        unit = width // 4 * 3 if width else 3
        kept = b""
        for chunk in self.inner.read():
            data = kept + chunk
            whole = len(data) // unit * unit
            kept = data[whole:]
            yield self._lines(binascii.b2a_base64(data[:whole], newline=False))
        yield self._lines(binascii.b2a_base64(kept, newline=False))

    def _lines(self, text: bytes) -> bytes:
        if not self.line_length:
            return text
        return b"".join(text[at : at + self.line_length] + b"\r\n" for at in range(0, len(text), self.line_length))


@dataclass(frozen=True)
class Joined:
    """Streams one after the other."""

    parts: tuple[Stream, ...]

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(part.size for part in self.parts)

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the slice."""
        end = self.size if end is None else end
        for part in self.parts:
            yield from part.read(min(max(start, 0), part.size), min(max(end, 0), part.size))
            start, end = start - part.size, end - part.size


@dataclass(frozen=True)
class Made:
    """A stream that only a pass through `make` can size, such as gzip or a list of numbers; the pass is made once."""

    make: Callable[[], Iterator[bytes]]

    @functools.cached_property
    def size(self) -> int:
        """Number of bytes."""
        return sum(map(len, self.make()))

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield what `make` gives, skipping what lies outside the slice."""
        yield from _slice(self.make(), start, self.size if end is None else end)


@dataclass(frozen=True)
class First:
    """The first bytes of a stream, passed off as all of it."""

    inner: Stream
    size: int

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the slice."""
        yield from self.inner.read(start, self.size if end is None else min(end, self.size))


def gzipped(inner: Stream) -> Made:
    """Give `inner` compressed by gzip, quickly rather than well."""

    def make() -> Iterator[bytes]:
        compressor = zlib.compressobj(1, wbits=31)
        for chunk in inner.read():
            yield compressor.compress(chunk)
        yield compressor.flush()

    return Made(make)


def json_member(document: Mapping[str, Any], name: str, value: Stream, *, quoted: bool = True) -> Joined:
    """Give the JSON object `document` with the member `name` set to a streamed string, or to a bare value if not `quoted`."""
    mark = "\x00here\x00"
    before, after = json.dumps({**document, name: mark}).split(json.dumps(mark))
    quote = '"' if quoted else ""
    return Joined((Raw((before + quote).encode()), value, Raw((quote + after).encode())))


def digest(stream: Stream, algorithm: str) -> str:
    """Give a stream's digest in hex."""
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    for chunk in stream.read():
        hasher.update(chunk)
    return hasher.hexdigest()


def _slice(chunks: Iterable[bytes], start: int, end: int) -> Iterator[bytes]:
    at = 0
    for chunk in chunks:
        if at >= end:
            return
        if piece := chunk[max(start - at, 0) : end - at]:
            yield piece
        at += len(chunk)


# --- requests, replies, faults ---------------------------------------------------------------------------------------


@dataclass
class Entry:
    """One request as the vendor saw it. `sent` and `whole` grow while the answer is on its way."""

    at: datetime
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    route: str = ""
    status: int = 0
    sent: int = 0
    whole: bool = False


@dataclass(frozen=True)
class Request:
    """What a handler gets. Header names are lower case; `listener` counts the addresses that the vendor listens on."""

    at: datetime
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    listener: int = 0

    def first(self, *names: str) -> str | None:
        """Give the first value of the first query parameter among `names` that is there; names in any case."""
        values = self.all(*names)
        return values[0] if values else None

    def all(self, *names: str) -> list[str]:
        """Give the values of all query parameters among `names`, names in any case."""
        wanted = {name.lower() for name in names}
        return [value for name, values in self.query.items() if name.lower() in wanted for value in values]


Framing = Literal["length", "chunked", "close"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way for an answer to go wrong. With `status` the handler is not asked and this is the answer.

    `delay_seconds` pass before the first byte. `framing` is how the end is told. After `cut_after` bytes of the body the
    connection ends: with a FIN, or with `reset` by RST. `cut_fraction` is the same as a share of the body.
    `length_off_by` is added to the declared length. A close-delimited body that is cut looks whole.
    """

    status: int | None = None
    body: bytes = b""
    content_type: str = "text/html"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    framing: Framing | None = None
    cut_after: int | None = None
    cut_fraction: float | None = None
    reset: bool = False
    bytes_per_second: float | None = None
    length_off_by: int = 0

    @classmethod
    def answer(cls, status: int, body: bytes | str = b"", content_type: str = "text/html", **headers: str) -> Fault:
        """Give a plain wrong answer; header names are written with `_` for `-`."""
        data = body.encode() if isinstance(body, str) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status=status, body=data, content_type=content_type, headers=named)


FAULTLESS = Fault()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer. `counts` is the output whose downloads are counted by what of it gets sent.

    With `ranges`, single byte ranges are honoured (`If-Range` compares `etag`); otherwise `Range` is ignored.
    """

    status: int = 200
    reason: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Stream = Raw(b"")
    ranges: bool = False
    etag: str | None = None
    counts: Hashable | None = None
    fault: Fault = FAULTLESS

    @classmethod
    def json(
        cls, document: object, status: int = 200, *, reason: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Self:
        """Give a JSON answer."""
        return cls.text(json.dumps(document), status, "application/json; charset=utf-8", reason=reason, headers=headers)

    @classmethod
    def text(
        cls,
        text: str,
        status: int = 200,
        content_type: str = "text/plain; charset=utf-8",
        *,
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Give a text answer."""
        return cls(
            status=status, reason=reason, headers={"Content-Type": content_type, **(headers or {})}, body=Raw(text.encode())
        )


@dataclass
class Served:
    """How often one output's bytes went out: whole, or in part (a cut, a range, a client that left)."""

    full: int = 0
    partial: int = 0


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What one job really produced, as only the vendor knows it. Ids are those that an archive would use."""

    job_id: str
    output_id: str
    filename: str
    size: int
    sha256: str
    completed_at: datetime
    full_downloads: int
    partial_downloads: int
    gone: bool


class Clock:
    """The vendor's time: real time, moved by `advance`. Aware UTC."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        """Give the present."""
        return datetime.now(UTC) + self.offset

    def advance(self, by: timedelta) -> None:
        """Let `by` pass at once."""
        self.offset += by


# --- the server ------------------------------------------------------------------------------------------------------

Handler = Callable[..., Reply]


@dataclass(frozen=True)
class _Route:
    name: str
    methods: frozenset[str]
    pattern: re.Pattern[str]
    handler: Handler
    listener: int | None


class Vendor:
    """A simulated vendor on loopback: start, use `base_url`, stop; or use it as a context manager.

    Handlers run one at a time under `lock`, so they may change the vendor's state freely. `log` holds every request.
    `crashes` holds the tracebacks of handlers that failed: a test may assert that it is empty.
    """

    base_path: ClassVar[str] = ""

    def __init__(self, *, now: Clock | None = None, hosts: tuple[str, ...] = ("127.0.0.1",), port: int = 0) -> None:
        self.now = now or Clock()
        self.lock = threading.RLock()
        self.log: list[Entry] = []
        self.crashes: list[str] = []
        self.standing: dict[str, Fault] = {}
        self.served: defaultdict[Hashable, Served] = defaultdict(Served)
        self.stopping = threading.Event()
        self._once: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._routes: list[_Route] = []
        self._addresses = [(host, port if number == 0 else 0) for number, host in enumerate(hosts)]
        self._servers: list[_Server] = []

    @property
    def credentials(self) -> dict[str, str]:
        """What the table of a source needs to be let in, by the names of the configuration."""
        return {}

    # lifecycle

    def start(self) -> Self:
        """Listen on every host; the first has the wanted port, the others any. After `stop`, on the same ports again."""
        self.stopping.clear()
        for number, address in enumerate(self._addresses):
            server = _Server(address, self, number)
            self._addresses[number] = (address[0], server.server_port)
            self._servers.append(server)
            name = f"{type(self).__name__}-{number}"
            threading.Thread(target=server.serve_forever, args=(0.05,), name=name, daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening and end every connection."""
        self.stopping.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
            server.drop_connections()
        self._servers.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def origin(self, listener: int = 0) -> str:
        """Give ``http://host:port`` of a listener; it is known from the first `start` on."""
        host, port = self._addresses[listener]
        return f"http://{host}:{port}"

    @property
    def base_url(self) -> str:
        """The URL that a user would configure."""
        return self.origin() + self.base_path

    def truth(self) -> list[Truth]:
        """List every output that was ever produced, gone or not."""
        raise NotImplementedError

    # routes and faults

    def route(
        self, name: str, methods: str, pattern: str, handler: Handler, *, listener: int | None = None, ignore_case: bool = False
    ) -> None:
        """Answer paths that match `pattern` wholly (after percent-decoding) by ``handler(request, **groups)``.

        HEAD goes to the GET handler, and its body stays behind, unless a route of its own comes first.
        """
        compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        self._routes.append(_Route(name, frozenset(methods.split()), compiled, handler, listener))

    def fail(self, route: str, *faults: Fault, times: int = 1) -> None:
        """Let the next requests to `route` (``*``: to any) go wrong, `times` times each of `faults` in order."""
        with self.lock:
            self._once[route].extend(fault for fault in faults for _ in range(times))

    def failing(self) -> bool:
        """Tell whether some of what `fail` ordered is still to come."""
        with self.lock:
            return any(self._once.values())

    def requests(self, route: str | None = None) -> list[Entry]:
        """Give the log so far, of one route or of all."""
        with self.lock:
            return [entry for entry in self.log if route in (None, entry.route)]

    def screen(self, request: Request, route: str) -> Reply | None:
        """Answer before the route's handler does, or not at all (None); a place for throttling."""
        del request, route
        return None

    def no_route(self, request: Request) -> Reply:
        """Answer a path that does not exist."""
        del request
        return Reply.text("Not Found", 404)

    def answer(self, request: Request, entry: Entry) -> Reply:
        """Find the route, its fault and its reply. Called by the server, under no lock."""
        with self.lock:
            self.log.append(entry)
            methods = {request.method, "GET"} if request.method == "HEAD" else {request.method}
            for route in self._routes:
                match = route.pattern.fullmatch(request.path)
                if match and methods & route.methods and route.listener in (None, request.listener):
                    entry.route = route.name
                    return self._reply(request, route, match.groupdict())
            return self.no_route(request)

    def _reply(self, request: Request, route: _Route, groups: dict[str, str]) -> Reply:
        fault = self._next_fault(route.name)
        if fault.status is not None:
            headers = {"Content-Type": fault.content_type, **fault.headers}
            return Reply(status=fault.status, headers=headers, body=Raw(fault.body), fault=fault)
        try:
            reply = self.screen(request, route.name) or route.handler(request, **groups)
        except Exception:  # noqa: BLE001 (a handler's bug becomes a 500 that tests can find)
            self.crashes.append(traceback.format_exc())
            return Reply.text("the simulator failed", 500)
        return reply if fault is FAULTLESS else replace(reply, fault=fault)

    def _next_fault(self, route: str) -> Fault:
        for name in (route, "*"):
            if self._once[name]:
                return self._once[name].popleft()
        return self.standing.get(route) or self.standing.get("*") or FAULTLESS


_Connection: TypeAlias = socket.socket | tuple[bytes, socket.socket]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], vendor: Vendor, listener: int) -> None:
        self.vendor = vendor
        self.listener = listener
        self._connections: set[_Connection] = set()
        self._guard = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: _Connection, client_address: object) -> None:
        with self._guard:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: _Connection) -> None:
        with self._guard:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: _Connection, client_address: object) -> None:
        """Say nothing: clients that leave are part of the play."""

    def drop_connections(self) -> None:
        with self._guard:
            connections = [each for each in self._connections if isinstance(each, socket.socket)]
        for connection in connections:
            with contextlib.suppress(OSError):  # the client left first
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """Stay silent; the vendor's log has it all."""

    def _serve(self) -> None:
        vendor = self.server.vendor
        split = urlsplit(self.path)
        request = Request(
            at=vendor.now(),
            method=self.command,
            path=unquote(split.path),
            query=parse_qs(split.query, keep_blank_values=True),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            listener=self.server.listener,
        )
        entry = Entry(request.at, request.method, request.path, request.query, request.headers)
        reply = vendor.answer(request, entry)
        if reply.fault.delay_seconds:
            vendor.stopping.wait(reply.fault.delay_seconds)
        try:
            self._send(request, reply, entry)
        except OSError:
            self.close_connection = True  # the client left

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _serve

    def _send(self, request: Request, reply: Reply, entry: Entry) -> None:
        plan = _plan(request, reply)
        entry.status = plan.status
        headers = {"Date": format_datetime(self.server.vendor.now(), usegmt=True), **plan.headers}
        self.connection.sendall(_head(plan.status, reply.reason, headers))
        self._send_body(reply, plan, entry)
        if not plan.clean:
            self.close_connection = True
        if not plan.whole and reply.fault.reset:
            self._reset()

    def _send_body(self, reply: Reply, plan: _Plan, entry: Entry) -> None:
        """Send the bytes and count the download; the count is right before the client can hold the last byte."""
        chunks = reply.body.read(plan.start, plan.end) if plan.end > plan.start else ()
        left, full = plan.end - plan.start, False
        try:
            for chunk in _paced(chunks, reply.fault.bytes_per_second, self.server.vendor.stopping):
                left -= len(chunk)
                if left == 0 and plan.full:
                    full = True
                    self._count(reply, full=1)
                self.connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk) if plan.framing == "chunked" else chunk)
                entry.sent += len(chunk)
            if plan.terminator:
                self.connection.sendall(b"0\r\n\r\n")
            entry.whole = plan.whole
        except OSError:
            self._count(reply, full=-full, partial=1)  # the client left, perhaps before the very last byte
            raise
        if plan.counted and not full:
            self._count(reply, full=plan.full, partial=not plan.full)

    def _count(self, reply: Reply, *, full: int = 0, partial: int = 0) -> None:
        if reply.counts is not None:
            with self.server.vendor.lock:
                self.server.vendor.served[reply.counts].full += full
                self.server.vendor.served[reply.counts].partial += partial

    def _reset(self) -> None:
        """End the connection with RST: linger for no time, and close every handle on the socket."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What of a reply goes out. `clean`: the connection may live on.

    `whole`: all that was declared; `full`: all of the file.
    """

    status: int
    headers: Mapping[str, str]
    framing: Framing
    start: int
    end: int
    whole: bool
    full: bool
    clean: bool
    counted: bool
    terminator: bool


def _plan(request: Request, reply: Reply) -> _Plan:
    fault = reply.fault
    status, start, end = _range(request, reply)
    framing = fault.framing or "length"
    bodiless = request.method == "HEAD" or status in {204, 304}
    limit = end - start
    if fault.cut_after is not None:
        limit = min(limit, fault.cut_after)
    if fault.cut_fraction is not None:
        limit = min(limit, int((end - start) * fault.cut_fraction))
    whole = bodiless or limit == end - start
    return _Plan(
        status=status,
        headers=_headers(reply, status, start, end),
        framing=framing,
        start=start,
        end=start if bodiless else start + limit,
        whole=whole,
        full=not bodiless and whole and status != 206,
        clean=whole and framing != "close" and not fault.length_off_by,
        counted=not bodiless,
        terminator=framing == "chunked" and whole and not bodiless,
    )


def _headers(reply: Reply, status: int, start: int, end: int) -> dict[str, str]:
    headers = dict(reply.headers)
    if reply.etag:
        headers["ETag"] = reply.etag
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{reply.body.size}"
    elif status == 416:
        headers["Content-Range"] = f"bytes */{reply.body.size}"
    match reply.fault.framing or "length":
        case "chunked":
            headers["Transfer-Encoding"] = "chunked"
        case "close":
            headers["Connection"] = "close"
        case "length" if status not in {204, 304}:
            headers["Content-Length"] = str(max(end - start + reply.fault.length_off_by, 0))
    return headers


def _range(request: Request, reply: Reply) -> tuple[int, int, int]:
    """Decide the status and the slice for a request's `Range`, the whole body where there is none or it is ignored."""
    size = reply.body.size
    whole = (reply.status, 0, size)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not (reply.ranges and reply.status == HTTPStatus.OK and match and any(match.groups())):
        return whole
    condition = request.headers.get("if-range")
    if condition is not None and condition != reply.etag:
        return whole
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    return (206, start, end) if start < end else (416, 0, 0)


def _head(status: int, reason: str | None, headers: Mapping[str, str]) -> bytes:
    """Write the status line and the headers; characters beyond Latin-1 go out as raw UTF-8, as sloppy servers do."""
    if reason is None:
        reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    text = f"HTTP/1.1 {status} {reason}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def _paced(chunks: Iterable[bytes], bytes_per_second: float | None, stopping: threading.Event) -> Iterator[bytes]:
    """Hand the chunks on, at most so fast, in about ten bites a second."""
    if not bytes_per_second:
        yield from chunks
        return
    begun, sent = time.monotonic(), 0
    bite = max(int(bytes_per_second / 10), 1)
    for chunk in chunks:
        for at, to in pairwise([*range(0, len(chunk), bite), len(chunk)]):
            ahead = sent / bytes_per_second - (time.monotonic() - begun)
            if ahead > 0 and stopping.wait(ahead):
                raise BrokenPipeError
            yield chunk[at:to]
            sent += to - at
