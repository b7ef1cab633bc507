"""What a ledger made anew must know before it is trusted: its epoch, the receipts' count, known losses, watched jobs.

All of it is read back from the bucket, since no vendor lists it. The same happens by itself after a FLUSHALL and on demand
with ``lastcall rebuild``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import blake2b

import structlog

from worker.daemon import Daemon
from worker.errors import HeldError
from worker.model import JsonObject, Output, OutputId, OutputState, parse_timestamp, timestamp

log = structlog.get_logger()

_UPLOADS_OLDER_THAN = timedelta(days=1)


def open_epoch(daemon: Daemon) -> bool:
    """Make sure that claims are given, or will be. True when this call found that the ledger had been lost (or is the first).

    After a loss nobody claims for one lease, so that workers can assert what they hold; a bucket that never saw an epoch
    has nothing in flight and need not wait.
    """
    epoch, is_open = daemon.ledger.epoch()
    if is_open:
        return False
    first = daemon.archive.begin_epoch(epoch, daemon.ledger.now())
    delay = timedelta(0) if first else daemon.settings.worker.lease
    opened = daemon.ledger.open_epoch(epoch, delay)
    if opened:
        log.info("ledger opened", epoch=epoch, first=first, claims_after_seconds=delay.total_seconds())
    return opened


def recover(daemon: Daemon, source: str) -> str | None:
    """Read back from the bucket what the ledger must know of `source` before it is listed, unless all is known in this epoch.

    Gives the epoch to `recount` in; None when all is known, the number of receipts too. When the ledger is lost
    while this goes on, the next poll does it again.
    """
    epoch, _ = daemon.ledger.epoch()
    if daemon.ledger.recovered(source):
        return None
    _recover_losses(daemon, source)
    _recover_watches(daemon, source)
    return epoch


def recount(daemon: Daemon, source: str, epoch: str) -> None:
    """Count the receipts of `source`, unless another worker does. Millions take minutes, so no listing waits for it."""
    turn = daemon.ledger.take_turn(f"recounting:{source}")
    if turn is None:
        return
    try:
        with daemon.keeper.keeping(turn):
            daemon.ledger.count_receipts(source, daemon.keeper.unless_stopping(daemon.archive.receipts(source)))
            if daemon.ledger.mark_recovered(source, epoch):
                log.info("read back from the bucket", source=source)
    finally:
        daemon.ledger.end_turn(turn)


def reclaim_once(daemon: Daemon, source: str) -> int:
    """`reclaim`, once in each epoch, what may still be at the vendor; gives how many are owed now."""
    epoch = daemon.ledger.strays_due(source)
    turn = daemon.ledger.take_turn(f"reclaiming:{source}") if epoch else None
    if epoch is None or turn is None:
        return 0
    try:
        with daemon.keeper.keeping(turn):
            since = daemon.ledger.now() - daemon.settings.sources[source].retention - timedelta(days=1)
            owed = reclaim(daemon, source, since)
            daemon.ledger.note_strays(source, epoch)
            return owed
    finally:
        daemon.ledger.end_turn(turn)


def reclaim(daemon: Daemon, source: str, since: datetime | None = None) -> int:
    """Make sure that what was stored gets its receipt, of outputs completed on that day or later; gives how many are owed now.

    A worker died between object and receipt, and the ledger that was lost with it was the only one that knew: where the vendor
    lists the output no more, nobody would ever look for it. It is owed, and the worker that claims it finds the object.
    Lists the objects of that time, and all receipts. Raises `StoppedError` amid it.
    """
    going_on = daemon.keeper.unless_stopping
    without = {mark_of(output) for output, _ in going_on(daemon.archive.stored(source, since))}
    for output in going_on(daemon.archive.receipts(source)) if without else ():
        without.discard(mark_of(output))
    if not without:
        return 0
    keys = (key for output, key in going_on(daemon.archive.stored(source, since)) if mark_of(output) in without)
    strays = [stray for stray in map(daemon.archive.marked, keys) if stray]
    new = [stray for stray, before in zip(strays, daemon.ledger.reclaim(strays), strict=True) if not before]
    for stray in new:
        log.warning("stored without a receipt", output=str(stray.id))
    return len(new)


def mark_of(*parts: object) -> bytes:
    """Stand for something among millions in a few bytes."""
    return blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()


def _recover_losses(daemon: Daemon, source: str) -> None:
    explained = {event.identity: event for event in daemon.archive.events("acknowledged", source)}
    for event in daemon.archive.events("lost", source):
        try:
            output, lost = output_of_loss(event.document), str(event.document["reason"])
            if daemon.archive.receipt(output.id):
                continue  # the vendor offered it again, and it was archived
        except (HeldError, KeyError, TypeError, ValueError) as exc:
            # One document that somebody changed must not keep the source from being listed; what it was about is asked for.
            log.warning("loss cannot be read back; look at its event and its receipt", identity=event.identity, error=str(exc))
            continue
        acknowledged = explained.get(event.identity)
        reason = acknowledged.document.get("reason") if acknowledged and acknowledged.at >= event.at else None
        daemon.ledger.known_lost(output, lost, str(reason) if reason else None)


def _recover_watches(daemon: Daemon, source: str) -> None:
    ended = {event.identity: event.at for event in daemon.archive.events("unwatch", source)}
    for event in daemon.archive.events("watch", source):
        if event.identity not in ended or ended[event.identity] < event.at:
            daemon.ledger.watch(source, event.identity[1])


def sweep(daemon: Daemon) -> None:
    """Abort the uploads that dead workers left unfinished. Takeovers abort theirs at once; this finds the rest.

    Only while claims are given: right after a loss of the ledger it does not know yet who holds what.
    """
    if daemon.ledger.claims_given():
        daemon.archive.sweep_uploads(
            _UPLOADS_OLDER_THAN, lambda output: daemon.ledger.states([output])[output] is OutputState.CLAIMED
        )


def loss_document(output: Output, reason: str, error: str) -> JsonObject:
    """Give the document of a ``lost`` event: enough to list the loss again when Redis knows nothing."""
    return {
        "reason": reason,
        "error": error,
        "filename": output.filename,
        "completed_at": timestamp(output.completed_at),
        "deadline": timestamp(output.deadline),
        "job": output.job,
    }


def output_of_loss(document: JsonObject) -> Output:
    """Read what `loss_document` wrote, as `Archive.write_event` completed it."""
    return Output(
        id=OutputId(document["source"], document["job_id"], document["output_id"]),
        completed_at=parse_timestamp(document["completed_at"]),
        deadline=parse_timestamp(document["deadline"]),
        filename=document["filename"],
        job=document["job"],
    )
