"""What the workers of one source share over Redis: its pace, its hush after a throttle, its log-in token."""

from __future__ import annotations

import secrets
import threading
from datetime import datetime, timedelta

from worker.errors import StoppedError, ThrottledError
from worker.keyspace import PREFIX, Keyspace, epoch_seconds
from worker.model import timestamp

_CALL_MAY_WAIT_SECONDS = 30.0
_LOG_IN_TURN_MS = 60_000


def hushed_error(keys: Keyspace, source: str, wait: float) -> ThrottledError:
    """Give what to raise where ``ledger.lua`` says that `source` is hushed: `wait` is minus the seconds that are left of it."""
    until = keys.now() + timedelta(seconds=-wait)
    return ThrottledError(f"{source}: no call before {timestamp(until)}", not_before=until)


class SharedState:
    """Implements `model.Shared` for one source. `worker` and its lease say whose turn to log in it is, and for how long."""

    def __init__(
        self,
        keys: Keyspace,
        source: str,
        requests_per_second: float,
        stop: threading.Event,
        *,
        worker: str,
        lease_seconds: float,
    ) -> None:
        self._keys = keys
        self._source = source
        self._interval = 1 / requests_per_second
        self._stop = stop
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._log_in_turn = ""

    def pace(self) -> None:
        """Wait for this source's turn to make one call. A hush that comes meanwhile holds for it too."""
        wait = float(self._keys.run("pace", self._source, self._interval, _CALL_MAY_WAIT_SECONDS))
        if wait > 0:
            if self._stop.wait(wait):
                raise StoppedError("the process is stopping")
            wait = float(self._keys.run("hushed", self._source))
        if wait < 0:
            raise hushed_error(self._keys, self._source, wait)

    def hush(self, until: datetime) -> None:
        """Let no worker call this source before `until`."""
        self._keys.run("hush", self._source, epoch_seconds(until), "the vendor asked us to slow down")

    def token(self) -> str | None:
        """The shared token while it lives."""
        with self._keys.calls() as redis:
            token = redis.get(f"{PREFIX}token:{self._source}")
        return token.decode(errors="replace") if token else None

    def store_token(self, token: str, life_seconds: float) -> None:
        """Share a new token; the turn to log in ends."""
        with self._keys.calls() as redis:
            if life_seconds >= 0.001:
                redis.set(f"{PREFIX}token:{self._source}", token, px=int(life_seconds * 1000))
        self.end_log_in_turn()

    def drop_token(self, token: str) -> None:
        """Forget `token` if it is still the shared one."""
        self._keys.run("drop", f"token:{self._source}", token)

    def log_in_turn(self) -> bool:
        """Take the turn to log in. A worker that dies with it does not keep the others from logging in."""
        turn = f"{self._worker}/{secrets.token_hex(8)}"
        taken = bool(self._keys.run("take_log_in", self._source, turn, _LOG_IN_TURN_MS, self._lease_seconds))
        if taken:
            self._log_in_turn = turn
        return taken

    def end_log_in_turn(self) -> None:
        """Give it back, unless it ended by itself and is somebody else's now."""
        self._keys.run("drop", f"login:{self._source}", self._log_in_turn)
