"""The first half of the job: list a source, adopt what has a receipt already, and write the rest into the ledger as owed."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from worker import polling
from worker.daemon import Daemon
from worker.errors import (
    ArchiveRefusedError,
    ArchiveUnavailableError,
    HeldError,
    LastcallError,
    LedgerUnavailableError,
    LogInRefusedError,
    NotReadyError,
    OutputGoneError,
    StoppedError,
    ThrottledError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.ledger import PollTurn
from worker.model import Job, JobState, Output, OutputId, OutputState, Receipt, timestamp
from worker.recovery import open_epoch, reclaim_once, recount, recover
from worker.settle import pause_if_refused

log = structlog.get_logger()

_LONG_RUNNING = timedelta(days=1)
_MOST_ODDITIES = 20  # of one job; what has more of them is one oddity as a whole
_LOOKS_PER_AGE = 10  # a watched job of an hour is asked for every six minutes, one of a day every 2.4 hours
_SHORTEST_LOOK = timedelta(minutes=1)
_LONGEST_LOOK = timedelta(hours=6)
_LOOKS_FOR_TURN_SECONDS = 0.2
_LOOKS_SECONDS = 30.0  # then the next listing is as good
_BATCH = 100  # jobs whose outputs are looked up in the ledger together


@dataclass(slots=True)
class Discovery:
    """What one listing of a source came to."""

    source: str
    result: str = "ok"
    error: str = ""
    jobs: int = 0
    running: int = 0
    owed: int = 0
    adopted: int = 0

    def __str__(self) -> str:
        """Say it in words that an operator understands, without any secret."""
        if self.result != "ok":
            return f"{self.source}: {self.result}: {self.error}"
        adopted = f", {self.adopted} archived already" if self.adopted else ""
        jobs = "1 job" if self.jobs == 1 else f"{self.jobs} jobs"
        return f"{self.source}: {jobs} listed, {self.running} running, {self.owed} newly owed{adopted}"


def discover(
    daemon: Daemon,
    source: str,
    *,
    by_hand: bool = False,
    patience: timedelta = timedelta(0),
    seen: Callable[[Job], None] = lambda _: None,
    owed: Callable[[], object] = lambda: None,
) -> Discovery | None:
    """List `source` and write what is owed into the ledger. None when it is not its turn, or paused (save `by_hand`).

    `patience`: how long to wait for its turn. `seen` is told each job as it is listed, before the ledger knows of it; `owed` is
    called once the ledger has got something new to collect, which need not wait for the end of a long list.
    Vendor trouble is a result, not an exception; only `LedgerUnavailableError` is raised.
    """
    if by_hand:
        daemon.ledger.resume(source)
        daemon.ledger.resume(None)
    elif not may_call(daemon, source):
        return None
    turn = _take_turn(daemon, source, by_hand=by_hand, patience=patience)
    if turn is None:
        return None
    found = Discovery(source)
    uncounted_in: str | None = None
    try:
        with daemon.keeper.keeping(turn):
            uncounted_in = _read_back(daemon, source)
            jobs = _stamped(_window(daemon, source), lambda: daemon.ledger.stamp_poll_turn(turn))
            _list(daemon, source, found, _told(jobs, seen), owed, by_hand=by_hand)
        daemon.ledger.resume(source)
    except LedgerUnavailableError as exc:
        found.result, found.error = _result(exc), str(exc)
        raise
    except LastcallError as exc:
        found.result, found.error = _result(exc), str(exc)
        pause_if_refused(daemon, source, exc)
    except Exception as exc:  # a defect in one source must not stop the others; Celery shows it as this task's failure
        found.result, found.error = "error", type(exc).__name__
        raise
    finally:
        detail = {"error": found.error, "jobs": found.jobs, "running": found.running, "owed": found.owed}
        try:
            daemon.ledger.end_poll_turn(turn, found.result, detail)
        except LedgerUnavailableError:
            daemon.keeper.end_later(turn)
            raise
        changed = found.owed or found.adopted or found.result != "ok"
        log.log(logging.INFO if changed else logging.DEBUG, "polled", source=source, result=found.result, **detail)
    try:
        if uncounted_in:
            recount(daemon, source, uncounted_in)
        found.owed += reclaim_once(daemon, source)
    except (StoppedError, ArchiveUnavailableError, ArchiveRefusedError) as exc:
        log.warning("receipts not looked at; the next poll does it", source=source, error=str(exc))
    return found


def _read_back(daemon: Daemon, source: str) -> str | None:
    """Make sure that the ledger knows what only the bucket does. While the bucket is away, listing goes on without.

    Gives the epoch in which the receipts are still to be counted.
    """
    try:
        open_epoch(daemon)
        return recover(daemon, source)
    except ArchiveUnavailableError as exc:
        log.warning("the bucket is away; what it knows is read back later", source=source, error=str(exc))
        return None


def _take_turn(daemon: Daemon, source: str, *, by_hand: bool, patience: timedelta) -> PollTurn | None:
    """Take the turn to list. By hand it is waited for: a listing that goes on may have passed what the person looks for."""
    settings = daemon.settings.sources[source]
    wait = polling.interval(settings.poll_every, quiet=daemon.ledger.quiet(source), retention=settings.retention)
    end = time.monotonic() + (daemon.ledger.lease_seconds if by_hand else patience.total_seconds())
    while True:
        if turn := daemon.ledger.take_poll_turn(source, settings.poll_every, wait=wait, by_hand=by_hand):
            return turn
        if time.monotonic() >= end or daemon.keeper.wait(_LOOKS_FOR_TURN_SECONDS):
            return None


def may_call(daemon: Daemon, source: str) -> bool:
    """Whether the source is not paused, or its pause is over, or the secret that was refused has changed."""
    if (everything := daemon.ledger.paused(None)) and everything.until > daemon.ledger.now():
        return False
    pause = daemon.ledger.paused(source)
    if pause is None or pause.until <= daemon.ledger.now():
        return True
    epoch, _ = daemon.ledger.epoch()
    if pause.fingerprint == daemon.fingerprint(daemon.settings.sources[source], epoch):
        return False
    daemon.ledger.resume(source)
    return True


_RESULTS: dict[type[LastcallError], str] = {
    LogInRefusedError: "refused",
    ThrottledError: "throttled",
    VendorReplyError: "malformed",
    StoppedError: "stopped",
    HeldError: "blocked",
    ArchiveRefusedError: "archive-refused",
    ArchiveUnavailableError: "archive-unavailable",
    LedgerUnavailableError: "ledger-unavailable",
}


def _result(exc: LastcallError) -> str:
    """One word for the metric and for status."""
    return next((word for kind, word in _RESULTS.items() if isinstance(exc, kind)), "unavailable")


def _window(daemon: Daemon, source: str) -> Iterator[Job]:
    """Ask the vendor for all whose files can still be there."""
    since = daemon.ledger.now() - daemon.settings.sources[source].retention - timedelta(days=1)
    return daemon.sources[source].jobs(since)


def _list(
    daemon: Daemon, source: str, found: Discovery, listed: Iterator[Job], owed: Callable[[], object], *, by_hand: bool
) -> None:
    began = daemon.ledger.now()
    epoch, _ = daemon.ledger.epoch()
    first = daemon.ledger.is_first_pass(source)
    running: set[str] = set()
    ended: list[Job] = []
    before = daemon.ledger.running(source)
    for batch in _batches(itertools.chain(listed, _watched(daemon, source, by_hand=by_hand))):
        if daemon.keeper.stopping:
            raise StoppedError("the process is stopping; the next poll lists again")
        nothing_new = not found.owed
        _note_jobs(daemon, source, batch, found, recheck=first, epoch=epoch)
        if nothing_new and found.owed:
            with suppress(LedgerUnavailableError):  # a wake-up is a hint, and the broker has connections of its own
                owed()
        running |= {job.id for job in batch if job.state is JobState.RUNNING}
        ended += [job for job in batch if job.state is JobState.COMPLETED and job.id in before]
    runs = _learn_runs(daemon, source, before, ended)
    if found.owed:
        daemon.ledger.note_busy(source)
    since_by_job = daemon.ledger.note_running(source, running)
    next_listing = began + daemon.settings.sources[source].poll_every
    planned = polling.looks(since_by_job, runs, daemon.ledger.now(), next_listing)
    daemon.ledger.plan_looks(source, planned if daemon.sources[source].asks_for_one else [])
    for job_id, since in since_by_job.items():
        if began - since > _LONG_RUNNING:
            _note_oddity(daemon, source, job_id, f"running for more than {_LONG_RUNNING.days} day")
    last_pass = daemon.ledger.complete_pass(source, epoch, began)
    if last_pass is not None:
        daemon.ledger.forget(source, last_pass)


def _learn_runs(daemon: Daemon, source: str, running: Mapping[str, tuple[datetime, datetime]], ended: list[Job]) -> list[float]:
    """Learn from jobs that have ended; gives how many seconds the source's recent ones ran. `running`: as before this look."""
    now = daemon.ledger.now()
    seconds = [polling.seconds_of_run(*running[job.id], now, job.completed_at) for job in ended]
    return daemon.ledger.learn_runs(source, seconds, polling.RUNS_KEPT)


