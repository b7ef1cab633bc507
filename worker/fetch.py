"""Link → a stream of proved-whole bytes: origin-bound headers, host rules, redirects by hand, resume, limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import requests

from worker.model import Lease, Link
from worker.settings import SourceSettings


class Download:
    """One download in progress; a context manager that closes its connection.

    Known once opened: `filename` (from Content-Disposition, raw as the vendor wrote it, or None), `content_type`,
    `content_encoding` (as sent; bytes are never inflated), `length` (Content-Length or None), `etag`.
    """

    filename: str | None
    content_type: str
    content_encoding: str | None
    length: int | None
    etag: str | None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        raise NotImplementedError

    def chunks(self) -> Iterator[memoryview]:
        """Yield the body once, as received, in pieces of at most 1 MiB, each valid until the next is asked for.

        Asks `lease.check()` per piece. A cut connection is resumed by Range with If-Range where the link is resumable and
        the server gave a strong ETag or Last-Modified (206 with the right Content-Range only; 200 starts nothing over and
        is an error here); a link that expired in the meantime is got anew from `new_link`. Raises `IncompleteBodyError`
        (cut, or longer or shorter than Content-Length), `TooLargeError`, `TooSlowError`, `VendorUnavailableError`,
        `RefusedError`, `LeaseLostError`, `StoppedError`.
        """
        raise NotImplementedError

    def proof(self) -> tuple[str, ...]:
        """After the last chunk: what showed that the body was whole, of ``content-length`` and ``chunked-end``; or ()."""
        raise NotImplementedError


def open_download(
    session: requests.Session,
    source: SourceSettings,
    link: Link,
    lease: Lease,
    *,
    max_bytes: int,
    new_link: Callable[[], Link] | None = None,
) -> Download:
    """Send the GET (never HEAD) and read the headers. Raises `RefusedError` for anything but 200, `BlockedAddressError`,
    `TooLargeError` (a Content-Length over `max_bytes`, nothing read), `VendorUnavailableError`.
    """
    raise NotImplementedError
