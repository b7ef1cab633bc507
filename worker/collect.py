"""The whole job. Start reading here: `collect` brings the most urgent output into the bucket.

The walk of one export: a poll calls `discover.discover`, which lists a source, adopts outputs whose receipt stands already
and writes the others into the ledger. A wake-up calls `collect`: claim the most urgent output, get a link now, stream it
through decode and hash into S3, write the receipt last, settle with the ledger. Each error's class says what happens next
(`errors`); `settle` acts on it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from worker import fetch, names
from worker.archive import StoredObject, Upload
from worker.connect import check_url
from worker.daemon import Daemon
from worker.decode import Decoder
from worker.errors import (
    ArchiveRefusedError,
    DecodeError,
    HeldError,
    KeyConflictError,
    LastcallError,
    LedgerUnavailableError,
    LinkExpiredError,
    MismatchError,
    OverusedError,
    RefusedError,
    TooLargeError,
    VendorUnavailableError,
)
from worker.keeper import Held
from worker.ledger import Claim
from worker.model import Link, Output, OutputId, Receipt, Wrapping
from worker.settle import again, bucket_works, pause_if_refused, settle

log = structlog.get_logger()

_LINKS_PER_ATTEMPT = 3  # a link that is refused as expired this often in a row has another fault
_READS_OF_A_BROKEN_WRAPPING = 2  # then the body is what it is, and is kept as it came
_MISMATCHES = 3  # whole downloads of one counted file that are not what the vendor says, before a person is asked


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one claimed output, in an operator's words; `archived`: its bytes, where that is what became of it."""

    output: OutputId
    what: str
    archived: int | None = None

    def __str__(self) -> str:
        """Say it."""
        return f"{self.output}: {self.what}"


def collect(daemon: Daemon) -> Outcome | None:
    """Claim the most urgent output and archive it. None: nothing to claim."""
    return next(iter(collect_while(daemon, lambda: False)), None)


def collect_while(daemon: Daemon, more: Callable[[], bool]) -> list[Outcome]:
    """Claim the most urgent output and archive it, and then the next one, as long as there is one and `more` says so."""
    outcomes: list[Outcome] = []
    claim = daemon.ledger.claim(daemon.slots)
    while claim:
        outcome, claim = _collect(daemon, claim, more)
        outcomes.append(outcome)
        if outcome.archived is None and more():
            claim = daemon.ledger.claim(daemon.slots)
    return outcomes


def _collect(daemon: Daemon, claim: Claim, more: Callable[[], bool]) -> tuple[Outcome, Claim | None]:
    """Archive what was claimed. Once it is, it is settled and the next one claimed in one call of the ledger, if `more`."""
    output = claim.output.id
    with structlog.contextvars.bound_contextvars(output=str(output)), daemon.keeper.holding(claim) as lease:
        began = datetime.now(UTC)
        try:
            done = _archive(daemon, claim, lease)
        except LastcallError as exc:
            return Outcome(output, settle(daemon, claim, lease, exc)), None
        except Exception as exc:  # a defect: the output stays owed, and Celery shows the task as failed
            again(daemon, claim, lease, f"defect: {type(exc).__name__}", None)
            raise
        seconds = (datetime.now(UTC) - began).total_seconds()
        usual = None if claim.recheck else seconds  # looking first for what stands there may make an attempt shorter or longer
        receipt = done.receipt
        if done.refused:
            bucket_works(daemon)
        following = daemon.ledger.archived_then_claim(
            daemon.slots if more() else {},
            output,
            receipt.key,
            receipt.size,
            unproven=not receipt.proof,
            seconds=usual,
            downloaded=done.downloaded,
            found=not done.downloaded,
        )
        log.info("archived", size=receipt.size, sha256=receipt.sha256, downloads=receipt.downloads, seconds=round(seconds, 3))
        what = f"archived {receipt.filename}, {receipt.size:,} bytes in {seconds:.1f} s"
        return Outcome(output, what, receipt.size), following


@dataclass(frozen=True, slots=True)
class _Done:
    """The receipt of a claimed output: whether a download was made for it, and whether the bucket refused us meanwhile."""

    receipt: Receipt
    downloaded: bool = False
    refused: bool = False


def _archive(daemon: Daemon, claim: Claim, lease: Held) -> _Done:
    """Bring one output into the bucket, whole, with its receipt."""
    output = claim.output
    standing: list[StoredObject] = []
    if claim.recheck:
        standing = _what_stands(daemon, output)
        if receipt := daemon.archive.receipt(output.id):
            return _Done(receipt)
        for stored in standing:
            if stored.marked:
                return _Done(_adopt(daemon, claim, lease, stored))
    if output.size is not None:
        _check_size(daemon, output.size)
    attempt = _Attempt()
    while True:
        lease.check()
        link = daemon.sources[output.id.source].link(output)
        try:
            return _download(daemon, claim, lease, replace(link, wrapping=attempt.wrapping or link.wrapping), standing)
        except LinkExpiredError as exc:
            attempt.link_expired(exc)
        except DecodeError as exc:
            attempt.wrapping_broke(exc, link)