def look(daemon: Daemon, source: str) -> int:
    """Ask for the running jobs that may have ended by now, one call each, between two listings. Gives how many had.

    What cannot be read is left to the next listing, which shows it anyway. Only `LedgerUnavailableError` is raised.
    """
    if not may_call(daemon, source):
        return 0
    epoch, _ = daemon.ledger.epoch()
    first = daemon.ledger.is_first_pass(source)
    running = daemon.ledger.running(source)
    found = Discovery(source)
    ended = 0
    end = time.monotonic() + _LOOKS_SECONDS
    for job_id in daemon.ledger.take_looks(source):
        if job_id not in running or time.monotonic() > end:
            continue
        try:
            job = daemon.sources[source].job(job_id)
        except LedgerUnavailableError:
            raise
        except LastcallError as exc:
            log.info("job not read", source=source, job=job_id, error=str(exc))
            pause_if_refused(daemon, source, exc)
            continue
        daemon.ledger.note_run(source, job_id, running[job_id][0], ended=job.state is not JobState.RUNNING)
        if job.state is JobState.COMPLETED:
            ended += 1
            _note_jobs(daemon, source, [job], found, recheck=first, epoch=epoch)
            _learn_runs(daemon, source, running, [job])
    if found.owed:
        daemon.ledger.note_busy(source)
    return ended


