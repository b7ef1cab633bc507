"""What happens next: acts on the error that ended an attempt or a listing. The class of the error decides, never its text."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import structlog

from worker.daemon import Daemon
from worker.errors import (
    ArchiveRefusedError,
    ArchiveUnavailableError,
    DecodeError,
    HeldError,
    IncompleteBodyError,
    LastcallError,
    LeaseLostError,
    LedgerUnavailableError,
    LogInRefusedError,
    NotReadyError,
    OutputGoneError,
    StoppedError,
    TooSlowError,
    TryLaterError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.keeper import Held
from worker.ledger import Claim
from worker.model import timestamp
from worker.recovery import loss_document, open_epoch

log = structlog.get_logger()

_BYTES_WERE_OFFERED = (IncompleteBodyError, DecodeError, TooSlowError, ArchiveUnavailableError)
_VENDORS_FAULTS = (VendorUnavailableError, VendorReplyError, IncompleteBodyError, DecodeError, TooSlowError)
_LONGEST_WAIT_SECONDS = 600.0
_LONGEST_WAIT_OVERDUE_SECONDS = 60.0
_FIRST_PAUSE = timedelta(minutes=15)
_BUCKET_PAUSE = timedelta(seconds=20)
_LONGEST_PAUSE = timedelta(hours=6)
_OPEN_AGAIN = timedelta(seconds=5)


def settle(daemon: Daemon, claim: Claim, lease: Held, exc: LastcallError) -> str:
    """Act on what ended an attempt; gives it in an operator's words."""
    output, ledger = claim.output, daemon.ledger
    if isinstance(exc, LeaseLostError):
        return "left to the worker that holds it now"
    if isinstance(exc, LedgerUnavailableError):
        log.warning("ledger unreachable; the lease will end by itself", error=str(exc))
        return f"left as it is: {exc}"
    if isinstance(exc, StoppedError):
        ledger.release(output.id, lease.fence)
        log.info("given back", reason=str(exc))
        return "given back: the process is stopping"
    if claim.probe:
        ledger.again(output.id, lease.fence, ledger.now(), str(exc))
        if not isinstance(exc, _BYTES_WERE_OFFERED):
            return f"still lost: {exc}"
        ledger.retry(output.id)
        return f"offered again: {exc}"
    if isinstance(exc, OutputGoneError):
        return _gone(daemon, claim, lease, exc)
    if isinstance(exc, HeldError):
        if ledger.hold(output.id, lease.fence, str(exc)):
            log.warning("held", reason=str(exc))
        return f"held: {exc}"
    pause_if_refused(daemon, output.id.source, exc)
    if isinstance(exc, NotReadyError):
        ledger.other_answer(output.id, lease.fence)
    not_before = exc.not_before if isinstance(exc, TryLaterError) else None
    lost_seconds = lease.seconds if isinstance(exc, _VENDORS_FAULTS) else 0.0
    return again(daemon, claim, lease, str(exc), not_before, lost_seconds=lost_seconds)


def _gone(daemon: Daemon, claim: Claim, lease: Held, exc: OutputGoneError) -> str:
    """Count an explicit gone answer. The loss is written to the bucket before the ledger says so."""
    output, ledger = claim.output, daemon.ledger
    if not ledger.gone(output.id, lease.fence, exc):
        log.info("gone, says the vendor; asked again", error=str(exc))
        return f"gone, says the vendor ({exc}); asked once more before it counts as lost"
    try:
        if receipt := daemon.archive.receipt(output.id):
            ledger.archived(output.id, receipt.key, receipt.size, unproven=False, found=True)
            return "archived already"
        daemon.archive.write_event(
            "lost",
            (output.id.source, output.id.job_id, output.id.output_id),
            loss_document(output, exc.reason, str(exc)),
            ledger.now(),
        )
    except LastcallError as trouble:
        return again(daemon, claim, lease, f"lost, but the bucket cannot be told: {trouble}", None)
    if ledger.lose(output.id, lease.fence, exc.reason, str(exc)):
        log.error("lost", reason=exc.reason, error=str(exc))
    return f"lost ({exc.reason}): {exc}"


