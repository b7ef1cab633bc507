"""One guarded way out for both HTTP users (sources/http and fetch): address and origin rules, TLS, proxies.

Two rules hold at once. `download_hosts` is about names: `check_url` asks whether a URL's host is one that the operator
named. `allow_private_hosts` is about addresses: the connection itself resolves the name, checks what it got, and connects to
nothing but the address that it checked, so that a name cannot be public when asked and private when used.

A third thing lives here because only the connection knows its socket: `Watch` ends an exchange from outside, however the
other side trickles. A socket's own timeout is per read, so a byte a minute never times out.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ipaddress
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.cookiejar import DefaultCookiePolicy
from typing import Any, BinaryIO, Self, TypeAlias
from urllib.parse import urlsplit

import idna
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, LocationParseError, NameResolutionError, NewConnectionError
from urllib3.poolmanager import PoolManager
from urllib3.util.url import Url, parse_url

from worker.errors import BlockedAddressError, IncompleteBodyError, LastcallError, VendorReplyError, VendorUnavailableError
from worker.settings import SourceSettings

Session: TypeAlias = requests.Session  # what other rooms call it, since they don't import requests
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_DEFAULT_PORTS = {"http": 80, "https": 443}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MOST_URL_CHARACTERS = 16 * 1024  # signed links have some 2,000; reading a host of a million accents takes many minutes

# Ranges that `ipaddress` of some Python versions takes for global: carrier-grade NAT, 6to4 relays, NAT64 for local use, and
# the newer special registrations.
_MORE_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "3fff::/20", "5f00::/16")
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

# A connection that waits for a slow vendor must notice when the other side is gone; a NAT on the way must not forget it.
_SOCKET_OPTIONS: list[tuple[int, int, int | bytes]] = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]


def open_session(source: SourceSettings) -> requests.Session:
    """Give a session that connects only where `source` may.

    `trust_env` is off; `verify` is the source's `ca_bundle`; its `proxy` is used; redirects are never followed by itself;
    cookies are not kept; timeouts are the source's unless a request names its own; keep-alive pools as large as the
    source's concurrency. The address that is really connected to is checked after name resolution, in the connection
    itself, so that no second look-up can change it: loopback, link-local, private, CGNAT, multicast, reserved and
    IPv4-mapped addresses raise `BlockedAddressError` unless `allow_private_hosts`. A proxy is the operator's choice and is
    not checked; a target that is literally a private address is refused all the same.
    """
    # At lower levels urllib3 writes URLs, which are secrets here, into the log.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    session = _Session()
    session.trust_env = False
    session.verify = str(source.ca_bundle) if source.ca_bundle else True
    session.proxies = {"http": source.proxy, "https": source.proxy} if source.proxy else {}
    session.headers["User-Agent"] = "lastcall"
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    adapter = _Adapter(
        allow_private=source.allow_private_hosts,
        timeout=(source.connect_timeout.total_seconds(), source.read_timeout.total_seconds()),
        connections=source.max_concurrent_downloads,
    )
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def ping(url: str, *, seconds: float) -> str | None:
    """Ask for `url`, an operator's own, once. Gives why it was not taken in a word that tells nothing of it, or None: it was.

    Taken is an answer 2xx within `seconds` in all; a redirect is not followed, since the URL is a secret. Proxies and
    authorities are those of the environment, as they are for alerts.
    """
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    with _Session() as session:
        session.headers["User-Agent"] = "lastcall"
        session.auth = lambda request: request  # nobody's .netrc
        adapter = _Adapter(allow_private=True, timeout=(seconds, seconds), connections=1)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        try:
            with watched(seconds), session.get(url, stream=True) as answer:
                return None if answer.ok and not answer.is_redirect else f"answered {answer.status_code}"
        except VendorUnavailableError as exc:
            return str(exc)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
            return type(exc).__name__


def check_url(url: str, source: SourceSettings, *, came_from: str | None = None) -> None:
    """Raise `BlockedAddressError` unless `url` is the base URL's own host or one of `download_hosts`.

    Refused as well: other schemes than http(s), credentials in the URL, and http when `came_from` (or the base URL) is https.
    Names match without regard to case, trailing dot or port, in their IDNA form; ``*.example.com`` is any name below
    ``example.com`` and not ``example.com`` itself.
    """
    parts = _parse(url)
    if parts.auth is not None:
        raise BlockedAddressError("the vendor points to a URL that carries credentials; nothing is sent there")
    base = _base(source.base_url)
    secure = base.scheme == "https" or (came_from is not None and _parse(came_from).scheme == "https")
    if secure and parts.scheme == "http":
        raise BlockedAddressError("the vendor points from https to plain http; nothing is sent there")
    host = _host(parts)
    allowed = (_host(base), *map(_pattern, source.download_hosts))
    if not any(_matches(host, pattern) for pattern in allowed):
        raise BlockedAddressError(
            f"the vendor points to the host {host[:100]!r}, which is neither the base URL's nor in download_hosts;"
            " if it is the vendor's, add it there, restart the workers, then `lastcall retry`"
        )


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have the same scheme, host and port (default ports filled in)."""
    return _origin(_parse(one)) == _origin(_parse(other))


