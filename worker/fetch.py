"""Link → a stream of proved-whole bytes: origin-bound headers, host rules, redirects by hand, resume, limits."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin

import requests
import urllib3

from worker.connect import MOST_URL_CHARACTERS, Watch, check_url, same_origin, transport_error
from worker.errors import (
    BlockedAddressError,
    IncompleteBodyError,
    LastcallError,
    RefusedError,
    TooLargeError,
    TooSlowError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.model import Lease, Link, Wrapping
from worker.settings import SourceSettings

_READ_BYTES = 512 * 1024
_PIECE_BYTES = 64 * 1024  # smaller reads (TLS gives 16 KiB at a time) are put together to this
_REFUSAL_BYTES = 64 * 1024
_MAX_REDIRECTS = 10
_MAX_RESUMES = 100
_MAX_FRUITLESS = 3  # resumes in a row that brought nothing
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_FAULTS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


class Download:
    """One download in progress; a context manager that closes its connection.

    Known once opened: `filename` (the Content-Disposition header, raw as the vendor wrote it, which
    `names.from_content_disposition` reads; or None), `content_type`, `content_encoding` (as sent; bytes are never inflated),
    `length` (Content-Length or None), `etag`.
    """

    filename: str | None
    content_type: str
    content_encoding: str | None
    length: int | None
    etag: str | None

    def __init__(
        self,
        session: requests.Session,
        source: SourceSettings,
        link: Link,
        lease: Lease,
        *,
        max_bytes: int,
        new_link: Callable[[], Link] | None,
        window_seconds: float,
    ) -> None:
        self._session = session
        self._source = source
        self._link = link
        self._lease = lease
        # A wrapping makes the body larger than the file (byte numbers: four times); who unwraps it counts the file's bytes.
        self._max_bytes = max_bytes if link.wrapping is Wrapping.NONE else 4 * max_bytes + 1024 * 1024
        self._new_link = new_link
        self._window_seconds = window_seconds
        self._least_bytes = int(source.min_throughput * window_seconds)
        self._meter = self._new_meter()
        self._headers_by: float | None = None
        self._received = 0
        self._asked_at = 0.0  # when we last began to wait for the vendor
        self._whole = False
        self._watch = Watch(self._check)
        try:
            self._response = self._get(link, {})
            self._read_headers()
        except BaseException:
            self._watch.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._watch.close()
        self._response.close()

    def chunks(self) -> Iterator[bytes]:
        """Yield the body once, as received, in pieces of at most 1 MiB.

        Asks `lease.check()` per piece, and twice a second from another thread: however slowly the server trickles, a lost
        lease or a stop cuts the connection. A cut connection is resumed by Range with If-Range where the link is resumable
        and the server gave a strong ETag or Last-Modified (206 with the right Content-Range only; 200 starts nothing over
        and is an error here); a link that expired in the meantime is got anew from `new_link`. One that stalls (too slow, or
        silent for `read_timeout`) is resumed too, but not where the one before stalled as well and this one brought less than
        `min_throughput` asks of a window: so what stands still holds its slot for two windows, not for ever.

        Raises `IncompleteBodyError` (cut, or longer or shorter than Content-Length), `TooLargeError`, `TooSlowError`,
        `VendorUnavailableError`, `RefusedError`, `LeaseLostError`, `StoppedError`.
        """
        resumes = fruitless = 0
        stalled = False
        while True:
            before = self._received
            try:
                if resumes:
                    self._resume()
                yield from self._pieces()
                self._whole = True
                return
            except (_CutError, VendorUnavailableError, TooSlowError) as cut:
                resumes += 1
                gained = self._received - before
                fruitless = 0 if gained else fruitless + 1
                silent = time.monotonic() - self._asked_at >= self._source.read_timeout.total_seconds()
                before_too, stalled = stalled, silent or isinstance(cut, TooSlowError)
                hopeless = stalled and before_too and gained < self._least_bytes
                if not self._can_resume() or hopeless or fruitless > _MAX_FRUITLESS or resumes > _MAX_RESUMES:
                    if isinstance(cut, TooSlowError):
                        raise
                    raise IncompleteBodyError(str(cut)) from cut
            self._pause(0.25 * 2**fruitless if fruitless else 0.0)

    def proof(self) -> tuple[str, ...]:
        """After the last chunk: what showed that the body was whole, of ``content-length`` and ``chunked-end``; or ()."""
        if not self._whole:
            return ()
        if self.length is not None:
            return ("content-length",)
        return ("chunked-end",) if self._chunked else ()

    # --- asking ------------------------------------------------------------------------------------------------------

    def _get(self, link: Link, more_headers: Mapping[str, str]) -> requests.Response:
        """Send the GET and follow redirects. Headers of the link are dropped where the origin changes, and not restored."""
        url, came_from, headers = link.url, None, dict(link.headers)
        for _ in range(_MAX_REDIRECTS + 1):
            check_url(url, self._source, came_from=came_from)
            response = self._send(url, {**headers, **more_headers, "Accept-Encoding": "identity"})
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return response
            response.close()
            came_from, url = url, _target(url, location)
            if not same_origin(came_from, url):
                headers = {}
        raise BlockedAddressError(f"the vendor redirected the download more than {_MAX_REDIRECTS} times")

    def _send(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        self._lease.check()
        seconds = self._source.connect_timeout.total_seconds() + self._source.read_timeout.total_seconds()
        self._asked_at = time.monotonic()
        self._headers_by = self._asked_at + seconds
        try:
            request = requests.PreparedRequest()
            request.prepare("GET", url, {**self._session.headers, **headers})
            if url.isascii() and " " not in url:
                request.url = url  # a signed URL is sent as it came; requests would write some of its characters anew
            with self._watch.sending():
                response = self._session.send(request, stream=True, allow_redirects=False)
        except _FAULTS as exc:
            self._watch.raise_if_over()
            # The cause is left out of the trace, where it would write the URL, which is a secret.
            raise transport_error(exc) from None
        self._watch.raise_if_over()
        if response.status_code != 200:
            return response
        self._headers_by = None
        return response

    def _read_headers(self) -> None:
        """Take what the answer says of the file. Raises for anything that is not the whole file in a clear frame."""
        response = self._response
        if response.status_code != 200:
            raise self._refusal(response)
        headers = response.headers
        self.filename = headers.get("Content-Disposition")
        self.content_type = headers.get("Content-Type", "")
        self.content_encoding = _encoding(response)
        self.etag = headers.get("ETag")
        self.length, self._chunked = _frame(response)
        self._last_modified = headers.get("Last-Modified")
        self._ranges = headers.get("Accept-Ranges", "").strip().lower() != "none"
        if self.length is not None and self.length > self._max_bytes:
            response.close()
            raise TooLargeError(f"the download has {self.length:,} bytes, more than max_output_bytes allows")

    def _refusal(self, response: requests.Response) -> RefusedError:
        """Make the error for an answer that is not the file, with as much of its body as comes in time."""
        body = bytearray()
        try:
            while len(body) < _REFUSAL_BYTES and (
                piece := response.raw.read1(_REFUSAL_BYTES - len(body), decode_content=False)
            ):
                body += piece
        except (*_FAULTS, LastcallError):
            self._lease.check()  # the status says enough, unless it was we who cut the connection
        finally:
            self._headers_by = None
            response.close()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return RefusedError(response.status_code, response.reason or "", headers, bytes(body))

    # --- reading -----------------------------------------------------------------------------------------------------

    def _pieces(self) -> Iterator[bytes]:
        """Yield what comes over the present connection up to its end. Raises `_CutError` when that is not the body's end."""
        held = bytearray()
        try:
            while data := self._read():
                if not held and len(data) >= _PIECE_BYTES:
                    yield data
                    continue
                held += data
                if len(held) >= _PIECE_BYTES:
                    yield bytes(held)
                    held = bytearray()
        except (_CutError, TooSlowError):
            if held:
                yield bytes(held)
            raise
        if held:
            yield bytes(held)
        if self.length is not None and self._received != self.length:
            raise _CutError(f"the body ended after {self._received} of {self.length} bytes")

    def _read(self) -> bytes:
        """Read what is there, waiting for at least a byte; empty at the end."""
        self._lease.check()
        self._asked_at = time.monotonic()
        self._meter.start()
        try:
            data: bytes = self._response.raw.read1(_READ_BYTES, decode_content=False) or b""
        except _FAULTS as exc:
            self._watch.raise_if_over()
            of = "" if self.length is None else f" of {self.length}"
            raise _CutError(f"the body was cut after {self._received}{of} bytes") from exc
        finally:
            self._meter.stop()
        self._watch.raise_if_over()
        self._received += len(data)
        self._meter.add(len(data))
        if self._received > self._max_bytes:
            raise TooLargeError(f"the download has more than {self._max_bytes:,} bytes, more than max_output_bytes allows")
        return data

    def _check(self) -> None:
        """Raise when the transfer must end. Called by the watchman, whatever the transfer's own thread waits for."""
        self._lease.check()
        if self._headers_by is not None and time.monotonic() > self._headers_by:
            raise VendorUnavailableError("the vendor cannot be reached: no whole answer within the timeouts")
        self._meter.check()

    # --- going on after a cut ----------------------------------------------------------------------------------------

    def _can_resume(self) -> bool:
        too_long = self.length is not None and self._received >= self.length
        return (
            self._link.resumable
            and not self._link.counted
            and self._ranges
            and self._validator() is not None
            and self._received > 0
            and not too_long
        )

    def _validator(self) -> str | None:
        """Give what If-Range may carry: a strong ETag, else Last-Modified."""
        if self.etag and self.etag.startswith('"'):
            return self.etag
        return self._last_modified

    def _pause(self, seconds: float) -> None:
        """Let a server that cuts at once have a moment; the lease is asked meanwhile."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self._lease.check()
            time.sleep(min(left, 0.5))

    def _new_meter(self) -> _Meter:
        return _Meter(int(self._source.min_throughput), self._window_seconds)

    def _resume(self) -> None:
        """Ask for the rest, and believe it only where it is provably the rest of the same bytes."""
        self._response.close()
        self._watch.close()
        self._meter, self._watch = self._new_meter(), Watch(self._check)  # what was too slow is over
        expires_at = self._link.expires_at
        fresh = False
        if self._new_link is not None and expires_at is not None and expires_at <= datetime.now(UTC):
            self._link, fresh = self._new_link(), True
        ranged = {"Range": f"bytes={self._received}-", "If-Range": self._validator() or ""}
        self._response = self._get(self._link, ranged)
        if self._response.status_code in {400, 401, 403, 404, 410} and self._new_link is not None and not fresh:
            self._response.close()
            self._link = self._new_link()
            self._response = self._get(self._link, ranged)
        if self._response.status_code not in {200, 206, 416}:
            raise self._refusal(self._response)
        if why := self._mismatch():
            self._response.close()
            raise IncompleteBodyError(f"the body was cut after {self._received} bytes and cannot be resumed: {why}")
        self._headers_by = None

    def _mismatch(self) -> str | None:
        """Say why the answer is not the rest of the body that began, or None."""
        if self._response.status_code != 206:
            return "the server does not give the rest"
        headers = self._response.headers
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if match is None:
            return "its Content-Range is missing"
        start, last = int(match[1]), int(match[2])
        total = self.length if match[3] == "*" else int(match[3])
        if total is None or start != self._received or last != total - 1 or self.length not in {None, total}:
            return "its Content-Range is not the rest"
        length, _ = _frame(self._response)
        if length not in {None, total - start}:
            return "its Content-Length is not that of the rest"
        known = (("ETag", self.etag), ("Last-Modified", self._last_modified))
        if any(before is not None and headers.get(name, before) != before for name, before in known):
            return "the file has changed"
        if _encoding(self._response) != self.content_encoding:
            return "the file has changed its encoding"
        self.length = total
        return None


class _CutError(Exception):
    """The connection ended before the body did; the rest may be had by asking for it. Never leaves this module."""


class _Meter:
    """Measures what the vendor delivers while we wait for it; time spent on S3 does not count.

    `start`, `stop` and `add` are called by the transfer's thread, `check` by the watchman.
    """

    def __init__(self, min_per_second: int, window_seconds: float) -> None:
        self._min_per_second = min_per_second
        self._window_seconds = window_seconds
        self._waited = 0.0
        self._since: float | None = None
        self._received = 0
        self._samples: deque[tuple[float, int]] = deque([(0.0, 0)])

    def start(self) -> None:
        self._since = time.monotonic()

    def stop(self) -> None:
        since, self._since = self._since, None  # in this order, so that the watchman never counts a wait twice
        if since is not None:
            self._waited += time.monotonic() - since

    def add(self, count: int) -> None:
        self._received += count

    def check(self) -> None:
        """Raise `TooSlowError` when the last window of waiting brought less than the minimum."""
        since = self._since
        waited = self._waited + (time.monotonic() - since if since is not None else 0.0)
        while len(self._samples) > 1 and self._samples[1][0] <= waited - self._window_seconds:
            self._samples.popleft()
        began, had = self._samples[0]
        span = waited - began
        if self._min_per_second and span >= self._window_seconds and self._received - had < self._min_per_second * span:
            raise TooSlowError(
                f"{self._received - had} bytes came in {span:.0f} s, less than min_throughput ({self._min_per_second} B/s)"
            )
        if waited > self._samples[-1][0] + self._window_seconds / 60:
            self._samples.append((waited, self._received))


def open_download(
    session: requests.Session,
    source: SourceSettings,
    link: Link,
    lease: Lease,
    *,
    max_bytes: int,
    new_link: Callable[[], Link] | None = None,
    window_seconds: float = 60.0,
) -> Download:
    """Send the GET (never HEAD) and read the headers. Raises `RefusedError` for anything but 200, `BlockedAddressError`,
    `TooLargeError` (a Content-Length over `max_bytes`, nothing read), `VendorReplyError` (headers that contradict each other,
    a redirect to nowhere), `VendorUnavailableError`, `LeaseLostError`, `StoppedError`.

    `max_bytes` is of the file: a wrapped body may be up to four times as large, and who unwraps it counts again.
    `lease.check` is called by this thread and by the watchman's. `window_seconds`: over how long `min_throughput` is judged.
    """
    return Download(session, source, link, lease, max_bytes=max_bytes, new_link=new_link, window_seconds=window_seconds)


def _target(url: str, location: str) -> str:
    """Give the absolute URL of a Location, whose bytes http.client has read as latin-1."""
    with contextlib.suppress(UnicodeError):
        location = location.encode("latin-1").decode("utf-8")
    if len(location) > MOST_URL_CHARACTERS:
        raise VendorReplyError("the vendor redirected the download to something that is longer than any URL")
    try:
        return urljoin(url, location)
    except ValueError as exc:
        raise VendorReplyError("the vendor redirected the download to something that is not a URL") from exc


def _encoding(response: requests.Response) -> str | None:
    """Give the Content-Encoding, None where the bytes are the file's own."""
    value: str = response.headers.get("Content-Encoding", "").strip()
    return None if value.lower() in {"", "identity"} else value


def _frame(response: requests.Response) -> tuple[int | None, bool]:
    """Give (Content-Length or None, whether the body is chunked). Raises `VendorReplyError` where that is unclear."""
    raw: Any = response.raw
    length = raw.headers.get("Content-Length")
    encodings = [value.strip().lower() for value in raw.headers.getlist("Transfer-Encoding")]
    if encodings not in ([], ["chunked"]) or (encodings and length is not None):
        response.close()
        raise VendorReplyError("the download's Transfer-Encoding is unknown, or contradicts its Content-Length")
    # connect has seen to it that several values are one number.
    return None if length is None else int(length.partition(",")[0]), bool(encodings)