def _batches(jobs: Iterator[Job]) -> Iterator[list[Job]]:
    """Give the jobs in batches. What was read before an error is given before the error is."""
    batch: list[Job] = []
    try:
        for job in jobs:
            batch.append(job)
            if len(batch) == _BATCH:
                yield batch
                batch = []
    except LastcallError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _stamped(jobs: Iterator[Job], stamp: Callable[[], None]) -> Iterator[Job]:
    """Count the interval from the first answer, an empty one too. Before it, the source may have logged in, waited for its turn
    to call, or had the bucket read back.
    """
    job = next(jobs, None)
    stamp()
    if job is not None:
        yield job
        yield from jobs


def _told(jobs: Iterator[Job], seen: Callable[[Job], None]) -> Iterator[Job]:
    for job in jobs:
        seen(job)
        yield job


def _watched(daemon: Daemon, source: str, *, by_hand: bool) -> Iterator[Job]:
    """Ask for each watched job, more and more rarely; what one of them answers ends neither the others nor the pass.

    One that the vendor does not know is asked for until its retention has passed.
    """
    now = daemon.ledger.now()
    for job_id, since in daemon.ledger.watched(source).items():
        age = now - since
        pause = min(age / _LOOKS_PER_AGE, _LONGEST_LOOK)
        if not by_hand and pause > _SHORTEST_LOOK and not daemon.ledger.once(f"look:{source}:{job_id}", pause):
            continue
        try:
            job = daemon.sources[source].job(job_id)
        except (OutputGoneError, NotReadyError) as exc:
            if age > daemon.settings.sources[source].retention:
                log.warning("watched job never appeared", source=source, job=job_id, error=str(exc))
                daemon.ledger.queue_alert(f"{source}: watched job {job_id} never appeared, it is watched no more: {exc}")
                unwatch(daemon, source, job_id)
            continue
        except (VendorUnavailableError, VendorReplyError, HeldError) as exc:
            log.warning("watched job cannot be read", source=source, job=job_id, error=str(exc))
            continue
        yield job
        states = daemon.ledger.states([output.id for output in job.outputs]).values()
        if job.state is JobState.FAILED or (
            job.state is JobState.COMPLETED and all(state in {"archived", "lost", "empty"} for state in states)
        ):
            unwatch(daemon, source, job_id)


def watch(daemon: Daemon, source: str, job_id: str) -> None:
    """Ask for this job at each poll, though no listing shows it. Survives the loss of Redis."""
    daemon.archive.write_event("watch", (source, job_id), {}, daemon.ledger.now())
    daemon.ledger.watch(source, job_id)


def unwatch(daemon: Daemon, source: str, job_id: str) -> None:
    """Ask for it no more."""
    daemon.archive.write_event("unwatch", (source, job_id), {}, daemon.ledger.now())
    daemon.ledger.unwatch(source, job_id)


