"""One guarded way out for both HTTP users (sources/http and fetch): address and origin rules, TLS, proxies."""

from __future__ import annotations

import requests

from worker.errors import LastcallError
from worker.settings import SourceSettings


def open_session(source: SourceSettings) -> requests.Session:
    """Give a session that connects only where `source` may.

    `trust_env` is off; `verify` is the source's `ca_bundle`; its `proxy` is used; redirects are never followed by itself;
    keep-alive pools as large as the source's concurrency. The address that is really connected to is checked after name
    resolution, in the connection itself, so that no second look-up can change it: loopback, link-local, private, CGNAT,
    multicast, reserved and IPv4-mapped addresses raise `BlockedAddressError` unless `allow_private_hosts`.
    """
    raise NotImplementedError


def check_url(url: str, source: SourceSettings, *, came_from: str | None = None) -> None:
    """Raise `BlockedAddressError` unless `url` is the base URL's own host or one of `download_hosts`.

    Refused as well: other schemes than http(s), credentials in the URL, and http when `came_from` (or the base URL) is https.
    """
    raise NotImplementedError


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have the same scheme, host and port (default ports filled in)."""
    raise NotImplementedError


def transport_error(exc: Exception) -> LastcallError:
    """Turn a requests or urllib3 exception into ours: `VendorUnavailableError` (or the `BlockedAddressError` inside it)."""
    raise NotImplementedError
