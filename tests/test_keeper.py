"""The heartbeat of a worker process, on a real Redis: leases that last, and what ends a transfer."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

from worker.demo.embedded import RedisServer, wait_until
from worker.errors import LeaseLostError, LedgerUnavailableError, StoppedError
from worker.keeper import Keeper
from worker.ledger import Claim, Ledger
from worker.model import Output, OutputId

LEASE = timedelta(seconds=0.6)


def open_ledger(url: str, worker: str = "w1", lease: timedelta = LEASE) -> Ledger:
    ledger = Ledger(url, lease=lease, worker=worker)
    ledger.open_epoch(ledger.epoch()[0], timedelta(0))
    return ledger


def owe_and_claim(ledger: Ledger, *, long_ago: bool = False) -> Claim:
    """Claim one output; `long_ago`: so long that `confirm` must ask the ledger."""
    now = datetime.now(UTC)
    ledger.owe(Output(id=OutputId("acme", "1", "1"), completed_at=now, deadline=now + timedelta(days=1)), recheck=False)
    claim = ledger.claim({"acme": 1})
    assert claim is not None
    return replace(claim, asked_at=claim.asked_at - ledger.lease_seconds) if long_ago else claim


@pytest.fixture
def ledger(redis_url: str) -> Ledger:
    return open_ledger(redis_url)


@pytest.fixture
def keeper(ledger: Ledger) -> Iterator[Keeper]:
    one = Keeper(ledger, threading.Event(), slots=4, grace=timedelta(seconds=0.3))
    yield one
    one.end()


def nobody_claims(url: str, within_seconds: float) -> bool:
    """Whether a second worker that tries all the time gets nothing within the limit."""
    other = open_ledger(url, "w2")
    try:
        wait_until(lambda: other.claim({"acme": 9}) is not None, within_seconds, "a claim")
    except TimeoutError:
        return True
    return False


class _Defective(Ledger):
    """One whose first word of life meets what nobody foresaw."""

    failures = 0

    def stamp_worker(self, slots: int) -> datetime:
        self.failures += 1
        if self.failures == 2:  # the first is said by `start` itself
            raise ZeroDivisionError
        return super().stamp_worker(slots)


def test_a_defect_does_not_end_the_heartbeat(redis_url: str) -> None:
    ledger = _Defective(redis_url, lease=LEASE, worker="w1")
    ledger.open_epoch(ledger.epoch()[0], timedelta(0))
    keeper = Keeper(ledger, threading.Event(), slots=4, grace=timedelta(seconds=0.3))
    keeper.start()
    try:
        with keeper.holding(owe_and_claim(ledger)) as held:
            assert nobody_claims(redis_url, 3 * LEASE.total_seconds())
            held.check()
        assert ledger.failures > 2
    finally:
        keeper.end()


def test_what_is_held_stays_held_far_longer_than_a_lease(ledger: Ledger, keeper: Keeper, redis_url: str) -> None:
    keeper.start()
    with keeper.holding(owe_and_claim(ledger)) as held:
        assert nobody_claims(redis_url, 2)
        held.check()
        held.confirm()
    assert not nobody_claims(redis_url, 5)


def test_a_claim_whose_answer_was_lost_is_given_back_long_before_its_lease_ends(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis hung, and then did what it had been asked while nobody waited any more. What is held here or elsewhere stays so."""
    monkeypatch.setattr("worker.keeper.ANSWERED_SECONDS", 0.3)
    ledger, other = (open_ledger(redis_url, worker, timedelta(seconds=3)) for worker in ("w1", "w2"))
    keeper = Keeper(ledger, threading.Event(), slots=4, grace=timedelta(seconds=0.3), sources=("acme", "other"))
    now = datetime.now(UTC)
    with keeper.holding(owe_and_claim(ledger)) as held:
        lost, elsewhere = (
            Output(id=OutputId("acme", job, "1"), completed_at=now, deadline=now + timedelta(days=2)) for job in ("2", "3")
        )
        ledger.owe(lost, recheck=False)
        assert ledger.claim({"acme": 9}) is not None
        ledger.owe(elsewhere, recheck=False)
        assert other.claim({"acme": 9}) is not None
        keeper.start()
        try:
            wait_until(lambda: ledger.states([lost.id])[lost.id] == "owed", 3, "what nobody knows of is given back")
            assert set(ledger.states([held.claim.output.id, elsewhere.id]).values()) == {"claimed"}
            held.confirm()
            claim = other.claim({"acme": 9})
            assert claim is not None
            assert claim.output.id == lost.id
            assert claim.recheck
        finally:
            keeper.end()


def test_a_lease_that_another_worker_took_ends_the_transfer(ledger: Ledger, keeper: Keeper, redis_url: str) -> None:
    """The process was frozen for longer than its lease: no heartbeat ran."""
    with keeper.holding(owe_and_claim(ledger)) as held:
        assert not nobody_claims(redis_url, 5)
        held.check()  # nothing known yet
        with pytest.raises(LeaseLostError):
            held.confirm()
        keeper.start()
        with pytest.raises(LeaseLostError):
            held.check()