@dataclass(slots=True)
class _Attempt:
    """What one attempt has learnt, and whether it goes on with another link."""

    wrapping: Wrapping | None = None
    expired: int = 0
    broken: int = 0

    def link_expired(self, exc: LinkExpiredError) -> None:
        """Go on, unless links are refused as fast as they are made."""
        self.expired += 1
        if self.expired > 1 and not exc.certain:
            raise HeldError(f"{exc}, with a fresh link as well; ask the vendor why, then `lastcall retry`") from exc
        if self.expired >= _LINKS_PER_ATTEMPT:
            raise VendorUnavailableError(f"{self.expired} fresh links in a row were refused as expired") from exc

    def wrapping_broke(self, exc: DecodeError, link: Link) -> None:
        """Read once more; what looks like a wrapping for a megabyte and breaks again is none, and is kept as it comes."""
        if not exc.late or link.counted or self.wrapping:
            raise exc
        self.broken += 1
        if self.broken >= _READS_OF_A_BROKEN_WRAPPING:
            self.wrapping = Wrapping.NONE


def _what_stands(daemon: Daemon, output: Output) -> list[StoredObject]:
    """Clear away what an earlier holder of the lease left unfinished, and give what it, or somebody else, completed."""
    daemon.archive.abort_uploads(output)
    return daemon.archive.objects(output)


def _check_size(daemon: Daemon, size: int) -> None:
    most = daemon.settings.worker.max_output_bytes
    if size > most:
        raise TooLargeError(
            f"larger than max_output_bytes ({most:,} bytes); raise it, restart the workers, then `lastcall retry`"
        )


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
            f"{used} downloads are used and the rest is kept in reserve; lower reserve_downloads, restart the workers,"
            " then `lastcall retry`"
        )
    return daemon.ledger.spend(output, lease.fence, number)


def _download(daemon: Daemon, claim: Claim, lease: Held, link: Link, standing: list[StoredObject]) -> _Done:
    """One download: stream, decode, hash, upload, prove, complete, receipt."""
    output, source = claim.output, daemon.sources[claim.output.id.source]
    check_url(link.url, daemon.settings.sources[output.id.source])  # what will not be asked for is not spent
    number = _spend(daemon, claim, lease, link)
    # Asserted again in a ledger made anew, which does not know whether somebody had taken it over before that.
    if lease.fence != claim.fence and (standing_receipt := daemon.archive.receipt(output.id)):
        return _Done(standing_receipt)
    algorithm = output.checksum.algorithm if output.checksum else None

    was_refused = threading.Event()

    def refused(exc: ArchiveRefusedError) -> None:
        was_refused.set()
        with suppress(LedgerUnavailableError):  # others will meet the refusal, too
            pause_if_refused(daemon, output.id.source, exc)

    upload = daemon.archive.open_upload(output, lease, keep=link.counted, algorithm=algorithm, refused=refused)
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
        _confirm(daemon, output, lease)
        lease.confirm()
        stored = _complete(daemon, lease, upload, standing)
        receipt = _write_receipt(daemon, claim, stored, upload.digest("sha256"), proof=proof, downloads=number)
        result = "ok"
        return _Done(receipt, downloaded=True, refused=was_refused.is_set())
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
        if result != "ok":  # `archived` counts that one
            with suppress(LedgerUnavailableError):  # a count is no reason to lose the attempt
                daemon.ledger.count("downloads", f"{output.id.source}|{result}")


def _confirm(daemon: Daemon, output: Output, lease: Held) -> None:
    """Ask the source whether the bytes in hand are still the output's; Redis, which paces the question, is waited for."""
    while True:
        try:
            daemon.sources[output.id.source].confirm(output)
            return
        except LedgerUnavailableError as exc:
            log.warning("ledger unreachable; what is in hand waits for it", error=str(exc))
        time.sleep(0.5)
        lease.check()


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
    return _write_receipt(
        daemon, claim, stored, digests["sha256"], proof=("stored-whole",), downloads=max(1, claim.downloads, used)
    )


def _write_receipt(
    daemon: Daemon, claim: Claim, stored: StoredObject, sha256: str, *, proof: tuple[str, ...], downloads: int
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
            sha256=sha256,
            wrapping=stored.wrapping,
            vendor_size=output.size,
            vendor_checksum={"algorithm": checksum.algorithm, "value": checksum.value, "matched": True} if checksum else None,
            proof=proof,
            completed_at=output.completed_at,
            deadline=output.deadline,
            archived_at=datetime.now(UTC),  # not the ledger's time: the bytes stand, whether Redis answers or not
            downloads=downloads,
            job=output.job,
        )
    )
