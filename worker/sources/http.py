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
from threading import Lock
from typing import Any, Protocol, Self, TypeVar
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

from worker.connect import open_session, transport_error, watched
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

T = TypeVar("T")

MAX_REPLY_BYTES = 16 * 2**20
PASSING_STATUSES = frozenset({502, 503, 504})
_REDIRECTS = range(300, 400)
_PIECE_BYTES = 2**18
_SHORTEST_PAUSE = timedelta(seconds=1)  # a time that has passed already still asks for some peace
_LONGEST_PAUSE = timedelta(days=7)  # a vendor's pause is honoured in full; a longer one is garbage, and nobody would come back
_LOG_IN_WAIT_SECONDS = 20.0
_LOG_IN_LOOK_SECONDS = 0.1
_LINKS_REMEMBERED = 1024
_HEADER_SAFE = re.compile(r"[\x21-\x7e]{1,16384}")
_SECONDS = re.compile(r"\d+(\.\d+)?", re.ASCII)


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
            return LogInRefusedError(f"{self.call}: the vendor refuses access ({self.status}); check credentials and rights")
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
        """Give the headers, from the secrets as they are now."""
        return revealed(self._headers)

    def renew(self, sent: Mapping[str, str]) -> bool:
        """Say whether the secrets have changed since `sent`."""
        return self.headers() != sent


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
        """Give the Authorization header. Logs in when no worker of the source has a living token."""
        return _bearer(self._token())

    def renew(self, sent: Mapping[str, str]) -> bool:
        """Forget the refused token for all workers, unless one of them has renewed it already."""
        self._shared.drop_token(sent["Authorization"].removeprefix("Bearer "))
        return True

    def link_headers(self, output: OutputId) -> Mapping[str, str]:
        """Give the headers of a download, and remember which token `output` was asked for with."""
        token = self._token()
        with self._lock:
            carried = self._links.setdefault(output, _Carried(token))
            carried.token = token
            self._links.move_to_end(output)
            while len(self._links) > _LINKS_REMEMBERED:
                self._links.popitem(last=False)
        return _bearer(token)

    def link_refused(self, output: OutputId, try_token: Callable[[], object]) -> bool:
        """A download with `link_headers` was answered 401. True: the token has been renewed, once for all; a new link helps.

        False: the refused token was made because this output had been refused before, and `try_token` (another call, which
        raises `LogInRefusedError` when that is refused as well) shows that it is good: so it is the file, not the token.
        """
        with self._lock:
            carried = self._links.get(output)
        if carried is None:
            return True  # a link of long ago: whatever token it had, the next one has the present one
        if carried.token != carried.renewed:
            self._shared.drop_token(carried.token)
            carried.renewed = self._token()
            return True
        try_token()
        carried.renewed = self._token()
        return carried.renewed != carried.token

    def _token(self) -> str:
        """Give the shared token; get one by logging in, or wait until the worker whose turn it is has one."""
        give_up = time.monotonic() + _LOG_IN_WAIT_SECONDS
        waited = False
        while time.monotonic() < give_up:
            if token := self._shared.token():
                return token
            if self._shared.log_in_turn():
                return self._take_turn(waited=waited)
            waited = True
            time.sleep(_LOG_IN_LOOK_SECONDS)
        raise VendorUnavailableError("log-in: another worker has been logging in for too long")

    def _take_turn(self, *, waited: bool) -> str:
        stored = False
        try:
            # The turn may have been free because another worker has just used it: its token counts.
            if token := self._shared.token():
                return token
            # A log-in that failed elsewhere while we waited is not repeated by everyone who waited for it.
            if waited:
                raise VendorUnavailableError("log-in: another worker tried just now and got no token")
            made = self._log_in()
            if not _HEADER_SAFE.fullmatch(made.value):
                raise VendorReplyError("log-in: the token is not one that a header can carry")
            self._shared.store_token(made.value, _use_seconds(made.life_seconds))
            stored = True
            return made.value
        finally:
            if not stored:
                self._shared.end_log_in_turn()


@dataclass(slots=True)
class _Carried:
    """The token of an output's latest link, and the one that was made because an earlier link had been refused."""

    token: str = field(repr=False)
    renewed: str | None = field(default=None, repr=False)


