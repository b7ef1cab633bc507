"""The ledger on a real Redis: order, leases, fences, and what a loss of Redis costs."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import redis

from worker.demo.embedded import Child, RedisServer, free_port, redis_executable, wait_until
from worker.errors import LeaseLostError, LedgerUnavailableError, OutputGoneError, StoppedError, ThrottledError
from worker.ledger import Claim, Ledger
from worker.model import Checksum, Output, OutputId, OutputState

START = datetime(2026, 6, 1, 12, tzinfo=UTC)
LEASE = timedelta(seconds=60)
DAY = timedelta(days=1)
AT_RISK = timedelta(minutes=15)

_numbers = itertools.count()


class Clock:
    """Virtual time."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now.timestamp()

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_ledger(redis_url: str, clock: Clock) -> Callable[..., Ledger]:
    """Give ``open_ledger(worker)``: one more worker at the same ledger, in virtual time."""
    return lambda worker="w1": Ledger(redis_url, lease=LEASE, worker=worker, clock=clock)


@pytest.fixture
def ledger(open_ledger: Callable[..., Ledger]) -> Ledger:
    """Give a ledger that gives claims."""
    one = open_ledger()
    one.open_epoch(one.epoch()[0], timedelta(0))
    return one


def output(name: str, hours: float = 24, source: str = "acme", **more: object) -> Output:
    return Output(id=OutputId(source, name, name), completed_at=START - DAY, deadline=START + timedelta(hours=hours), **more)


def owe(ledger: Ledger, *names: str, source: str = "acme") -> list[Output]:
    """Owe outputs, the first the most urgent."""
    outputs = [output(name, hours + 1, source) for hours, name in enumerate(names)]
    for one in outputs:
        assert ledger.owe(one, recheck=False) == ""
    return outputs


def claim(ledger: Ledger, **slots: int) -> Claim:
    claimed = ledger.claim(slots or {"acme": 9})
    assert claimed is not None
    return claimed


def timed(ledger: Ledger, size: int, *, seconds: float) -> None:
    """Archive an output of `size` bytes that took so long."""
    one = output(f"timed {next(_numbers)}", 1000)
    ledger.owe(one, recheck=False)
    ledger.archived(one.id, "key", size, unproven=False, seconds=seconds)


def state(ledger: Ledger, one: Output) -> OutputState | None:
    return ledger.states([one.id])[one.id]


def gone(**more: object) -> OutputGoneError:
    return OutputGoneError("the vendor says that it is gone", **more)


def lose(ledger: Ledger, clock: Clock) -> Output:
    """Make an output lost as collect does: two gone answers."""
    (one,) = owe(ledger, "gone-for-good")
    first = claim(ledger)
    assert not ledger.gone(one.id, first.fence, gone())
    clock.wait(11)
    second = claim(ledger)
    assert ledger.gone(one.id, second.fence, gone())
    assert ledger.lose(one.id, second.fence, "gone", "the vendor says that it is gone")
    assert state(ledger, one) is OutputState.LOST
    return one


# --- what is written down --------------------------------------------------------------------------------------------


def test_an_output_comes_back_from_the_ledger_as_it_went_in(ledger: Ledger) -> None:
    one = Output(
        id=OutputId("acme", "id/with % odd:chars", "ünï*?{}"),
        completed_at=datetime(2026, 5, 31, 23, 59, 59, 123457, tzinfo=UTC),
        deadline=datetime(2026, 6, 9, 1, 2, 3, 999999, tzinfo=UTC),
        filename="Ausfuhr \u00fc \u2028.csv",
        size=2**53 + 1,
        checksum=Checksum(algorithm="md5", value="0" * 32),
        content_type="text/csv",
        downloads=3,
        job={"id": 1, "deep": [{"ü": None}], "big": 2**70, "lone": "\ud800"},
    )
    ledger.owe(one, recheck=False)
    assert claim(ledger).output == one
    found = ledger.record(one.id)
    assert found is not None
    assert found.output == one
    assert found.to_json()["id"] == "acme/id%2Fwith%20%25%20odd%3Achars/%C3%BCn%C3%AF%2A%3F%7B%7D"


