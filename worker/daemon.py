"""The one place where the rooms are put together: settings in, a `Daemon` out. What it starts, it ends."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from worker.alerts import Heartbeat
from worker.alone import Alone
from worker.archive import Archive
from worker.connect import Session, open_session
from worker.keeper import Keeper
from worker.ledger import Ledger
from worker.seal import SealedShared, digest
from worker.settings import Settings, SourceSettings
from worker.sources import open_source
from worker.sources.base import Source

STOP_GRACE = timedelta(seconds=20)  # of the 30 s that a warm stop may take; the rest is for giving back


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """All rooms of one process, opened. `sources` and `sessions` hold the enabled sources only."""

    settings: Settings
    ledger: Ledger
    archive: Archive
    keeper: Keeper
    heartbeat: Heartbeat
    sources: Mapping[str, Source]
    sessions: Mapping[str, Session]

    @property
    def slots(self) -> dict[str, int]:
        """How many outputs of each enabled source may be collected at once, over all workers."""
        return {name: self.settings.sources[name].max_concurrent_downloads for name in self.sources}

    def fingerprint(self, source: SourceSettings, epoch: str) -> str:
        """Tell whether the secrets of `source` changed, without telling what they are."""
        return digest(source, f"lastcall fingerprint {epoch}").hex()


def open_daemon(settings: Settings, *, alone: bool = False) -> Daemon:
    """Open all rooms. Nothing is called yet: an unreachable Redis, bucket or vendor shows at its first use.

    `alone`: sources share nothing with other workers, and need no Redis.
    """
    worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    stop = threading.Event()
    ledger = Ledger(settings.redis(), lease=settings.worker.lease, worker=worker)
    enabled = {name: source for name, source in settings.sources.items() if source.enabled}
    return Daemon(
        settings=settings,
        ledger=ledger,
        archive=Archive(settings.archive, spool_bytes=settings.worker.spool_bytes),
        keeper=Keeper(ledger, stop, slots=settings.worker.concurrency, grace=STOP_GRACE, sources=tuple(enabled)),
        heartbeat=Heartbeat(settings.alerts),
        sources={
            name: open_source(
                source,
                Alone(name, source.requests_per_second)
                if alone
                else SealedShared(source, ledger.shared(name, source.requests_per_second, stop)),
            )
            for name, source in enabled.items()
        },
        sessions={name: open_session(source) for name, source in enabled.items()},
    )
