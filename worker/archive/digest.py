"""A hash of bytes that go elsewhere meanwhile: reckoned beside the thread that feeds it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from worker.archive.threads import Threads

# A millisecond's work, so that what handing over costs is lost in it.
_BATCH_BYTES = 2**20
# What may wait, so that neither thread stands still for each burst of the other one.
_MOST_WAITING_BYTES = 4 * 2**20


class Digest:
    """One hash of everything fed, in order. Who feeds it faster than it reckons waits.

    Fed by one thread. What is shorter than a batch is hashed when the digest is asked for, by whoever asks.
    """

    def __init__(self, algorithm: str, threads: Threads) -> None:
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._threads = threads
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._reckoning = False
        self._failure: BaseException | None = None

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        with self._changed:
            self._wait_while(lambda: self._waiting_bytes >= _MOST_WAITING_BYTES)
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            if self._waiting_bytes >= _BATCH_BYTES and not self._reckoning:
                self._threads.submit(self._reckon)
                self._reckoning = True

    def hexdigest(self) -> str:
        """Give the digest of all that was fed so far."""
        with self._changed:
            self._wait_while(lambda: self._reckoning)
            for piece in self._waiting:
                self._hash.update(piece)
            self._waiting, self._waiting_bytes = [], 0
            return self._hash.hexdigest()

    def _wait_while(self, busy: Callable[[], bool]) -> None:
        while busy() and self._failure is None:
            self._changed.wait()
        if self._failure is not None:
            raise self._failure

    def _reckon(self) -> None:
        """Hash what waits, until nothing does."""
        try:
            while batch := self._next_batch():
                for piece in batch:
                    self._hash.update(piece)
        except BaseException as exc:  # noqa: BLE001 - raised again by whoever feeds or asks
            with self._changed:
                self._failure = exc
                self._changed.notify_all()

    def _next_batch(self) -> list[bytes]:
        with self._changed:
            batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self._reckoning = bool(batch)
            self._changed.notify_all()
            return batch
