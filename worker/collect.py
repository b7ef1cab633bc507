"""The whole job: `discover` writes what vendors offer into the ledger, `collect` brings the most urgent of it into the bucket.

Start reading here. The walk of one export: a poll calls `discover`: the source lists its jobs, unknown outputs whose receipt
stands already are adopted, the rest is owed. A wake-up calls `collect`: claim the most urgent output, get a link now, stream
it through decode and hash into S3, write the receipt last, settle with the ledger. Each error's class says what happens next
(`errors`); `_settle` is the one place that acts on it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import structlog

from worker import fetch, names
from worker.archive import StoredObject, Upload
from worker.daemon import Daemon
from worker.decode import Decoder
from worker.errors import (
    ArchiveRefusedError,
    DecodeError,
    HeldError,
    KeyConflictError,
    LastcallError,
    LeaseLostError,
    LedgerUnavailableError,
    LinkExpiredError,
    LogInRefusedError,
    MismatchError,
    NotReadyError,
    OutputGoneError,
    OverusedError,
    RefusedError,
    StoppedError,
    ThrottledError,
    TooLargeError,
    TryLaterError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.keeper import Held
from worker.ledger import Claim
from worker.model import Job, JobState, Link, Output, OutputId, Receipt, Wrapping, timestamp
from worker.recovery import loss_document, open_epoch, recover

log = structlog.get_logger()

_BATCH = 100  # jobs whose outputs are looked up in the ledger together
_LINKS_PER_ATTEMPT = 3  # a link that is refused as expired this often in a row has another fault
_READS_OF_A_BROKEN_WRAPPING = 2  # then the body is what it is, and is kept as it came
_MISMATCHES = 3  # whole downloads of one counted file that are not what the vendor says, before a person is asked
_FIRST_PAUSE = timedelta(minutes=15)
_LONGEST_PAUSE = timedelta(hours=6)


# --- discover --------------------------------------------------------------------------------------------------------


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
        return f"{self.source}: {self.jobs} jobs listed, {self.running} running, {self.owed} newly owed{adopted}"


def discover(daemon: Daemon, source: str, *, by_hand: bool = False) -> Discovery | None:
    """List `source` and write what is owed into the ledger. None when it is not its turn, or paused (save `by_hand`).

    Vendor trouble is a result, not an exception; only `LedgerUnavailableError` is raised.
    """
    settings = daemon.settings.sources[source]
    if by_hand:
        daemon.ledger.resume(source)
    elif not may_call(daemon, source):
        return None
    turn = daemon.ledger.take_poll_turn(source, settings.poll_every, by_hand=by_hand)
    if turn is None:
        return None
    found = Discovery(source)
    try:
        with daemon.keeper.listing(turn):
            open_epoch(daemon)
            recover(daemon, source)
            _list(daemon, source, found, lambda seconds_ago: daemon.ledger.stamp_poll_turn(turn, seconds_ago))
        daemon.ledger.resume(source)
    except LedgerUnavailableError:
        raise
    except LastcallError as exc:
        found.result, found.error = _result(exc), str(exc)
        _pause_if_refused(daemon, source, exc)
    except Exception as exc:  # a defect in one source must not stop the others; Celery shows it as this task's failure
        found.result, found.error = "error", type(exc).__name__
        raise
    finally:
        detail = {"error": found.error, "jobs": found.jobs, "running": found.running, "owed": found.owed}
        daemon.ledger.end_poll_turn(turn, found.result, detail)
        log.info("polled", source=source, result=found.result, **detail)
    return found


def may_call(daemon: Daemon, source: str) -> bool:
    """Whether the source is not paused, or its pause is over, or the secret that was refused has changed."""
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
}


def _result(exc: LastcallError) -> str:
    """One word for the metric and for status."""
    return next((word for kind, word in _RESULTS.items() if isinstance(exc, kind)), "unavailable")


def _list(daemon: Daemon, source: str, found: Discovery, stamp: Callable[[float], None]) -> None:
    settings = daemon.settings.sources[source]
    began = daemon.ledger.now()
    first = daemon.ledger.is_first_pass(source)
    jobs = daemon.sources[source].jobs(began - settings.retention - timedelta(days=1))
    for number, batch in enumerate(_batches(itertools.chain(jobs, _watched(daemon, source)))):
        if number == 0:
            stamp(0)
        if daemon.keeper.stopping:
            raise StoppedError("the process is stopping; the next poll lists again")
        _note_jobs(daemon, source, batch, found, recheck=first)
    before = daemon.ledger.complete_pass(source, began)
    if before is not None:
        daemon.ledger.forget(source, before)


def _batches(jobs: Iterator[Job]) -> Iterator[list[Job]]:
    while batch := list(itertools.islice(jobs, _BATCH)):
        yield batch


def _watched(daemon: Daemon, source: str) -> Iterator[Job]:
    """Ask for each watched job; one that the vendor does not know is asked for again until its retention has passed."""
    for job_id, since in daemon.ledger.watched(source).items():
        try:
            job = daemon.sources[source].job(job_id)
        except (OutputGoneError, NotReadyError) as exc:
            if daemon.ledger.now() - since > daemon.settings.sources[source].retention:
                log.warning("watched job never appeared", source=source, job=job_id, error=str(exc))
                unwatch(daemon, source, job_id)
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


def _note_jobs(daemon: Daemon, source: str, jobs: list[Job], found: Discovery, *, recheck: bool) -> None:
    outputs: list[Output] = []
    for job in jobs:
        found.jobs += 1
        found.running += job.state is JobState.RUNNING
        _note_oddities(daemon, source, job)
        if job.state is JobState.COMPLETED and not job.outputs:
            if job.completed_at and job.deadline:
                identity = OutputId(source, job.id, job.id)
                daemon.ledger.note_empty(Output(id=identity, completed_at=job.completed_at, deadline=job.deadline))
        else:
            outputs += job.outputs
    states = daemon.ledger.states([output.id for output in outputs])
    unknown = [output for output in outputs if states[output.id] is None]
    receipts = dict(zip([output.id for output in unknown], _receipts(daemon, unknown), strict=True))
    for output in outputs:
        if receipt := receipts.get(output.id):
            found.adopted += daemon.ledger.adopt(output, receipt.key)
        elif daemon.ledger.owe(output, recheck=recheck) in {"", "empty"}:
            found.owed += 1
            log.info("discovered", output=str(output.id), deadline=timestamp(output.deadline))


def _receipts(daemon: Daemon, outputs: list[Output]) -> Iterable[Receipt | None]:
    """Read the receipts of outputs that the ledger does not know; several at once, since a ledger made anew knows none."""
    if not outputs:
        return []
    with ThreadPoolExecutor(max_workers=min(8, len(outputs))) as pool:
        return list(pool.map(daemon.archive.receipt, [output.id for output in outputs]))


def _note_oddities(daemon: Daemon, source: str, job: Job) -> None:
    """Log and count, once a day each, what an operator should look at but what stops nothing."""
    oddities = list(job.warnings)
    if job.named_file:
        oddities.append(f"failed ({job.status}), but names a file")
    if job.partial:
        oddities.append(f"partial ({job.status})")
    for oddity in oddities:
        if daemon.ledger.once(f"oddity:{source}:{job.id}:{oddity}", timedelta(days=1)):
            log.warning("oddity", source=source, job=job.id, oddity=oddity)
            daemon.ledger.count("oddities", source)


# --- collect ---------------------------------------------------------------------------------------------------------


def collect(daemon: Daemon) -> str | None:
    """Claim the most urgent output and archive it. Gives what became of it in an operator's words; None: nothing to claim."""
    claim = daemon.ledger.claim(daemon.slots)
    if claim is None:
        return None
    output = claim.output.id
    with structlog.contextvars.bound_contextvars(output=str(output)), daemon.keeper.holding(claim) as lease:
        began = datetime.now(UTC)
        try:
            receipt = _archive(daemon, claim, lease)
        except LastcallError as exc:
            return f"{output}: {_settle(daemon, claim, lease, exc)}"
        except Exception as exc:  # a defect: the output stays owed, and Celery shows the task as failed
            _again(daemon, claim, lease, f"defect: {type(exc).__name__}", None)
            raise
        daemon.ledger.archived(output, receipt.key, receipt.size, unproven=not receipt.proof)
        seconds = (datetime.now(UTC) - began).total_seconds()
        log.info("archived", size=receipt.size, sha256=receipt.sha256, downloads=receipt.downloads, seconds=round(seconds, 3))
        return f"{output}: archived {receipt.filename}, {receipt.size:,} bytes in {seconds:.1f} s"


