"""A hash of bytes that go elsewhere meanwhile: reckoned beside the thread that feeds it."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future

from worker.archive.threads import Threads

# Handed to another thread at a time: a millisecond's work, so that what handing over costs is lost in it.
_BATCH_BYTES = 2**20


class Digest:
    """One hash of everything fed, in order. Holds on to at most two batches; who feeds it faster than that waits.

    Fed by one thread. What is shorter than a batch is hashed when the digest is asked for, by whoever asks.
    """

    def __init__(self, algorithm: str, threads: Threads) -> None:
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._threads = threads
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._under_way: Future[None] | None = None

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _BATCH_BYTES:
            batch = self._next_batch()
            self._under_way = self._threads.submit(lambda: self._reckon(batch))

    def hexdigest(self) -> str:
        """Give the digest of all that was fed so far."""
        self._reckon(self._next_batch())
        return self._hash.hexdigest()

    def _next_batch(self) -> list[bytes]:
        """Take what waits; the batch before it is done then."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None
        batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return batch

    def _reckon(self, batch: list[bytes]) -> None:
        for piece in batch:
            self._hash.update(piece)
