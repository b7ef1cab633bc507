"""One `redis_url`, read once for both who use it: the ledger's client and Celery, whose own readers agree on little.

Given a ``rediss://`` URL alone, Celery's transport checks no certificate, and it knows no form for sentinels behind TLS. So
neither reads the URL; both are given its parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_FORMS = "expected redis://host:port/0, rediss://host:port/0 or sentinel://host:port,host:port/master"
_PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_WORDS = {
    "ssl": ("true", "false"),
    "ssl_cert_reqs": ("required", "optional", "none"),
    "ssl_check_hostname": ("true", "false"),
}
_SENTINEL_LOG_IN = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Where Redis is. `hosts`: the server, or the sentinels that know where `master` is.

    `tls` holds redis-py's options of a TLS connection, which are kombu's too; empty is plain TCP. Sentinels are asked the same
    way, with a log-in of their own.
    """

    hosts: tuple[tuple[str, int], ...]
    master: str | None
    database: int
    username: str | None
    password: str | None = field(repr=False)
    tls: Mapping[str, str | bool]
    sentinel_log_in: Mapping[str, str] = field(repr=False)

    def tls_options(self) -> dict[str, str | bool]:
        """Give what redis-py's clients want to be told of TLS."""
        return {"ssl": True, **self.tls} if self.tls else {}

    def sentinel_options(self) -> dict[str, Any]:
        """Give how redis-py asks each sentinel: once, since the next one is the next try."""
        return {"socket_timeout": 3, "socket_connect_timeout": 3, "retry": None, **self.tls_options(), **self.sentinel_log_in}

    def broker_urls(self) -> str:
        """Give the URL that Celery wants: of sentinels one each. It holds the password."""
        scheme = "sentinel" if self.master is not None else "rediss" if self.tls else "redis"
        log_in = "" if self.password is None else f"{quote(self.username or '', safe='')}:{quote(self.password, safe='')}@"
        hosts = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return ";".join(f"{scheme}://{log_in}{host}/{self.database}" for host in hosts)


def read(url: str) -> RedisAddress:
    """Read ``redis://`` and ``rediss://[user:password@]host[:port][/database]``, and
    ``sentinel://[user:password@]host[:port],host…/master[/database]``, each with options behind ``?``.

    Raises `ValueError` with what is wrong. It never repeats the URL, which may carry a password.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _PORTS or not url.isprintable() or " " in url or "#" in url:
        raise ValueError(_FORMS)
    rest, _, query = rest.partition("?")
    rest, _, path = rest.partition("/")
    log_in, _, places = rest.rpartition("@")
    username, _, password = log_in.rpartition(":") if ":" in log_in else (log_in, "", "")
    master, database = None, path
    if scheme == "sentinel":
        master, _, database = path.partition("/")
        if not master:
            raise ValueError(_FORMS)
    elif "," in places:
        raise ValueError(_FORMS)
    if not re.fullmatch(r"[0-9]{0,5}", database):
        raise ValueError("a Redis URL ends in the number of a database, such as /0")
    options = _options(query, sentinel=scheme == "sentinel")
    return RedisAddress(
        hosts=tuple(_host(place, _PORTS[scheme]) for place in places.split(",")),
        master=None if master is None else unquote(master),
        database=int(database or 0),
        username=unquote(username) or None,
        password=unquote(password) or None,
        tls=MappingProxyType(_tls(options, wanted=scheme == "rediss")),
        sentinel_log_in=MappingProxyType(
            {name.removeprefix("sentinel_"): options[name] for name in _SENTINEL_LOG_IN if name in options}
        ),
    )


def _host(place: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname or "", port if parts.port is None else parts.port
    except ValueError as exc:
        raise ValueError(_FORMS) from exc
    if not re.fullmatch(r"[\w.:-]+", host) or not port or parts.username is not None:
        raise ValueError(_FORMS)
    return host, port


def _options(query: str, *, sentinel: bool) -> dict[str, str]:
    known = (*_FILES, *_WORDS, *(_SENTINEL_LOG_IN if sentinel else ()))
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"an option of a Redis URL is one of {', '.join(known)}")
        if name in _WORDS and value not in _WORDS[name]:
            raise ValueError(f"{name} is one of {', '.join(_WORDS[name])}")
        if name in _FILES and not Path(value).is_file():
            raise ValueError(f"{name}: no such file: {value}")
    return options


def _tls(options: Mapping[str, str], *, wanted: bool) -> dict[str, str | bool]:
    """Certificates are checked, and whether they are the host's, unless the URL says in so many words that they are not."""
    given = {name: value for name, value in options.items() if name.startswith("ssl")}
    if given.pop("ssl", str(wanted or bool(given)).lower()) == "false":
        if wanted or given:
            raise ValueError("ssl=false contradicts the rest of the Redis URL")
        return {}
    required = given.pop("ssl_cert_reqs", "required")
    named = given.pop("ssl_check_hostname", "true") == "true"
    return {"ssl_cert_reqs": required, "ssl_check_hostname": named and required == "required", **given}