def transport_error(exc: Exception) -> LastcallError:
    """Turn a requests or urllib3 exception into ours: `VendorUnavailableError` (or the `BlockedAddressError` inside it).

    The message names the kind of fault only; the exception's own text holds the URL.
    """
    chain = list(_chain(exc))
    for inner in chain:
        if isinstance(inner, LastcallError):
            return inner
    for classes, error in _KINDS:
        if any(isinstance(inner, classes) for inner in chain):
            return error()
    return VendorUnavailableError(f"the vendor cannot be reached: {type(exc).__name__}")


def _unavailable(what: str) -> Callable[[], LastcallError]:
    return lambda: VendorUnavailableError(f"the vendor cannot be reached: {what}")


def _unreadable(what: str) -> Callable[[], LastcallError]:
    return lambda: VendorReplyError(f"the vendor gave {what}")


# The first that fits is taken: urllib3's kinds are subclasses of one another, and requests wraps several in one.
_KINDS: tuple[tuple[tuple[type[BaseException], ...], Callable[[], LastcallError]], ...] = (
    ((requests.exceptions.InvalidURL, LocationParseError), _unreadable("a URL that cannot be read")),
    ((requests.exceptions.InvalidHeader, urllib3.exceptions.InvalidHeader), _unreadable("headers that cannot be true")),
    ((requests.exceptions.ProxyError, urllib3.exceptions.ProxyError), _unavailable("the proxy refused or is away")),
    (
        (requests.exceptions.SSLError, urllib3.exceptions.SSLError),
        _unavailable("TLS failed, or its certificate is not trusted"),
    ),
    ((NameResolutionError,), _unavailable("the host name could not be resolved")),
    ((NewConnectionError, ConnectionRefusedError), _unavailable("no connection could be made")),
    ((ConnectTimeoutError, requests.exceptions.ConnectTimeout), _unavailable("connecting timed out")),
    ((urllib3.exceptions.ReadTimeoutError, requests.exceptions.ReadTimeout, TimeoutError), _unavailable("no answer in time")),
    ((urllib3.exceptions.ProtocolError, OSError), _unavailable("the connection broke")),
)


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield `exc` and what it wraps: its reason, its first argument, its cause or context."""
    waiting, seen = [exc], set()
    while waiting:
        inner = waiting.pop(0)
        if isinstance(inner, BaseException) and id(inner) not in seen:
            seen.add(id(inner))
            yield inner
            waiting += [getattr(inner, "reason", None), *inner.args[:2], inner.__cause__, inner.__context__]


# --- names -----------------------------------------------------------------------------------------------------------


def _parse(url: str) -> Url:
    """Read `url` as the connection will read it (urllib3). requests reads it with the standard library as well: where the two
    could see two hosts, neither is believed.
    """
    if len(url) > MOST_URL_CHARACTERS:
        raise BlockedAddressError("the vendor points to a URL that is longer than any URL")
    try:
        parts = parse_url(url)
        agreed = _canonical(urlsplit(url).hostname or "") == _host(parts)
    except (LocationParseError, ValueError) as exc:
        raise BlockedAddressError("the vendor points to a URL that cannot be read") from exc
    if parts.scheme not in _DEFAULT_PORTS or not parts.host:
        raise BlockedAddressError("the vendor points to something that is not an absolute http(s) URL")
    if not agreed or _CONTROL.search(url) or "\\" in re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]:
        raise BlockedAddressError("the vendor points to a URL that can be read in two ways")
    return parts


_base = functools.lru_cache(maxsize=256)(_parse)  # of the operator's own URLs, which are few and no secrets


def _host(parts: Url) -> str:
    return _canonical(parts.host or "")


@functools.lru_cache(maxsize=64)
def _canonical(host: str) -> str:
    """Give one spelling per host: lower case, IDNA, no trailing dot; addresses as `ipaddress` writes them, without brackets."""
    host = host.strip("[]").rstrip(".").lower()
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    if host.isascii():
        return host
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError as exc:
        raise BlockedAddressError("the vendor points to a host name that cannot be read") from exc


def _pattern(entry: str) -> str:
    """Give an entry of `download_hosts` in the same spelling."""
    return "*." + _canonical(entry[2:]) if entry.startswith("*.") else _canonical(entry)


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern


def _origin(parts: Url) -> tuple[str | None, str, int]:
    return parts.scheme, _host(parts), parts.port or _DEFAULT_PORTS[parts.scheme or "http"]


# --- addresses -------------------------------------------------------------------------------------------------------


def _is_public(address: _Address) -> bool:
    """Whether an address is one of the open internet. A v6 address that carries a v4 one is judged by that one as well."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return _is_public(embedded)
        if address.is_site_local:
            return False
    return not (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or any(address in network for network in _MORE_SPECIAL if network.version == address.version)
    )


