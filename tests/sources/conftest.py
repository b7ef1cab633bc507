"""What the tests of sources share: a `Shared` in memory, and a download made as a worker makes it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
import requests

from worker.errors import LinkExpiredError, RefusedError, ThrottledError
from worker.model import Output
from worker.sources.base import Source


class MemoryShared:
    """What the workers of one source share, for the threads of one test. `hushes` holds every pause that was asked for."""

    def __init__(self) -> None:
        self.hushes: list[datetime] = []
        self.calls = 0
        self.token_life_seconds = 0.0
        self._token: str | None = None
        self._turn = threading.Lock()
        self._lock = threading.Lock()

    def pace(self) -> None:
        with self._lock:
            self.calls += 1
            until = max(self.hushes, default=None)
        if until is not None and until > datetime.now(UTC):
            raise ThrottledError("hushed", not_before=until)

    def hush(self, until: datetime) -> None:
        with self._lock:
            self.hushes.append(until)

    def forgive(self) -> None:
        """End every pause."""
        with self._lock:
            self.hushes.clear()

    def token(self) -> str | None:
        with self._lock:
            return self._token

    def store_token(self, token: str, life_seconds: float) -> None:
        with self._lock:
            self._token, self.token_life_seconds = token, life_seconds
        self.end_log_in_turn()

    def drop_token(self, token: str) -> None:
        with self._lock:
            if self._token == token:
                self._token = None

    def log_in_turn(self) -> bool:
        return self._turn.acquire(blocking=False)

    def end_log_in_turn(self) -> None:
        if self._turn.locked():
            self._turn.release()


@pytest.fixture
def shared() -> MemoryShared:
    return MemoryShared()


def fetch_as_received(source: Source, output: Output) -> bytes:
    """Get an output's body as a worker would: a link now, a new one where it expired. Raises what `Source.refused` says."""
    for _ in range(4):
        link = source.link(output)
        answer = requests.get(link.url, headers=dict(link.headers), allow_redirects=False, timeout=10)
        error_page = answer.content.lstrip()[:1] == b"<" or answer.content.lstrip()[:8] in {b'{"Error"', b'{"ErrorC'}
        if answer.status_code == 200 and not error_page:
            return answer.content
        headers = {name.lower(): value for name, value in answer.headers.items()}
        error = source.refused(output, RefusedError(answer.status_code, answer.reason, headers, answer.content[:65536]))
        if not isinstance(error, LinkExpiredError):
            raise error
    raise AssertionError("the links never stop expiring")


@pytest.fixture
def download() -> object:
    return fetch_as_received