def _archive(daemon: Daemon, claim: Claim, lease: Held) -> Receipt:
    """Bring one output into the bucket, whole, and give its receipt."""
    output = claim.output
    standing: list[StoredObject] = []
    if claim.recheck:
        standing = _what_stands(daemon, output)
        if receipt := daemon.archive.receipt(output.id):
            return receipt
        for stored in standing:
            if stored.marked:
                return _adopt(daemon, claim, lease, stored)
    if output.size is not None:
        _check_size(daemon, output.size)
    source = daemon.sources[output.id.source]
    wrapping: Wrapping | None = None
    broken, expired = 0, 0
    while True:
        lease.check()
        link = source.link(output)
        try:
            return _download(daemon, claim, lease, replace(link, wrapping=wrapping or link.wrapping), standing)
        except LinkExpiredError as exc:
            expired += 1
            if expired >= _LINKS_PER_ATTEMPT:
                raise VendorUnavailableError(f"{expired} fresh links in a row were refused as expired") from exc
        except DecodeError as exc:
            # What looked like a wrapping for a megabyte and then broke the same way twice is not wrapped.
            broken += 1
            if not exc.late or link.counted or wrapping:
                raise
            if broken >= _READS_OF_A_BROKEN_WRAPPING:
                wrapping = Wrapping.NONE


