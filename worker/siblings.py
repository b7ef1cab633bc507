"""Several processes that are one to whoever started them: told to stop together, ended together.

One process of Python is bound to about one core, whatever its threads do.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import wait

import structlog

log = structlog.get_logger()

_HEARD = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def run(work: Callable[[], object], count: int) -> int:
    """Run `work` in `count` processes. SIGTERM and SIGINT are passed on as SIGTERM; gives 0 when all of them then end with 0.

    One that ends by itself ends the others, and the answer is not 0: who started us starts us again. When this process is
    killed, they end at once, too.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)  # taken by `sigwait` alone, so none comes too early
    gc.collect()
    gc.freeze()  # what is loaded by now is in memory once, for all
    forking = multiprocessing.get_context("fork")
    siblings = [forking.Process(target=_begin, args=(work,), name=f"worker-{number + 1}") for number in range(count)]
    for sibling in siblings:
        sibling.start()
    stopping = failed = False
    while living := [sibling for sibling in siblings if sibling.exitcode is None]:
        asked = signal.sigwait(_HEARD) != signal.SIGCHLD
        ended = [sibling for sibling in living if sibling.exitcode is not None]
        if ended and not (asked or stopping):
            failed = True
            log.error("a worker process ended by itself; the others are told to stop", exitcode=ended[0].exitcode)
        if asked or (failed and not stopping):
            stopping = True
            for sibling in living:
                sibling.terminate()
    return os.EX_OK if not failed and all(sibling.exitcode == os.EX_OK for sibling in siblings) else os.EX_SOFTWARE


def _begin(work: Callable[[], object]) -> None:
    """The life of one sibling, in a process group of its own: what is said to ours (Ctrl-C), we pass on."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(os.EX_OK))  # until `work` knows better
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
    threading.Thread(target=_end_with_parent, name="orphan", daemon=True).start()
    work()
    sys.exit(os.EX_OK)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(os.EX_SOFTWARE)