def _literal(host: str) -> _Address | None:
    """Give the address that `host` literally is, in any spelling that the system's resolver takes (``0x7f.1``), or None."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    with contextlib.suppress(OSError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def _blocked(host: str) -> BlockedAddressError:
    return BlockedAddressError(
        f"the host {host[:100]!r} is a loopback, private or otherwise special address; nothing is sent there."
        " If that is meant, set allow_private_hosts = true for this source and restart the workers"
    )


def _connect(connection: HTTPConnection, host: str, *, allow_private: bool) -> socket.socket:
    """Resolve `host` once, check each address, and connect to the first checked one that answers within the timeout."""
    timeout = connection.timeout if isinstance(connection.timeout, (int, float)) else 60.0
    ends = time.monotonic() + timeout
    try:
        found = socket.getaddrinfo(host.strip("[]"), connection.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as exc:
        raise NameResolutionError(connection.host, connection, exc) from exc  # type: ignore[arg-type]
    usable = [info for info in found if allow_private or _is_public(ipaddress.ip_address(info[4][0]))]
    if not usable:
        raise _blocked(host)
    failure: OSError | None = None
    for index, (family, kind, protocol, _, address) in enumerate(usable):
        sock = socket.socket(family, kind, protocol)
        try:
            for option in _SOCKET_OPTIONS:
                sock.setsockopt(*option)
            # An address that swallows packets must leave time for those after it.
            sock.settimeout(max((ends - time.monotonic()) / (len(usable) - index), 0.05))
            sock.connect(address)
        except OSError as exc:
            sock.close()
            failure = exc
        else:
            sock.settimeout(timeout)
            return sock
    if isinstance(failure, TimeoutError):
        raise ConnectTimeoutError(connection, "connecting timed out") from failure
    raise NewConnectionError(connection, "no connection could be made") from failure


# --- watching --------------------------------------------------------------------------------------------------------

_TICK_SECONDS = 0.5
_sending = threading.local()


class Watch:
    """Asks `check` twice a second and, when it raises, cuts the connection that the exchange under way uses.

    Whoever waits on that connection wakes up at once; it then calls `raise_if_over`, which raises what `check` raised.
    `check` is called from another thread, so it must be thread-safe and quick.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._error: Exception | None = None
        _watchman.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Watch the connection that this thread's next request uses, until another request replaces it or `close`."""
        _sending.watch = self
        try:
            yield
        finally:
            _sending.watch = None

    def attach(self, connected: socket.socket) -> None:
        """Called by the connection. A duplicate of its descriptor is kept: cutting it works under TLS and proxies alike."""
        duplicate = socket.socket(fileno=os.dup(connected.fileno()))
        with self._lock:
            self._release()
            self._socket = duplicate
            if self._error is not None:
                self._cut()

    def tick(self) -> None:
        """Ask once. Called by the watchman only."""
        try:
            self._check()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the thread that owns the exchange raises it
            with self._lock:
                self._error = self._error or exc
                self._cut()

    def raise_if_over(self) -> None:
        """Raise what `check` raised, if it did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop watching. What `check` says after this changes nothing."""
        _watchman.remove(self)
        with self._lock:
            self._release()

    def _cut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                self._socket.shutdown(socket.SHUT_RDWR)

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@contextlib.contextmanager
def watched(seconds: float, check: Callable[[], None] | None = None) -> Iterator[Watch]:
    """Bound all requests made inside by `seconds` in total, and by `check`.

    Raises `VendorUnavailableError` when the time is up, or what `check` raised, in place of the exception that the cut
    connection led to.
    """
    ends = time.monotonic() + seconds

    def both() -> None:
        if check is not None:
            check()
        if time.monotonic() > ends:
            raise VendorUnavailableError(f"no whole answer within {seconds:.0f} s")

    with Watch(both) as watch, watch.sending():
        try:
            yield watch
        except Exception:
            watch.raise_if_over()
            raise
        watch.raise_if_over()


