"""The ledger against a simple model of itself: whatever happens in whatever order, both say the same."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from worker.errors import OutputGoneError
from worker.keyspace import PREFIX
from worker.ledger import Claim, Ledger
from worker.model import Output, OutputId

START = 1_780_000_000
LEASE = 60
SLOTS = {"a": 2, "b": 1}
WORKERS = ("w1", "w2", "w3")

identities = st.builds(OutputId, st.sampled_from(list(SLOTS)), st.sampled_from("123"), st.just("f"))
workers = st.sampled_from(WORKERS)


@dataclass
class Entry:
    """One output as the model sees it."""

    state: str
    deadline: int
    not_before: float = 0
    lease_until: float | None = None
    fence: str | None = None
    worker: str | None = None
    attempts: int = 0
    downloads: int = 0
    gone: int = 0
    first_gone: float = 0
    probes: int = 0
    probe_at: float | None = None
    acknowledged: bool = False
    recheck: bool = False
    lost_before: bool = False
    seen_at: float = 0
    counted: bool = False


@dataclass
class Holder:
    """What a worker believes that it holds. It may be a zombie."""

    worker: str
    output: Output
    fence: str
    epoch: int


@dataclass
class Model:
    """The ledger without Redis."""

    now: float = START
    epoch: int = 0  # how often Redis was lost
    begun: bool = False
    open_at: float | None = None
    entries: dict[OutputId, Entry] = field(default_factory=dict)
    turn: int = 0
    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SLOTS, 0))
    lost_total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SLOTS, 0))

    def begin(self) -> None:
        """An epoch is begun unless one is; what was owed before is of none."""
        if not self.begun:
            self.begun = True
            self.doubt()

    def doubt(self) -> None:
        for entry in self.entries.values():
            entry.recheck = True

    def of(self, source: str) -> dict[OutputId, Entry]:
        return {identity: entry for identity, entry in self.entries.items() if identity.source == source}

    def leased(self, source: str) -> int:
        return sum(entry.lease_until is not None for entry in self.of(source).values())

    def put_back(self, entry: Entry, not_before: float = 0) -> None:
        entry.state, entry.not_before, entry.probe_at = "owed", not_before, None
        entry.lease_until = entry.fence = entry.worker = None

    def settle(self, entry: Entry, state: str) -> None:
        entry.state, entry.probe_at = state, None
        entry.lease_until = entry.fence = entry.worker = None
        entry.lost_before = entry.lost_before or state == "lost"

    def end_leases(self) -> None:
        for entry in self.entries.values():
            if entry.lease_until is not None and entry.lease_until <= self.now:
                if entry.state == "claimed":
                    entry.recheck = True
                    self.put_back(entry)
                entry.lease_until = entry.fence = entry.worker = None

    def claimable(self) -> tuple[OutputId, bool] | None:
        """What the next claim gives, and whether that is a probe."""
        if self.open_at is None or self.open_at > self.now:
            return None
        self.end_leases()
        free = [source for source, most in SLOTS.items() if self.leased(source) < most]
        owed = [
            (entry.deadline, source, str(identity), identity)
            for source in free
            for identity, entry in self.of(source).items()
            if entry.state == "owed" and entry.not_before <= self.now
        ]
        late = [one for one in owed if one[0] <= self.now]
        in_time = [one for one in owed if one[0] > self.now]
        if late and in_time and min(in_time)[0] <= self.now + 900:
            self.turn += 1
            return min(late if self.turn % 16 == 1 else in_time)[-1], False
        if owed:
            return min(owed)[-1], False
        for source in free:
            probes = [
                (entry.probe_at, str(identity), identity)
                for identity, entry in self.of(source).items()
                if entry.probe_at is not None and entry.probe_at <= self.now
            ]
            if probes:
                return min(probes)[-1], True
        return None


class Machine(RuleBasedStateMachine):
    """Three workers, two sources, six outputs, a clock, and a Redis that may forget everything."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.redis = redis.Redis.from_url(self.url)
        self.redis.flushall()
        self.ledgers = {
            name: Ledger(self.url, lease=timedelta(seconds=LEASE), worker=name, clock=lambda: self.model.now)
            for name in WORKERS
        }
        self.ledger = self.ledgers["w1"]
        self.holders: list[Holder] = []
        self.fences: set[str] = set()

    def teardown(self) -> None:
        self.redis.close()

    @initialize()
    def begin(self) -> None:
        self.open_epoch(0)

    # --- helpers -----------------------------------------------------------------------------------------------------

    def output(self, identity: OutputId, hours: int) -> Output:
        return Output(
            id=identity,
            completed_at=datetime.fromtimestamp(START - 86400, UTC),
            deadline=datetime.fromtimestamp(START + 3600 * hours, UTC),
        )

    def holder(self, number: int) -> tuple[Holder, Entry | None, bool] | None:
        """Give a holder, its entry, and whether the model says that it holds it still."""
        if not self.holders:
            return None
        one = self.holders[-1 - number % len(self.holders)]
        entry = self.model.entries.get(one.output.id)
        return one, entry, entry is not None and entry.fence == one.fence

    # --- what happens; what matters is drawn more often than what is rare ----------------------------------------------

    @rule(seen=st.sets(identities, min_size=1), hours=st.integers(1, 9), offered=st.booleans(), recheck=st.booleans())
    def list_outputs(self, seen: set[OutputId], hours: int, offered: bool, recheck: bool) -> None:
        for number, identity in enumerate(sorted(seen)):
            self.owe(identity, 1 + (hours + 5 * number) % 9, offered, recheck)

    @rule(claimers=st.lists(workers, min_size=1, max_size=4))
    def claim_some(self, claimers: list[str]) -> None:
        for worker in claimers:
            self.claim(worker)

    @precondition(lambda self: self.holders)
    @rule(
        number=st.integers(0, 4),
        how=st.sampled_from(
            ["again", "release", "hold", "gone", "gone", "gone five", "other", "spend", "archived", "archived", "and next"]
        ),
        wait=st.sampled_from([-5, 0, 7, 100]),
    )
    def settle(self, number: int, how: str, wait: int) -> None:
        {
            "again": lambda: self.again(number, wait),
            "release": lambda: self.release(number),
            "hold": lambda: self.hold(number),
            "gone": lambda: self.gone(number, five=False),
            "gone five": lambda: self.gone(number, five=True),
            "other": lambda: self.other_answer(number),
            "spend": lambda: self.spend(number),
            "archived": lambda: self.archived(number),
            "and next": lambda: self.archived_then_claim(number),
        }[how]()

    @rule(worker=workers, identity=identities, finish=st.booleans())
    def ask_twice(self, worker: str, identity: OutputId, finish: bool) -> None:
        """The vendor says twice that an output is gone, and goes on listing it."""
        for wait in (11, 11, 31):
            self.claim(worker)
            self.gone(0, five=False)
            self.wait(wait)
        self.owe(identity, 5, True, False)
        self.wait(31)
        if finish:
            self.claim(worker)

    @rule(identity=identities, how=st.sampled_from(["retry", "acknowledge", "empty", "adopt", "lost", "explained"]))
    def rarely(self, identity: OutputId, how: str) -> None:
        {
            "retry": lambda: self.retry(identity),
            "acknowledge": lambda: self.acknowledge(identity),
            "empty": lambda: self.note_empty(identity),
            "adopt": lambda: self.adopt(identity),
            "lost": lambda: self.known_lost(identity, acknowledged=False),
            "explained": lambda: self.known_lost(identity, acknowledged=True),
        }[how]()

    @rule(chance=st.integers(0, 3), opened=st.booleans())
    def lose_redis(self, chance: int, opened: bool) -> None:
        if chance == 0:
            self.flushall()
            if opened:
                self.open_epoch(0)

    @precondition(lambda self: self.model.begun)
    @rule()
    def change_server(self) -> None:
        """Redis was restarted, or failed over; this time it forgot nothing."""
        self.redis.hset(f"{PREFIX}epoch", "server", "another")
        assert self.ledger.claim(SLOTS) is None
        self.ledger.epoch()
        self.model.epoch += 1
        if self.model.open_at is not None:
            self.model.open_at = max(self.model.open_at, self.model.now + 2)
        self.model.doubt()

    # --- time and loss -----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 5, 11, 31, 61, 3600]))
    def wait(self, seconds: int) -> None:
        self.model.now += seconds

    def flushall(self) -> None:
        self.redis.flushall()
        self.model = Model(now=self.model.now, epoch=self.model.epoch + 1)

    @rule(delay=st.sampled_from([0, LEASE]))
    def open_epoch(self, delay: int) -> None:
        epoch, is_open = self.ledger.epoch()
        assert is_open == (self.model.open_at is not None)
        self.ledger.open_epoch(epoch, timedelta(seconds=delay))
        self.model.begin()
        if self.model.open_at is None:
            self.model.open_at = self.model.now + delay

    # --- listings ----------------------------------------------------------------------------------------------------

    def owe(self, identity: OutputId, hours: int, offered: bool, recheck: bool) -> None:
        output = replace(self.output(identity, hours), gone=None if offered else "expired")
        before = self.ledger.owe(output, recheck=recheck)
        entry = self.model.entries.get(identity)
        assert before == (entry.state if entry else "")
        if entry is None:
            self.model.entries[identity] = Entry("owed", START + 3600 * hours, recheck=recheck)
        elif entry.state == "archived":
            entry.seen_at = self.model.now
        else:
            entry.deadline = START + 3600 * hours
            if entry.state == "empty":
                self.model.put_back(entry)
            elif entry.state == "lost" and offered and entry.probe_at is None and entry.fence is None:
                entry.probe_at = self.model.now + min(30 * 2**entry.probes, 21600)

    def note_empty(self, identity: OutputId) -> None:
        assert self.ledger.note_empty(self.output(identity, 9)) == (identity not in self.model.entries)
        self.model.entries.setdefault(identity, Entry("empty", START + 3600 * 9))

    def adopt(self, identity: OutputId) -> None:
        assert self.ledger.adopt(self.output(identity, 9), "key") == (identity not in self.model.entries)
        self.model.entries.setdefault(identity, Entry("archived", START + 3600 * 9, seen_at=self.model.now))

    def known_lost(self, identity: OutputId, acknowledged: bool) -> None:
        self.ledger.known_lost(self.output(identity, 9), "gone", "explained" if acknowledged else None)
        entry = self.model.entries.setdefault(identity, Entry("owed", START + 3600 * 9))
        if entry.state == "lost" or (entry.state in {"owed", "held"} and not entry.lost_before):
            entry.acknowledged = acknowledged
            self.model.settle(entry, "lost")

    @rule(source=st.sampled_from(list(SLOTS)))
    def forget(self, source: str) -> None:
        before = self.model.now - 20
        old = [i for i, entry in self.model.of(source).items() if entry.state == "archived" and entry.seen_at < before]
        assert self.ledger.forget(source, datetime.fromtimestamp(before, UTC)) == len(old)
        for identity in old:
            del self.model.entries[identity]

    # --- claims ------------------------------------------------------------------------------------------------------

    def claim(self, worker: str) -> None:
        self.claimed(worker, self.model.claimable(), self.ledgers[worker].claim(SLOTS))

    def claimed(self, worker: str, expected: tuple[OutputId, bool] | None, claim: Claim | None) -> None:
        assert (claim and (claim.output.id, claim.probe)) == expected
        if claim is None:
            return
        entry = self.model.entries[claim.output.id]
        if claim.probe:
            entry.probes += 1
            entry.probe_at = None
        else:
            entry.state = "claimed"
            entry.attempts += 1
        assert claim.fence not in self.fences
        assert (claim.attempts, claim.downloads) == (entry.attempts, entry.downloads)
        assert claim.recheck == (entry.attempts > 1 or entry.recheck or claim.probe)
        assert claim.output.deadline.timestamp() == entry.deadline
        entry.fence, entry.worker, entry.lease_until = claim.fence, worker, self.model.now + LEASE
        self.fences.add(claim.fence)
        self.holders.append(Holder(worker, claim.output, claim.fence, self.model.epoch))

    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        mine = [one for one in self.holders if one.worker == worker][-10:]
        fences = self.ledgers[worker].renew([(one.output, one.fence) for one in mine])
        if not mine:
            return
        self.model.begin()
        for one, fence in zip(mine, fences, strict=True):
            entry = self.model.entries.get(one.output.id)
            if entry is not None and entry.fence == one.fence:
                assert fence == one.fence
                entry.lease_until = self.model.now + LEASE
            elif one.epoch == self.model.epoch:
                assert fence == ""
            elif entry is not None and entry.state == "claimed" and entry.worker == worker:
                assert fence == entry.fence
                one.fence, one.epoch = fence, self.model.epoch
            elif entry is None or entry.state == "owed":
                assert fence not in {"", *self.fences}
                self.fences.add(fence)
                entry = self.model.entries.setdefault(one.output.id, Entry("owed", int(one.output.deadline.timestamp())))
                entry.state, entry.recheck = "claimed", True
                entry.fence, entry.worker, entry.lease_until = fence, worker, self.model.now + LEASE
                one.fence, one.epoch = fence, self.model.epoch
            else:
                assert fence == ""

    def again(self, number: int, wait: int) -> None:
        if found := self.holder(number):
            one, entry, owns = found
            at = self.model.now + wait
            assert self.ledger.again(one.output.id, one.fence, datetime.fromtimestamp(at, UTC), "503") == owns
            if owns and entry:
                self.back(entry, at)

    def back(self, entry: Entry, at: float) -> None:
        if entry.state == "lost":
            entry.lease_until = entry.fence = entry.worker = None
        else:
            entry.recheck = True
            self.model.put_back(entry, at)

    def release(self, number: int) -> None:
        if found := self.holder(number):
            one, entry, owns = found
            assert self.ledger.release(one.output.id, one.fence) == owns
            if owns and entry:
                entry.attempts -= entry.state == "claimed"
                self.back(entry, 0)

    def hold(self, number: int) -> None:
        if found := self.holder(number):
            one, entry, owns = found
            assert self.ledger.hold(one.output.id, one.fence, "too large") == owns
            if owns and entry:
                self.model.settle(entry, "held")

    def gone(self, number: int, five: bool) -> None:
        found = self.holder(number)
        if not found:
            return
        one, entry, owns = found
        answers, over = (5, 30) if five else (2, 10)
        error = OutputGoneError("gone", answers=answers, over=timedelta(seconds=over), lost_at_deadline=five)
        verdict = self.ledger.gone(one.output.id, one.fence, error)
        if not owns or not entry:
            assert not verdict
        elif entry.state == "lost":
            assert not verdict
            self.back(entry, 0)
        else:
            entry.gone += 1
            if entry.gone == 1:
                entry.first_gone = self.model.now
            since = self.model.now - entry.first_gone
            assert verdict == ((entry.gone >= answers and since >= over) or (five and self.model.now >= entry.deadline))
            if not verdict:
                self.back(entry, self.model.now + over / (answers - 1) + 0.1)
                return
            assert self.ledger.lose(one.output.id, one.fence, "gone", "gone")
            entry.acknowledged = False
            self.model.lost_total[one.output.id.source] += 1
            self.model.settle(entry, "lost")

    def other_answer(self, number: int) -> None:
        if found := self.holder(number):
            one, entry, owns = found
            self.ledger.other_answer(one.output.id, one.fence)
            if owns and entry:
                entry.gone = 0

    def spend(self, number: int) -> None:
        found = self.holder(number)
        if found and found[2] and found[1]:
            found[1].downloads += 1
            assert self.ledger.spend(found[0].output.id, found[0].fence) == found[1].downloads

    def archived(self, number: int) -> None:
        if found := self.holder(number):
            one, entry, _ = found
            assert self.ledger.archived(one.output.id, "key", 10, unproven=False) == self.kept(one, entry)

    def archived_then_claim(self, number: int) -> None:
        """What two calls do, in one."""
        if found := self.holder(number):
            one, entry, _ = found
            self.kept(one, entry)
            how: Any = {"unproven": False, "seconds": None, "downloaded": True, "found": False}
            claim = self.ledgers[one.worker].archived_then_claim(SLOTS, one.output.id, "key", 10, **how)
            self.claimed(one.worker, self.model.claimable(), claim)

    def kept(self, one: Holder, entry: Entry | None) -> bool:
        """Its receipt stands. Gives whether that is news."""
        if entry is None or entry.state == "archived":
            return False
        self.model.settle(entry, "archived")
        entry.seen_at = self.model.now
        self.model.count[one.output.id.source] += not entry.counted
        entry.counted = True
        return True

    @rule(source=st.sampled_from(list(SLOTS)), unknown=st.integers(0, 3), known=st.sets(identities))
    def count_receipts(self, source: str, unknown: int, known: set[OutputId]) -> None:
        """The bucket shows some receipts that the ledger does not know, and those of some outputs that are in flight."""
        listed = [OutputId(source, f"old-{number}", "f") for number in range(unknown)]
        listed += [i for i, e in self.model.of(source).items() if e.state == "archived" or i in known]
        self.ledger.count_receipts(source, listed)
        for entry in self.model.of(source).values():
            entry.counted = False
        for identity in listed:
            if entry := self.model.entries.get(identity):
                entry.counted = True
                if entry.state in {"held", "lost"}:  # archived since, and that was forgotten
                    entry.recheck = True
                    self.model.put_back(entry)
        self.model.count[source] = len(listed)

    # --- by hand -----------------------------------------------------------------------------------------------------

    def retry(self, identity: OutputId) -> None:
        entry = self.model.entries.get(identity)
        assert self.ledger.retry(identity) == (entry.state if entry else "")
        if entry and entry.state in {"held", "lost", "owed"}:
            entry.gone, entry.probes, entry.acknowledged, entry.recheck = 0, 0, False, True
            self.model.put_back(entry)

    def acknowledge(self, identity: OutputId) -> None:
        entry = self.model.entries.get(identity)
        assert self.ledger.acknowledge(identity, "explained") == (entry.state if entry else "")
        if entry and entry.state == "lost":
            entry.acknowledged = True

    # --- what always holds -------------------------------------------------------------------------------------------

    def index(self, name: str, source: str) -> dict[str, float]:
        found: Any = self.redis.zrange(f"{PREFIX}{name}:{source}", 0, -1, withscores=True)
        return {identity.decode(): score for identity, score in found}

    @invariant()
    def every_output_is_in_exactly_the_indexes_of_its_state(self) -> None:
        names = ("owed", "later", "claimed", "open", "held", "lost", "explained", "empty", "archived", "probe")
        for source, most in SLOTS.items():
            found = {name: self.index(name, source) for name in names}
            entries = {str(identity): entry for identity, entry in self.model.of(source).items()}

            def chosen(*states: str, entries: dict[str, Entry] = entries, **more: bool) -> dict[str, float]:
                return {
                    identity: entry.deadline
                    for identity, entry in entries.items()
                    if entry.state in states and all(getattr(entry, name) == value for name, value in more.items())
                }

            waiting = {i: e.not_before for i, e in entries.items() if e.state == "owed" and i in found["later"]}
            assert found["later"] == waiting
            assert found["owed"] == {i: d for i, d in chosen("owed").items() if i not in waiting}
            assert all(i in waiting for i, e in entries.items() if e.state == "owed" and e.not_before > self.model.now)
            assert found["claimed"] == {i: e.lease_until for i, e in entries.items() if e.lease_until is not None}
            assert found["open"] == chosen("owed", "claimed")
            assert found["held"] == chosen("held")
            assert found["empty"] == chosen("empty")
            assert found["lost"] == chosen("lost", acknowledged=False)
            assert found["explained"] == chosen("lost", acknowledged=True)
            assert found["archived"] == {i: e.seen_at for i, e in entries.items() if e.state == "archived"}
            assert found["probe"] == {i: e.probe_at for i, e in entries.items() if e.probe_at is not None}
            assert len(found["claimed"]) <= most or self.model.epoch, "slots, but for what was held before a loss"

    @invariant()
    def status_and_records_say_what_the_model_says(self) -> None:
        for source in SLOTS:
            status = self.ledger.status(source, timedelta(hours=1))
            entries = self.model.of(source).values()
            states = [entry.state for entry in entries]
            assert (status.owed, status.claimed) == (states.count("owed"), states.count("claimed"))
            assert (status.held, status.empty) == (states.count("held"), states.count("empty"))
            assert status.lost + status.acknowledged == states.count("lost")
            assert status.acknowledged == sum(entry.state == "lost" and entry.acknowledged for entry in entries)
            assert status.archived == self.model.count[source]
            urgent = [entry.deadline for entry in entries if entry.state in {"owed", "claimed"}]
            assert (status.nearest_deadline and status.nearest_deadline.timestamp()) == min(urgent, default=None)
            assert status.overdue == sum(deadline <= self.model.now for deadline in urgent)
            assert status.at_risk == sum(deadline <= self.model.now + 3600 for deadline in urgent)
            rows = {str(found.output.id): (str(found.state), found.worker) for found in self.ledger.records(source)}
            assert rows == {str(identity): (entry.state, entry.worker) for identity, entry in self.model.of(source).items()}
            assert self.ledger.counters()["lost"].get(f"{source}|gone", 0) == self.model.lost_total[source]

    @invariant()
    def nobody_holds_what_another_holds(self) -> None:
        held = [entry.fence for entry in self.model.entries.values() if entry.fence]
        assert len(held) == len(set(held))
        for identity in self.model.entries:
            valid = {one.fence for one in self.holders if one.output.id == identity and one.fence in held}
            assert len(valid) <= 1


@pytest.mark.timeout(300)  # it needs a core for 15 s, of a machine that may have better to do
def test_the_ledger_does_what_the_model_does(redis_url: str) -> None:
    """Any order of calls, by workers alive and dead, with Redis lost in between."""
    machine = type("BoundMachine", (Machine,), {"url": redis_url})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            phases=[Phase.generate],  # a failure is shown as it was found: to shrink it takes minutes
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
