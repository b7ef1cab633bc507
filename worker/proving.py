"""What is done with proofs: when an audit or a verification is due, who runs it, where its result is kept, who is told.

Results go to a hash-chained record in the bucket (`archive.chain`), their counts to the ledger for metrics, and news among
them to people. A wake-up carries nothing: `prove` runs whatever is due, one after the other, and each is run by one worker
at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from worker.archive import Entry, breaks
from worker.audit import ALL, EXCEPTIONS, Finding, SourceAudit, Verification, Window, audit_with_poll, verify
from worker.daemon import Daemon
from worker.errors import LastcallError, LedgerUnavailableError, StoppedError
from worker.ledger import ProofState
from worker.model import JsonObject, timestamp

log = structlog.get_logger()

VERIFY = "verify"
_TRY_AGAIN = timedelta(minutes=15)
_RECORDS_LOOKED_AT = 200  # when the ledger does not know when a proof last succeeded
_NAMED = 10  # findings that an alert names; the rest is counted
_LATE = 2  # periods without a success


def name_of(source: str) -> str:
    """Name the audit of `source` among the proofs."""
    return f"audit:{source}"


def scheduled(daemon: Daemon) -> dict[str, timedelta]:
    """Which proofs are wanted, and how often."""
    wanted = daemon.settings.audit
    found = {name_of(source): wanted.every for source in daemon.sources} if wanted.every else {}
    return found | ({VERIFY: wanted.verify_every} if wanted.verify_every else {})


# --- running what is due ---------------------------------------------------------------------------------------------


def due(daemon: Daemon) -> list[str]:
    """Which proofs should be run now and are not being run."""
    wanted, now = scheduled(daemon), daemon.ledger.now()
    states = daemon.ledger.proofs(wanted)
    return [
        name for name, every in wanted.items() if _is_due(states[name], every, now) and daemon.ledger.turn_free(_turn(name))
    ]


def _turn(name: str) -> str:
    return f"proving:{name}"


def _is_due(state: ProofState, every: timedelta, now: datetime) -> bool:
    """Whether a period has passed, or nobody knows of one, and a try that failed is long enough ago."""
    began = state.at or state.since
    failed_at = state.tried if state.tried and (began is None or state.tried > began) else None
    if failed_at and now < failed_at + min(every, _TRY_AGAIN):
        return False
    return began is None or now >= began + every


def prove(daemon: Daemon) -> list[str]:
    """Run what is due, until nothing is or the process is asked to stop. Gives what came of it, in an operator's words."""
    results: list[str] = []
    for name in due(daemon):
        if daemon.keeper.stopping:
            break
        turn = daemon.ledger.take_turn(_turn(name))
        if turn is None:
            continue
        try:
            with daemon.keeper.keeping(turn):
                if result := _run(daemon, name):
                    results.append(result)
        except StoppedError:
            break
        finally:
            daemon.ledger.end_turn(turn)
    return results


def _run(daemon: Daemon, name: str) -> str | None:
    """Run one proof whose turn we have, if it still is due. Only `LedgerUnavailableError` and `StoppedError` are raised."""
    every = scheduled(daemon)[name]
    try:
        if not _is_due(_known(daemon, name), every, daemon.ledger.now()):
            return None
        if name == VERIFY:
            done = verify(daemon, daemon.sources, daemon.settings.audit.verify_sample or None)
            record_verification(daemon, done, by="schedule")
            result, error = f"verify: {done.checked} read back, {len(done.damaged)} damaged", ""
        else:
            source = name.removeprefix("audit:")
            period = daemon.settings.audit.window
            window = Window(since=daemon.ledger.now() - period) if period else ALL
            found = audit_with_poll(daemon, source, window)
            if found.error is None:  # else nothing was proved, and it is tried again soon
                record_audit(daemon, {source: found}, window, by="schedule")
            counts = ", ".join(f"{len(getattr(found, kind))} {kind}" for kind in EXCEPTIONS)
            result, error = f"audit of {source}: {found.error or counts}", found.error or ""
    except (LedgerUnavailableError, StoppedError):
        raise
    except LastcallError as exc:
        result, error = f"{name}: {exc}", str(exc)
    if error:
        log.warning("proof failed", proof=name, error=error)
        daemon.ledger.note_proof(name, ProofState(tried=daemon.ledger.now(), error=error))
    return result


def _known(daemon: Daemon, name: str) -> ProofState:
    """How a proof stands. What a ledger made anew does not know is read from the bucket; a proof that never was, is due in one
    period from now.
    """
    state = daemon.ledger.proofs([name])[name]
    if state.at or state.since:
        return state
    last = next(_successes(daemon, name), None) or ProofState(since=daemon.ledger.now())
    daemon.ledger.note_proof(name, last)
    return last


def _successes(daemon: Daemon, name: str) -> Iterator[ProofState]:
    for entry in itertools.islice(daemon.archive.proofs.newest(), _RECORDS_LOOKED_AT):
        try:
            counts = _counts(entry.document or {}).get(name)
        except (AttributeError, KeyError, TypeError):  # not what we wrote; `audit --history` says so
            continue
        if entry.at and counts is not None:
            yield ProofState(at=entry.at, counts=counts)


def _counts(document: JsonObject) -> dict[str, dict[str, int]]:
    """Give what a record proves for the schedule: by proof, what it found. A window by hand, or a failure, proves nothing."""
    if document.get("proof") == VERIFY:
        return {VERIFY: {"damaged": len(document["damaged"]), "checked": document["checked"]}}
    if document.get("proof") != "audit" or (document["by"] != "schedule" and document["window"]):
        return {}
    rows: JsonObject = document["sources"]
    return {
        name_of(source): {kind: row[kind] for kind in ("archived", "pending", *EXCEPTIONS, "explained")}
        for source, row in rows.items()
        if not row["error"]
    }


