"""The heartbeat of one worker process: it prolongs what the process holds, and says that the process is alive."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from worker.errors import LeaseLostError, LedgerUnavailableError, StoppedError
from worker.ledger import Claim, Ledger, Turn

log = structlog.get_logger()
_T = TypeVar("_T")

# Between two looks for a Redis that is away: it may come back older, and then waits two seconds for us to assert what we hold.
_LOOK_SECONDS = 1.0
# Within which a claim is in the hands of whoever asked for it, or never will be: Redis' client waits five for an answer.
ANSWERED_SECONDS = 6.0


class Held:
    """A claim in this process's hands; implements `model.Lease`. Its fence changes when the ledger was made anew."""

    def __init__(self, claim: Claim, keeper: Keeper) -> None:
        self.claim = claim
        self.fence = claim.fence
        self.lost = False
        self._keeper = keeper
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """For how long it has been held."""
        return time.monotonic() - self._since

    def check(self) -> None:
        """Return while the transfer may go on. Raises `LeaseLostError` or `StoppedError`."""
        if self.lost:
            raise LeaseLostError(f"{self.claim.output.id}: another worker holds it now")
        if self._keeper.overstayed():
            raise StoppedError("the process is stopping")

    def confirm(self) -> None:
        """Ask the ledger itself, before anything becomes visible in the bucket, unless the claim is younger than half a lease
        and than `ANSWERED_SECONDS`: so long nobody else can have claimed it, and a small file needs no more.

        A ledger that does not answer says nothing against us: what follows is create-only, and nobody can claim meanwhile.
        """
        if time.monotonic() - self.claim.asked_at > min(self._keeper.lease_seconds / 2, ANSWERED_SECONDS):
            with contextlib.suppress(LedgerUnavailableError):
                self._keeper.renew([self])
        self.check()


class Keeper:
    """Prolongs leases and turns every third of a lease, from its own thread.

    `stop` is set when the process is asked to stop; transfers may go on for `grace` after that, then `Held.check` ends them.
    """

    def __init__(
        self, ledger: Ledger, stop: threading.Event, *, slots: int, grace: timedelta, sources: Iterable[str] = ()
    ) -> None:
        """`slots`: how many outputs this process collects at once, of `sources`."""
        self._ledger = ledger
        self._sources = tuple(sources)
        self._slots = slots
        self._stop = stop
        self._grace_seconds = grace.total_seconds()
        self._stopping_since: float | None = None
        self._held: set[Held] = set()
        self._turns: set[Turn] = set()
        self._ended_turns: set[Turn] = set()  # of which the ledger is yet to hear
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._alive = False

    def start(self, *, alive: bool = True) -> None:
        """Begin to beat. `alive`: the process is a worker, and counts as one."""
        self._alive = alive
        with contextlib.suppress(LedgerUnavailableError):  # the first beat comes soon
            self._stamp()
        self._thread = threading.Thread(target=self._beat, name="keeper", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Beat no more; called once everything was settled."""
        self._ended.set()
        if self._thread:
            self._thread.join(timeout=10)
        if self._alive:
            with contextlib.suppress(LedgerUnavailableError):
                self._ledger.sign_off()

    def request_stop(self) -> None:
        """The process was asked to stop: begin nothing new, and end what goes on within the grace."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        self._stop.set()

    def give_back(self) -> None:
        """Give back all that is held, from another thread than those that hold it: they hang, and the process leaves."""
        with self._lock:
            held = list(self._held)
        for one in held:
            one.lost = True
            if self._ledger.release(one.claim.output.id, one.fence):
                log.info("given back", output=str(one.claim.output.id), reason="the process is stopping")

    @property
    def lease_seconds(self) -> float:
        """How long a lease lasts that nobody prolongs."""
        return self._ledger.lease_seconds

    @property
    def stopping(self) -> bool:
        """Whether the process was asked to stop."""
        return self._stop.is_set()

    def unless_stopping(self, items: Iterable[_T]) -> Iterator[_T]:
        """Give `items`. Raises `StoppedError` once the process was asked to stop."""
        for item in items:
            if self.stopping:
                raise StoppedError("the process is stopping")
            yield item

    def wait(self, seconds: float) -> bool:
        """Wait, or less long when the process is asked to stop. True: it is."""
        return self._stop.wait(seconds)

    def overstayed(self) -> bool:
        """Whether the process was asked to stop longer than the grace ago."""
        since = self._stopping_since
        return since is not None and time.monotonic() - since > self._grace_seconds

    @contextlib.contextmanager
    def holding(self, claim: Claim) -> Iterator[Held]:
        """Keep the lease of `claim` alive inside the block."""
        held = Held(claim, self)
        with self._lock:
            self._held.add(held)
        try:
            yield held
        finally:
            with self._lock:
                self._held.discard(held)

    @contextlib.contextmanager
    def keeping(self, turn: Turn) -> Iterator[None]:
        """Keep a turn alive inside the block."""
        with self._lock:
            self._turns.add(turn)
        try:
            yield
        finally:
            with self._lock:
                self._turns.discard(turn)

    def end_later(self, turn: Turn) -> None:
        """Give a turn back as soon as the ledger, which did not answer, does, not when its lease ends."""
        with self._lock:
            self._ended_turns.add(turn)

    def renew(self, held: list[Held]) -> None:
        """Prolong these leases now; marks those that are lost."""
        fences = self._ledger.renew([(one.claim.output, one.fence) for one in held])
        for one, fence in zip(held, fences, strict=True):
            if fence:
                one.fence = fence
            elif one in self._held:  # settled meanwhile is not lost
                one.lost = True
                log.warning("lease lost", output=str(one.claim.output.id))

    def _stamp(self) -> datetime | None:
        return self._ledger.stamp_worker(self._slots) if self._alive else None

    def _disown(self, now: datetime) -> None:
        """Give back what the ledger says we hold and nobody here does: its answer was lost, or Redis was away when it was to be
        settled. It would keep a slot of its source until its lease ends. `now`: the ledger's time, of a moment ago.
        """
        with self._lock:
            held = [one.claim.output.id for one in self._held]
        for output in self._ledger.disown(self._sources, held, now - timedelta(seconds=ANSWERED_SECONDS)):
            log.warning("given back", output=str(output), reason="it is claimed for this worker, which does not hold it")

    def _beat(self) -> None:
        every = pause = min(self._ledger.lease_seconds / 3, 5.0)
        while not self._ended.wait(pause):
            with self._lock:
                held, turns, ended = list(self._held), list(self._turns), list(self._ended_turns)
            try:
                now = self._stamp()
                if held:
                    self.renew(held)
                if now is not None:
                    self._disown(now)
                for turn in turns:
                    self._ledger.keep_turn(turn)
                for turn in ended:
                    self._ledger.end_turn(turn)
                    with self._lock:
                        self._ended_turns.discard(turn)
                pause = every
            except LedgerUnavailableError as exc:
                pause = min(every, _LOOK_SECONDS)
                log.warning("ledger unreachable; what is held goes on", error=str(exc), held=len(held))
            except Exception:  # a defect: the next beat may succeed, and without any all that is held would be lost unheard
                log.exception("defect in the heartbeat", held=len(held))
