"""Proof of completeness: vendor inventory − receipts − explained losses = nothing; fixity of what is kept; rebuild.

An audit changes nothing. It lists each vendor, each receipt and each object, and asks the ledger only what it says of an
output that has no receipt. `proving` writes results down and runs what is scheduled.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from worker.daemon import Daemon
from worker.discover import Discovery, discover
from worker.errors import ArchiveUnavailableError, HeldError, LastcallError, StoppedError, VendorUnavailableError
from worker.keeper import Keeper
from worker.ledger import Record
from worker.model import Job, JobState, JsonObject, Output, OutputId, OutputState, Receipt, timestamp
from worker.recovery import mark_of, open_epoch, reclaim, recount, recover

log = structlog.get_logger()
_T = TypeVar("_T")
_U = TypeVar("_U")

_READERS = 8
_READ_TOGETHER = 200
_CLOCKS_DIFFER = timedelta(days=1)  # the bucket's clock, which says when a receipt was written, and the vendor's
_S3_MAY_BE_AWAY_SECONDS = 600.0
_SLOWEST_READING = 2**20  # bytes a second
EXCEPTIONS = ("missing", "damaged", "held", "lost")  # what makes the answer bad news


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The outputs that an audit is about: completed from `since` on, and before `until`. None is open on that side."""

    since: datetime | None = None
    until: datetime | None = None

    def holds(self, completed_at: datetime | None) -> bool:
        """Whether an output completed then is in it."""
        if completed_at is None:
            return False
        return (self.since is None or completed_at >= self.since) and (self.until is None or completed_at < self.until)

    @property
    def whole(self) -> bool:
        """Whether it holds everything."""
        return self.since is None and self.until is None

    def to_json(self) -> JsonObject | None:
        """Give its bounds; None for everything."""
        bounds = {"since": self.since, "until": self.until}
        return None if self.whole else {name: timestamp(at) if at else None for name, at in bounds.items()}


ALL = Window()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One output that an audit has something to say about."""

    output: OutputId
    why: str
    deadline: str | None = None

    def to_json(self) -> JsonObject:
        """Give the row of ``audit --json``."""
        return {"id": str(self.output), "why": self.why, "deadline": self.deadline}


@dataclass(slots=True, kw_only=True)
class SourceAudit:
    """What an audit found at one source. `error`: the vendor or the bucket could not be asked, so nothing is proved."""

    source: str
    listed: int = 0
    receipts: int = 0
    archived: int = 0
    empty: int = 0
    pending: list[Finding] = field(default_factory=list)
    missing: list[Finding] = field(default_factory=list)
    damaged: list[Finding] = field(default_factory=list)
    held: list[Finding] = field(default_factory=list)
    lost: list[Finding] = field(default_factory=list)
    explained: list[Finding] = field(default_factory=list)
    error: str | None = None

    @property
    def bad(self) -> bool:
        """Whether the answer is bad news."""
        return bool(self.missing or self.damaged or self.held or self.lost or self.error)

    def to_json(self) -> JsonObject:
        """Give the source's part of ``audit --json``: counts, and every exception listed."""
        lists = ("pending", *EXCEPTIONS, "explained")
        return {
            "listed": self.listed,
            "receipts": self.receipts,
            "archived": self.archived,
            "empty": self.empty,
            **{name: len(getattr(self, name)) for name in lists},
            "exceptions": {name: [finding.to_json() for finding in getattr(self, name)] for name in lists},
            "error": self.error,
            "ok": not self.bad,
        }


Listing = Callable[[Callable[[Job], None]], None]


def audit(daemon: Daemon, source: str, window: Window = ALL) -> SourceAudit:
    """Prove that every output which `source` offers is archived, pending, or explained, and that what is kept is as it was.

    Lists the vendor out of turn and changes nothing.
    """

    def listing(seen: Callable[[Job], None]) -> None:
        since = daemon.ledger.now() - daemon.settings.sources[source].retention - timedelta(days=1)
        for job in daemon.sources[source].jobs(since):
            seen(job)

    return _audit(daemon, source, window, listing)