def _what_stands(daemon: Daemon, output: Output) -> list[StoredObject]:
    """Clear away what an earlier holder of the lease left unfinished, and give what it, or somebody else, completed."""
    daemon.archive.abort_uploads(output)
    return daemon.archive.objects(output)


def _check_size(daemon: Daemon, size: int) -> None:
    most = daemon.settings.worker.max_output_bytes
    if size > most:
        raise TooLargeError(f"larger than max_output_bytes ({most:,} bytes); raise it, then `lastcall retry`")


def _spend(daemon: Daemon, claim: Claim, lease: Held, link: Link) -> int:
    """Reserve a download before it is made; gives its number. Where the vendor counts, the bucket knows it first."""
    output = claim.output.id
    most = daemon.settings.sources[output.source].download_limit
    if not link.counted or most is None:
        return daemon.ledger.spend(output, lease.fence)
    known = daemon.archive.spent(output) if claim.recheck else claim.downloads
    used = max(known, claim.downloads, claim.output.downloads, link.downloads or 0)
    number = used + 1 if used >= most else daemon.archive.spend(output, used, daemon.ledger.now())
    if number > most:
        raise OverusedError(
            f"{used} downloads are used and the rest is kept in reserve; lower reserve_downloads, then `lastcall retry`"
        )
    return daemon.ledger.spend(output, lease.fence, number)


def _download(daemon: Daemon, claim: Claim, lease: Held, link: Link, standing: list[StoredObject]) -> Receipt:
    """One download: stream, decode, hash, upload, prove, complete, receipt."""
    output, source = claim.output, daemon.sources[claim.output.id.source]
    number = _spend(daemon, claim, lease, link)
    algorithm = output.checksum.algorithm if output.checksum else None
    upload = daemon.archive.open_upload(output.id, lease, keep=link.counted, algorithm=algorithm)
    result = "failed"
    try:
        with fetch.open_download(
            daemon.sessions[output.id.source],
            daemon.settings.sources[output.id.source],
            link,
            lease,
            max_bytes=daemon.settings.worker.max_output_bytes,
            new_link=lambda: source.link(output),
        ) as download:
            place = _Place(daemon, output, link, download, upload)
            for piece in download.chunks():
                place.write(place.decoder.feed(piece))
            place.finish(whole=bool(download.proof()))
            proof = _prove(output, upload, (*download.proof(), *place.decoder.proof()))
        source.confirm(output)
        lease.confirm()
        stored = _complete(daemon, lease, upload, standing)
        receipt = _write_receipt(daemon, claim, stored, {"sha256": upload.digest("sha256")}, proof, number)
        result = "ok"
        return receipt
    except RefusedError as exc:
        result = "refused"
        raise source.refused(output, exc) from exc
    except MismatchError as exc:
        result = "mismatch"
        if link.counted and number >= _MISMATCHES:
            raise HeldError(f"{exc}, {number} downloads in a row; `lastcall retry` spends another one") from exc
        raise
    finally:
        upload.abort()
        daemon.ledger.count("downloads", f"{output.id.source}|{result}")