# --- what becomes of a result ----------------------------------------------------------------------------------------


def record_audit(daemon: Daemon, found: Mapping[str, SourceAudit], window: Window, *, by: str) -> Entry:
    """Write down what an audit found: counts, and every exception that is bad news or explained."""
    rows = {name: row.to_json() for name, row in found.items()}
    for row in rows.values():
        del row["exceptions"]["pending"]  # the ledger's daily business, and as many as there are outputs
    document = {
        "proof": "audit",
        "by": by,
        "ok": not any(row.bad for row in found.values()),
        "window": window.to_json(),
        "sources": rows,
    }
    entry = _append(daemon, document)
    for name, one in found.items():
        if one.error is None:
            findings = [*one.missing, *one.damaged]
            _tell(daemon, name_of(name), findings, f"audit of {name} found", f"`lastcall audit --source {name}`")
    return entry


def record_verification(daemon: Daemon, done: Verification, *, by: str) -> Entry:
    """Write down what reading back found."""
    entry = _append(daemon, {"proof": VERIFY, "by": by, **done.to_json()})
    if done.damaged:  # a sample without them says nothing of the ones that an earlier one found
        _tell(daemon, VERIFY, done.damaged, "verification found", "`lastcall verify`")
    return entry


def _append(daemon: Daemon, document: JsonObject) -> Entry:
    """Append to the record in the bucket. Ledger and log remember its end, which the record itself cannot prove.

    The bucket is enough: while Redis is away, what it should know is read back later.
    """
    gone, redis_answers = None, True
    try:
        gone = _end_is_gone(daemon)
    except LedgerUnavailableError as exc:
        redis_answers = False
        log.warning("the end of the record cannot be compared, and the ledger is not told", error=str(exc))
    if gone:
        log.error("record of proofs broken", number=gone[0], why=gone[1])
        document["end_was_gone"] = {"number": gone[0], "why": gone[1]}
    entry = daemon.archive.record_proof(document, datetime.now(UTC))
    log.info("proof recorded", number=entry.number, sha256=entry.sha256, proof=document["proof"], ok=document["ok"])
    if not redis_answers:
        return entry
    try:
        if gone:
            daemon.ledger.queue_alert(
                f"the record of audits is broken, at {gone[0]}: {gone[1]}; see `lastcall audit --history`"
            )
        daemon.ledger.note_last_proof(entry.number, entry.sha256)
        for name, counts in _counts(document).items():
            now = daemon.ledger.now()
            daemon.ledger.note_proof(name, ProofState(at=now, tried=now, counts=counts))
    except LedgerUnavailableError as exc:
        log.warning("the ledger was not told of a proof", error=str(exc))
    return entry


def broken(daemon: Daemon, entries: Sequence[Entry]) -> list[tuple[int, str]]:
    """Say where the record is broken, as (number, what is wrong): what it shows itself, what was noted in it when it was
    written, and what the ledger remembers of its end.
    """
    found = breaks(entries)
    for entry in entries:
        if (gone := (entry.document or {}).get("end_was_gone")) and set(gone) == {"number", "why"}:
            found.append((gone["number"], f"{gone['why']}, says record {entry.number}"))
    try:
        gone_now = _end_is_gone(daemon)
        found += [gone_now] if gone_now else []
    except LedgerUnavailableError as exc:
        log.warning("the end of the record cannot be compared", error=str(exc))
    return found


def _end_is_gone(daemon: Daemon) -> tuple[int, str] | None:
    """Say whether the last record that the ledger remembers is gone or another one, as (number, what is wrong)."""
    last = daemon.ledger.last_proof()
    if last is None:
        return None
    number, sha256 = last
    standing = daemon.archive.proofs.entry(number)
    if standing is None:
        return number, "it was written and is gone"
    return None if standing.sha256 == sha256 else (number, "it is not the one that was written")


def _tell(daemon: Daemon, name: str, findings: list[Finding], what: str, look: str) -> None:
    """Tell people what they were not told yet; each finding once, for as long as it is found."""
    try:
        untold = set(daemon.ledger.untold(name, [str(finding.output) for finding in findings]))
        lines = [f"  {finding.output}: {finding.why}" for finding in findings if str(finding.output) in untold]
        if lines:
            more = [f"  … and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
            text = [f"{what} {len(lines)} missing or damaged: see {look}", *lines[:_NAMED], *more]
            daemon.ledger.queue_alert("\n".join(text))
    except LedgerUnavailableError as exc:
        log.warning("nobody could be told", findings=len(findings), error=str(exc))


def tell_late(daemon: Daemon) -> None:
    """Tell people when a proof has not succeeded for two of its periods; once in each further period."""
    wanted, now = scheduled(daemon), daemon.ledger.now()
    for name, state in daemon.ledger.proofs(wanted).items():
        began, every = state.at or state.since, wanted[name]
        if began and now - began > _LATE * every and daemon.ledger.once(f"late:{name}", every):
            what = "no verification" if name == VERIFY else f"no audit of {name.removeprefix('audit:')}"
            command = "lastcall verify" if name == VERIFY else f"lastcall audit --source {name.removeprefix('audit:')}"
            why = f"; the last try: {state.error}" if state.error else ""
            daemon.ledger.queue_alert(f"{what} has succeeded since {timestamp(began)}{why}; see `{command}`")