class _Watchman:
    """The one thread that ticks every watch of this process; it runs only while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: set[Watch] = set()
        self._thread: threading.Thread | None = None

    def add(self, watch: Watch) -> None:
        with self._lock:
            self._watches.add(watch)
            if self._thread is None or not self._thread.is_alive():  # a forked child has no thread either
                self._thread = threading.Thread(target=self._run, name="watchman", daemon=True)
                self._thread.start()

    def remove(self, watch: Watch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _run(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            with self._lock:
                watches = tuple(self._watches)
                if not watches:
                    self._thread = None
                    return
            for watch in watches:
                watch.tick()


_watchman = _Watchman()


# --- the connection, from the inside out -----------------------------------------------------------------------------


class _WholeLines:
    """Reads header lines; http.client would take the end of the connection for their end, and megabytes."""

    MOST_BYTES = 64 * 1024  # of all headers of one answer; servers that we know of send at most 16 KiB

    def __init__(self, fp: BinaryIO) -> None:
        self._fp = fp
        self._left = self.MOST_BYTES
        self.close = fp.close

    def readline(self, limit: int) -> bytes:
        line = self._fp.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise http.client.HTTPException("headers without end")
        if not line.endswith(b"\n") and len(line) < limit:
            raise http.client.RemoteDisconnected("the connection ended within the headers")
        return line


class _Response(http.client.HTTPResponse):
    """An answer whose end is proved. http.client takes ``0`` without a line's end for the last chunk, though it may be the
    start of ``0001000``; it leaves bytes beyond Content-Length unseen, though they mean that the length is wrong; and it reads
    trailers without end.
    """

    _MOST_TRAILERS = 100
    _CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\n]*)?\r?\n")
    _CLOSE_SECONDS = 0.5

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._connected = sock

    def begin(self) -> None:
        """Read the headers. Raises `http.client.RemoteDisconnected` when they end before their empty line, and
        `VendorReplyError` for a Content-Length that is no number or two numbers.
        """
        if self.headers is not None:
            return
        fp, self.fp = self.fp, _WholeLines(self.fp)
        try:
            super().begin()
        finally:
            if self.fp is not None:  # None: http.client has closed it
                self.fp = fp
        lengths = {value.strip() for value in self.headers.get_all("Content-Length", [])}
        if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths):
            raise VendorReplyError("the Content-Length of the vendor's answer cannot be true")

    def read1(self, n: int = -1) -> bytes:
        """Read once. Raises `IncompleteBodyError` when bytes follow the last one that Content-Length allows."""
        data = super().read1(n)
        if data and self.length == 0 and not self.chunked and self._surplus():
            raise IncompleteBodyError("the body is longer than its Content-Length")
        return data

    def _surplus(self) -> bool:
        """Whether there is more, other than the line's end that some servers add, or another answer. Waits for the end of
        the connection where the server announced it, else not at all.
        """
        before = self._connected.gettimeout()
        try:
            self._connected.settimeout(self._CLOSE_SECONDS if self.will_close else 0)
            more = self.fp.peek(16)
            self._connected.settimeout(before)
        except OSError:  # nothing there, which is as it should be, or the connection ended after the body
            return False
        return bool(more.strip(b"\r\n")) and not more.startswith(b"HTTP/")

    def _read_next_chunk_size(self) -> int:
        line = self.fp.readline(1024)
        match = self._CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise ValueError("not a chunk size")
        return int(match[1], 16)

    def _read_and_discard_trailer(self) -> None:
        """Read what follows the last chunk; http.client would go on for as long as lines come."""
        for _ in range(self._MOST_TRAILERS):
            if self.fp.readline(65536) in {b"\r\n", b"\n", b""}:
                return
        raise http.client.HTTPException("trailers without end")


class _Guarded(HTTPConnection):
    """A connection that checks the address it connects to, and tells its socket to the watch of the sending thread."""

    response_class = _Response
    allow_private = True  # a pool says otherwise; a connection to a proxy is the operator's choice

    def _new_conn(self) -> socket.socket:
        sock = _connect(self, self._dns_host, allow_private=self.allow_private)
        self._tell(sock)
        return sock

    def getresponse(self) -> Any:
        self._tell(self.sock)
        return super().getresponse()

    def _tell(self, sock: socket.socket) -> None:
        watch: Watch | None = getattr(_sending, "watch", None)
        if watch is not None:
            watch.attach(sock)


class _GuardedHTTPS(_Guarded, HTTPSConnection):
    """The same with TLS: SNI and verification stay on the host name, whatever the address."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Guarded
    allow_private = True

    def _new_conn(self) -> Any:
        connection: Any = super()._new_conn()
        connection.allow_private = self.allow_private
        return connection


