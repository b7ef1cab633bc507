"""Several processes that are one to whoever started them: told to stop together, ended together.

One process of Python is bound to about one core, whatever its threads do.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import threading
import time

import structlog

from worker import logs

log = structlog.get_logger()

_ASK_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_HEARD = (*_ASK_TO_STOP, signal.SIGCHLD)
STOP_SECONDS = 32.0  # a worker that is told to stop ends within 30


def become(count: int) -> None:
    """Return in each of `count` new processes. This one never returns: it passes on as SIGTERM what asks it to stop, and exits
    once all of them have ended, with 0 if they were asked to and ended well.

    One that ends by itself ends the others, and the exit code is not 0: who started us starts us again. When this process is
    killed, they are told to stop. To be called while there are no threads.
    """
    logs.configure()
    lifeline, held = os.pipe()  # whose writing end closes when this process ends, however it ends
    gc.collect()
    gc.freeze()  # what is loaded by now is in memory once, for all
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)  # a child must not act on them as its parent does
    heard, wake = os.pipe()
    os.set_blocking(wake, False)
    for number in _HEARD:
        signal.signal(number, _note)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    living: set[int] = set()
    failed = False
    for _ in range(count):
        try:
            pid = os.fork()
        except OSError as exc:
            log.error("a worker process cannot be begun; those that run are told to stop", error=exc.strerror)  # noqa: TRY400 - no trace
            failed = True
            break
        if pid == 0:
            for descriptor in (held, heard, wake):
                os.close(descriptor)
            _begin(lifeline)
            return
        living.add(pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
    sys.exit(os.EX_OK if _watch(living, heard, failed=failed) else os.EX_SOFTWARE)


def _watch(living: set[int], heard: int, *, failed: bool) -> bool:
    """Wait until all have ended. True: they were asked to, and ended well."""
    asked, told_at = failed, None
    while True:
        for pid, status in _ended(living):
            living.discard(pid)
            if told_at is None or status != os.EX_OK:
                failed = asked = True
                log.error("a worker process ended by itself, or not well; all are told to stop", exitcode=status)
        if not living:
            return not failed
        if asked:
            _kill(living, signal.SIGTERM)
            told_at = told_at or time.monotonic()
        left = None if told_at is None else told_at + STOP_SECONDS - time.monotonic()
        if left is not None and left <= 0:
            log.error("worker processes did not end in time; they are killed", number=len(living))
            _kill(living, signal.SIGKILL)
            failed, left = True, None
        asked = any(number in _ASK_TO_STOP for number in _said(heard, left))


def _note(number: int, _: object) -> None:
    """A handler must be there; what came is read from the wake-up descriptor."""


def _said(heard: int, seconds: float | None) -> bytes:
    """Wait for signals, at most so long; gives those that came."""
    ready, _, _ = select.select([heard], [], [], seconds)
    return os.read(heard, 4096) if ready else b""


def _ended(pids: set[int]) -> list[tuple[int, int]]:
    """Give (pid, exit code) of those that have ended."""
    answers = (os.waitpid(pid, os.WNOHANG) for pid in pids)
    return [(pid, os.waitstatus_to_exitcode(status)) for pid, status in answers if pid]


def _kill(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)  # ended ones were not waited for, so the number is nobody else's


def _begin(lifeline: int) -> None:
    """Begin the life of one sibling, in a process group of its own: what is said to ours (Ctrl-C), we pass on."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in _HEARD:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(os.EX_OK))  # until a worker knows better
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
    threading.Thread(target=_end_with_parent, args=(lifeline,), name="lifeline", daemon=True).start()


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # nothing is ever written, so it is the end that comes
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(os.EX_SOFTWARE)