class _Place:
    """Where the bytes of one download go: its name and key are settled as soon as they are known, at the latest at the end."""

    def __init__(self, daemon: Daemon, output: Output, link: Link, download: fetch.Download, upload: Upload) -> None:
        self._daemon = daemon
        self._output = output
        self._link = link
        self._download = download
        self._upload = upload
        self._head = b""
        self._started = False
        self._sure_name = link.filename or names.from_content_disposition(download.filename)
        self.decoder = Decoder(
            link.wrapping,
            filename=self._sure_name or output.filename or link.fallback_filename,
            content_type=output.content_type or "",
        )

    def write(self, data: bytes) -> None:
        """Hand on the next bytes of the file."""
        if not self._head:
            self._head = bytes(data[:64])
        if data:
            self._upload.write(data)
            _check_size(self._daemon, self._upload.size)
        if not self._started and self.decoder.form is not None and (self._sure_name or self.decoder.named):
            self._start()

    def finish(self, *, whole: bool) -> None:
        """The body has ended. `whole`: it is known to be all that was sent."""
        self.write(self.decoder.finish(whole=whole))
        if not self._started:
            self._start()

    def _start(self) -> None:
        self._started = True
        form = self.decoder.form or "none"
        raw = self._sure_name or self.decoder.filename or self._link.fallback_filename or self._output.filename
        filename = names.safe_name(raw, names.with_extension(self._output.id.output_id, self._head))
        if raw == self._link.fallback_filename:
            filename = names.with_extension(filename, self._head)
        sent = self._download.content_type if form == "none" else ""
        self._upload.start(
            self._daemon.archive.key(self._output, filename),
            filename=filename,
            wrapping=form,
            content_type=self._output.content_type or sent or names.content_type(filename),
        )


def _prove(output: Output, upload: Upload, proof: tuple[str, ...]) -> tuple[str, ...]:
    """Check what the vendor says of the file against what came; gives what showed that it is whole."""
    if output.size is not None:
        if upload.size != output.size:
            raise MismatchError(f"{upload.size:,} bytes came where the vendor says {output.size:,}")
        proof += ("vendor-size",)
    if output.checksum:
        if upload.digest(output.checksum.algorithm) != output.checksum.value:
            raise MismatchError(f"the {output.checksum.algorithm} of {upload.size:,} bytes is not the vendor's")
        proof += ("vendor-checksum",)
    return proof


def _complete(daemon: Daemon, lease: Held, upload: Upload, standing: list[StoredObject]) -> StoredObject:
    """Make the object visible, unless one that nobody marked stands there already: equal bytes are taken, others are held."""
    for stored in standing:
        size, digests = daemon.archive.read_back(stored.key, ("sha256",), lease)
        if size == upload.size and digests["sha256"] == upload.digest("sha256"):
            return stored
    if standing:
        raise KeyConflictError(
            f"{len(standing)} object(s) with other bytes stand where this output belongs, and lastcall did not write them; "
            "move them away, then `lastcall retry`"
        )
    return upload.complete()


def _adopt(daemon: Daemon, claim: Claim, lease: Held, stored: StoredObject) -> Receipt:
    """Take an object that an earlier attempt completed: read it back, hash it, and give it its receipt."""
    output = claim.output
    algorithms = ("sha256",) if output.checksum is None else ("sha256", output.checksum.algorithm)
    size, digests = daemon.archive.read_back(stored.key, algorithms, lease)
    if (output.size is not None and size != output.size) or (
        output.checksum and digests[output.checksum.algorithm] != output.checksum.value
    ):
        raise KeyConflictError(
            "the object that stands where this output belongs is not what the vendor says the file is; "
            "move it away, then `lastcall retry`"
        )
    used = daemon.archive.spent(output.id) if daemon.settings.sources[output.id.source].download_limit else 0
    lease.confirm()
    return _write_receipt(daemon, claim, stored, digests, ("stored-whole",), max(1, claim.downloads, used))


def _write_receipt(
    daemon: Daemon, claim: Claim, stored: StoredObject, digests: dict[str, str], proof: tuple[str, ...], downloads: int
) -> Receipt:
    """Write the receipt: from here on the output is archived."""
    output, checksum = claim.output, claim.output.checksum
    return daemon.archive.write_receipt(
        Receipt(
            id=output.id,
            vendor=daemon.settings.sources[output.id.source].vendor,
            filename=stored.filename,
            key=stored.key,
            bucket=daemon.settings.archive.bucket,
            version_id=stored.version_id,
            etag=stored.etag,
            content_type=stored.content_type,
            size=stored.size,
            sha256=digests["sha256"],
            wrapping=stored.wrapping,
            vendor_size=output.size,
            vendor_checksum={"algorithm": checksum.algorithm, "value": checksum.value, "matched": True} if checksum else None,
            proof=proof,
            completed_at=output.completed_at,
            deadline=output.deadline,
            archived_at=daemon.ledger.now(),
            downloads=downloads,
            job=output.job,
        )
    )


# --- settle ----------------------------------------------------------------------------------------------------------