class _HTTPSPool(_Pool, HTTPSConnectionPool):
    ConnectionCls = _GuardedHTTPS


_POOLS: dict[str, type[_Pool]] = {"http": _Pool, "https": _HTTPSPool}


class _PoolManager(PoolManager):
    """Makes pools whose connections know whether private addresses are allowed."""

    def __init__(self, *, allow_private: bool, **options: Any) -> None:
        super().__init__(**options)
        self._allow_private = allow_private
        self.pool_classes_by_scheme = _POOLS

    def _new_pool(self, *args: Any, **options: Any) -> Any:
        pool: Any = super()._new_pool(*args, **options)
        pool.allow_private = self._allow_private
        return pool


class _Adapter(HTTPAdapter):
    """requests' way to the pools above. Never retries: who calls knows what a repeated request costs."""

    def __init__(self, *, allow_private: bool, timeout: tuple[float, float], connections: int) -> None:
        self._allow_private = allow_private
        self._timeout = timeout
        super().__init__(pool_connections=32, pool_maxsize=connections, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:  # noqa: FBT001, FBT002 - passed through
        self.poolmanager = _PoolManager(
            allow_private=self._allow_private, num_pools=connections, maxsize=maxsize, block=block, **options
        )

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        if options.get("timeout") is None:
            options["timeout"] = self._timeout
        if options.get("proxies") and not self._allow_private:
            # Behind a proxy the connection never sees the target's address, so what can be seen of it is judged here.
            host = _host(_parse(request.url or ""))
            literal = _literal(host)
            if host == "localhost" or host.endswith(".localhost") or (literal is not None and not _is_public(literal)):
                raise _blocked(host)
        return super().send(request, **options)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Never follow: each user checks the new URL first, and decides which headers may go there."""
        del resp
        return None
