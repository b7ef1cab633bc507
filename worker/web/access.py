"""Who may look: the password, the brake on guessing it, and the names by which a page on loopback may be called."""

from __future__ import annotations

import binascii
import hmac
import ipaddress
import time
from base64 import b64decode
from collections import deque
from collections.abc import Callable
from enum import Enum
from hashlib import sha256
from urllib.parse import urlsplit

from worker.settings import FlowerSettings, WebSettings

_FAILURES = 5
_WITHIN_SECONDS = 60.0
_ADDRESSES = 10_000  # remembered at once; more than that guess from nowhere we could tell apart


class Verdict(Enum):
    """What to do with a request."""

    ALLOWED = 200
    PASSWORD_NEEDED = 401
    TOO_MANY_FAILURES = 429


class Access:
    """Decides over requests to one listening process. `clock` gives monotonic seconds."""

    def __init__(self, settings: WebSettings | FlowerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}

    def host_allowed(self, host: str) -> bool:
        """Whether a browser may know us by this ``Host``. Only asked on loopback without a password: there a page of any
        site could otherwise give its own name our address, and read what is here (DNS rebinding).
        """
        if self._settings.password is not None or not self._settings.on_loopback:
            return True
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return name in {"localhost", "127.0.0.1", "::1", self._settings.host.lower()}

    def verdict(self, address: str, authorization: str | None) -> Verdict:
        """Decide by the ``Authorization`` header of a request from `address`. Raises `ConfigurationError` when the secret
        cannot be read now.

        After five wrong passwords within a minute not even the right one is taken from that address, or guessing would pay.
        """
        if self._settings.password is None or self._settings.username is None:
            return Verdict.ALLOWED
        if not authorization:
            return Verdict.PASSWORD_NEEDED  # how every browser begins; no failure
        now, who = self._clock(), _who(address)
        recent = self._failures.get(who, deque())
        while recent and now - recent[0] > _WITHIN_SECONDS:
            recent.popleft()
        if len(recent) >= _FAILURES:
            return Verdict.TOO_MANY_FAILURES
        username, password = _credentials(authorization)
        # Both are always compared, each by a digest of fixed length: the time taken tells nothing.
        right = _same(username, self._settings.username.reveal()) & _same(password, self._settings.password.reveal())
        if right:
            return Verdict.ALLOWED
        recent.append(now)
        self._failures[who] = recent
        while len(self._failures) > _ADDRESSES:
            del self._failures[next(iter(self._failures))]
        return Verdict.PASSWORD_NEEDED


def _who(address: str) -> str:
    """Give what is throttled: an IPv4 address, or the network of 2^64 addresses that one IPv6 user has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((int(parsed), 64), strict=False)) if parsed.version == 6 else str(parsed)


def _credentials(authorization: str) -> tuple[str, str]:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        username, _, password = b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return "", ""
    return username, password


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(sha256(given.encode()).digest(), sha256(right.encode()).digest())