def _settle(daemon: Daemon, claim: Claim, lease: Held, exc: LastcallError) -> str:
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
        return f"still lost: {exc}"
    if isinstance(exc, OutputGoneError):
        return _gone(daemon, claim, lease, exc)
    if isinstance(exc, HeldError):
        if ledger.hold(output.id, lease.fence, str(exc)):
            log.warning("held", reason=str(exc))
            ledger.alert(f"held:{output.id}", f"{output.id} is held: {exc} (deadline {timestamp(output.deadline)})")
        return f"held: {exc}"
    _pause_if_refused(daemon, output.id.source, exc)
    if isinstance(exc, NotReadyError):
        ledger.other_answer(output.id, lease.fence)
    return _again(daemon, claim, lease, str(exc), exc.not_before if isinstance(exc, TryLaterError) else None)


def _gone(daemon: Daemon, claim: Claim, lease: Held, exc: OutputGoneError) -> str:
    """Count an explicit gone answer. The loss is written to the bucket before the ledger says so."""
    output, ledger = claim.output, daemon.ledger
    if not ledger.gone(output.id, lease.fence, exc):
        log.info("gone, says the vendor; asked again", error=str(exc))
        return f"gone, says the vendor ({exc}); asked once more before it counts as lost"
    try:
        if receipt := daemon.archive.receipt(output.id):
            ledger.archived(output.id, receipt.key, receipt.size, unproven=False)
            return "archived already"
        daemon.archive.write_event(
            "lost",
            (output.id.source, output.id.job_id, output.id.output_id),
            loss_document(output, exc.reason, str(exc)),
            ledger.now(),
        )
    except LastcallError as trouble:
        return _again(daemon, claim, lease, f"lost, but the bucket cannot be told: {trouble}", None)
    if ledger.lose(output.id, lease.fence, exc.reason, str(exc)):
        log.error("lost", reason=exc.reason, error=str(exc))
        ledger.alert(f"lost:{output.id}:{ledger.now()}", f"{output.id} is lost ({exc.reason}): {exc}")
    return f"lost ({exc.reason}): {exc}"


def _again(daemon: Daemon, claim: Claim, lease: Held, error: str, not_before: datetime | None) -> str:
    """Owed again: at the time that the other side named, else after a growing pause that shrinks as the deadline comes near."""
    now = daemon.ledger.now()
    if not_before is None:
        wait = min(600.0, 2.0 * 2 ** min(claim.attempts, 12)) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
        left = (claim.output.deadline - now).total_seconds()
        not_before = now + timedelta(seconds=max(2.0, min(wait, left / 10 if left > 0 else 60.0)))
    daemon.ledger.again(claim.output.id, lease.fence, not_before, error)
    log.info("owed again", error=error, not_before=timestamp(not_before), attempts=claim.attempts)
    return f"owed again: {error}; next try {timestamp(not_before)}"


def _pause_if_refused(daemon: Daemon, source: str, exc: LastcallError) -> None:
    """Pause the source whose log-in is refused, or everything when the bucket refuses us; one alert, not a storm."""
    if isinstance(exc, ArchiveRefusedError):
        _pause(daemon, None, str(exc), "")
    elif isinstance(exc, LogInRefusedError):
        epoch, _ = daemon.ledger.epoch()
        _pause(daemon, source, str(exc), daemon.fingerprint(daemon.settings.sources[source], epoch))


def _pause(daemon: Daemon, source: str | None, why: str, fingerprint: str) -> None:
    """15 minutes, doubling to 6 hours; a quarter of what is left to the nearest deadline when that is sooner."""
    now = daemon.ledger.now()
    before = daemon.ledger.paused(source)
    if before and before.until > now and before.fingerprint == fingerprint:
        return  # another thread met the same refusal
    times = before.times + 1 if before else 1
    delay = min(_FIRST_PAUSE * 2 ** (times - 1), _LONGEST_PAUSE) if source else timedelta(minutes=1)
    for name in [source] if source else daemon.sources:
        nearest = daemon.ledger.status(name, timedelta(0)).nearest_deadline
        if nearest:
            delay = min(delay, max(timedelta(seconds=30), (nearest - now) / 4))
    if daemon.ledger.pause(source, now + delay, why, times=times, fingerprint=fingerprint):
        what = f"source {source}" if source else "everything"
        log.error("paused", source=source, why=why, until=timestamp(now + delay))
        daemon.ledger.alert(f"paused:{source}", f"{what} is paused: {why}", again_after=timedelta(minutes=1))