def audit_with_poll(daemon: Daemon, source: str, window: Window = ALL) -> SourceAudit:
    """The same, but the inventory is what the source's next poll lists: no listing out of turn, and what was completed a moment
    ago is no exception, since that poll tells the ledger of it.
    """

    def listing(seen: Callable[[Job], None]) -> None:
        patience = 2 * daemon.settings.sources[source].poll_every + daemon.settings.worker.lease
        found = discover(daemon, source, patience=patience, seen=seen)
        if daemon.keeper.stopping:
            raise StoppedError("the process is stopping")
        if found is None:
            raise VendorUnavailableError("it is paused, or is being listed all the time")
        if found.result != "ok":
            raise VendorUnavailableError(f"its listing ended as {found.result}: {found.error}")

    return _audit(daemon, source, window, listing)


def _audit(daemon: Daemon, source: str, window: Window, listing: Listing) -> SourceAudit:
    found = SourceAudit(source=source)
    try:
        kept, unexplained = _check_receipts(daemon, source, window, found)
        listed = _check_inventory(daemon, listing, window, kept, found)
        judged = kept | listed
        _check_ledger(daemon, source, window, judged, found)
        for output in _strays(daemon, source, window, unexplained) if unexplained else ():
            if mark_of(output.id) not in judged:
                _judge_stray(daemon, output, found)
    except StoppedError:
        raise
    except LastcallError as exc:
        found.error = str(exc)
    return found


def _check_receipts(daemon: Daemon, source: str, window: Window, found: SourceAudit) -> tuple[set[bytes], set[bytes]]:
    """Compare each object with its receipt; gives the marks of the outputs that have one, and of the objects that no receipt is
    about.
    """
    objects = {
        mark_of(*entry) for entry in daemon.keeper.unless_stopping(daemon.archive.inventory(source, window.since, window.until))
    }
    kept: set[bytes] = set()
    # A receipt is written after its output was completed, so one that was written earlier is not in the window.
    written_since = window.since - _CLOCKS_DIFFER if window.since else None
    receipts = _together(lambda output: _read_receipt(daemon, output), daemon.archive.receipts(source, written_since))
    for output, receipt in daemon.keeper.unless_stopping(receipts):
        kept.add(mark_of(output))
        mark = mark_of(receipt.key, receipt.size, receipt.etag) if receipt else b""
        stands = mark in objects
        objects.discard(mark)
        if receipt is not None and not window.holds(receipt.completed_at):
            continue
        found.receipts += 1
        if receipt is None:
            found.damaged.append(Finding(output=output, why="its receipt cannot be read any more"))
        elif not stands and (why := _difference(daemon, receipt)):
            found.damaged.append(Finding(output=output, why=why, deadline=timestamp(receipt.deadline)))
    return kept, objects


def _difference(daemon: Daemon, receipt: Receipt) -> str | None:
    """Say how the object differs from its receipt; None when it does not, since it was archived after the listing."""
    stands = daemon.archive.stands(receipt.key)
    if stands is None:
        return f"no object at {receipt.key}"
    if stands == (receipt.size, receipt.etag):
        return None
    return f"the object has {stands[0]:,} bytes, etag {stands[1]}; its receipt says {receipt.size:,} bytes, etag {receipt.etag}"


def _read_receipt(daemon: Daemon, output: OutputId) -> tuple[OutputId, Receipt | None]:
    try:
        return output, daemon.archive.receipt(output)
    except HeldError:
        return output, None


def _together(read: Callable[[_T], _U], items: Iterable[_T], readers: int = _READERS) -> Iterator[_U]:
    """Read many, some at once and never more in memory than a few hundred; in order."""
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=readers) as pool:
        while batch := list(itertools.islice(iterator, _READ_TOGETHER)):
            yield from pool.map(read, batch)


