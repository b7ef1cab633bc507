"""What a source needs of the other workers, for one process that has none: `lastcall check` while Redis is away."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

from worker.errors import ThrottledError
from worker.model import timestamp


class Alone:
    """Implements `model.Shared` in memory. Thread-safe."""

    def __init__(self, source: str, requests_per_second: float) -> None:
        self._source = source
        self._interval = 1 / requests_per_second
        self._lock = threading.Lock()
        self._next_turn = 0.0
        self._hushed_until: datetime | None = None
        self._token: str | None = None
        self._token_ends = 0.0

    def pace(self) -> None:
        """Wait for the turn to make one call."""
        if self._hushed_until and self._hushed_until > datetime.now(UTC):
            raise ThrottledError(
                f"{self._source}: no call before {timestamp(self._hushed_until)}", not_before=self._hushed_until
            )
        with self._lock:
            turn = max(time.monotonic(), self._next_turn)
            self._next_turn = turn + self._interval
        time.sleep(max(0.0, turn - time.monotonic()))

    def hush(self, until: datetime) -> None:
        """Make no call before `until`."""
        self._hushed_until = until

    def token(self) -> str | None:
        """Give the token of this process while it lives."""
        return self._token if time.monotonic() < self._token_ends else None

    def store_token(self, token: str, life_seconds: float) -> None:
        """Keep it for this process."""
        self._token, self._token_ends = token, time.monotonic() + life_seconds

    def drop_token(self, token: str) -> None:
        """Forget `token` if it is still the one."""
        if self._token == token:
            self._token = None

    def log_in_turn(self) -> bool:
        """Nobody else logs in."""
        return True

    def end_log_in_turn(self) -> None:
        """Nobody waits for it."""