@pytest.mark.parametrize(
    "moment", [datetime(1970, 1, 1, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]
)
def test_a_vendor_that_tells_an_absurd_time_stops_nothing(ledger: Ledger, moment: datetime) -> None:
    one = Output(id=OutputId("acme", "1", "1"), completed_at=moment, deadline=moment)
    ledger.owe(one, recheck=False)
    claimed = claim(ledger)
    assert claimed.output == one
    assert claimed.ready_at == moment
    assert ledger.status("acme", AT_RISK).nearest_deadline == moment
    assert ledger.archived(one.id, "key", 1, unproven=False)
    assert ledger.record(one.id) is not None


def test_whatever_an_error_or_a_reason_says_the_record_can_be_read(ledger: Ledger, clock: Clock) -> None:
    one = lose(ledger, clock)
    reason = "a\rb\x0bc\x85d\u2028e\nf\x00g " + "ü" * 3000
    assert ledger.acknowledge(one.id, reason) == "lost"
    found = ledger.record(one.id)
    assert found is not None
    assert found.acknowledged == reason
    assert found.history[-1][1].startswith("acknowledged: a b c\x85d\u2028e f g üü")
    for number in range(200):
        ledger.acknowledge(one.id, f"reason {number}")
    found = ledger.record(one.id)
    assert found is not None
    assert found.history[-1] == (clock.now, "acknowledged: reason 199")
    assert 20 < len(found.history) < 200


def test_a_listing_tells_what_is_new_once(ledger: Ledger) -> None:
    one = output("1")
    assert ledger.states([one.id]) == {one.id: None}
    assert ledger.owe(one, recheck=False) == ""
    assert ledger.owe(one, recheck=False) == "owed"
    assert ledger.states([one.id]) == {one.id: OutputState.OWED}


def test_a_deadline_that_moves_moves_the_output(ledger: Ledger) -> None:
    first, second = owe(ledger, "1", "2")
    moved = Output(id=second.id, completed_at=second.completed_at, deadline=START + timedelta(minutes=1), size=7)
    assert ledger.owe(moved, recheck=False) == "owed"
    assert ledger.status("acme", AT_RISK).nearest_deadline == moved.deadline
    assert claim(ledger).output == moved
    assert claim(ledger).output == first


def test_an_empty_job_becomes_owed_when_the_vendor_offers_a_file(ledger: Ledger) -> None:
    one = output("1")
    assert ledger.note_empty(one)
    assert not ledger.note_empty(one)
    assert ledger.status("acme", AT_RISK).empty == 1
    assert ledger.claim({"acme": 1}) is None
    assert ledger.owe(one, recheck=False) == "empty"
    assert claim(ledger).output.id == one.id
    assert ledger.status("acme", AT_RISK).empty == 0


def test_what_has_a_receipt_is_not_owed(ledger: Ledger) -> None:
    one = output("1")
    assert ledger.adopt(one, "archive/key")
    assert not ledger.adopt(one, "archive/key")
    assert ledger.owe(one, recheck=True) == "archived"
    assert ledger.claim({"acme": 1}) is None


def test_records_of_archived_outputs_are_dropped_once_no_listing_shows_them(ledger: Ledger, clock: Clock) -> None:
    outputs = [output(str(number)) for number in range(1100)]
    for one in outputs:
        ledger.adopt(one, "key")
    clock.wait(10)
    seen = clock.now
    ledger.owe(outputs[7], recheck=False)
    assert ledger.forget("acme", seen) == 1099
    assert [found.output.id for found in ledger.records("acme")] == [outputs[7].id]
    assert ledger.record(outputs[8].id) is None
    assert ledger.forget("acme", seen) == 0


# --- claims ----------------------------------------------------------------------------------------------------------


def test_a_listing_of_archived_outputs_is_one_call(ledger: Ledger, clock: Clock, redis_url: str) -> None:
    """And keeps their records: what a listing shows is not forgotten."""
    outputs = [output(str(number)) for number in range(100)]
    for one in outputs[:98]:
        ledger.adopt(one, f"key/{one.id}")
    ledger.owe(outputs[98], recheck=False)
    clock.wait(100)
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        states = ledger.listed(one.id for one in outputs)
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    expected = [OutputState.ARCHIVED] * 98 + [OutputState.OWED, None]
    assert states == dict(zip((one.id for one in outputs), expected, strict=True))
    assert ledger.forget("acme", clock.now - timedelta(seconds=1)) == 0
    assert ledger.owe_all((one, False) for one in outputs[97:]) == ["archived", "owed", ""]


def test_the_most_urgent_output_of_all_sources_comes_first(ledger: Ledger) -> None:
    for hours, source in [(5, "a"), (3, "b"), (4, "c"), (1, "a"), (2, "b")]:
        ledger.owe(output(str(hours), hours, source), recheck=False)
    slots = {"a": 9, "b": 9, "c": 9}
    assert [claim(ledger, **slots).output.id.job_id for _ in range(5)] == ["1", "2", "3", "4", "5"]
    assert ledger.claim(slots) is None


def test_where_sizes_and_throughput_are_known_the_latest_start_decides(ledger: Ledger) -> None:
    """A file that takes two hours and is due in three comes before one that takes a second and is due in two."""
    timed(ledger, 10_000_000, seconds=10)
    large, small = output("large", 3, size=7_200_000_000), output("small", 2, size=1_000_000)
    for one in (large, small):
        ledger.owe(one, recheck=False)
    assert ledger.status("acme", AT_RISK).nearest_deadline == small.deadline, "what people see stays the deadline"
    assert [claim(ledger).output.id.job_id for _ in range(2)] == ["large", "small"]


def test_where_no_size_is_known_the_usual_time_of_the_source_counts(ledger: Ledger) -> None:
    timed(ledger, 5, seconds=1800)
    ledger.owe(output("slow", 2, "acme"), recheck=False)
    ledger.owe(output("unmeasured", 1.75, "other"), recheck=False)
    assert claim(ledger, acme=9, other=9).output.id.job_id == "slow"


def test_the_order_follows_what_was_measured_at_the_next_listing_or_try(ledger: Ledger) -> None:
    large, small = output("large", 3, size=7_200_000_000), output("small", 2, size=1_000_000)
    for one in (large, small):
        ledger.owe(one, recheck=False)
    timed(ledger, 10_000_000, seconds=10)
    tried = claim(ledger)
    assert tried.output == small, "scored before anything was measured"
    ledger.release(small.id, tried.fence)
    assert ledger.owe(large, recheck=False) == "owed"
    assert claim(ledger).output == large


def test_small_files_tell_nothing_of_the_throughput(ledger: Ledger) -> None:
    """They measure how quickly the vendor answers; a large file would seem to take days."""
    timed(ledger, 1000, seconds=1)
    ledger.owe(output("large", 3, size=10_000_000_000), recheck=False)
    assert [row.seconds for row in ledger.backlog("acme", 10).rows] == [1]


def test_what_was_measured_lately_counts_most(ledger: Ledger) -> None:
    for seconds in [100] * 3 + [1] * 100:
        timed(ledger, 5, seconds=seconds)
    ledger.owe(output("next"), recheck=False)
    (row,) = ledger.backlog("acme", 10).rows
    assert 1 <= row.seconds < 1.1


def test_what_is_too_late_gets_its_turn_and_does_not_make_everything_late(ledger: Ledger, clock: Clock) -> None:
    """The first claim, then one in sixteen while something must begin within a quarter of an hour; else it comes first."""
    clock.wait(3600)
    for number in range(3):
        ledger.owe(output(f"late {number}", 0.5 + number / 10), recheck=False)
    in_time = [f"{number}" for number in range(20)]
    for number, name in enumerate(in_time):
        ledger.owe(output(name, 1.2 + number / 1000), recheck=False)
    order = [claim(ledger, acme=99).output.id.job_id for _ in range(23)]
    assert order == ["late 0", *in_time[:15], "late 1", *in_time[15:], "late 2"]
    ledger.owe(output("has time", 2.1), recheck=False)
    for number in range(3):
        ledger.owe(output(f"later {number}", 0.5 + number / 10), recheck=False)
    assert [claim(ledger, acme=99).output.id.job_id for _ in range(4)] == ["later 0", "later 1", "later 2", "has time"]


def test_a_backlog_tells_when_what_is_due_and_how_long_it_takes(ledger: Ledger, clock: Clock) -> None:
    timed(ledger, 10_000_000, seconds=10)
    sized, plain, later = output("sized", 5, size=30_000_000), output("plain", 2), output("later", 1)
    ledger.owe(later, recheck=False)
    ledger.again(later.id, claim(ledger).fence, clock.now + timedelta(minutes=1), "503")
    ledger.owe(plain, recheck=False)
    assert claim(ledger).output == plain
    ledger.owe(sized, recheck=False)
    found = ledger.backlog("acme", 10)
    at = [(one.deadline.timestamp(), seconds) for one, seconds in ((later, 10), (plain, 10), (sized, 30))]
    assert (found.open, found.measured) == (3, 1)
    assert [(row.deadline, row.seconds) for row in found.rows] == at
    assert [(row.not_before, row.claimed) for row in found.rows] == [(clock() + 60, False), (0, True), (0, False)]


def test_a_large_backlog_is_told_by_some_of_its_outputs(ledger: Ledger) -> None:
    owe(ledger, *(f"{number}" for number in range(100)))
    found = ledger.backlog("acme", 10)
    assert found.open == 100
    hours = [(row.deadline - START.timestamp()) / 3600 for row in found.rows]
    assert hours == [6, 16, 26, 36, 46, 56, 66, 76, 86, 96]


def test_documents_are_packed_with_words_that_every_process_finds(
    ledger: Ledger, open_ledger: Callable[..., Ledger], redis_url: str
) -> None:
    """Whoever reads, whoever wrote, and whatever was lost in between."""
    job = {"Status": "Completed", "CompanyName": "Example Co", "Options": {"Format": "CSV", "View": "Orders by date"}}
    first, second, third = (output(name, hour + 1, job=job | {"Id": name}) for hour, name in enumerate("123"))
    ledger.owe(first, recheck=False)
    other = open_ledger("w2")
    other.owe(second, recheck=False)
    with redis.Redis.from_url(redis_url) as client:
        assert client.hlen("lastcall:words:acme") == 1
        assert client.hstrlen("lastcall:doc:acme", str(second.id)) < 40
        client.flushall()
        stranger = open_ledger("w3")
        stranger.owe(third, recheck=False)
        ledger.owe(first, recheck=False)
        assert client.hlen("lastcall:words:acme") == 2
    ledger.open_epoch(ledger.epoch()[0], timedelta(0))
    assert [record.output for record in other.records("acme")] == [first, third]
    assert [claim(other).output, claim(stranger).output] == [first, third]


def test_a_source_at_its_limit_is_passed_over(ledger: Ledger) -> None:
    owe(ledger, "1", "2", "3", source="a")
    owe(ledger, "1", "2", source="b")
    slots = {"a": 1, "b": 1}
    assert [claim(ledger, **slots).output.id.source for _ in range(2)] == ["a", "b"]
    assert ledger.claim(slots) is None
    assert claim(ledger, a=2, b=1).output.id == OutputId("a", "2", "2")


def test_a_source_that_is_not_asked_for_gives_nothing(ledger: Ledger) -> None:
    owe(ledger, "1", source="disabled")
    assert ledger.claim({"acme": 9}) is None
    assert ledger.claim({}) is None


def test_nobody_claims_before_the_epoch_is_open(open_ledger: Callable[..., Ledger], clock: Clock) -> None:
    ledger = open_ledger()
    owe(ledger, "1")
    assert ledger.claim({"acme": 1}) is None
    epoch, is_open = ledger.epoch()
    assert not is_open
    assert ledger.claim({"acme": 1}) is None
    ledger.open_epoch("another", timedelta(0))
    assert ledger.epoch() == (epoch, False)
    ledger.open_epoch(epoch, LEASE)
    ledger.open_epoch(epoch, timedelta(0))  # a second beat changes nothing
    assert ledger.epoch() == (epoch, True)
    clock.wait(59)
    assert ledger.claim({"acme": 1}) is None
    clock.wait(1)
    assert ledger.claim({"acme": 1})


def test_an_output_that_waits_for_its_next_try_is_not_claimed_before(ledger: Ledger, clock: Clock) -> None:
    (one,) = owe(ledger, "1")
    assert ledger.again(one.id, claim(ledger).fence, clock.now + timedelta(seconds=30), "503")
    found = ledger.record(one.id)
    assert found is not None
    assert (found.state, found.not_before, found.last_error) == (OutputState.OWED, clock.now + timedelta(seconds=30), "503")
    assert ledger.status("acme", AT_RISK).owed == 1
    clock.wait(29.9)
    assert ledger.claim({"acme": 1}) is None
    clock.wait(0.2)
    again = claim(ledger)
    assert (again.attempts, again.recheck) == (2, True)


def test_when_a_thousand_waiting_outputs_are_due_at_once_the_most_urgent_comes_first(ledger: Ledger, clock: Clock) -> None:
    outputs = [output(f"{number}", 1000 - number) for number in range(900)]
    for one in outputs:
        ledger.owe(one, recheck=False)
    for number in range(900):
        claimed = claim(ledger, acme=900)
        ledger.again(claimed.output.id, claimed.fence, clock.now + timedelta(seconds=3600 - number), "503")
    clock.wait(3601)
    assert claim(ledger).output == outputs[-1]


def test_a_lease_that_ends_is_taken_over_and_fences_the_zombie(
    ledger: Ledger, open_ledger: Callable[..., Ledger], clock: Clock
) -> None:
    (one,) = owe(ledger, "1")
    zombie = claim(ledger)
    assert (zombie.attempts, zombie.recheck) == (1, False)
    clock.wait(59)
    assert ledger.claim({"acme": 9}) is None
    clock.wait(2)
    heir = open_ledger("w2")
    taken = claim(heir)
    assert (taken.output, taken.attempts, taken.recheck) == (one, 2, True)
    assert taken.fence != zombie.fence
    before = ledger.record(one.id)
    assert not ledger.again(one.id, zombie.fence, clock.now, "zombie")
    assert not ledger.release(one.id, zombie.fence)
    assert not ledger.hold(one.id, zombie.fence, "zombie")
    assert not ledger.gone(one.id, zombie.fence, gone(answers=1, over=timedelta(0)))
    assert not ledger.lose(one.id, zombie.fence, "gone", "zombie")
    ledger.other_answer(one.id, zombie.fence)
    with pytest.raises(LeaseLostError):
        ledger.spend(one.id, zombie.fence)
    assert ledger.renew([(one, zombie.fence)]) == [""]
    assert ledger.record(one.id) == before
    assert heir.renew([(one, taken.fence)]) == [taken.fence]
    assert ledger.counters()["takeovers"] == {"acme": 1}


def test_an_empty_fence_never_owns(ledger: Ledger) -> None:
    (one,) = owe(ledger, "1")
    assert not ledger.hold(one.id, "", "nobody")
    assert state(ledger, one) is OutputState.OWED


def test_a_renewed_lease_lasts(ledger: Ledger, clock: Clock) -> None:
    (one,) = owe(ledger, "1")
    fence = claim(ledger).fence
    for _ in range(10):
        clock.wait(50)
        assert ledger.renew([(one, fence)]) == [fence]
        assert ledger.claim({"acme": 9}) is None


def test_a_redis_that_comes_back_older_never_gives_one_fence_to_two(
    ledger: Ledger, open_ledger: Callable[..., Ledger], redis_url: str
) -> None:
    (one,) = owe(ledger, "1")
    with redis.Redis.from_url(redis_url) as client:
        backup = {key: client.dump(key) for key in client.keys("*")}
        zombie = claim(ledger)
        client.flushall()
        for key, value in backup.items():
            client.restore(key, 0, value)
    heir = claim(open_ledger("w2"))
    assert heir.output == zombie.output
    assert heir.fence != zombie.fence
    assert ledger.renew([(one, zombie.fence)]) == [""]


def test_a_user_who_may_not_ask_who_serves_begins_no_epoch_after_each_of_one_who_may(
    ledger: Ledger, redis_url: str, clock: Clock
) -> None:
    """Two users of Redis, as while its access list is being changed: else each doubts what the other has begun, for ever."""
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser("blind", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"])
        try:
            blind = Ledger(redis_url.replace("//", "//blind:x@"), lease=LEASE, worker="blind", clock=clock)
            assert [one.epoch() for one in (blind, ledger, blind)] == [ledger.epoch()] * 3
            owe(ledger, "1")
            assert not claim(blind).recheck
        finally:
            client.acl_deluser("blind")


def test_another_server_doubts_what_is_open_without_going_through_it(ledger: Ledger, redis_url: str) -> None:
    """A million open outputs would block Redis for seconds, so that sentinels fail over once more, to one that doubts again."""
    ledger.owe_all((output(str(number)), False) for number in range(500))
    with redis.Redis.from_url(redis_url) as client:
        client.hset("lastcall:epoch", "server", "another")
        client.config_resetstat()
        ledger.epoch()
        assert sum(stats["calls"] for stats in client.info("commandstats").values()) < 30
        client.hincrbyfloat("lastcall:epoch", "open_at", -2)
    assert claim(ledger).recheck
    ledger.owe(output("new", 1), recheck=False)
    assert not claim(ledger).recheck


def test_an_output_given_back_is_as_if_it_was_never_taken(ledger: Ledger) -> None:
    (one,) = owe(ledger, "1")
    assert ledger.release(one.id, claim(ledger).fence)
    assert claim(ledger).attempts == 1


def test_a_held_output_waits_for_a_person(ledger: Ledger) -> None:
    (one,) = owe(ledger, "1")
    assert ledger.hold(one.id, claim(ledger).fence, "too large")
    assert ledger.owe(one, recheck=False) == "held"
    assert ledger.claim({"acme": 1}) is None
    assert ledger.status("acme", AT_RISK).held == 1
    assert ledger.retry(one.id) == "held"
    assert claim(ledger).recheck


def test_downloads_are_counted_before_they_are_made(ledger: Ledger) -> None:
    (one,) = owe(ledger, "1")
    fence = claim(ledger).fence
    assert [ledger.spend(one.id, fence), ledger.spend(one.id, fence), ledger.spend(one.id, fence, 7)] == [1, 2, 7]
    ledger.release(one.id, fence)
    assert claim(ledger).downloads == 7


def test_workers_are_woken_for_what_they_could_claim_and_no_more(ledger: Ledger, redis_url: str, clock: Clock) -> None:
    slots = {"a": 3, "b": 2, "c": 9}
    assert ledger.wakeups(slots, "collect") == 0
    owe(ledger, *"12345", source="a")
    owe(ledger, "1", source="b")
    ledger.stamp_worker(12)
    assert ledger.wakeups(slots, "collect") == 4
    claim(ledger, **slots)
    assert ledger.wakeups(slots, "collect") == 3
    ledger.pause("a", clock.now + DAY, "the log-in was refused", times=1, fingerprint="f")
    assert ledger.wakeups(slots, "collect") == 1
    with redis.Redis.from_url(redis_url) as client:
        client.lpush("collect", "a wake-up that waits")
    assert ledger.wakeups(slots, "collect") == 0


# --- fairness --------------------------------------------------------------------------------------------------------


def take(ledger: Ledger, slots: dict[str, int], free: int = 99) -> list[str]:
    """Claim for so many free slots, or until there is nothing to be had; gives whose outputs they were."""
    claims = itertools.takewhile(bool, (ledger.claim(slots) for _ in range(free)))
    return [claimed.output.id.source for claimed in claims if claimed]


def test_a_source_that_has_archived_nothing_yet_leaves_the_others_their_share(ledger: Ledger) -> None:
    """Five sources on 16 slots: three each, and one is left for who archives: its own limit is the only one then."""
    ledger.stamp_worker(16)
    slots = dict.fromkeys(["sick", "b", "c", "d", "e"], 16)
    for number in range(30):
        ledger.owe(output(str(number), 1, "sick"), recheck=False)
    assert ledger.wakeups(slots, "collect") == 3
    assert take(ledger, slots) == ["sick"] * 3
    for source in "bcde":
        owe(ledger, *"12345", source=source)
    assert Counter(take(ledger, slots)) == dict.fromkeys("bcde", 3)
    ledger.archived(OutputId("b", "1", "1"), "key", 1, unproven=False)
    ledger.archived(OutputId("c", "1", "1"), "key", 1, unproven=False)
    assert set(take(ledger, slots, 3)) == {"b", "c"}


def test_a_source_that_archives_may_fill_a_worker_alone(ledger: Ledger) -> None:
    """Nothing is kept free for those who want nothing."""
    ledger.stamp_worker(16)
    slots = dict.fromkeys(["busy", "b", "c", "d", "e"], 16)
    for number in range(30):
        ledger.owe(output(str(number), 1, "busy"), recheck=False)
    ledger.archived(claim(ledger, **slots).output.id, "key", 1, unproven=False)
    assert ledger.wakeups(slots, "collect") == 16
    assert take(ledger, slots) == ["busy"] * 16


def test_a_slot_held_in_vain_makes_its_source_yield(ledger: Ledger, clock: Clock) -> None:
    """On one slot a vendor that hangs for a minute leaves it to the other for as long, and then has its turn again."""
    ledger.stamp_worker(1)
    slots = {"sick": 4, "well": 4}
    owe(ledger, *"123", source="sick")
    hung = claim(ledger, **slots)
    clock.wait(60)
    ledger.stamp_worker(1)
    ledger.again(hung.output.id, hung.fence, clock.now + timedelta(seconds=2), "no answer", lost_seconds=60)
    assert ledger.claim(slots) is None
    assert ledger.wakeups(slots, "collect") == 0
    owe(ledger, "1", source="well")
    clock.wait(30)
    ledger.stamp_worker(1)
    well = claim(ledger, **slots)
    assert well.output.id.source == "well"
    ledger.archived(well.output.id, "key", 1, unproven=False)
    clock.wait(31)
    ledger.stamp_worker(1)
    assert claim(ledger, **slots).output.id.source == "sick"


def test_a_source_does_not_rest_past_a_deadline_while_nobody_else_wants_the_slot(ledger: Ledger, clock: Clock) -> None:
    """What is due before the rest ends would be too late after it. Whoever else has work goes first all the same."""
    ledger.stamp_worker(4)
    slots = {"sick": 4, "well": 4}
    owe(ledger, *"12", source="well")
    ledger.archived(claim(ledger, **slots).output.id, "key", 1, unproven=False)
    owe(ledger, *"12", source="sick")
    soon = output("soon", 50 / 3600, "sick")
    ledger.owe(soon, recheck=False)
    hung = claim(ledger, **slots)
    assert hung.output == soon
    ledger.again(soon.id, hung.fence, clock.now, "no answer", lost_seconds=60)
    well = claim(ledger, **slots)
    assert well.output.id.source == "well"
    ledger.archived(well.output.id, "key", 1, unproven=False)
    assert ledger.wakeups(slots, "collect") == 1
    assert claim(ledger, **slots).output == soon
    assert ledger.claim(slots) is None  # nothing else is due so soon


def test_a_source_that_rests_gets_what_is_left_if_the_others_took_all_they_may(ledger: Ledger, clock: Clock) -> None:
    """Six slots, of which the well one may take four; then the share of three again."""
    ledger.stamp_worker(6)
    slots = {"sick": 4, "well": 4}
    owe(ledger, "1", source="well")
    ledger.archived(claim(ledger, **slots).output.id, "key", 1, unproven=False)
    owe(ledger, *"12345", source="sick")
    hung = claim(ledger, **slots)
    ledger.again(hung.output.id, hung.fence, clock.now, "no answer", lost_seconds=60)
    assert take(ledger, slots) == ["sick"] * 2
    clock.wait(61)
    ledger.stamp_worker(6)
    assert take(ledger, slots) == ["sick"]


def test_an_attempt_that_fails_at_once_costs_no_trust(ledger: Ledger, clock: Clock) -> None:
    ledger.stamp_worker(2)
    slots = {"a": 2, "b": 2}
    owe(ledger, *"123", source="a")
    ledger.archived(claim(ledger, **slots).output.id, "key", 1, unproven=False)
    two = claim(ledger, **slots)
    ledger.again(two.output.id, two.fence, clock.now, "503", lost_seconds=1)
    assert take(ledger, slots) == ["a", "a"]


def test_a_source_that_holds_many_of_its_slots_in_vain_gets_its_share_until_few_are(ledger: Ledger, clock: Clock) -> None:
    """One in twenty is a matter of luck; every second one is not, whatever comes between."""
    ledger.stamp_worker(2)
    slots = {"a": 2, "b": 2}

    def attempts(*vain: bool) -> int:
        """Make these attempts; gives how many slots the source would get now."""
        for in_vain in vain:
            claimed = claim(ledger, **slots)
            if in_vain:
                ledger.again(claimed.output.id, claimed.fence, clock.now, "no answer", lost_seconds=60)
                clock.wait(61)
                ledger.stamp_worker(2)
            else:
                ledger.archived(claimed.output.id, "key", 1, unproven=False)
        held = [claimed for _ in range(2) if (claimed := ledger.claim(slots))]
        for claimed in held:
            ledger.release(claimed.output.id, claimed.fence)
        return len(held)

    owe(ledger, *map(str, range(60)), source="a")
    assert attempts() == 1
    assert attempts(False) == 2
    assert attempts(*[False] * 10, True, False) == 2
    assert attempts(*[True, False] * 5) == 1
    assert attempts(*[False] * 10) == 2


def test_a_source_alone_is_nobodys_burden(ledger: Ledger, clock: Clock) -> None:
    ledger.stamp_worker(4)
    owe(ledger, *"12345", source="a")
    one = claim(ledger, a=9)
    ledger.again(one.output.id, one.fence, clock.now, "no answer", lost_seconds=600)
    assert take(ledger, {"a": 9}) == ["a"] * 4


def test_many_claims_and_many_sources_fit_into_one_call(ledger: Ledger) -> None:
    slots = {f"source-{number}": 10 for number in range(500)}
    outputs = [output(str(number), number / 100, f"source-{number % 500}") for number in range(2000)]
    for one in outputs:
        ledger.owe(one, recheck=False)
    ledger.stamp_worker(5000)
    assert ledger.wakeups(slots, "collect") == 2000
    first = ledger.claim(slots)
    assert first is not None
    assert first.output == outputs[0]
    claims = [(one, "another-epoch:1:w1") for one in outputs[1:]]
    fences = ledger.renew(claims)
    assert all(fences)
    assert ledger.renew([(one, fence) for (one, _), fence in zip(claims, fences, strict=True)]) == fences
    ledger.count_receipts("acme", (OutputId("acme", str(number), "x" * 200) for number in range(12_345)))
    assert ledger.status("acme", AT_RISK).archived == 12_345


# --- gone and lost ---------------------------------------------------------------------------------------------------


def test_lost_after_two_gone_answers_ten_seconds_apart(ledger: Ledger, clock: Clock) -> None:
    (one,) = owe(ledger, "1")
    assert not ledger.gone(one.id, claim(ledger).fence, gone())
    assert ledger.claim({"acme": 9}) is None
    clock.wait(10.2)
    last = claim(ledger)
    assert ledger.gone(one.id, last.fence, gone())
    assert state(ledger, one) is OutputState.CLAIMED  # until the event is in the bucket
    assert ledger.lose(one.id, last.fence, "gone", "gone twice")
    status = ledger.status("acme", AT_RISK)
    assert (status.owed, status.claimed, status.lost, status.nearest_deadline) == (0, 0, 1, None)
    assert ledger.counters()["lost"] == {"acme|gone": 1}


def test_two_gone_answers_within_ten_seconds_are_one(ledger: Ledger, clock: Clock) -> None:
    (one,) = owe(ledger, "1")
    assert not ledger.gone(one.id, claim(ledger).fence, gone())
    clock.wait(5)
    ledger.retry(one.id)  # an operator is impatient: the count begins again
    assert not ledger.gone(one.id, claim(ledger).fence, gone())
    clock.wait(5.5)
    assert ledger.claim({"acme": 9}) is None


def test_lost_after_five_gone_answers_over_thirty_seconds(ledger: Ledger, clock: Clock) -> None:
    (one,) = owe(ledger, "1")
    error = gone(answers=5, over=timedelta(seconds=30), lost_at_deadline=True)
    began = clock.now
    answers = []
    for _ in range(5):
        while (claimed := ledger.claim({"acme": 9})) is None:
            clock.wait(0.5)
        answers.append(ledger.gone(one.id, claimed.fence, error))
    assert answers == [False, False, False, False, True]
    assert 30 <= (clock.now - began).total_seconds() < 35


def test_lost_at_the_first_gone_answer_after_the_deadline(ledger: Ledger, clock: Clock) -> None:
    (one,) = owe(ledger, "1")
    error = gone(answers=5, over=timedelta(seconds=30), lost_at_deadline=True)
    assert not ledger.gone(one.id, claim(ledger).fence, error)
    clock.now = one.deadline
    assert ledger.gone(one.id, claim(ledger).fence, error)


def test_another_answer_in_between_begins_the_count_again(ledger: Ledger, clock: Clock) -> None:
    (one,) = owe(ledger, "1")
    assert not ledger.gone(one.id, claim(ledger).fence, gone())
    clock.wait(11)
    other = claim(ledger)
    ledger.other_answer(one.id, other.fence)
    ledger.again(one.id, other.fence, clock.now, "503")
    assert not ledger.gone(one.id, claim(ledger).fence, gone())
    clock.wait(11)
    assert ledger.gone(one.id, claim(ledger).fence, gone())


def test_a_loss_survives_the_death_of_the_worker_that_wrote_its_event(ledger: Ledger, clock: Clock) -> None:
    (one,) = owe(ledger, "1")
    ledger.gone(one.id, claim(ledger).fence, gone())
    clock.wait(11)
    assert ledger.gone(one.id, claim(ledger).fence, gone())
    clock.wait(61)
    assert ledger.gone(one.id, claim(ledger).fence, gone())


def test_a_lost_output_that_is_listed_still_is_asked_for_more_and_more_rarely(ledger: Ledger, clock: Clock) -> None:
    one = lose(ledger, clock)
    lost_at, before = clock.now, ledger.record(one.id)
    probes = []
    while clock.now < lost_at + DAY:
        assert ledger.owe(one, recheck=False) == "lost"
        if probe := ledger.claim({"acme": 1}):
            assert (probe.probe, probe.recheck) == (True, True)
            probes.append(clock.now)
            assert ledger.claim({"acme": 1}) is None  # it takes a slot
            status = ledger.status("acme", AT_RISK)
            assert (status.lost, status.claimed, status.owed, status.nearest_deadline) == (1, 0, 0, None)
            assert list(ledger.records("acme", OutputState.CLAIMED)) == []
            if len(probes) % 3 == 0:
                ledger.release(one.id, probe.fence)
            elif len(probes) % 3 == 1:
                assert not ledger.gone(one.id, probe.fence, gone())
            # and every third time the worker dies
        clock.wait(15)
    waits = [(later - sooner).total_seconds() for sooner, later in itertools.pairwise([lost_at, *probes])]
    assert waits[0] < 60
    assert waits == sorted(waits)
    assert 6 * 3600 <= max(waits) < 7 * 3600
    after = ledger.record(one.id)
    assert before is not None
    assert after is not None
    assert (after.state, after.reason, after.attempts) == (before.state, before.reason, before.attempts)
    assert ledger.counters()["lost"] == {"acme|gone": 1}


def test_a_lost_output_that_is_not_listed_any_more_is_left_alone(ledger: Ledger, clock: Clock) -> None:
    one = lose(ledger, clock)
    ledger.owe(replace(one, gone="expired"), recheck=False)
    clock.wait(86400)
    assert ledger.claim({"acme": 1}) is None


def test_a_probe_that_finds_the_bytes_makes_it_archived(ledger: Ledger, clock: Clock) -> None:
    one = lose(ledger, clock)
    ledger.owe(one, recheck=False)
    clock.wait(31)
    probe = claim(ledger)
    assert ledger.renew([(one, probe.fence)]) == [probe.fence]
    assert ledger.spend(one.id, probe.fence) == 1
    assert ledger.archived(one.id, "key", 5, unproven=False)
    status = ledger.status("acme", AT_RISK)
    assert (status.lost, status.claimed, status.archived) == (0, 0, 1)
    assert state(ledger, one) is OutputState.ARCHIVED


def test_a_probe_yields_to_what_is_owed(ledger: Ledger, clock: Clock) -> None:
    lost = lose(ledger, clock)
    ledger.owe(lost, recheck=False)
    clock.wait(31)
    owe(ledger, "1")
    assert not claim(ledger).probe
    assert claim(ledger).probe


def test_an_acknowledged_loss_is_no_longer_bad_news_and_a_new_loss_is(ledger: Ledger, clock: Clock) -> None:
    one = lose(ledger, clock)
    assert ledger.acknowledge(one.id, "a test export") == "lost"
    status = ledger.status("acme", AT_RISK)
    assert (status.lost, status.acknowledged) == (0, 1)
    assert [found.acknowledged for found in ledger.records("acme", OutputState.LOST)] == ["a test export"]
    assert ledger.retry(one.id) == "lost"
    found = ledger.record(one.id)
    assert found is not None
    assert (found.state, found.acknowledged) == (OutputState.OWED, None)
    ledger.gone(one.id, claim(ledger).fence, gone())
    clock.wait(11)
    last = claim(ledger)
    assert ledger.gone(one.id, last.fence, gone())
    ledger.lose(one.id, last.fence, "gone", "again")
    status = ledger.status("acme", AT_RISK)
    assert (status.lost, status.acknowledged) == (1, 0)
    assert ledger.counters()["lost"] == {"acme|gone": 2}


def test_commands_by_hand_say_what_they_could_not_do(ledger: Ledger) -> None:
    (one,) = owe(ledger, "1")
    assert ledger.acknowledge(one.id, "why") == "owed"
    fence = claim(ledger).fence
    assert ledger.retry(one.id) == "claimed"
    assert ledger.renew([(one, fence)]) == [fence]
    ledger.archived(one.id, "key", 1, unproven=False)
    assert ledger.retry(one.id) == "archived"
    assert ledger.acknowledge(one.id, "why") == "archived"
    unknown = OutputId("acme", "x", "x")
    assert (ledger.retry(unknown), ledger.acknowledge(unknown, "why")) == ("", "")
    assert ledger.record(unknown) is None


def test_losses_are_read_back(ledger: Ledger) -> None:
    one, two, three = output("1"), output("2"), output("3")
    ledger.known_lost(one, "expired", None)
    ledger.known_lost(two, "gone", "a test export")
    ledger.adopt(three, "key")
    ledger.known_lost(three, "gone", None)
    status = ledger.status("acme", AT_RISK)
    assert (status.lost, status.acknowledged) == (1, 1)
    assert state(ledger, three) is OutputState.ARCHIVED
    assert ledger.counters()["lost"] == {}


# --- archived, and the count of receipts -----------------------------------------------------------------------------


def test_archived_is_true_whoever_says_so_and_counted_once(ledger: Ledger, clock: Clock) -> None:
    one, two = owe(ledger, "1", "2")
    claim(ledger)
    clock.wait(100)
    claim(ledger)  # another worker took it over, and the first one was quicker all the same
    assert ledger.archived(one.id, "archive/key", 1000, unproven=False)
    assert not ledger.archived(one.id, "archive/key", 1000, unproven=False)
    assert ledger.archived(two.id, "archive/other", 10, unproven=True)
    found = ledger.record(one.id)
    assert found is not None
    assert (found.state, found.key, found.last_error, found.worker) == (OutputState.ARCHIVED, "archive/key", None, None)
    counters = ledger.counters()
    assert (counters["archived"], counters["archived_bytes"]) == ({"acme": 2}, {"acme": 1010})
    assert counters["unproven"] == {"acme": 1}
    seconds = DAY.total_seconds() + 100
    assert counters["ready_to_archived_sum"] == {"acme": 2 * seconds}
    assert counters["ready_to_archived"] == {"acme|604800": 2}
    assert ledger.status("acme", AT_RISK).archived == 2


def test_what_was_archived_is_remembered_by_time_for_a_day(ledger: Ledger, clock: Clock) -> None:
    """And no longer, so that Redis stays bounded."""
    for wait in (0, 60, 600, 23 * 3600):
        clock.wait(wait)
        one = owe(ledger, f"job-{wait}")[0]
        ledger.archived(one.id, "key", 100 + wait, unproven=False)
        ledger.archived(one.id, "key", 100 + wait, unproven=False)  # said twice, counted once
    slots = ledger.flow("acme")
    assert (len(slots), ledger.flow("other")[0].outputs) == (144, 0)
    assert slots[-1].begins_at <= clock.now < slots[-1].begins_at + timedelta(minutes=10)
    assert [(slot.outputs, slot.size) for slot in slots if slot.outputs] == [(2, 260), (1, 700), (1, 82_900)]
    assert slots[-139].outputs == 1, "23 h are 138 slots"
    clock.wait(2 * 86_400)
    ledger.archived(owe(ledger, "late")[0].id, "key", 1, unproven=False)
    assert [slot.outputs for slot in ledger.flow("acme") if slot.outputs] == [1]
    assert ledger._keys._redis.hlen("lastcall:flow:acme") == 2


def test_the_last_archives_of_all_sources_are_remembered_newest_first(ledger: Ledger, clock: Clock) -> None:
    for number in range(60):
        clock.wait(1)
        one = owe(ledger, f"a b/{number}", source="acme" if number % 2 else "other")[0]
        ledger.archived(one.id, f"archive/a b/{number} é.csv", number, unproven=False)
    kept = ledger.recent()
    assert [one.size for one in kept] == list(range(59, 9, -1))
    assert (kept[0].output, kept[0].key) == (OutputId("acme", "a b/59", "a b/59"), "archive/a b/59 é.csv")
    assert kept[0].archived_at == clock.now


@pytest.mark.parametrize("known_when_counted", [True, False])
@pytest.mark.parametrize(
    ("archived", "seen"),
    [
        ("before the listing", True),
        ("between listing and count", True),
        ("between listing and count", False),
        ("after the count", True),
        ("after the count", False),
    ],
)
def test_a_receipt_is_counted_once_however_count_and_archiving_meet(
    open_ledger: Callable[..., Ledger], *, known_when_counted: bool, archived: str, seen: bool
) -> None:
    """After a loss of Redis: `seen` is whether the listing of the bucket shows the receipt of the output in flight."""
    ledger = open_ledger()
    (one,) = owe(open_ledger("w9"), "1")
    if not known_when_counted:
        ledger.clear()
    others = [OutputId("acme", f"old-{number}", "1") for number in range(3)]
    if archived == "before the listing":
        ledger.archived(one.id, "key", 1, unproven=False)

    def listing():  # type: ignore[no-untyped-def]
        yield from others
        if archived == "between listing and count":
            ledger.archived(one.id, "key", 1, unproven=False)
        if seen:
            yield one.id

    ledger.count_receipts("acme", listing())
    ledger.mark_recovered("acme", ledger.epoch()[0])
    if archived == "after the count":
        assert ledger.renew([(one, "old:1:w1")]) != [""]
        ledger.archived(one.id, "key", 1, unproven=False)
    if not ledger.recovered("acme"):  # in doubt, the next poll counts again
        ledger.count_receipts("acme", [*others, one.id])
    if ledger.states([one.id])[one.id] is None:
        ledger.adopt(one, "key")  # the next poll finds the receipt
    assert ledger.status("acme", AT_RISK).archived == 4


def test_a_count_that_broke_off_is_made_good_by_the_next(ledger: Ledger) -> None:
    receipts = [OutputId("acme", str(number), "1") for number in range(1200)]
    (one,) = owe(ledger, "flying")

    def broken():  # type: ignore[no-untyped-def]
        yield from receipts[:1100]
        yield one.id
        raise LedgerUnavailableError("the bucket or Redis went away")

    ledger.mark_recovered("acme", ledger.epoch()[0])
    with pytest.raises(LedgerUnavailableError):
        ledger.count_receipts("acme", broken())
    assert not ledger.recovered("acme"), "the next poll counts"
    ledger.archived(one.id, "key", 1, unproven=False)
    ledger.count_receipts("acme", [*receipts, one.id])
    assert ledger.status("acme", AT_RISK).archived == 1201
    ledger.count_receipts("acme", [*receipts, one.id])
    assert ledger.status("acme", AT_RISK).archived == 1201


def test_of_two_counts_at_once_the_later_one_holds(ledger: Ledger) -> None:
    receipts = [OutputId("acme", str(number), "1") for number in range(600)]

    def interrupted():  # type: ignore[no-untyped-def]
        yield from receipts[:550]
        ledger.count_receipts("acme", receipts)
        yield from receipts[550:]

    ledger.count_receipts("acme", interrupted())
    assert ledger.status("acme", AT_RISK).archived == 600


# --- a ledger that is lost -------------------------------------------------------------------------------------------


def flush(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()


def test_after_a_loss_what_is_held_is_asserted_before_anybody_claims(
    ledger: Ledger, open_ledger: Callable[..., Ledger], redis_url: str, clock: Clock
) -> None:
    one, two = owe(ledger, "1", "2")
    held = claim(ledger)
    flush(redis_url)
    other = open_ledger("w2")
    assert other.claim({"acme": 2}) is None
    epoch, is_open = other.epoch()
    assert not is_open
    other.open_epoch(epoch, LEASE)
    owe(other, "1", "2")  # the next poll lists both again
    assert other.claim({"acme": 2}) is None
    clock.wait(20)
    (fence,) = ledger.renew([(one, held.fence)])
    assert fence not in {"", held.fence}
    assert fence.startswith(f"{epoch}:")
    assert ledger.renew([(one, held.fence)]) == [fence]  # asked twice, because the first answer was lost on the way
    clock.wait(40)
    assert ledger.renew([(one, fence)]) == [fence]
    assert other.claim({"acme": 1}) is None  # the slot counts again
    assert claim(other, acme=2).output == two
    assert not ledger.hold(one.id, held.fence, "the old fence")
    assert ledger.archived(one.id, "key", 1, unproven=False)


def test_after_a_loss_a_holder_that_comes_too_late_has_lost_it(
    ledger: Ledger, open_ledger: Callable[..., Ledger], redis_url: str, clock: Clock
) -> None:
    (one,) = owe(ledger, "1")
    held = claim(ledger)
    flush(redis_url)
    other = open_ledger("w2")
    other.open_epoch(other.epoch()[0], LEASE)
    owe(other, "1")
    clock.wait(61)
    taken = claim(other)
    assert ledger.renew([(one, held.fence)]) == [""]
    assert other.renew([(one, taken.fence)]) == [taken.fence]


def test_after_a_loss_an_asserted_output_needs_no_listing(ledger: Ledger, redis_url: str, clock: Clock) -> None:
    one = output("1", job={"id": "1"}, size=5)
    ledger.owe(one, recheck=False)
    held = claim(ledger)
    flush(redis_url)
    (fence,) = ledger.renew([(one, held.fence)])
    found = ledger.record(one.id)
    assert found is not None
    assert (found.output, found.state, found.worker) == (one, OutputState.CLAIMED, "w1")
    ledger.open_epoch(ledger.epoch()[0], LEASE)
    assert ledger.again(one.id, fence, clock.now, "503")
    clock.wait(61)
    assert claim(ledger).recheck


@pytest.mark.parametrize("settle", ["again", "release", "hold", "gone", "lose", "spend", "other_answer", "archived"])
def test_a_loss_just_before_settling_leaves_nothing_half_written(
    ledger: Ledger, redis_url: str, clock: Clock, settle: str
) -> None:
    (one,) = owe(ledger, "1")
    fence = claim(ledger).fence
    flush(redis_url)
    calls: dict[str, Callable[[], object]] = {
        "again": lambda: ledger.again(one.id, fence, clock.now, "503"),
        "release": lambda: ledger.release(one.id, fence),
        "hold": lambda: ledger.hold(one.id, fence, "too large"),
        "gone": lambda: ledger.gone(one.id, fence, gone()),
        "lose": lambda: ledger.lose(one.id, fence, "gone", "gone"),
        "other_answer": lambda: ledger.other_answer(one.id, fence),
        "archived": lambda: ledger.archived(one.id, "key", 1, unproven=False),
    }
    if settle == "spend":
        with pytest.raises(LeaseLostError):
            ledger.spend(one.id, fence)
    else:
        assert not calls[settle]()
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys("*") == ([b"lastcall:recount"] if settle == "archived" else [])
    assert ledger.owe(one, recheck=True) == ""
    ledger.open_epoch(ledger.epoch()[0], timedelta(0))
    assert claim(ledger).output == one


def test_clear_is_as_good_as_a_flush_and_leaves_the_queues_alone(ledger: Ledger, redis_url: str) -> None:
    owe(ledger, *map(str, range(50)))
    claim(ledger)
    with redis.Redis.from_url(redis_url) as client:
        client.lpush("collect", "a wake-up")
        ledger.clear()
        assert client.keys("*") == [b"collect"]


def test_clearing_while_others_write_never_leaves_half_an_output(redis_url: str) -> None:
    ledger = Ledger(redis_url, lease=LEASE, worker="w1")
    ended = threading.Event()

    def list_over_and_over() -> None:
        other = Ledger(redis_url, lease=LEASE, worker="w2")
        while not ended.is_set():
            for number in range(100):
                other.owe(output(str(number)), recheck=False)
            other.open_epoch(other.epoch()[0], timedelta(0))
            other.claim({"acme": 5})

    thread = threading.Thread(target=list_over_and_over)
    thread.start()
    try:
        with redis.Redis.from_url(redis_url) as client:
            client.mset({f"lastcall:filler:{number}": 1 for number in range(3000)})
            for _ in range(30):
                ledger.clear()
    finally:
        ended.set()
        thread.join()
    with redis.Redis.from_url(redis_url) as client:
        records = {key.decode().removeprefix("lastcall:o:") for key in client.keys("lastcall:o:*")}
        indexed = {identity.decode() for identity in client.zrange("lastcall:open:acme", 0, -1)}
    assert records == indexed


# --- polls -----------------------------------------------------------------------------------------------------------


def until_due(ledger: Ledger, source: str) -> float:
    """Wait until a listing may begin. Gives how many seconds that took."""
    began = time.monotonic()
    wait_until(lambda: ledger.poll_due(source), 5, "the source may be listed")
    return time.monotonic() - began


def test_a_source_is_listed_by_one_worker_and_no_sooner_than_its_interval(redis_url: str) -> None:
    one = Ledger(redis_url, lease=LEASE, worker="w1")
    two = Ledger(redis_url, lease=LEASE, worker="w2")
    every = timedelta(seconds=0.5)
    turn = one.take_poll_turn("acme", every)
    assert turn is not None
    assert two.take_poll_turn("acme", every) is None
    assert two.take_poll_turn("acme", every, by_hand=True) is None
    assert two.take_poll_turn("other", every) is not None
    one.end_poll_turn(turn, "ok", {"jobs": 3})
    assert not two.poll_due("acme")
    assert two.take_poll_turn("acme", every) is None
    by_hand = two.take_poll_turn("acme", every, by_hand=True)
    assert by_hand is not None
    two.stamp_poll_turn(by_hand)
    two.end_poll_turn(by_hand, "throttled", {})
    assert until_due(one, "acme") > 0.4
    assert one.take_poll_turn("acme", every) is not None
    assert one.counters()["polls"] == {"acme|ok": 1, "acme|throttled": 1}
    status = one.status("acme", AT_RISK)
    assert status.last_poll_result == "throttled"
    assert status.last_poll_at is not None
    assert abs((one.now() - status.last_poll_at).total_seconds()) < 30


def test_the_interval_counts_from_the_first_answer(redis_url: str) -> None:
    ledger = Ledger(redis_url, lease=LEASE, worker="w1")
    turn = ledger.take_poll_turn("acme", timedelta(seconds=3600))
    assert turn is not None
    with redis.Redis.from_url(redis_url) as client:
        assert client.delete("lastcall:polled:acme") == 1  # it has passed since, while the bucket was read back
        ledger.stamp_poll_turn(turn)
        ledger.end_poll_turn(turn, "ok", {})
        assert 3500 < client.ttl("lastcall:polled:acme") <= 3601


def test_a_dead_workers_turn_ends_with_its_lease_and_its_late_words_change_nothing(redis_url: str) -> None:
    dead = Ledger(redis_url, lease=timedelta(seconds=0.2), worker="w1")
    heir = Ledger(redis_url, lease=LEASE, worker="w2")
    old = dead.take_poll_turn("acme", timedelta(seconds=0.1))
    assert old is not None
    until_due(heir, "acme")
    new = heir.take_poll_turn("acme", timedelta(seconds=0.1))
    assert new is not None
    dead.keep_turn(old)
    dead.end_poll_turn(old, "ok", {})
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("lastcall:polling:acme") == new.token.encode()
        assert client.pttl("lastcall:polling:acme") > 10_000
        time.sleep(0.2)  # the interval itself passes
        assert dead.take_poll_turn("acme", timedelta(seconds=1)) is None
        heir.end_poll_turn(new, "ok", {})
        assert dead.take_poll_turn("acme", timedelta(seconds=1)) is not None


def test_a_heartbeat_that_comes_after_the_end_of_a_listing_does_not_block_the_next(redis_url: str) -> None:
    ledger = Ledger(redis_url, lease=LEASE, worker="w1")
    turn = ledger.take_poll_turn("acme", timedelta(milliseconds=1))
    assert turn is not None
    ledger.end_poll_turn(turn, "ok", {})
    ledger.keep_turn(turn)
    assert until_due(ledger, "acme") < 1


def test_a_kept_turn_outlives_its_lease(redis_url: str) -> None:
    ledger = Ledger(redis_url, lease=timedelta(seconds=0.5), worker="w1")
    turn = ledger.take_poll_turn("acme", timedelta(milliseconds=1))
    assert turn is not None
    limit = time.monotonic() + 1.2
    while time.monotonic() < limit:
        ledger.keep_turn(turn)
        assert not ledger.poll_due("acme")


def test_passes_are_remembered_with_when_they_began(ledger: Ledger, clock: Clock) -> None:
    epoch, _ = ledger.epoch()
    assert ledger.is_first_pass("acme")
    assert ledger.complete_pass("acme", epoch, clock.now) is None
    assert not ledger.is_first_pass("acme")
    assert ledger.complete_pass("acme", epoch, clock.now + DAY) == clock.now


def test_a_pass_of_a_ledger_that_was_lost_meanwhile_does_not_count(ledger: Ledger, clock: Clock) -> None:
    lost, _ = ledger.epoch()
    ledger.clear()
    ledger.epoch()
    assert ledger.complete_pass("acme", lost, clock.now) is None
    assert ledger.is_first_pass("acme")


def test_watched_jobs_stay_until_they_are_not(ledger: Ledger, clock: Clock) -> None:
    ledger.watch("acme", "job/ü")
    began = clock.now
    clock.wait(60)
    ledger.watch("acme", "job/ü")
    assert ledger.watched("acme") == {"job/ü": began}
    ledger.unwatch("acme", "job/ü")
    assert ledger.watched("acme") == {}


# --- pauses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paused", ["acme", None])
def test_a_paused_source_gives_no_claims_and_keeps_what_it_owes(ledger: Ledger, clock: Clock, paused: str | None) -> None:
    owe(ledger, "1")
    until = clock.now + timedelta(seconds=30)
    assert ledger.paused(paused) is None
    assert ledger.pause(paused, until, "the log-in was refused", times=1, fingerprint="f1")
    assert not ledger.pause(paused, until, "the log-in was refused", times=2, fingerprint="f2")
    assert ledger.claim({"acme": 1}) is None
    status = ledger.status("acme", AT_RISK)
    assert (status.owed, status.paused_until, status.paused_why) == (1, until, "the log-in was refused")
    clock.wait(30)
    found = ledger.paused(paused)
    assert found is not None
    assert (found.until, found.times, found.fingerprint) == (until, 2, "f2")
    assert ledger.status("acme", AT_RISK).paused_until is None
    if paused is None:  # the pause of everything lasts until somebody has found the bucket well
        assert ledger.claim({"acme": 1}) is None
        assert ledger.resume(None)
        assert claim(ledger)
        return
    assert claim(ledger)
    assert ledger.resume(paused)
    assert not ledger.resume(paused)
    assert ledger.paused(paused) is None


def test_a_pause_of_one_source_leaves_the_others(ledger: Ledger, clock: Clock) -> None:
    owe(ledger, "1", source="a")
    owe(ledger, "1", source="b")
    ledger.pause("a", clock.now + DAY, "why", times=1, fingerprint="")
    assert claim(ledger, a=1, b=1).output.id.source == "b"
    assert ledger.claim({"a": 1, "b": 1}) is None


# --- reading ---------------------------------------------------------------------------------------------------------


def test_status_and_records_tell_every_state(ledger: Ledger, clock: Clock) -> None:
    lost = lose(ledger, clock)
    clock.now = START + timedelta(hours=2)
    outputs = owe(ledger, *"123456")  # deadlines in -1, 0, 1, 2, 3 and 4 hours
    held, archived, waiting, claimed = (claim(ledger) for _ in range(4))
    ledger.hold(held.output.id, held.fence, "too large")
    ledger.archived(archived.output.id, "key", 1, unproven=False)
    ledger.again(waiting.output.id, waiting.fence, clock.now + timedelta(minutes=1), "503")
    ledger.note_empty(output("empty"))
    status = ledger.status("acme", timedelta(minutes=60))
    assert (status.owed, status.claimed, status.archived, status.lost, status.held, status.empty) == (3, 1, 1, 1, 1, 1)
    assert (status.at_risk, status.overdue, status.nearest_deadline) == (1, 0, outputs[2].deadline)
    clock.wait(3601)
    assert ledger.status("acme", timedelta(minutes=60)).overdue == 1
    rows = [(found.output.id.job_id, str(found.state)) for found in ledger.records("acme")]
    assert rows == [
        ("3", "owed"), ("4", "claimed"), ("5", "owed"), ("6", "owed"),
        ("1", "held"), (lost.id.job_id, "lost"), ("empty", "empty"), ("2", "archived"),
    ]  # fmt: skip
    for one in OutputState:
        expected = [row for row in rows if row[1] == one]
        assert [(found.output.id.job_id, str(found.state)) for found in ledger.records("acme", one)] == expected
    assert claimed.output == outputs[3]


def test_what_changes_its_state_while_it_is_read_is_shown_once(ledger: Ledger) -> None:
    outputs = [output(str(number), number) for number in range(1200)]
    for one in outputs:
        ledger.owe(one, recheck=False)
    shown = []
    for number, found in enumerate(ledger.records("acme")):
        shown.append(found.output.id)
        if number == 10:
            for one in outputs[:300]:
                ledger.archived(one.id, "key", 1, unproven=False)
    assert shown == [one.id for one in outputs]


def test_an_unknown_source_has_an_empty_status(ledger: Ledger) -> None:
    status = ledger.status("nobody", AT_RISK)
    assert (status.owed, status.claimed, status.archived, status.nearest_deadline) == (0, 0, 0, None)
    assert (status.last_poll_at, status.last_poll_result, status.paused_until) == (None, None, None)


def test_counters_workers_and_beats(ledger: Ledger, open_ledger: Callable[..., Ledger], clock: Clock) -> None:
    ledger.count("downloads", "acme|ok")
    ledger.count("downloads", "acme|ok")
    assert ledger.counters()["downloads"] == {"acme|ok": 2}
    assert ledger.beat_at() is None
    ledger.stamp_beat()
    assert ledger.beat_at() == clock.now
    other = open_ledger("w2")
    ledger.stamp_worker(4)
    clock.wait(10)
    other.stamp_worker(4)
    assert sorted(ledger.workers()) == ["w1", "w2"]
    clock.wait(10)
    assert ledger.workers() == ["w2"]
    other.sign_off()
    assert ledger.workers() == []


def test_what_was_read_back_while_the_ledger_was_lost_is_read_back_again(ledger: Ledger) -> None:
    """Watched jobs and losses went into a ledger that is gone; the new one must not believe that it has them."""
    lost, _ = ledger.epoch()
    ledger.clear()
    present, _ = ledger.epoch()
    assert not ledger.mark_recovered("acme", lost)
    assert not ledger.recovered("acme")
    assert ledger.mark_recovered("acme", present)
    assert ledger.recovered("acme")


def test_a_receipt_that_a_later_pass_meets_makes_the_count_doubtful(ledger: Ledger) -> None:
    ledger.count_receipts("acme", [])
    ledger.mark_recovered("acme", ledger.epoch()[0])
    ledger.adopt(output("a"), "k")
    assert ledger.recovered("acme"), "before the first pass is complete, what stands was counted"
    ledger.complete_pass("acme", ledger.epoch()[0], ledger.now())
    ledger.adopt(output("b"), "k")
    assert not ledger.recovered("acme")
    ledger.count_receipts("acme", [output("a").id, output("b").id])
    ledger.mark_recovered("acme", ledger.epoch()[0])
    assert ledger.recovered("acme")
    assert ledger.status("acme", AT_RISK).archived == 2


def test_a_receipt_that_was_counted_unknown_and_is_met_later_is_not_counted_twice(ledger: Ledger) -> None:
    """The bucket was away when the output was listed: so it is owed, and its worker finds the receipt."""
    one = output("a")
    ledger.count_receipts("acme", [one.id])
    ledger.mark_recovered("acme", ledger.epoch()[0])
    ledger.owe(one, recheck=True)
    assert ledger.archived(claim(ledger).output.id, "k", 1, unproven=False, found=True)
    assert ledger.status("acme", AT_RISK).archived == 1
    assert not ledger.recovered("acme"), "another worker may have written it after the count"
    ledger.count_receipts("acme", [one.id])
    ledger.mark_recovered("acme", ledger.epoch()[0])
    assert ledger.recovered("acme")
    assert ledger.status("acme", AT_RISK).archived == 1


def test_people_are_told_of_each_trouble_once_and_when_it_is_over(ledger: Ledger, clock: Clock) -> None:
    ledger.owe(output("a", hours=1), recheck=False)
    ledger.owe(output("b", hours=100), recheck=False)

    def told() -> list[tuple[str, str, str]]:
        return [(str(one.output), one.trouble, one.before) for one in ledger.tell(["acme"], timedelta(minutes=15))]

    assert told() == []
    clock.wait(46 * 60)
    assert told() == [("acme/a/a", "at risk", "")]
    assert told() == []
    clock.wait(15 * 60)
    assert told() == [("acme/a/a", "overdue", "at risk")]
    held = claim(ledger)
    ledger.hold(held.output.id, held.fence, "too large")
    assert told() == [("acme/a/a", "held", "overdue")]
    ledger.retry(held.output.id)
    assert told() == [("acme/a/a", "overdue", "held")]
    again = claim(ledger)
    ledger.archived(again.output.id, "k", 1, unproven=False)
    assert told() == [("acme/a/a", "", "overdue")]
    assert told() == []


def test_nobody_is_woken_for_an_output_that_was_found_a_moment_ago(ledger: Ledger, clock: Clock) -> None:
    ledger.owe(output("short", hours=0.02), recheck=False)
    assert ledger.tell(["acme"], timedelta(minutes=15)) == []
    clock.wait(31)
    assert [one.trouble for one in ledger.tell(["acme"], timedelta(minutes=15))] == ["at risk"]


def test_an_acknowledged_loss_is_told_no_more(ledger: Ledger) -> None:
    owe(ledger, "a")
    gone = claim(ledger)
    ledger.lose(gone.output.id, gone.fence, "gone", "the vendor deleted it")
    assert [one.trouble for one in ledger.tell(["acme"], timedelta(minutes=15))] == ["lost"]
    ledger.acknowledge(gone.output.id, "known")
    assert [one.trouble for one in ledger.tell(["acme"], timedelta(minutes=15))] == [""]


def test_alerts_wait_in_order_and_the_oldest_give_way(ledger: Ledger) -> None:
    for number in range(205):
        ledger.queue_alert(str(number))
    assert ledger.take_alerts() == [str(number) for number in range(5, 205)]
    assert ledger.take_alerts() == []


# --- what the workers of a source share ------------------------------------------------------------------------------


def _call(url: str, begin: float, calls: int, answers: multiprocessing.Queue[list[float]]) -> None:
    ledger = Ledger(url, lease=LEASE, worker="w")
    shared = ledger.shared("acme", 50, threading.Event())
    time.sleep(max(0, begin - time.time()))
    turns = []
    for _ in range(calls):
        shared.pace()
        turns.append(time.time())
    answers.put(turns)


def test_the_pace_of_a_source_holds_over_all_processes(redis_url: str) -> None:
    """Three processes make 25 calls each at 50 a second, together."""
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[list[float]] = context.Queue()
    begin = time.time() + 2
    processes = [context.Process(target=_call, args=(redis_url, begin, 25, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    turns = sorted(itertools.chain.from_iterable(answers.get(timeout=30) for _ in processes))
    for process in processes:
        process.join()
    assert len(turns) == 75
    assert 74 / 50 - 0.05 <= turns[-1] - turns[0] < 74 / 50 + 1.0
    for first, later in itertools.pairwise(turns[::10]):
        assert later - first > 10 / 50 - 0.1


def test_turns_are_given_exactly_one_interval_apart(ledger: Ledger) -> None:
    waits = [float(ledger._keys.run("pace", "acme", 0.25, 30)) for _ in range(5)]
    assert waits == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


def test_a_turn_that_is_too_far_off_is_not_taken(ledger: Ledger, clock: Clock) -> None:
    shared = ledger.shared("acme", 0.05, threading.Event())  # one call in 20 s
    stopped = threading.Event()
    stopped.set()
    stopping = ledger.shared("acme", 0.05, stopped)
    shared.pace()
    with pytest.raises(StoppedError):
        stopping.pace()  # 20 s off; a process that stops does not wait
    for _ in range(3):
        with pytest.raises(ThrottledError) as caught:
            shared.pace()  # 40 s off
        assert caught.value.not_before == clock.now + timedelta(seconds=40)


def test_a_hushed_source_is_not_called_and_gives_no_claims(ledger: Ledger, clock: Clock) -> None:
    owe(ledger, "1")
    shared = ledger.shared("acme", 10, threading.Event())
    until = clock.now + timedelta(seconds=20)
    shared.hush(until)
    shared.hush(until - timedelta(seconds=10))  # a shorter one changes nothing
    with pytest.raises(ThrottledError) as caught:
        shared.pace()
    assert caught.value.not_before == until
    ledger.shared("other", 10, threading.Event()).pace()
    assert ledger.claim({"acme": 1}) is None
    assert ledger.status("acme", AT_RISK).paused_until == until
    clock.wait(20)
    shared.pace()
    assert claim(ledger)


def test_a_call_that_waits_for_its_turn_is_not_made_when_the_source_is_hushed_meanwhile(redis_url: str) -> None:
    one, two = (Ledger(redis_url, lease=LEASE, worker=name) for name in ("w1", "w2"))
    shared, other = (ledger.shared("acme", 2, threading.Event()) for ledger in (one, two))
    shared.pace()
    until = one.now().replace(microsecond=0) + timedelta(seconds=30)
    timer = threading.Timer(0.1, other.hush, [until])
    timer.start()
    with pytest.raises(ThrottledError) as caught:
        shared.pace()
    timer.join()
    assert caught.value.not_before is not None
    assert abs(caught.value.not_before - until) < timedelta(seconds=1)


def test_a_download_is_not_made_when_the_source_is_hushed_after_its_claim(ledger: Ledger, clock: Clock) -> None:
    """One that the vendor counts is written down in the bucket already, and is made."""
    (one,) = owe(ledger, "1")
    fence = claim(ledger).fence
    until = clock.now + timedelta(seconds=20)
    ledger.shared("acme", 10, threading.Event()).hush(until)
    with pytest.raises(ThrottledError) as caught:
        ledger.spend(one.id, fence)
    assert caught.value.not_before == until
    assert ledger.spend(one.id, fence, 3) == 3
    clock.wait(21)
    assert ledger.spend(one.id, fence) == 4


def test_a_hush_that_is_over_already_changes_nothing(ledger: Ledger, clock: Clock) -> None:
    shared = ledger.shared("acme", 10, threading.Event())
    shared.hush(clock.now - DAY)
    shared.pace()


def test_one_token_for_all_and_one_log_in_for_a_refused_one(redis_url: str) -> None:
    one, two = (Ledger(redis_url, lease=LEASE, worker=name).shared("acme", 10, threading.Event()) for name in ("w1", "w2"))
    assert one.token() is None
    assert one.log_in_turn()
    assert not two.log_in_turn()
    assert not one.log_in_turn()
    one.store_token("token-1", 60)
    assert two.token() == "token-1"
    one.drop_token("token-1")
    assert two.log_in_turn()
    two.store_token("token-2", 60)
    one.drop_token("token-1")  # the 401 was answered to the old one
    assert one.token() == "token-2"
    assert one.log_in_turn()
    one.end_log_in_turn()
    assert two.log_in_turn()
    two.store_token("already over", 0)
    assert one.token() == "token-2"


def test_a_log_in_that_took_too_long_does_not_end_another_workers_turn(redis_url: str) -> None:
    one, two, three = (
        Ledger(redis_url, lease=LEASE, worker=name).shared("acme", 10, threading.Event()) for name in ("w1", "w2", "w3")
    )
    assert one.log_in_turn()
    with redis.Redis.from_url(redis_url) as client:
        client.delete("lastcall:login:acme")  # its 60 s are over
    assert two.log_in_turn()
    one.end_log_in_turn()
    assert not three.log_in_turn()
    two.end_log_in_turn()
    assert three.log_in_turn()


def test_a_worker_that_dies_while_it_logs_in_keeps_nobody_from_logging_in(
    open_ledger: Callable[..., Ledger], clock: Clock
) -> None:
    dead, other = open_ledger("w1"), open_ledger("w2")
    dead.stamp_worker(1)
    assert dead.shared("acme", 10, threading.Event()).log_in_turn()
    shared = other.shared("acme", 10, threading.Event())
    clock.wait(14)
    assert not shared.log_in_turn()
    clock.wait(2)
    assert shared.log_in_turn()


def test_a_token_lives_as_long_as_it_is_said_to(redis_url: str) -> None:
    shared = Ledger(redis_url, lease=LEASE, worker="w1").shared("acme", 10, threading.Event())
    shared.store_token("token", 0.3)
    assert shared.token() == "token"
    wait_until(lambda: shared.token() is None, 5, "the token is over")


# --- Redis goes away -------------------------------------------------------------------------------------------------


def test_a_redis_that_is_down_is_said_quickly_and_one_that_is_back_is_used(redis_server: RedisServer) -> None:
    ledger = Ledger(redis_server.url, lease=LEASE, worker="w1")
    ledger.open_epoch(ledger.epoch()[0], timedelta(0))
    owe(ledger, "1")
    redis_server.kill()
    calls: list[Callable[[], object]] = [
        ledger.ping,
        ledger.now,
        lambda: ledger.claim({"acme": 1}),
        lambda: ledger.states([output("1").id]),
        lambda: ledger.status("acme", AT_RISK),
        lambda: ledger.take_poll_turn("acme", DAY),
        ledger.shared("acme", 1, threading.Event()).token,
    ]
    for call in calls:
        began = time.monotonic()
        with pytest.raises(LedgerUnavailableError) as caught:
            call()
        assert time.monotonic() - began < 5
        assert str(redis_server.port) not in str(caught.value)
    redis_server.start()
    assert ledger.claim({"acme": 1}) is None  # all is forgotten, the script too
    assert not ledger.epoch()[1]
    ledger.open_epoch(ledger.epoch()[0], timedelta(0))
    owe(ledger, "1")
    assert claim(ledger)


def test_a_durable_redis_comes_back_with_all(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with RedisServer(tmp_path, durable=True) as server:
        ledger = Ledger(server.url, lease=LEASE, worker="w1")
        ledger.open_epoch(ledger.epoch()[0], timedelta(0))
        (one,) = owe(ledger, "1")
        fence = claim(ledger).fence
        with redis.Redis.from_url(server.url) as client:
            client.config_set("appendfsync", "always")
            ledger.ping()
        server.kill()
        server.start()
        wait_until(lambda: _answers(ledger), 10, "Redis has loaded")
        assert ledger.renew([(one, fence)]) == [fence]


def _answers(ledger: Ledger) -> bool:
    try:
        ledger.ping()
    except LedgerUnavailableError:
        return False
    return True


def test_a_redis_that_forgot_the_script_gets_it_again(ledger: Ledger, redis_url: str) -> None:
    owe(ledger, "1")
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    assert claim(ledger)


def test_a_redis_that_takes_no_writes_is_unavailable(redis_server: RedisServer) -> None:
    ledger = Ledger(redis_server.url, lease=LEASE, worker="w1")
    owe(ledger, "1")
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(LedgerUnavailableError):
            owe(ledger, "2")
        client.config_set("maxmemory", "0")
    assert ledger.owe(output("2"), recheck=False) == ""


def test_the_ledger_is_found_through_sentinels(redis_server: RedisServer, tmp_path) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {redis_server.port} 1\n")
    with Child("sentinel", [redis_executable(), str(configuration), "--sentinel"], tmp_path):
        ledger = Ledger(f"sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/main/3", lease=LEASE, worker="w1")
        wait_until(lambda: _answers(ledger), 10, "the sentinel knows the master")
        owe(ledger, "1")
    with redis.Redis.from_url(redis_server.url.removesuffix("0") + "3") as client:
        assert client.exists("lastcall:o:acme/1/1")


def test_poll_details_are_json(redis_url: str) -> None:
    ledger = Ledger(redis_url, lease=LEASE, worker="w1")
    turn = ledger.take_poll_turn("acme", DAY)
    assert turn is not None
    ledger.end_poll_turn(turn, "ok", {"jobs": 3, "error": "ü"})
    with redis.Redis.from_url(redis_url) as client:
        assert json.loads(client.hget("lastcall:poll:acme", "detail")) == {"jobs": 3, "error": "ü"}