def test_the_heartbeat_itself_notices_a_lost_lease(ledger: Ledger, keeper: Keeper, redis_url: str) -> None:
    with keeper.holding(owe_and_claim(ledger)) as held:
        assert not nobody_claims(redis_url, 5)
        keeper.start()
        wait_until(lambda: held.lost, 5, "the loss is noticed")


def test_what_was_settled_is_not_lost(ledger: Ledger, keeper: Keeper) -> None:
    with keeper.holding(owe_and_claim(ledger)) as held:
        ledger.archived(held.claim.output.id, "key", 1, unproven=False)
    keeper.renew([held])
    assert not held.lost


def test_a_loss_of_redis_costs_nothing_that_is_held(ledger: Ledger, keeper: Keeper, redis_url: str) -> None:
    """The lease is asserted again by the next heartbeat, or by `confirm`, whichever comes first, or both at once."""
    claim = owe_and_claim(ledger, long_ago=True)
    with keeper.holding(claim) as held:
        with redis.Redis.from_url(redis_url) as client:
            for _ in range(20):
                client.flushall()
                threads = [threading.Thread(target=held.confirm) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                held.check()
        assert held.fence != claim.fence
        assert ledger.hold(claim.output.id, held.fence, "still ours")


def test_confirm_asks_the_ledger_once_half_a_lease_has_passed(ledger: Ledger, redis_url: str) -> None:
    """Before that nobody else can have claimed the output, even where Redis came back older and shows it as owed."""
    keeper = Keeper(ledger, threading.Event(), slots=4, grace=timedelta(seconds=1))  # which never beats
    for long_ago in (False, True):
        with keeper.holding(owe_and_claim(ledger, long_ago=long_ago)) as held:
            with redis.Redis.from_url(redis_url) as client:
                client.hset("lastcall:o:acme/1/1", "fe", "another's")
            if long_ago:
                with pytest.raises(LeaseLostError):
                    held.confirm()
            else:
                held.confirm()
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        open_ledger(redis_url)


def test_redis_down_stops_no_transfer(redis_server: RedisServer) -> None:
    ledger = open_ledger(redis_server.url)
    keeper = Keeper(ledger, threading.Event(), slots=4, grace=timedelta(seconds=1))
    keeper.start()
    with keeper.holding(owe_and_claim(ledger)) as held:
        redis_server.kill()
        held.confirm()
        held.check()
        redis_server.start()
        wait_until(lambda: held.fence != held.claim.fence, 10, "the lease is asserted at the new Redis")
        held.check()
    keeper.end()


def test_a_turn_to_list_outlives_its_lease_while_it_is_kept_and_no_longer(ledger: Ledger, keeper: Keeper) -> None:
    keeper.start()
    turn = ledger.take_poll_turn("acme", timedelta(milliseconds=1))
    assert turn is not None
    with keeper.keeping(turn), pytest.raises(TimeoutError):
        wait_until(lambda: ledger.poll_due("acme"), 1.5, "the turn ends")
    wait_until(lambda: ledger.poll_due("acme"), 5, "the turn ends with its lease")


def test_a_turn_whose_end_redis_did_not_hear_is_given_back_when_it_answers(tmp_path: Path) -> None:
    """Not when its lease ends: a source whose listing a short cut ended would not be listed for so long."""
    with RedisServer(tmp_path, durable=True) as server:
        ledger = open_ledger(server.url, lease=timedelta(seconds=30))
        keeper = Keeper(ledger, threading.Event(), slots=4, grace=timedelta(seconds=1))
        turn = ledger.take_poll_turn("acme", timedelta(milliseconds=1))
        assert turn is not None
        server.kill()
        with pytest.raises(LedgerUnavailableError):
            ledger.end_poll_turn(turn, "ok", {})
        gc.collect()  # the error's trace holds the ledger's connections in a circle, which would be taken apart in any order
        keeper.end_later(turn)
        keeper.start()
        server.start()
        assert not ledger.poll_due("acme")
        wait_until(lambda: ledger.poll_due("acme"), 8, "the turn is given back")
        keeper.end()


def test_a_stopping_process_may_finish_within_the_grace(ledger: Ledger, keeper: Keeper) -> None:
    with keeper.holding(owe_and_claim(ledger)) as held:
        assert not keeper.stopping
        keeper.request_stop()
        assert keeper.stopping
        held.check()
        wait_until(keeper.overstayed, 5, "the grace is over")
        keeper.request_stop()  # asked twice, the grace does not begin again
        with pytest.raises(StoppedError):
            held.check()


def test_a_process_counts_as_a_worker_while_it_beats(ledger: Ledger, keeper: Keeper) -> None:
    keeper.start()
    assert ledger.workers() == ["w1"]
    keeper.end()
    assert ledger.workers() == []