def _check_inventory(daemon: Daemon, listing: Listing, window: Window, kept: set[bytes], found: SourceAudit) -> set[bytes]:
    """Ask the vendor what exists; what has no receipt must have a good reason. Gives the marks of what it listed."""
    listed: set[bytes] = set()
    without: list[Output] = []

    def seen(job: Job) -> None:
        if job.state is JobState.COMPLETED and not job.outputs and (window.whole or window.holds(job.completed_at)):
            found.empty += 1
        for output in job.outputs:
            mark = mark_of(output.id)
            if mark in listed or not window.holds(output.completed_at):
                continue
            listed.add(mark)
            found.listed += 1
            if mark in kept:
                found.archived += 1
            else:
                without.append(output)

    listing(seen)
    for output in without:
        _judge(daemon, output, daemon.ledger.record(output.id), found)
    return listed


def _check_ledger(daemon: Daemon, source: str, window: Window, known: set[bytes], found: SourceAudit) -> None:
    """Judge as well what the vendor lists no more, but the ledger still knows as not archived."""
    for state in (OutputState.OWED, OutputState.CLAIMED, OutputState.HELD, OutputState.LOST):
        for record in daemon.ledger.records(source, state):
            if mark_of(record.output.id) not in known and window.holds(record.output.completed_at):
                _judge(daemon, record.output, record, found)


def _strays(daemon: Daemon, source: str, window: Window, unexplained: set[bytes]) -> Iterator[Output]:
    """Give the outputs of the window whose object is one of the `unexplained`, and is ours."""
    inventory = daemon.keeper.unless_stopping(daemon.archive.inventory(source, window.since, window.until))
    keys = (entry[0] for entry in inventory if mark_of(*entry) in unexplained)
    for output in _together(daemon.archive.marked, keys):
        if output is not None and window.holds(output.completed_at):
            yield output


def _judge_stray(daemon: Daemon, output: Output, found: SourceAudit) -> None:
    """Name an output whose object stands without a receipt, unless the ledger knows of it, or the receipt has come."""
    record = daemon.ledger.record(output.id)
    known = record is not None and record.state is not OutputState.ARCHIVED
    if not known and daemon.archive.receipt(output.id) is None:
        why = "its object stands, its receipt does not; `lastcall rebuild` has it written"
        found.missing.append(Finding(output=output.id, why=why, deadline=timestamp(output.deadline)))


def _judge(daemon: Daemon, output: Output, record: Record | None, found: SourceAudit) -> None:
    """Say what an output without a receipt is (CONTRACT section 4)."""
    with suppress(HeldError):  # ids of which no key can be made have no receipt
        if daemon.archive.receipt(output.id):
            found.archived += 1  # archived since the receipts were listed
            return

    def finding(why: str) -> Finding:
        return Finding(output=output.id, why=why, deadline=timestamp(output.deadline))

    match record.state if record else None:
        case None:
            found.missing.append(finding("the vendor lists it, the ledger does not know it; `lastcall poll`"))
        case OutputState.ARCHIVED:
            found.missing.append(finding("the ledger says archived, but its receipt is not there; `lastcall rebuild`"))
        case OutputState.LOST if record and record.acknowledged:
            found.explained.append(finding(record.acknowledged))
        case OutputState.LOST:
            found.lost.append(finding((record and record.last_error) or "lost"))
        case OutputState.HELD:
            found.held.append(finding((record and record.last_error) or "held"))
        case OutputState.EMPTY:
            found.empty += 1
        case _ if output.deadline <= daemon.ledger.now():
            found.missing.append(finding((record and record.last_error) or "not archived, and its deadline has passed"))
        case _:
            found.pending.append(finding((record and record.last_error) or "waiting for its turn"))


