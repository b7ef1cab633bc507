"""One polite JSON session for all vendors: pace, pauses, timeouts, tokens, bounded replies. Never a redirect followed.

The walk of one call: `Shared.pace`, the request with the source's `Auth`, a bounded read, then

* network faults, a few 5xx (see `JsonSession`): tried again for some seconds, with jitter;
* a request to slow down: the whole source is hushed until the named time, and `ThrottledError`;
* a refused log-in: one log-in for all workers, the call once more, then `LogInRefusedError`;
* everything else, good or bad, is a `Reply`: the vendor's module says what it means.

requests and urllib3 exceptions never leave.
"""

from __future__ import annotations

import http.client
import re
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from threading import Lock
from typing import Any, Protocol, Self
from urllib.parse import urlencode

import requests
import urllib3.exceptions
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from worker.connect import open_session, transport_error
from worker.errors import (
    ConfigurationError,
    LastcallError,
    LogInRefusedError,
    RefusedError,
    ThrottledError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.model import OutputId, Shared
from worker.settings import SourceSettings
from worker.sources.reading import parse_json

MAX_REPLY_BYTES = 16 * 2**20
PASSING_STATUSES = frozenset({502, 503, 504})
_REDIRECTS = range(300, 400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer. `call` names the vendor's call in messages; `headers` has lower-case names; `body` is never in a message."""

    call: str
    status: int
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @classmethod
    def of_refusal(cls, refusal: RefusedError, call: str = "download") -> Self:
        """Give a refused download as a reply, so that one reading serves both."""
        return cls(call=call, status=refusal.status, reason=refusal.reason, headers=refusal.headers, body=refusal.body)

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The body as text; bytes that are not UTF-8 become U+FFFD."""
        return self.body.decode("utf-8-sig", "replace")

    def json(self) -> Any:
        """Give the body as JSON (see `reading.parse_json`). Raises `VendorReplyError` naming the call."""
        return parse_json(self.body, self.call)

    def unexpected(self) -> LastcallError:
        """Give the error for an answer that the vendor's module has no better word for."""
        if self.status in {401, 403}:
            return LogInRefusedError(f"{self.call}: the vendor refuses access ({self.status})")
        if self.status in _REDIRECTS:
            return VendorReplyError(f"{self.call}: answered with a redirect ({self.status}), never followed; check base_url")
        if self.status >= 500:
            return VendorUnavailableError(f"{self.call}: the vendor answered {self.status}")
        return VendorReplyError(f"{self.call}: unexpected answer {self.status}")


class Auth(Protocol):
    """How the calls of a source prove who we are."""

    def headers(self) -> Mapping[str, str]:
        """Give the headers of one call. May log in. Raises `LogInRefusedError` and what a call raises."""

    def renew(self, sent: Mapping[str, str]) -> bool:
        """Take note that `sent` was refused. True: `headers` gives others now, repeat the call. False: there are no others."""


class KeyAuth:
    """Headers made of secrets that do not change by themselves: there is nothing to renew."""

    def __init__(self, headers: Callable[[], Mapping[str, str]]) -> None:
        """`headers` reveals the secrets anew for each call; its `ConfigurationError` becomes `LogInRefusedError`."""
        self._headers = headers

    def headers(self) -> Mapping[str, str]:
        return revealed(self._headers)

    def renew(self, sent: Mapping[str, str]) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Token:
    """What a log-in gives: the bearer token and the life that the vendor promises, from the moment of receipt."""

    value: str = field(repr=False)
    life_seconds: float


class TokenAuth:
    """A bearer token that one worker gets by logging in and all workers of the source share."""

    def __init__(self, shared: Shared, log_in: Callable[[], Token]) -> None:
        """`log_in` makes one log-in; it raises `LogInRefusedError` when the vendor refuses the credentials."""
        self._shared = shared
        self._log_in = log_in
        self._links: OrderedDict[OutputId, _Carried] = OrderedDict()
        self._lock = Lock()

    def headers(self) -> Mapping[str, str]:
        raise NotImplementedError

    def renew(self, sent: Mapping[str, str]) -> bool:
        raise NotImplementedError

    def link_headers(self, output: OutputId) -> Mapping[str, str]:
        """Give the headers of a download, and remember which token `output` was asked for with."""
        raise NotImplementedError

    def link_refused(self, output: OutputId) -> bool:
        """A download with `link_headers` was answered 401. True: the token was renewed (once for all), a new link helps.

        False: the refused token was itself made because this output had been refused, so it is not the token.
        """
        raise NotImplementedError


@dataclass(slots=True)
class _Carried:
    token: str = field(repr=False)
    renewed: str | None = field(default=None, repr=False)


class JsonSession:
    """The HTTP calls of one source; used by several threads at once."""

    def __init__(
        self,
        settings: SourceSettings,
        shared: Shared,
        auth: Auth,
        *,
        headers: Mapping[str, str] | None = None,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        passing_statuses: frozenset[int] = PASSING_STATUSES,
        log_in_statuses: frozenset[int] = frozenset({401}),
        throttle_statuses: frozenset[int] = frozenset({429}),
        reset_time: Callable[[Reply], datetime | None] | None = None,
        patience: timedelta = timedelta(seconds=5),
    ) -> None:
        """Open the connections' pool; nothing is sent yet.

        `headers`: sent with every call, beside ``Accept: application/json``.
        `passing_statuses`: tried again for `patience`; the last answer is given as it is.
        `log_in_statuses`: mean that the log-in was refused. `throttle_statuses`: mean "slow down", and so does any answer
        for which `reset_time` gives a time, and 503 with Retry-After.
        """
        raise NotImplementedError

    def url(self, path: str, params: Iterable[tuple[str, str]] = ()) -> str:
        """Give the absolute URL of `path` (begins with ``/``, below the base URL)."""
        raise NotImplementedError

    def get(
        self,
        call: str,
        path: str,
        params: Iterable[tuple[str, str]] = (),
        *,
        headers: Mapping[str, str] | None = None,
        only_head: bool = False,
    ) -> Reply:
        """Make one GET with the source's `Auth` (see the module). `call` names it in messages: ``list of exports``.

        `only_head`: the body is not read (a probe whether a download would be served).
        Raises `VendorUnavailableError`, `ThrottledError`, `LogInRefusedError`, `BlockedAddressError`, `VendorReplyError`
        (larger than `max_reply_bytes`, broken gzip), `LedgerUnavailableError`.
        """
        raise NotImplementedError

    def post_log_in(
        self, call: str, path: str, *, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Make one POST without `Auth`: the log-in itself. Raises as `get`, save `LogInRefusedError`."""
        raise NotImplementedError

    def throttled(self, reply: Reply) -> ThrottledError | None:
        """When `reply` asks to slow down: hush the whole source until then and give the error to raise."""
        raise NotImplementedError


def revealed(make: Callable[[], Any]) -> Any:
    """Run `make`, which reveals secrets. Raises `LogInRefusedError` with the text of a `ConfigurationError`."""
    raise NotImplementedError


def retry_after(headers: Mapping[str, str], now: datetime) -> datetime | None:
    """Read Retry-After, in seconds or as a date; None when absent or unreadable."""
    raise NotImplementedError
