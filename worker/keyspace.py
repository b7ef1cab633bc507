"""The one way to Redis: a client that comes back by itself, the script `ledger.lua`, and errors of ours instead of Redis'.

What is kept there, and why, is known by those who use it: `ledger`, `documents` and `shared`. Redis time rules, so hosts need
not agree on the clock.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import resources
from typing import Any, TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from worker import redis_address
from worker.errors import LedgerUnavailableError

_T = TypeVar("_T")

PREFIX = "lastcall:"
_SCRIPT = resources.files("worker").joinpath("ledger.lua").read_text(encoding="utf-8")
_PATIENCE_SECONDS = 4.0


def epoch_seconds(at: datetime) -> str:
    """Write a moment as Redis keeps it."""
    return f"{at.timestamp():.6f}".rstrip("0").rstrip(".")  # Redis keeps a whole number in a few bytes


def instant(text: bytes | str | float | None) -> datetime | None:
    """Read such a moment; None where there is none."""
    return None if text is None or text in (b"", "") else datetime.fromtimestamp(float(text), UTC)


class Keyspace:
    """Our keys in one Redis. Thread-safe; every method may raise `LedgerUnavailableError`, and nothing else from Redis.

    `clock` gives the time in epoch seconds instead of Redis (for simulations).
    """

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        self._url = url
        self._redis = _connect(url)
        self._script = self._redis.register_script(_SCRIPT)
        self._clock = clock

    def run(self, command: str, *arguments: str | bytes | float) -> Any:
        """Give the answer of a command of ``ledger.lua``, which is atomic."""
        now = "" if self._clock is None else f"{self._clock():.6f}"
        with _edge():
            return self._script(args=[command, now, *arguments])

    @contextmanager
    def calls(self) -> Iterator[Any]:
        """Give the client for single calls."""
        with _edge():
            yield self._redis

    @contextmanager
    def pipeline(self, *, transaction: bool = True) -> Iterator[Any]:
        """Give a pipeline, to be executed by the caller: several calls in one round trip."""
        with _edge(), self._redis.pipeline(transaction=transaction) as pipe:
            yield pipe

    def now(self) -> datetime:
        """The time that rules: that of Redis, or of the clock."""
        if self._clock is not None:
            return datetime.fromtimestamp(self._clock(), UTC)
        with _edge():
            seconds, micros = self._redis.time()
        return datetime.fromtimestamp(seconds + micros / 1e6, UTC)

    def ping(self) -> None:
        """Return when Redis answers. Says within seconds when it does not, so that a person need not wait."""
        quick = _connect(self._url, socket_timeout=2, socket_connect_timeout=2, retry=_Patience(NoBackoff(), 0))
        with _edge(), quick:
            quick.ping()


@contextmanager
def _edge() -> Iterator[None]:
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        if isinstance(exc.__cause__ or exc.__context__, ssl.SSLError):
            raise LedgerUnavailableError(
                "Redis: TLS failed, or its certificate is not trusted; see ssl_ca_certs of redis_url"
            ) from exc
        raise LedgerUnavailableError(f"Redis: no answer ({type(exc).__name__}); does it run, and is redis_url right?") from exc
    except redis.RedisError as exc:
        raise LedgerUnavailableError(f"Redis: {type(exc).__name__}") from exc


class _Patience(Retry):
    """Tries a command again, at least once and then for `_PATIENCE_SECONDS`: a connection that died is noticed and replaced.

    redis-py tries each connection again inside each try of a command, which makes minutes of a Redis that hangs.
    """

    _inside = threading.local()

    def call_with_retry(
        self,
        do: Callable[[], _T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002 - redis-py's signature
    ) -> _T:
        """Do it, as `Retry` does."""
        if getattr(self._inside, "trying", False):
            return do()
        self._inside.trying = True
        began = time.monotonic()

        def tell(error: Exception, failures: int) -> None:
            fail(error, failures) if with_failure_count else fail(error)
            if failures > 1 and time.monotonic() - began > _PATIENCE_SECONDS:
                raise error

        try:
            return super().call_with_retry(do, tell, is_retryable, with_failure_count=True)
        finally:
            self._inside.trying = False


def _connect(url: str, **changes: Any) -> Any:  # redis-py types every reply as bytes or str, whichever it is asked for
    """Give a client that notices half-open connections and comes back by itself (docs/decisions: FACTS 4).

    Its forms are those of `redis_address.read`; sentinels are asked anew for each connection where the master is.
    """
    options: dict[str, Any] = {
        "socket_timeout": 5,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 5,
        "retry": _Patience(ExponentialWithJitterBackoff(base=0.05, cap=1), 3),
        **changes,
    }
    address = redis_address.read(url)
    options |= {"username": address.username, "password": address.password, "db": address.database, **address.tls_options()}
    if address.master is None:
        ((host, port),) = address.hosts
        return redis.Redis(host=host, port=port, **options)
    sentinels = Sentinel(address.hosts, sentinel_kwargs=address.sentinel_options())  # type: ignore[no-untyped-call]
    return sentinels.master_for(address.master, **options)  # type: ignore[no-untyped-call]