def again(
    daemon: Daemon, claim: Claim, lease: Held, error: str, not_before: datetime | None, *, lost_seconds: float = 0.0
) -> str:
    """Owed again: at the time that the other side named, else after a growing pause that shrinks as the deadline comes near."""
    now = daemon.ledger.now()
    if not_before is None:
        wait = 2.0 * 2 ** min(claim.attempts, 12)
        if daemon.settings.sources[claim.output.id.source].download_limit:
            # Counted downloads are spread over what is left, so that a vendor that is ill for hours does not use them up.
            wait = max(wait, 5.0 * 4 ** min(claim.downloads, 8))
        else:
            wait = min(wait, _LONGEST_WAIT_SECONDS)
        left = (claim.output.deadline - now).total_seconds()
        wait = min(wait * random.uniform(0.75, 1.25), left / 10 if left > 0 else _LONGEST_WAIT_OVERDUE_SECONDS)
        not_before = now + timedelta(seconds=max(2.0, wait))
    daemon.ledger.again(claim.output.id, lease.fence, not_before, error, lost_seconds=lost_seconds)
    log.info("owed again", error=error, not_before=timestamp(not_before), attempts=claim.attempts)
    return f"owed again: {error}; next try {timestamp(not_before)}"


def pause_if_refused(daemon: Daemon, source: str, exc: LastcallError) -> None:
    """Pause the source whose log-in is refused, or everything when the bucket refuses us; one alert, not a storm."""
    if isinstance(exc, ArchiveRefusedError):
        _pause(daemon, None, str(exc), "")
    elif isinstance(exc, LogInRefusedError):
        epoch, _ = daemon.ledger.epoch()
        _pause(daemon, source, str(exc), daemon.fingerprint(daemon.settings.sources[source], epoch))


def look_after_bucket(daemon: Daemon) -> None:
    """Open a ledger that was made anew, and go on after a refusal once the bucket refuses us no longer. Both wait while the
    bucket is away; what else ticks do need not, so one in some seconds asks it.
    """
    try:
        _, is_open = daemon.ledger.epoch()
        if not is_open and daemon.ledger.once("look:epoch", _OPEN_AGAIN):
            open_epoch(daemon)
        pause = daemon.ledger.paused(None)
        if pause and pause.until <= daemon.ledger.now() and daemon.ledger.once("look:archive", timedelta(seconds=10)):
            daemon.archive.check()
            bucket_works(daemon)
    except (ArchiveRefusedError, ArchiveUnavailableError) as exc:
        log.warning("the bucket cannot be used", error=str(exc))
        if isinstance(exc, ArchiveRefusedError) or daemon.ledger.paused(None):
            _pause(daemon, None, str(exc), "")


def bucket_works(daemon: Daemon) -> None:
    """The bucket has just taken something: if everything was paused since it refused us, go on."""
    if daemon.ledger.resume(None):
        log.info("resumed", source=None)
        daemon.ledger.queue_alert("the bucket takes files again")


def _pause(daemon: Daemon, source: str | None, why: str, fingerprint: str) -> None:
    """15 minutes, doubling to 6 hours; a quarter of what is left to the nearest deadline when that is sooner.

    The bucket is ours to ask, and everything waits for it: a few tries every 20 s are no storm.
    """
    now = daemon.ledger.now()
    before = daemon.ledger.paused(source)
    if before and before.until > now and before.fingerprint == fingerprint:
        return  # another thread met the same refusal
    times = before.times + 1 if before else 1
    delay = min(_FIRST_PAUSE * 2 ** (times - 1), _LONGEST_PAUSE) if source else _BUCKET_PAUSE
    for name in [source] if source else daemon.sources:
        nearest = daemon.ledger.status(name, timedelta(0)).nearest_deadline
        if nearest:
            delay = min(delay, max(timedelta(seconds=30), (nearest - now) / 4))
    if daemon.ledger.pause(source, now + delay, why, times=times, fingerprint=fingerprint):
        what = f"source {source}" if source else "everything"
        log.error("paused", source=source, why=why, until=timestamp(now + delay))
        daemon.ledger.queue_alert(f"{what} is paused until {timestamp(now + delay)}: {why}")
