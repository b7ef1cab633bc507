"""How a command opens the daemon's rooms, and how it leaves them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from worker.daemon import Daemon, open_daemon
from worker.settings import Settings


@contextmanager
def interruptible(daemon: Daemon) -> Iterator[None]:
    """Let Ctrl-C end what may take hours, and threads that read on, as a stop would: at once. A second one kills."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        daemon.keeper.request_stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def opened(settings: Settings) -> Iterator[Daemon]:
    """Open the rooms for one command; whatever it holds is kept alive while it works."""
    daemon = open_daemon(settings)
    daemon.ledger.ping()
    daemon.keeper.start(alive=False)
    try:
        with interruptible(daemon):
            yield daemon
    finally:
        daemon.keeper.end()


@contextmanager
def reading(settings: Settings) -> Iterator[Daemon]:
    """Open the rooms without a heartbeat: nothing will be held."""
    daemon = open_daemon(settings)
    daemon.ledger.ping()
    yield daemon


def wake(settings: Settings, daemon: Daemon) -> None:
    """Wake the workers for what was just written down, instead of waiting for the next tick."""
    from worker import app

    app.configure(settings)
    app.wake(daemon)