def acknowledge(daemon: Daemon, output: OutputId, reason: str) -> None:
    """Explain a loss. Survives the loss of Redis."""
    identity = (output.source, output.job_id, output.output_id)
    daemon.archive.write_event("acknowledged", identity, {"reason": reason}, daemon.ledger.now())
    daemon.ledger.acknowledge(output, reason)


def _note_jobs(daemon: Daemon, source: str, jobs: list[Job], found: Discovery, *, recheck: bool, epoch: str) -> None:
    for job in jobs:
        found.jobs += 1
        found.running += job.state is JobState.RUNNING
        _note_oddities(daemon, source, job)
    _note_empty(daemon, source, jobs)
    outputs = [output for job in jobs for output in job.outputs]
    # Most of a list is in the bucket since long: one call tells, and is all that these cost.
    states = daemon.ledger.listed(output.id for output in outputs)
    unknown = [output for output in outputs if states[output.id] is None]
    # Asked after the states: what a ledger made anew does not know may be in another worker's hands, and archived any moment.
    recheck = recheck or (bool(unknown) and daemon.ledger.epoch()[0] != epoch)
    try:
        receipts = _receipts(daemon, [output.id for output in unknown])
    except ArchiveUnavailableError:
        receipts, recheck = {}, True  # owed all the same, so that people see it; a worker looks for the receipt first
    owed = []
    for output in outputs:
        receipt = receipts.get(output.id)
        if isinstance(receipt, Receipt):
            found.adopted += daemon.ledger.adopt(output, receipt.key)
        elif states[output.id] is not OutputState.ARCHIVED:
            # What the ledger knew a moment ago and does not know any more was forgotten with the ledger: it may be archived.
            owed.append((output, recheck or states[output.id] is not None or isinstance(receipt, HeldError)))
    before = daemon.ledger.owe_all(owed)
    for (output, _), state in zip(owed, before, strict=True):
        if state in {"", "empty"}:
            found.owed += 1
            log.info("discovered", output=str(output.id), deadline=timestamp(output.deadline))


def _note_empty(daemon: Daemon, source: str, jobs: list[Job]) -> None:
    """Write down the jobs that finished and produced nothing, where that is new."""
    empty = [
        Output(id=OutputId(source, job.id, job.id), completed_at=job.completed_at, deadline=job.deadline)
        for job in jobs
        if job.state is JobState.COMPLETED and not job.outputs and job.completed_at and job.deadline
    ]
    states = daemon.ledger.listed(output.id for output in empty)
    for output in empty:
        if states[output.id] is None:
            daemon.ledger.note_empty(output)


def _receipts(daemon: Daemon, outputs: list[OutputId]) -> dict[OutputId, Receipt | HeldError | None]:
    """Read the receipts of outputs that the ledger does not know; several at once, since a ledger made anew knows none.

    A receipt that cannot be read, or cannot be, is given as its error: it is for the worker that gets this output, and keeps no
    other one from being listed.
    """
    wanted = daemon.archive.may_have_receipts(outputs)
    if not wanted:
        return {}

    def read(output: OutputId) -> tuple[OutputId, Receipt | HeldError | None]:
        try:
            return output, daemon.archive.receipt(output)
        except HeldError as exc:
            return output, exc

    with ThreadPoolExecutor(max_workers=min(8, len(wanted))) as pool:
        try:
            return dict(pool.map(read, wanted))
        except LastcallError:
            pool.shutdown(cancel_futures=True)  # the others would meet the same trouble
            raise


def _note_oddities(daemon: Daemon, source: str, job: Job) -> None:
    """Log and count, once a day each, what an operator should look at but what stops nothing."""
    oddities = list(dict.fromkeys(job.warnings))
    if len(oddities) > _MOST_ODDITIES:
        oddities[_MOST_ODDITIES:] = [f"… and {len(oddities) - _MOST_ODDITIES} more"]
    if job.named_file:
        oddities.append(f"failed ({job.status}), but names a file")
    if job.partial:
        oddities.append(f"partial ({job.status})")
    for oddity in oddities:
        _note_oddity(daemon, source, job.id, oddity)


def _note_oddity(daemon: Daemon, source: str, job_id: str, oddity: str) -> None:
    if daemon.ledger.once(f"oddity:{source}:{job_id}:{oddity}", timedelta(days=1)):
        log.warning("oddity", source=source, job=job_id, oddity=oddity)
        daemon.ledger.count("oddities", source)
