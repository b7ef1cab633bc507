"""Proof of completeness: vendor inventory − receipts − explained losses = nothing; fixity of what is kept; rebuild.

An audit changes nothing but that it writes down its result. It lists each vendor, each receipt and each object, and asks the
ledger only what it says of an output that has no receipt.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from worker.daemon import Daemon
from worker.discover import Discovery, discover
from worker.errors import HeldError, LastcallError
from worker.ledger import Record
from worker.model import JobState, JsonObject, Output, OutputId, OutputState, Receipt, timestamp
from worker.recovery import open_epoch, recover

log = structlog.get_logger()

_READERS = 8


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
        lists = ("pending", "missing", "damaged", "held", "lost", "explained")
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


def audit(daemon: Daemon, source: str) -> SourceAudit:
    """Prove that every output which `source` offers is archived, pending, or explained, and that what is kept is as it was."""
    found = SourceAudit(source=source)
    try:
        kept = _check_receipts(daemon, source, found)
        listed = _check_inventory(daemon, source, kept, found)
        _check_ledger(daemon, source, kept, listed, found)
    except LastcallError as exc:
        found.error = str(exc)
    return found


def record(daemon: Daemon, found: Mapping[str, SourceAudit]) -> None:
    """Write the audit's counts to the bucket, so that what was proved and when does not depend on who looked."""
    counts = {name: {key: value for key, value in row.to_json().items() if key != "exceptions"} for name, row in found.items()}
    daemon.archive.write_event(
        "audit", (), {"ok": not any(row.bad for row in found.values()), "sources": counts}, datetime.now(UTC)
    )


def _check_receipts(daemon: Daemon, source: str, found: SourceAudit) -> set[OutputId]:
    """Compare each object with its receipt; gives the outputs that have one."""
    objects = {key: (size, etag) for key, size, etag in daemon.archive.inventory(source)}
    kept: set[OutputId] = set()
    for output, receipt in _read_receipts(daemon, daemon.archive.receipts(source)):
        kept.add(output)
        found.receipts += 1
        if receipt is None:
            found.damaged.append(Finding(output=output, why="its receipt cannot be read any more"))
            continue
        stands = objects.get(receipt.key)
        if stands is None:
            found.damaged.append(Finding(output=output, why=f"no object at {receipt.key}"))
        elif stands != (receipt.size, receipt.etag):
            found.damaged.append(
                Finding(
                    output=output,
                    why=f"the object has {stands[0]:,} bytes, etag {stands[1]}; its receipt says "
                    f"{receipt.size:,} bytes, etag {receipt.etag}",
                )
            )
    return kept


def _read_receipts(daemon: Daemon, outputs: Iterable[OutputId]) -> Iterator[tuple[OutputId, Receipt | None]]:
    def read(output: OutputId) -> tuple[OutputId, Receipt | None]:
        try:
            return output, daemon.archive.receipt(output)
        except HeldError:
            return output, None

    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        yield from pool.map(read, outputs)


def _check_inventory(daemon: Daemon, source: str, kept: set[OutputId], found: SourceAudit) -> set[OutputId]:
    """Ask the vendor what exists; what has no receipt must have a good reason. Gives what it listed."""
    listed: set[OutputId] = set()
    now = daemon.ledger.now()
    for job in daemon.sources[source].jobs(now - daemon.settings.sources[source].retention - timedelta(days=1)):
        if job.state is JobState.COMPLETED and not job.outputs:
            found.empty += 1
        for output in job.outputs:
            if output.id in listed:
                continue
            listed.add(output.id)
            found.listed += 1
            if output.id in kept:
                found.archived += 1
            else:
                _judge(daemon, output, daemon.ledger.record(output.id), found)
    return listed


def _check_ledger(daemon: Daemon, source: str, kept: set[OutputId], listed: set[OutputId], found: SourceAudit) -> None:
    """Judge as well what the vendor lists no more, but the ledger still knows as not archived."""
    for state in (OutputState.OWED, OutputState.CLAIMED, OutputState.HELD, OutputState.LOST):
        for record in daemon.ledger.records(source, state):
            if record.output.id not in kept and record.output.id not in listed:
                _judge(daemon, record.output, record, found)


def _judge(daemon: Daemon, output: Output, record: Record | None, found: SourceAudit) -> None:
    """Say what an output without a receipt is (CONTRACT section 4)."""
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
    """What reading back found: `checked` objects, `damaged` ones."""

    checked: int = 0
    damaged: list[Finding] = field(default_factory=list)

    def to_json(self) -> JsonObject:
        """Give the document of ``verify --json``."""
        return {"checked": self.checked, "damaged": [finding.to_json() for finding in self.damaged], "ok": not self.damaged}


class _NoLease:
    """Reading back holds nothing, so nothing ends it."""

    def check(self) -> None:
        return


def verify(daemon: Daemon, sources: Iterable[str], sample: int | None) -> Verification:
    """Read objects back and hash them against their receipts: all of them, or `sample` chosen at random."""
    outputs = [output for source in sources for output in daemon.archive.receipts(source)]
    if sample is not None and sample < len(outputs):
        outputs = random.sample(outputs, sample)
    done = Verification()
    with ThreadPoolExecutor(max_workers=2) as pool:  # hashing and reading: one core each
        for finding in pool.map(lambda output: _verify_one(daemon, output), outputs):
            done.checked += 1
            if finding:
                done.damaged.append(finding)
    return done


def _verify_one(daemon: Daemon, output: OutputId) -> Finding | None:
    try:
        receipt = daemon.archive.receipt(output)
        if receipt is None:
            return Finding(output=output, why="its receipt is gone")
        size, digests = daemon.archive.read_back(receipt.key, ("sha256",), _NoLease())
    except HeldError as exc:
        return Finding(output=output, why=str(exc))
    if (size, digests["sha256"]) != (receipt.size, receipt.sha256):
        return Finding(
            output=output,
            why=f"{size:,} bytes, sha256 {digests['sha256']}; its receipt says {receipt.size:,} bytes, sha256 {receipt.sha256}",
        )
    return None


def rebuild(daemon: Daemon) -> list[Discovery]:
    """Make the ledger again from the bucket and the vendors alone, as if Redis had been emptied. Workers may go on running."""
    daemon.ledger.clear()
    open_epoch(daemon)
    found = []
    for source in daemon.sources:
        recover(daemon, source)
        listing = discover(daemon, source, by_hand=True)
        found.append(listing or Discovery(source, result="busy", error="a worker lists it just now"))
    return found