@dataclass(slots=True, kw_only=True)
class Verification:
    """What reading back found: `checked` objects of `bytes` together, `damaged` ones; `by_source` has (checked, damaged)."""

    checked: int = 0
    bytes: int = 0
    damaged: list[Finding] = field(default_factory=list)
    by_source: dict[str, list[int]] = field(default_factory=dict)

    def note(self, output: OutputId, size: int, finding: Finding | None) -> None:
        """Count one object."""
        row = self.by_source.setdefault(output.source, [0, 0])
        self.checked += 1
        self.bytes += size
        row[0] += 1
        if finding:
            self.damaged.append(finding)
            row[1] += 1

    def to_json(self) -> JsonObject:
        """Give the document of ``verify --json``."""
        return {
            "checked": self.checked,
            "bytes": self.bytes,
            "damaged": [finding.to_json() for finding in self.damaged],
            "sources": {name: {"checked": checked, "damaged": damaged} for name, (checked, damaged) in self.by_source.items()},
            "ok": not self.damaged,
        }


class _Reading:
    """The lease of reading one object back: a stop ends it at once, and so does an S3 that is away for too long."""

    def __init__(self, keeper: Keeper, size: int) -> None:
        self._keeper = keeper
        self._end = time.monotonic() + _S3_MAY_BE_AWAY_SECONDS + size / _SLOWEST_READING

    def check(self) -> None:
        """Return while it may go on."""
        if self._keeper.stopping:
            raise StoppedError("the process is stopping")
        if time.monotonic() > self._end:
            raise ArchiveUnavailableError("S3 is away, or too slow to read an object back; what was read so far proves nothing")


def verify(daemon: Daemon, sources: Iterable[str], sample: int | None) -> Verification:
    """Read objects back and hash them against their receipts: all of them, or `sample` chosen at random."""
    outputs: Iterable[OutputId] = itertools.chain.from_iterable(daemon.archive.receipts(source) for source in sources)
    if sample is not None:
        outputs = _chosen(daemon.keeper.unless_stopping(outputs), sample)
    done = Verification()
    # Hashing and reading: one core each.
    for output, size, finding in _together(lambda output: _verify_one(daemon, output), outputs, readers=2):
        done.note(output, size, finding)
    return done


def _chosen(outputs: Iterable[OutputId], sample: int) -> list[OutputId]:
    """Choose `sample` at random, each with the same chance, without holding all of them."""
    chosen: list[OutputId] = []
    for number, output in enumerate(outputs):
        if len(chosen) < sample:
            chosen.append(output)
        elif (place := random.randrange(number + 1)) < sample:
            chosen[place] = output
    return chosen


def _verify_one(daemon: Daemon, output: OutputId) -> tuple[OutputId, int, Finding | None]:
    size = 0
    try:
        receipt = daemon.archive.receipt(output)
        if receipt is None:
            return output, size, Finding(output=output, why="its receipt is gone")
        size, digests = daemon.archive.read_back(receipt.key, ("sha256",), _Reading(daemon.keeper, receipt.size))
    except HeldError as exc:
        return output, size, Finding(output=output, why=str(exc))
    if (size, digests["sha256"]) == (receipt.size, receipt.sha256):
        return output, size, None
    why = f"{size:,} bytes, sha256 {digests['sha256']}; its receipt says {receipt.size:,} bytes, sha256 {receipt.sha256}"
    return output, size, Finding(output=output, why=why)


def rebuild(daemon: Daemon) -> list[Discovery]:
    """Make the ledger again from the bucket and the vendors alone, as if Redis had been emptied. Workers may go on running."""
    daemon.ledger.clear()
    open_epoch(daemon)
    found = []
    for source in daemon.sources:
        if epoch := recover(daemon, source):
            recount(daemon, source, epoch)
        listing = discover(daemon, source, by_hand=True)
        reclaim(daemon, source)
        found.append(listing or Discovery(source, result="busy", error="a worker lists it just now"))
    return found
