"""Redis: what is owed, claimed, held and lost, and who does what now. Losing it costs repeated listing, never data.

Everything that must be atomic is in ``ledger.lua``; here are its callers, and the reading side (status, outputs, metrics).
"""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar

from worker.documents import Documents
from worker.errors import LeaseLostError, OutputGoneError
from worker.keyspace import PREFIX, Keyspace, epoch_seconds, instant
from worker.model import JsonObject, Output, OutputId, OutputState, parse_timestamp, timestamp
from worker.shared import SharedState, hushed_error

_T = TypeVar("_T")

_WORKER_ALIVE_SECONDS = 15.0
_BEAT_WITHIN = timedelta(seconds=15)
_MOST_ALERTS = 200
_ALL = "*"  # the pause of everything: the bucket refuses us


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One output leased to this worker. `recheck`: it may not be the first attempt, so look for a receipt and an object first.

    `probe`: the output is lost and is asked for once more, because the vendor still lists it. `asked_at`: by the monotonic
    clock; the lease began no sooner.
    """

    output: Output
    fence: str
    attempts: int
    downloads: int
    ready_at: datetime
    recheck: bool = False
    probe: bool = False
    asked_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the ledger knows of one output. `history`: (when, what), oldest first."""

    output: Output
    state: OutputState
    attempts: int
    downloads: int
    not_before: datetime | None
    last_error: str | None
    key: str | None
    reason: str | None
    acknowledged: str | None
    worker: str | None
    discovered_at: datetime
    history: tuple[tuple[datetime, str], ...] = ()

    def to_json(self) -> JsonObject:
        """Give the row of ``outputs --json`` (CONTRACT section 3)."""
        return {
            "id": str(self.output.id),
            "source": self.output.id.source,
            "job_id": self.output.id.job_id,
            "output_id": self.output.id.output_id,
            "filename": self.output.filename,
            "state": str(self.state),
            "deadline": timestamp(self.output.deadline),
            "attempts": self.attempts,
            "downloads": self.downloads,
            "not_before": timestamp(self.not_before) if self.not_before else None,
            "last_error": self.last_error,
            "key": self.key,
            "reason": self.reason,
            "acknowledged": self.acknowledged,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What people should be told of one output. `trouble`: ``lost held overdue "at risk"``, or ``""``: it is well again."""

    output: OutputId
    trouble: str
    before: str
    record: Record | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """One source's row of ``status`` (CONTRACT section 3). `lost` counts losses that are not acknowledged."""

    owed: int
    claimed: int
    archived: int
    lost: int
    acknowledged: int
    held: int
    empty: int
    at_risk: int
    overdue: int
    nearest_deadline: datetime | None
    last_poll_at: datetime | None
    last_poll_result: str | None
    last_poll_error: str | None
    paused_until: datetime | None
    paused_why: str | None


@dataclass(frozen=True, slots=True)
class Flow:
    """What was archived in one slot of time: from `begins_at` on, for `Flow.SLOT`."""

    SLOT: ClassVar[timedelta] = timedelta(minutes=10)  # as ledger.lua counts
    SLOTS: ClassVar[int] = 144

    begins_at: datetime
    outputs: int
    size: int


@dataclass(frozen=True, slots=True)
class Kept:
    """One of the outputs that were archived last. `size` is in bytes."""

    output: OutputId
    key: str
    size: int
    archived_at: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """One output of a backlog, in seconds: its deadline, how long it will take, and when it may begin (0: at once)."""

    deadline: float
    seconds: float
    not_before: float
    claimed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What one source owes. Each of `rows` stands for ``open / len(rows)`` outputs; `measured` were timed before."""

    open: int
    measured: int
    rows: tuple[Waiting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Why nobody calls a source before `until`. `times`: how often in a row; `fingerprint`: of the secret that was refused."""

    until: datetime
    why: str
    times: int
    fingerprint: str


class Ledger:
    """The ledger. Thread-safe; every method may raise `LedgerUnavailableError`, and nothing else from Redis.

    `clock` gives the time in epoch seconds instead of Redis (for simulations).
    """

    def __init__(self, url: str, *, lease: timedelta, worker: str, clock: Callable[[], float] | None = None) -> None:
        self._keys = Keyspace(url, clock=clock)
        self._documents = Documents(self._keys)
        self.lease_seconds = lease.total_seconds()
        self.worker = worker

    def now(self) -> datetime:
        """The ledger's time."""
        return self._keys.now()

    def ping(self) -> None:
        """Return when Redis answers. Says within seconds when it does not, so that a person need not wait."""
        self._keys.ping()

    # --- epochs ------------------------------------------------------------------------------------------------------

    def epoch(self) -> tuple[str, bool]:
        """Give the ledger's epoch, and whether claims are (or will be) given. It is made now if there is none, or if another
        server than the one that began it has the ledger now: that one may have forgotten what its predecessor was told last.
        """
        identity, open_at = self._keys.run("begin", secrets.token_hex(8))
        return str(identity.decode()), bool(open_at)

    def open_epoch(self, epoch: str, delay: timedelta) -> bool:
        """Let claims begin `delay` from now. After a loss that is one lease, so that workers can assert what they hold."""
        return bool(self._keys.run("open", epoch, delay.total_seconds()))

    def claims_given(self) -> bool:
        """Whether claims are given now: not before a new ledger was opened, and not while holders have yet to speak up."""
        with self._keys.calls() as redis:
            open_at = instant(redis.hget(f"{PREFIX}epoch", "open_at"))
        return open_at is not None and open_at <= self.now()

    def clear(self) -> None:
        """Drop everything that is lastcall's own, as FLUSHALL would (for ``rebuild``)."""
        self._keys.run("clear")

    def recovered(self, source: str) -> bool:
        """Whether what the bucket knows of `source` was read back in this epoch, and the count of its receipts is sure."""
        with self._keys.pipeline() as pipe:
            pipe.sismember(PREFIX + "recovered", source)
            pipe.sismember(PREFIX + "recount", source)
            recovered, doubtful = pipe.execute()
        return bool(recovered and not doubtful)

    def mark_recovered(self, source: str, epoch: str) -> bool:
        """Say that what the bucket knows of `source` was read back in `epoch`. False when another one has begun meanwhile."""
        return bool(self._keys.run("recovered", source, epoch))

    def strays_due(self, source: str) -> str | None:
        """Give the epoch in which the objects without receipts are still to be looked for. None when they were, and as long as
        claims are not given: who holds an output says so until then, and may be about to write its receipt.
        """
        with self._keys.pipeline() as pipe:
            pipe.hget(f"{PREFIX}strays", source)
            pipe.hmget(f"{PREFIX}epoch", "id", "open_at")
            done, (epoch, open_at) = pipe.execute()
        opened = instant(open_at)
        if epoch is None or epoch == done or opened is None or opened > self.now():
            return None
        return str(epoch.decode())

    def note_strays(self, source: str, epoch: str) -> None:
        """Write down that they were looked for in `epoch`."""
        with self._keys.calls() as redis:
            redis.hset(f"{PREFIX}strays", source, epoch)

    def count_receipts(self, source: str, outputs: Iterable[OutputId]) -> None:
        """Count the receipts of `source` anew; `outputs` is a listing of the bucket that begins now.

        Those that are archived meanwhile are counted once. The number is shown when all are counted; a count that broke off
        is made good by the next one.
        """
        count = self._keys.run("begin_count", source)
        for batch in _batches(map(str, outputs)):
            self._keys.run("counted", source, count, *batch)
        self._keys.run("end_count", source, count)

    # --- what a listing says -----------------------------------------------------------------------------------------

    def states(self, outputs: Iterable[OutputId]) -> dict[OutputId, OutputState | None]:
        """Give the state of each output, None where the ledger does not know it."""
        wanted = list(outputs)
        with self._keys.pipeline(transaction=False) as pipe:
            for output in wanted:
                pipe.hget(f"{PREFIX}o:{output}", "st")
            found = pipe.execute()
        return {output: OutputState(state.decode()) if state else None for output, state in zip(wanted, found, strict=True)}

    def listed(self, outputs: Iterable[OutputId]) -> dict[OutputId, OutputState | None]:
        """Write down that a listing shows these outputs, and give the state of each, None where the ledger does not know it.

        That is all that an archived one needs; what else is known may have changed, see `owe_all`.
        """
        found: dict[OutputId, OutputState | None] = {}
        for batch in _batches(outputs):
            states = self._keys.run("listed", *map(str, batch))
            found |= {
                output: OutputState(state.decode()) if state else None for output, state in zip(batch, states, strict=True)
            }
        return found

    def owe(self, output: Output, *, recheck: bool) -> str:
        """Write down what a listing shows of one output; see `owe_all`."""
        return self.owe_all([(output, recheck)])[0]

    def owe_all(self, outputs: Iterable[tuple[Output, bool]]) -> list[str]:
        """Write down what a listing shows of each (output, recheck). Gives the states before: ``""`` where it is new.

        An empty one becomes owed; a lost one that is offered still is probed now and then; an archived one is seen again.
        `recheck`: of a new one, that it may have been downloaded before.
        """
        before: list[str] = []
        for batch in _batches(outputs):
            arguments: list[str | bytes | int] = []
            for output, recheck in batch:
                arguments += [*self._documents.facts(output), int(output.gone is None), int(recheck)]
            before += [state.decode() for state in self._keys.run("owe", *arguments)]
        return before

    def reclaim(self, outputs: Iterable[Output]) -> list[str]:
        """Write down that an object stands for each of these and no receipt: what is unknown is owed, what is lost is probed,
        and what else is known stays as it is. Gives the states before: ``""`` where it was unknown.
        """
        before: list[str] = []
        for batch in _batches(outputs):
            arguments = [fact for output in batch for fact in self._documents.facts(output)]
            before += [state.decode() for state in self._keys.run("reclaim", *arguments)]
        return before

    def note_empty(self, output: Output) -> bool:
        """Write down that a job finished and produced nothing. True when that is new."""
        return bool(self._keys.run("note_empty", *self._documents.facts(output)) == b"")

    def adopt(self, output: Output, key: str) -> bool:
        """Write down that a receipt stands already. True when that is new."""
        return bool(self._keys.run("adopt", *self._documents.facts(output), key))

    def known_lost(self, output: Output, reason: str, acknowledged: str | None) -> None:
        """Write down a loss read back from the bucket."""
        self._keys.run("known_lost", *self._documents.facts(output), reason, acknowledged or "")

    def forget(self, source: str, before: datetime) -> int:
        """Drop the records of archived outputs that no listing has shown since `before`."""
        total = 0
        while dropped := int(self._keys.run("forget", source, epoch_seconds(before))):
            total += dropped
        return total

    # --- claims ------------------------------------------------------------------------------------------------------

    def claim(self, slots: Mapping[str, int]) -> Claim | None:
        """Lease the most urgent output that may be claimed now, over all sources of `slots` (source → most at once)."""
        asked_at = time.monotonic()
        return self._claimed(self._keys.run("claim", self.worker, self.lease_seconds, *_flat(slots)), asked_at)

    def _claimed(self, reply: list[bytes], asked_at: float) -> Claim | None:
        if not reply:
            return None
        identity, fence = reply[0].decode(), reply[1].decode()
        fields: dict[bytes, bytes] = dict(zip(reply[4::2], reply[5::2], strict=True))
        output = self._documents.read(identity, fields, reply[2], words=reply[3])
        attempts = int(fields.get(b"at", 0))
        return Claim(
            output=output,
            fence=fence,
            attempts=attempts,
            downloads=int(fields.get(b"dn", 0)),
            ready_at=output.completed_at,
            recheck=attempts > 1 or fields.get(b"rc") == b"1" or fields[b"st"] == b"lost",
            probe=fields[b"st"] == b"lost",
            asked_at=asked_at,
        )

    def wakeups(self, slots: Mapping[str, int], queue: str) -> int:
        """How many messages are missing in `queue`, so that every free slot that could claim something is woken."""
        return int(self._keys.run("wakeups", queue, self.lease_seconds, *_flat(slots)))

    def renew(self, claims: list[tuple[Output, str]]) -> list[str]:
        """Prolong the leases of (output, fence); gives each one's fence, which is new after an epoch, or ``""`` when lost."""
        fences: list[str] = []
        for batch in _batches(claims):
            arguments: list[str | bytes | int] = []
            for output, fence in batch:
                identity, *facts = self._documents.facts(output)
                arguments += [identity, fence, *facts]
            renewed = self._keys.run("renew", secrets.token_hex(8), self.lease_seconds, self.worker, *arguments)
            fences += [fence.decode() for fence in renewed]
        return fences

    def archived(
        self,
        output: OutputId,
        key: str,
        size: int,
        *,
        unproven: bool,
        seconds: float | None = None,
        downloaded: bool = False,
        found: bool = False,
    ) -> bool:
        """Settle: its receipt stands. True when this call counted it.

        `seconds`: from claim to receipt, None where that tells nothing of how long the source's outputs take. `downloaded`:
        a download that went well is counted. `found`: it, or its object, stood before, so it may be counted already.
        """
        counted, _ = self._settle_archived(
            (), output, key, size, unproven=unproven, seconds=seconds, downloaded=downloaded, found=found
        )
        return bool(counted)

    def archived_then_claim(
        self,
        slots: Mapping[str, int],
        output: OutputId,
        key: str,
        size: int,
        *,
        unproven: bool,
        seconds: float | None,
        downloaded: bool,
        found: bool,
    ) -> Claim | None:
        """`archived`, and then `claim`, in one call. With no `slots`, nothing is claimed."""
        asked_at = time.monotonic()
        claim = (self.worker, self.lease_seconds, *_flat(slots)) if slots else ()
        _, claimed = self._settle_archived(
            claim, output, key, size, unproven=unproven, seconds=seconds, downloaded=downloaded, found=found
        )
        return self._claimed(claimed, asked_at)

    def _settle_archived(
        self,
        claim: tuple[str | float, ...],
        output: OutputId,
        key: str,
        size: int,
        *,
        unproven: bool,
        seconds: float | None,
        downloaded: bool,
        found: bool,
    ) -> Any:
        took = "" if seconds is None else seconds
        return self._keys.run("archived", str(output), key, size, int(unproven), took, int(downloaded), int(found), *claim)

    def again(self, output: OutputId, fence: str, not_before: datetime, error: str, *, lost_seconds: float = 0.0) -> bool:
        """Settle: a passing fault; owed again, not before `not_before`. False when the lease is no longer ours.

        `lost_seconds`: how long the source's own fault kept a slot from others; then it yields to them (`rooms` in ledger.lua).
        """
        return bool(self._keys.run("again", str(output), fence, epoch_seconds(not_before), error, round(lost_seconds, 3)))

    def release(self, output: OutputId, fence: str) -> bool:
        """Settle: given back untried. False when the lease is no longer ours."""
        return bool(self._keys.run("again", str(output), fence, 0, "", 0))

    def hold(self, output: OutputId, fence: str, error: str) -> bool:
        """Settle: a person is needed. False when the lease is no longer ours."""
        return bool(self._keys.run("hold", str(output), fence, error))

    def gone(self, output: OutputId, fence: str, error: OutputGoneError) -> bool:
        """Settle an explicit gone answer. True when it makes the output lost: write the event, then call `lose`."""
        verdict = self._keys.run(
            "gone", str(output), fence, error.answers, error.over.total_seconds(), int(error.lost_at_deadline), str(error)
        )
        return int(verdict) == 1

    def other_answer(self, output: OutputId, fence: str) -> None:
        """The vendor answered something else than gone: explicit gone answers are counted anew."""
        self._keys.run("other_answer", str(output), fence)

    def lose(self, output: OutputId, fence: str, reason: str, error: str) -> bool:
        """Settle: lost; its event is in the bucket already. False when the lease is no longer ours."""
        return bool(self._keys.run("lose", str(output), fence, reason, error))

    def spend(self, output: OutputId, fence: str, number: int | None = None) -> int:
        """Count a download that is about to be made; `number` where the vendor counts. Raises `LeaseLostError`, or
        `ThrottledError` where the vendor has asked us to slow down since the output was claimed.
        """
        spent, hushed = self._keys.run("spend", str(output), fence, "" if number is None else number)
        if spent < 0:
            raise LeaseLostError(f"{output}: the lease ended before the download")
        if float(hushed) < 0:
            raise hushed_error(self._keys, output.source, float(hushed))
        return int(spent)

    # --- by hand -----------------------------------------------------------------------------------------------------

    def retry(self, output: OutputId) -> str:
        """Put a held, lost or waiting output back to owed, at once. Gives the state it was in, ``""`` when unknown."""
        before: bytes = self._keys.run("retry", str(output))
        return before.decode()

    def acknowledge(self, output: OutputId, reason: str) -> str:
        """Explain a loss. Gives the state the output is in, ``""`` when unknown."""
        state: bytes = self._keys.run("acknowledge", str(output), reason)
        return state.decode()

    def watch(self, source: str, job_id: str) -> None:
        """Ask for this job at each poll, though no listing shows it."""
        with self._keys.calls() as redis:
            redis.hsetnx(f"{PREFIX}watched:{source}", job_id, timestamp(self.now()))

    def unwatch(self, source: str, job_id: str) -> None:
        """Ask for it no more."""
        with self._keys.calls() as redis:
            redis.hdel(f"{PREFIX}watched:{source}", job_id)

    def watched(self, source: str) -> dict[str, datetime]:
        """The watched jobs of `source`, each with when watching began."""
        with self._keys.calls() as redis:
            found = redis.hgetall(f"{PREFIX}watched:{source}")
        return {job.decode(): parse_timestamp(since.decode()) for job, since in found.items()}

    # --- polls -------------------------------------------------------------------------------------------------------

    def take_poll_turn(
        self, source: str, every: timedelta, *, wait: timedelta | None = None, by_hand: bool = False
    ) -> PollTurn | None:
        """Take the turn to list `source`, or None: listed less than `every` ago (save `by_hand`), or being listed.

        `wait`: until the next turn, counted from this moment; never less than `every` from the first answer.
        """
        token = secrets.token_hex(8)
        wait = wait or every
        taken = self._keys.run("poll_turn", source, token, int(self.lease_seconds * 1000), _interval_ms(wait), int(by_hand))
        if not taken:
            return None
        return PollTurn(name=f"polling:{source}", token=token, source=source, every=every, wait=wait, taken_at=time.monotonic())

    def stamp_poll_turn(self, turn: PollTurn) -> None:
        """The first answer of the listing has come: the interval counts from now, the wait from when the turn was taken."""
        left = max(turn.every, turn.wait - timedelta(seconds=time.monotonic() - turn.taken_at))
        with self._keys.calls() as redis:
            redis.set(f"{PREFIX}polled:{turn.source}", turn.token, px=_interval_ms(left))

    def keep_turn(self, turn: Turn) -> None:
        """Say that what the turn is for goes on. Changes nothing once the turn has ended, or is somebody else's."""
        self._keys.run("keep", turn.name, turn.token, int(self.lease_seconds * 1000))

    def end_poll_turn(self, turn: PollTurn, result: str, detail: JsonObject) -> None:
        """The listing ended. `result`: ``ok`` or one word for the metric; `detail` goes to ``status``."""
        self.end_turn(turn)
        with self._keys.pipeline() as pipe:
            pipe.hset(
                f"{PREFIX}poll:{turn.source}",
                mapping={"at": epoch_seconds(self.now()), "result": result, "detail": json.dumps(detail)},
            )
            pipe.hincrbyfloat(f"{PREFIX}m:polls", f"{turn.source}|{result}", 1)
            pipe.execute()

    def poll_due(self, source: str) -> bool:
        """Whether `take_poll_turn` would give the turn now."""
        with self._keys.calls() as redis:
            return not redis.exists(f"{PREFIX}polled:{source}", f"{PREFIX}polling:{source}")

    def complete_pass(self, source: str, epoch: str, began: datetime) -> datetime | None:
        """Remember that a pass which began then saw the whole window. Gives when the one before it began.

        Changes nothing when `epoch` is over: what the pass wrote is lost, and the next one is the first.
        """
        return instant(self._keys.run("complete_pass", source, epoch, epoch_seconds(began)))

    def is_first_pass(self, source: str) -> bool:
        """Whether no pass of `source` was completed in this epoch: what it finds may have been downloaded before."""
        with self._keys.calls() as redis:
            return not redis.hexists(f"{PREFIX}pass", source)

    def note_running(self, source: str, jobs: set[str]) -> dict[str, datetime]:
        """Say which jobs of `source` run now; gives since when each does. Those that are not named run no more."""
        name = f"{PREFIX}running:{source}"
        now = self.now()
        since = {job: first for job, (first, _) in self.running(source).items()}
        with self._keys.pipeline() as pipe:
            if ended := since.keys() - jobs:
                pipe.hdel(name, *ended)
            if jobs:
                pipe.hset(name, mapping={job: f"{epoch_seconds(since.get(job, now))} {epoch_seconds(now)}" for job in jobs})
                pipe.set(f"{PREFIX}busy:{source}", epoch_seconds(now))
            pipe.execute()
        return {job: since.get(job, now) for job in jobs}

    def running(self, source: str) -> dict[str, tuple[datetime, datetime]]:
        """Give the jobs of `source` that ran when they were last asked for: since when, and when that was."""
        with self._keys.calls() as redis:
            found = redis.hgetall(f"{PREFIX}running:{source}")
        spans = {job.decode(): [float(at) for at in seen.split()] for job, seen in found.items()}
        return {
            job: (datetime.fromtimestamp(seen[0], UTC), datetime.fromtimestamp(seen[-1], UTC)) for job, seen in spans.items()
        }

    def note_run(self, source: str, job: str, since: datetime, *, ended: bool) -> None:
        """Say of one job, outside a listing, that it runs still, or no more."""
        with self._keys.calls() as redis:
            if ended:
                redis.hdel(f"{PREFIX}running:{source}", job)
            else:
                redis.hset(f"{PREFIX}running:{source}", job, f"{epoch_seconds(since)} {epoch_seconds(self.now())}")

    def learn_runs(self, source: str, seconds: list[float], most: int) -> list[float]:
        """Remember how long jobs ran; gives the last `most`, the newest last."""
        name = f"{PREFIX}ran:{source}"
        with self._keys.calls() as redis:
            known = [float(run) for run in (redis.get(name) or b"").split()]
            runs = [*known, *seconds][-most:]
            if seconds:
                redis.set(name, " ".join(f"{run:.1f}" for run in runs))
        return runs

    def plan_looks(self, source: str, looks: list[tuple[str, datetime]]) -> None:
        """Plan which running jobs are asked for before the next listing, and when; what was planned before is off."""
        with self._keys.pipeline() as pipe:
            pipe.delete(f"{PREFIX}looks:{source}")
            if looks:
                plan = {f"{number} {job}": at.timestamp() for number, (job, at) in enumerate(looks)}
                pipe.zadd(f"{PREFIX}looks:{source}", plan)
            pipe.execute()

    def looks_due(self, sources: Iterable[str]) -> list[str]:
        """Give the sources of which `take_looks` would give jobs now."""
        return [source.decode() for source in self._keys.run("looks_due", *sources)]

    def take_looks(self, source: str) -> list[str]:
        """Take the jobs that are to be asked for now; nobody else gets them."""
        return list(dict.fromkeys(job.decode() for job in self._keys.run("take_looks", source)))

    def note_busy(self, source: str) -> None:
        """Something new came."""
        with self._keys.calls() as redis:
            redis.set(f"{PREFIX}busy:{source}", epoch_seconds(self.now()))

    def quiet(self, source: str) -> timedelta:
        """For how long nothing ran and nothing new came, as far as this ledger remembers."""
        now = self.now()
        with self._keys.calls() as redis:
            busy_at = instant(redis.get(f"{PREFIX}busy:{source}"))
            if busy_at is None:
                redis.set(f"{PREFIX}busy:{source}", epoch_seconds(now))
        return now - busy_at if busy_at else timedelta(0)

    # --- proofs ------------------------------------------------------------------------------------------------------

    def take_turn(self, name: str) -> Turn | None:
        """Take the turn `name`, or None: another worker has it."""
        turn = Turn(name=name, token=secrets.token_hex(8))
        return turn if self._keys.run("take", turn.name, turn.token, int(self.lease_seconds * 1000)) else None

    def end_turn(self, turn: Turn) -> None:
        """Give the turn back, unless it ended by itself and is somebody else's now."""
        self._keys.run("drop", turn.name, turn.token)

    def turn_free(self, name: str) -> bool:
        """Whether `take_turn` would give it now."""
        with self._keys.calls() as redis:
            return not redis.exists(PREFIX + name)

    def proofs(self, names: Iterable[str]) -> dict[str, ProofState]:
        """What is known of each of these proofs, in one round trip."""
        wanted = list(names)
        with self._keys.pipeline(transaction=False) as pipe:
            for name in wanted:
                pipe.hgetall(f"{PREFIX}proof:{name}")
            found = pipe.execute()
        return {name: _proof_state(fields) for name, fields in zip(wanted, found, strict=True)}

    def note_proof(self, name: str, state: ProofState) -> None:
        """Remember how a proof stands; what `state` does not set stays as it was."""
        fields: dict[str, str] = {key: epoch_seconds(at) for key in ("at", "since", "tried") if (at := getattr(state, key))}
        fields["error"] = state.error
        if state.at:
            fields["counts"] = json.dumps(dict(state.counts))
        with self._keys.calls() as redis:
            redis.hset(f"{PREFIX}proof:{name}", mapping=fields)

    def untold(self, name: str, findings: Iterable[str]) -> list[str]:
        """Give those of `findings` that were not among the last ones of this name."""
        told, found = f"{PREFIX}proof-told:{name}", list(dict.fromkeys(findings))
        with self._keys.calls() as redis:
            before = {finding.decode() for finding in redis.smembers(told)}
            with redis.pipeline() as pipe:
                for batch in _batches(before.difference(found)):
                    pipe.srem(told, *batch)
                for batch in _batches(found):
                    pipe.sadd(told, *batch)
                pipe.execute()
        return [finding for finding in found if finding not in before]

    def note_last_proof(self, number: int, sha256: str) -> None:
        """Remember the end of the record of proofs, which the record itself cannot prove."""
        with self._keys.calls() as redis:
            redis.hset(f"{PREFIX}proofs", mapping={"number": number, "sha256": sha256})

    def last_proof(self) -> tuple[int, str] | None:
        """Number and hash of the last record that was written."""
        with self._keys.calls() as redis:
            number, sha256 = redis.hmget(f"{PREFIX}proofs", "number", "sha256")
        return (int(number), sha256.decode()) if number and sha256 else None

    # --- pauses ------------------------------------------------------------------------------------------------------

    def pause(self, source: str | None, until: datetime, why: str, *, times: int, fingerprint: str) -> bool:
        """Let nobody call `source` (None: anybody) before `until`. True when it was not paused already."""
        name = f"{PREFIX}pause:{source or _ALL}"
        with self._keys.pipeline() as pipe:
            pipe.exists(name)
            pipe.hset(name, mapping={"until": epoch_seconds(until), "why": why, "times": times, "fingerprint": fingerprint})
            existed, _ = pipe.execute()
        return not existed

    def paused(self, source: str | None) -> Pause | None:
        """The pause of `source` (None: of everything), also when its time is up: `times` goes on until `resume`."""
        with self._keys.calls() as redis:
            found = redis.hgetall(f"{PREFIX}pause:{source or _ALL}")
        if not found:
            return None
        until = instant(found[b"until"])
        assert until is not None  # noqa: S101 - `pause` always writes it
        return Pause(
            until=until,
            why=found[b"why"].decode(),
            times=int(found[b"times"]),
            fingerprint=found[b"fingerprint"].decode(),
        )

    def resume(self, source: str | None) -> bool:
        """End the pause of `source` (None: of everything). True when there was one."""
        with self._keys.calls() as redis:
            return bool(redis.delete(f"{PREFIX}pause:{source or _ALL}"))

    # --- heartbeats --------------------------------------------------------------------------------------------------

    def stamp_worker(self, slots: int) -> datetime:
        """This worker process is alive and can collect `slots` outputs at once. Gives the ledger's time."""
        return datetime.fromtimestamp(float(self._keys.run("alive", self.worker, slots, self.lease_seconds)), UTC)

    def disown(self, sources: Iterable[str], held: Iterable[OutputId], before: datetime) -> list[OutputId]:
        """Give back what this worker has claimed of `sources` before then and does not hold, since the ledger's answer never
        came, or could not be given what came of it. Gives what that was. `held`: all that it holds, by now.
        """
        names = list(sources)
        mine = (str(output) for output in held)
        ended = self._keys.run("disown", self.worker, self.lease_seconds, epoch_seconds(before), len(names), *names, *mine)
        return [OutputId.parse(identity.decode()) for identity in ended]

    def sign_off(self) -> None:
        """This worker process has ended."""
        with self._keys.pipeline() as pipe:
            pipe.zrem(f"{PREFIX}workers", self.worker)
            pipe.hdel(f"{PREFIX}slots", self.worker)
            pipe.execute()

    def stamp_beat(self) -> None:
        """A beat ticked."""
        self._keys.run("ticked", self.lease_seconds)

    def trim_queue(self, queue: str, most: int) -> None:
        """Keep the newest `most` messages of a Celery queue."""
        with self._keys.calls() as redis:
            redis.ltrim(queue, 0, most - 1)

    def beat_at(self) -> datetime | None:
        """When a beat last ticked."""
        with self._keys.calls() as redis:
            return instant(redis.get(f"{PREFIX}beat"))

    def workers(self) -> list[str]:
        """The worker processes that are alive."""
        oldest = self.now().timestamp() - _WORKER_ALIVE_SECONDS
        with self._keys.calls() as redis:
            dead = redis.zrangebyscore(f"{PREFIX}workers", "-inf", oldest - 3600)
            if dead:
                redis.zrem(f"{PREFIX}workers", *dead)
                redis.hdel(f"{PREFIX}slots", *dead)
            return [name.decode() for name in redis.zrangebyscore(f"{PREFIX}workers", oldest, "+inf")]

    def missing_processes(self) -> list[str]:
        """Say which processes should run and do not, each with what to do."""
        now, beat_at = self.now(), self.beat_at()
        missing = []
        if beat_at is None:
            missing.append("no beat has ticked yet; start `lastcall beat`")
        elif now - beat_at > _BEAT_WITHIN:
            missing.append(f"no beat ticked since {timestamp(beat_at)}; start `lastcall beat`")
        if not self.workers():
            missing.append("no worker is alive; start `lastcall worker`")
        return missing

    def works(self) -> bool:
        """Whether outputs can be collected now, as far as the ledger knows: a beat ticks, a worker is alive, claims are given,
        and the bucket has not refused us since it last took something.
        """
        return not self.missing_processes() and self.claims_given() and self.paused(None) is None

    def capacity(self) -> int:
        """How many outputs the living workers can collect at once."""
        workers = self.workers()
        with self._keys.calls() as redis:
            return sum(int(slots or 0) for slots in redis.hmget(f"{PREFIX}slots", workers)) if workers else 0

    def once(self, name: str, life: timedelta) -> bool:
        """True for the first caller within `life`."""
        with self._keys.calls() as redis:
            return bool(redis.set(f"{PREFIX}once:{name}", "1", nx=True, px=int(life.total_seconds() * 1000)))

    def tell(self, sources: Iterable[str], at_risk: timedelta) -> list[Change]:
        """Give what people were not told yet: outputs that became lost, held, overdue or at risk, or well again. Each once."""
        found = self._keys.run("tell", at_risk.total_seconds(), *sources)
        changes = [tuple(part.decode() for part in change) for change in found]
        records = {identity: self.record(OutputId.parse(identity)) for identity, _, _ in changes}
        return [Change(output=OutputId.parse(one), trouble=now, before=was, record=records[one]) for one, now, was in changes]

    def queue_alert(self, text: str) -> None:
        """Queue an alert for the next message to people."""
        with self._keys.pipeline() as pipe:
            pipe.rpush(f"{PREFIX}alerts", text)
            pipe.ltrim(f"{PREFIX}alerts", -_MOST_ALERTS, -1)
            pipe.execute()

    def take_alerts(self) -> list[str]:
        """Take all queued alerts."""
        with self._keys.calls() as redis:
            return [text.decode() for text in redis.lpop(f"{PREFIX}alerts", _MOST_ALERTS) or []]

    # --- reading -----------------------------------------------------------------------------------------------------

    def record(self, output: OutputId) -> Record | None:
        """What the ledger knows of one output."""
        return next(self._records(output.source, [str(output)]), None)

    def records(self, source: str, state: OutputState | None = None, most: int | None = None) -> Iterator[Record]:
        """What the ledger knows of the outputs of `source`, those that may still be archived first, most urgent first.

        `most`: of each index no more than so many are looked at (owed and claimed ones share one).
        """
        sets = {
            OutputState.OWED: ("open",),
            OutputState.CLAIMED: ("claimed",),
            OutputState.HELD: ("held",),
            OutputState.LOST: ("lost", "explained"),
            OutputState.EMPTY: ("empty",),
            OutputState.ARCHIVED: ("archived",),
        }
        names = sets[state] if state else ("open", "held", "lost", "explained", "empty", "archived")
        # All at once: outputs go on changing their states, so pages of an index would leave some out and show others twice.
        with self._keys.pipeline() as pipe:
            for name in names:
                pipe.zrange(f"{PREFIX}{name}:{source}", 0, -1 if most is None else most - 1)
            indexes = pipe.execute()
        for page in _batches(identity.decode() for index in indexes for identity in index):
            yield from (record for record in self._records(source, page) if state in {None, record.state})

    def _records(self, source: str, identities: list[str]) -> Iterator[Record]:
        """Read the records of `identities`; those that are gone meanwhile are left out."""
        with self._keys.pipeline() as pipe:
            pipe.hmget(f"{PREFIX}doc:{source}", identities)
            for identity in identities:
                pipe.hgetall(f"{PREFIX}o:{identity}")
            documents, *found = pipe.execute()
        for identity, fields, packed in zip(identities, found, documents, strict=True):
            if fields:
                yield _record(fields, self._documents.read(identity, fields, packed))

    def status(self, source: str, at_risk: timedelta) -> SourceStatus:
        """One source's row of ``status``. One round trip, whatever the backlog."""
        now = self.now()
        with self._keys.pipeline() as pipe:
            for name in ("owed", "later", "open", "lost", "explained", "held", "empty"):
                pipe.zcard(f"{PREFIX}{name}:{source}")
            pipe.get(f"{PREFIX}count:{source}")
            pipe.zrange(f"{PREFIX}open:{source}", 0, 0, withscores=True)
            pipe.zcount(f"{PREFIX}open:{source}", "-inf", epoch_seconds(now + at_risk))
            pipe.zcount(f"{PREFIX}open:{source}", "-inf", epoch_seconds(now))
            pipe.hgetall(f"{PREFIX}poll:{source}")
            for name in (f"pause:{source}", f"hush:{source}", f"pause:{_ALL}"):
                pipe.hmget(f"{PREFIX}{name}", "until", "why")
            owed, later, open_, lost, explained, held, empty, count, head, risk, overdue, poll, *pauses = pipe.execute()
        until, why = max(((instant(at), why) for at, why in pauses if at), default=(None, None))
        return SourceStatus(
            owed=owed + later,
            claimed=open_ - owed - later,  # what is asked for although it is lost is leased too, but stays lost
            archived=int(count or 0),
            lost=lost,
            acknowledged=explained,
            held=held,
            empty=empty,
            at_risk=risk,
            overdue=overdue,
            nearest_deadline=instant(head[0][1]) if head else None,
            last_poll_at=instant(poll.get(b"at")),
            last_poll_result=poll[b"result"].decode() if poll else None,
            last_poll_error=(json.loads(poll[b"detail"]).get("error") or None) if poll else None,
            paused_until=until if until and until > now else None,
            paused_why=why.decode() if why and until and until > now else None,
        )

    def backlog(self, source: str, most: int) -> Backlog:
        """Give what `source` owes by deadline; where that is more than `most` outputs, evenly chosen ones."""
        total, measured, *rows = self._keys.run("backlog", source, most)
        return Backlog(
            open=total,
            measured=measured,
            rows=tuple(Waiting(float(dl), float(seconds), float(nb), bool(claimed)) for dl, seconds, nb, claimed in rows),
        )

    def flow(self, source: str) -> tuple[Flow, ...]:
        """What was archived of `source` in the last day: `Flow.SLOTS` slots, oldest first, the last one going on."""
        with self._keys.calls() as redis:
            found = redis.hgetall(f"{PREFIX}flow:{source}")
        seconds = int(Flow.SLOT.total_seconds())
        last = int(self.now().timestamp() // seconds)

        def count(slot: int, what: str) -> int:
            return int(found.get(f"{slot}{what}".encode(), 0))

        return tuple(
            Flow(datetime.fromtimestamp(slot * seconds, UTC), count(slot, "n"), count(slot, "b"))
            for slot in range(last - Flow.SLOTS + 1, last + 1)
        )

    def recent(self) -> list[Kept]:
        """The outputs of all sources that were archived last, newest first."""
        with self._keys.calls() as redis:
            lines = redis.lrange(f"{PREFIX}recent", 0, -1)
        kept = []
        for line in lines:
            at, size, output, key = line.decode(errors="replace").split(" ", 3)
            kept.append(Kept(OutputId.parse(output), key, int(size), datetime.fromtimestamp(int(at), UTC)))
        return kept

    def counters(self) -> dict[str, dict[str, float]]:
        """Every counter since Redis began: metric → label (``source`` or ``source|label``) → value."""
        names = ["archived", "archived_bytes", "lost", "downloads", "polls", "unproven", "takeovers", "oddities"]
        names += ["ready_to_archived", "ready_to_archived_sum"]
        with self._keys.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(f"{PREFIX}m:{name}")
            found = pipe.execute()
        return {
            name: {label.decode(): float(value) for label, value in values.items()}
            for name, values in zip(names, found, strict=True)
        }

    def count(self, metric: str, label: str) -> None:
        """Add one to a counter."""
        with self._keys.calls() as redis:
            redis.hincrbyfloat(f"{PREFIX}m:{metric}", label, 1)

    def shared(self, source: str, requests_per_second: float, stop: threading.Event) -> SharedState:
        """What the workers of `source` share."""
        return SharedState(self._keys, source, requests_per_second, stop, worker=self.worker, lease_seconds=self.lease_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The turn to do something that one worker does at a time; kept alive while it goes on (`Keeper.keeping`)."""

    name: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PollTurn(Turn):
    """The turn to list one source."""

    source: str
    every: timedelta
    wait: timedelta
    taken_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofState:
    """What the ledger knows of one kind of scheduled proof. `counts`: what its last success found, by name.

    `since`: when its period began to count where none has succeeded yet. `error`: why the last try failed, if it did.
    """

    at: datetime | None = None
    since: datetime | None = None
    tried: datetime | None = None
    error: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


def _proof_state(fields: Mapping[bytes, bytes]) -> ProofState:
    return ProofState(
        at=instant(fields.get(b"at")),
        since=instant(fields.get(b"since")),
        tried=instant(fields.get(b"tried")),
        error=fields.get(b"error", b"").decode(),
        counts=json.loads(fields.get(b"counts", b"{}")),
    )


def _interval_ms(every: timedelta) -> int:
    """A little more than the interval, so that jitter on the way never makes two listings come too close."""
    return int(every.total_seconds() * 1000) + 50


def _batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Give `items` in lists that one script call can take: Lua unpacks at most some 8,000 values."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, 500)):
        yield batch


def _flat(slots: Mapping[str, int]) -> list[str | float]:
    return [part for source, most in slots.items() for part in (source, most)]


def _record(fields: Mapping[bytes, bytes], output: Output) -> Record:
    history = []
    for line in fields.get(b"hi", b"").decode(errors="replace").split("\n"):
        at, _, what = line.partition(" ")
        if moment := instant(at):
            history.append((moment, what))
    discovered = instant(fields[b"cr"])
    assert discovered is not None  # noqa: S101 - written by `create` for every record

    def text(name: bytes) -> str | None:
        value = fields.get(name, b"").decode()
        return value or None

    return Record(
        output=output,
        state=OutputState(fields[b"st"].decode()),
        attempts=int(fields.get(b"at", 0)),
        downloads=int(fields.get(b"dn", 0)),
        not_before=instant(fields.get(b"nb")),
        last_error=text(b"er"),
        key=text(b"ky"),
        reason=text(b"rs"),
        acknowledged=text(b"ak"),
        worker=text(b"wk"),
        discovered_at=discovered,
        history=tuple(history),
    )
