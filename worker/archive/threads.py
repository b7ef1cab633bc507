"""A few threads that work beside those who ask them to, for all uploads of a process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

IDLE_SECONDS = 30


class Threads:
    """Up to `limit` threads, begun when they are needed; idle ones go away.

    Daemons, unlike those of `ThreadPoolExecutor`: a process that stops does not wait a minute for an S3 that hangs.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pending = 0
        self._threads = 0

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do `work` in one of the threads, in the order of asking. A thread that cannot be begun raises what it raises."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                result = work()
            except BaseException as exc:  # noqa: BLE001 - whoever waits for the future gets it
                future.set_exception(exc)
            else:
                future.set_result(result)

        with self._lock:
            if self._threads < min(self._pending + 1, self._limit):
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
                self._threads += 1
            self._pending += 1
            self._jobs.put(job)
        return future

    def _work(self) -> None:
        while True:
            job: Any = None  # what the last job held must not live on while we wait
            try:
                job = self._jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._threads -= 1
                        return
                continue
            job()
            with self._lock:
                self._pending -= 1