def _bearer(token: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _use_seconds(life_seconds: float) -> float:
    """How long a token is used: until 3 minutes before its end, or for 70 % of a life too short for that."""
    return life_seconds - 180 if life_seconds >= 600 else max(life_seconds, 0) * 0.7


class JsonSession:
    """The HTTP calls of one source; used by several threads at once."""

    def __init__(  # noqa: PLR0913 - each has a default; a vendor names the few in which it differs
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
        self._base_url = settings.base_url
        self._shared = shared
        self._auth = auth
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        self._max_reply_bytes = max_reply_bytes
        self._passing = passing_statuses
        self._log_in_statuses = log_in_statuses
        self._throttle_statuses = throttle_statuses
        self._reset_time = reset_time or _names_no_time
        self._patience_seconds = patience.total_seconds()
        self._timeouts = (settings.connect_timeout.total_seconds(), settings.read_timeout.total_seconds())
        self._http = open_session(settings)
        self._pauses = 0
        self._paused_until = datetime.min.replace(tzinfo=UTC)

    def url(self, path: str, params: Iterable[tuple[str, str]] = ()) -> str:
        """Give the absolute URL of `path` (begins with ``/``, below the base URL)."""
        query = urlencode(list(params))
        return f"{self._base_url}{path}" + (f"?{query}" if query else "")

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
        url = self.url(path, params)
        renewed = False
        while True:
            authorization = self._auth.headers()
            sent = {**self._headers, **(headers or {}), **authorization}
            reply = self._exchange(_Call("GET", call, url, sent, None, only_head))
            if reply.status not in self._log_in_statuses:
                return reply
            if renewed or not self._auth.renew(authorization):
                raise LogInRefusedError(f"{call}: the vendor refuses our log-in ({reply.status}); check credentials and rights")
            renewed = True

    def post_log_in(
        self, call: str, path: str, *, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Make one POST without `Auth`: the log-in itself. Raises as `get`, save `LogInRefusedError`."""
        sent = {**self._headers, "Content-Type": content_type, **(headers or {})}
        return self._exchange(_Call("POST", call, self.url(path), sent, body, only_head=False))

    def throttled(self, reply: Reply) -> ThrottledError | None:
        """When `reply` asks to slow down: hush the whole source until then and give the error to raise.

        A time that the vendor names is honoured in full; without one the pauses grow from 2 s to a minute.
        """
        now = datetime.now(UTC)
        reset_at, retry_at = self._reset_time(reply), retry_after(reply.headers, now)
        if reset_at is None and reply.status not in self._throttle_statuses and not (reply.status == 503 and retry_at):
            if reply.ok:
                self._pauses = 0
            return None
        if now >= self._paused_until:  # one pause counts once, however many calls it met under way
            self._pauses = min(self._pauses + 1, 6)
        named = [at for at in (reset_at, retry_at) if at is not None]
        until = max(named) if named else now + timedelta(seconds=min(2**self._pauses, 60))
        self._paused_until = min(max(until, now + _SHORTEST_PAUSE), now + _LONGEST_PAUSE)
        self._shared.hush(self._paused_until)
        return ThrottledError(f"{reply.call}: the vendor asks us to slow down ({reply.status})", not_before=self._paused_until)

    def _exchange(self, call: _Call) -> Reply:
        """Send one call, again while the fault may pass within `patience`. Raises `ThrottledError` when asked to slow down."""
        attempts = Retrying(
            retry=retry_if_exception_type(VendorUnavailableError) | retry_if_result(self._may_pass),
            wait=wait_random_exponential(multiplier=0.25, max=2),
            stop=stop_before_delay(self._patience_seconds) | stop_after_attempt(4),
            retry_error_callback=_last_outcome,
        )
        reply: Reply = attempts(self._once, call)
        if error := self.throttled(reply):
            raise error
        return reply

    def _may_pass(self, reply: Reply) -> bool:
        return reply.status in self._passing and not (reply.status == 503 and "retry-after" in reply.headers)

    def _once(self, call: _Call) -> Reply:
        self._shared.pace()
        try:
            with watched(sum(self._timeouts) + self._timeouts[1]):
                return self._send(call)
        except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as exc:
            error = transport_error(exc)
            # The cause is left out of the trace, where it would write the URL or a header.
            raise type(error)(f"{call.name}: {error}") from None

    def _send(self, call: _Call) -> Reply:
        with closing(
            self._http.request(
                call.method,
                call.url,
                headers=dict(call.headers),
                data=call.body,
                timeout=self._timeouts,
                allow_redirects=False,
                stream=True,
            )
        ) as response:
            reply_headers = {name.lower(): value for name, value in response.headers.items()}
            body = b"" if call.only_head and response.ok else self._read(call, response.raw, reply_headers)
            return Reply(
                call=call.name,
                status=response.status_code,
                reason=str(response.reason or ""),
                headers=reply_headers,
                body=body,
            )

    def _read(self, call: _Call, raw: Any, headers: Mapping[str, str]) -> bytes:
        """Read the body up to the bound, as sent; inflate it within the same bound where it came compressed all the same."""
        received = bytearray()
        while piece := raw.read1(_PIECE_BYTES, decode_content=False):
            received += piece
            if len(received) > self._max_reply_bytes:
                raise self._too_large(call)
        match headers.get("content-encoding", "identity").strip().lower():
            case "" | "identity":
                return bytes(received)
            case "gzip" | "x-gzip" | "deflate":
                inflate = zlib.decompressobj(wbits=47)  # gzip or zlib, by its first bytes
                try:
                    body = inflate.decompress(received, self._max_reply_bytes + 1)
                except zlib.error as exc:
                    raise VendorReplyError(f"{call.name}: the answer's compression is broken") from exc
                if len(body) > self._max_reply_bytes:
                    raise self._too_large(call)
                if received and not inflate.eof:
                    raise VendorUnavailableError(f"{call.name}: the compressed answer ended early")
                return body
            case _:
                raise VendorReplyError(f"{call.name}: the answer is compressed in a way that nobody asked for")

    def _too_large(self, call: _Call) -> VendorReplyError:
        return VendorReplyError(f"{call.name}: the answer is larger than {self._max_reply_bytes} bytes")


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    name: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    only_head: bool


def _names_no_time(_: Reply) -> datetime | None:
    return None


def _last_outcome(state: RetryCallState) -> Any:
    """After the last attempt: its reply as it is, or its error."""
    return state.outcome.result() if state.outcome else None


def revealed(make: Callable[[], T]) -> T:
    """Run `make`, which reveals secrets. Raises `LogInRefusedError` with the text of a `ConfigurationError`."""
    try:
        return make()
    except ConfigurationError as exc:
        raise LogInRefusedError(f"log-in: {exc}") from exc


def retry_after(headers: Mapping[str, str], now: datetime) -> datetime | None:
    """Read Retry-After, in seconds or as a date; None when absent or unreadable."""
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return now + timedelta(seconds=min(float(value), _LONGEST_PAUSE.total_seconds()))
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
