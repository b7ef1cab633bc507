"""The forecast: in virtual time, over backlogs whose fate can be reckoned by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from worker.cli import main
from worker.forecast import Forecast, Queue, forecast
from worker.ledger import Backlog, Ledger, Waiting
from worker.model import Output, OutputId

NOW = 1_800_000_000.0


def queue(*due: float, seconds: float = 60, slots: int = 4, calls: float = 100, measured: int = 9, paused: float = 0) -> Queue:
    """Give a source that owes outputs due in so many seconds, each of which takes `seconds`."""
    rows = tuple(Waiting(NOW + left, seconds, 0, claimed=False) for left in due)
    backlog = Backlog(open=len(rows), measured=measured, rows=rows)
    return Queue(backlog=backlog, slots=slots, calls_per_second=calls, begins_at=NOW + paused)


def look(capacity: int, *, concurrency: int = 2, **queues: Queue) -> Forecast:
    return forecast(queues, NOW, capacity, concurrency)


def test_what_fits_is_in_time() -> None:
    found = look(2, acme=queue(61, 61, 121, 121))
    assert (found.missed, found.more_workers, found.open) == (0, 0, 4)
    assert found.lines == ["all of 4 will meet their deadline"]


def test_what_does_not_fit_is_counted_and_more_workers_save_it() -> None:
    """Ten minutes of work, due in five minutes, and one slot: five are in time; with one more worker all are."""
    found = look(1, acme=queue(*[301.0] * 10))
    assert (found.missed, found.more_workers, found.saved) == (5, 1, 5)
    assert found.lines == ["5 of 10 will miss their deadline; one more worker saves them"]
    assert look(3, acme=queue(*[301.0] * 10)).missed == 0


def test_no_worker_at_all_saves_nothing() -> None:
    found = look(0, acme=queue(*[301.0] * 10))
    assert (found.missed, found.more_workers, found.saved) == (10, 1, 10)


def test_where_the_slots_of_the_source_are_the_limit_more_workers_do_not_help() -> None:
    found = look(8, acme=queue(*[301.0] * 40, slots=4))
    assert (found.missed, found.more_workers, found.saved) == (20, 0, 0)
    assert found.lines[1:] == ["raise max_concurrent_downloads of acme to 8, if the vendor bears it"]


def test_where_the_pace_of_the_source_is_the_limit_it_is_named() -> None:
    """One call in ten seconds begins thirty-one outputs in five minutes, whatever the slots."""
    found = look(8, acme=queue(*[301.0] * 60, seconds=1, calls=0.1))
    assert found.missed == 29
    assert found.more_workers == 0
    assert found.sources["acme"].limit == "requests_per_second"
    assert found.sources["acme"].needed == pytest.approx(0.2)


def test_what_nothing_can_save_is_said_so() -> None:
    found = look(8, acme=queue(30, 300))
    assert (found.missed, found.more_workers) == (1, 0)
    assert found.lines[1:] == ["acme: some come too late whatever is done; the time left is too short"]


def test_a_paused_source_begins_after_its_pause() -> None:
    found = look(8, acme=queue(300, 3600, paused=600))
    assert found.missed == 1
    assert found.lines[1:] == ["acme: some come too late whatever is done; it is paused"]


def test_nothing_is_said_of_a_source_that_was_not_measured() -> None:
    found = look(1, new=queue(10, measured=2))
    assert (found.missed, found.more_workers) == (None, None)
    assert found.sources["new"].to_json() == {"open": 1, "missed": None, "limit": None, "needed": None}
    assert found.lines == ["not known yet, until outputs were timed: new"]
    mixed = look(1, new=queue(10, measured=2), acme=queue(*[301.0] * 10))
    assert mixed.lines[0].startswith("5 of 10 will miss their deadline")
    assert mixed.to_json()["not_known"] == ["new"]


def test_nothing_owed_is_nothing_missed() -> None:
    found = look(0, acme=queue(measured=0))
    assert (found.missed, found.more_workers, found.open) == (0, 0, 0)


def test_what_is_overdue_is_not_forecast_but_takes_its_time() -> None:
    assert look(1, acme=queue(-10, 60)).missed == 1
    assert look(1, acme=queue(-10, 120)).missed == 0


def test_urgent_outputs_of_one_source_go_before_those_of_another() -> None:
    found = look(1, a=queue(*[6000.0] * 10), b=queue(*[600.0] * 10))
    assert found.missed == 0


def test_what_waits_for_its_next_try_begins_then() -> None:
    rows = (Waiting(NOW + 300, 60, NOW + 200, claimed=False), Waiting(NOW + 300, 60, NOW + 290, claimed=False))
    one = Queue(backlog=Backlog(open=2, measured=9, rows=rows), slots=4, calls_per_second=9)
    assert look(4, acme=one).missed == 1


def test_what_is_collected_now_has_its_slot_already() -> None:
    rows = (Waiting(NOW + 300, 100, 0, claimed=True), Waiting(NOW + 120, 60, 0, claimed=False))
    one = Queue(backlog=Backlog(open=2, measured=9, rows=rows), slots=1, calls_per_second=9)
    assert look(4, acme=one).missed == 1


def test_with_more_to_fetch_than_time_not_everything_is_forecast_as_missed() -> None:
    """Twice as much as fits: about half is saved, as `Ledger.claim` saves it."""
    found = look(1, concurrency=1, acme=queue(*[60.0 + 30 * number for number in range(200)]))
    assert 100 <= (found.missed or 0) <= 130


def test_a_large_backlog_is_judged_by_some_of_its_outputs() -> None:
    """A hundred thousand outputs of which every hundredth is looked at: about half fit."""
    rows = tuple(Waiting(NOW + 100_000, 4.0, 0, claimed=False) for _ in range(1000))
    one = Queue(backlog=Backlog(open=100_000, measured=9, rows=rows), slots=9, calls_per_second=99)
    found = look(2, acme=one)
    assert 49_000 <= (found.missed or 0) <= 51_000
    assert found.more_workers == 1


def test_status_says_it_in_a_line_and_in_json(redis_url: str, tmp_path: Path) -> None:
    """Twelve outputs of 700 s each, due in 9,360 s, and one slot: thirteen would fit."""
    config = tmp_path / "lastcall.toml"
    config.write_text(
        f"""
        redis_url = "{redis_url}"
        [archive]
        bucket = "exports"
        [worker]
        concurrency = 1
        [sources.acme]
        vendor = "sellercloud"
        base_url = "https://tt.api.sellercloud.com/rest"
        username = "u"
        password = "p"
        """
    )
    ledger = Ledger(redis_url, lease=timedelta(seconds=60), worker="w1")
    ledger.stamp_worker(1)
    now = datetime.now(UTC)

    def status(*options: str) -> str:
        return CliRunner().invoke(main, ["--config", str(config), "status", *options], catch_exceptions=False).output

    for number in range(15):
        one = Output(id=OutputId("acme", f"{number}", "1"), completed_at=now, deadline=now + timedelta(hours=2.6))
        ledger.owe(one, recheck=False)
        if number == 1:
            assert "not known yet" in status()
        if number < 3:
            ledger.archived(one.id, "key", 5, unproven=False, seconds=700)
    assert "0 of" not in status()
    found = json.loads(status("--json"))
    assert found["sources"]["acme"]["forecast"] == {"open": 12, "missed": 0, "limit": None, "needed": None}
    for number in range(15, 20):
        one = Output(id=OutputId("acme", f"{number}", "1"), completed_at=now, deadline=now + timedelta(hours=2.6))
        ledger.owe(one, recheck=False)
    found = json.loads(status("--json"))
    assert found["totals"]["forecast"] == {
        "open": 17,
        "missed": 4,
        "workers_needed": 1,
        "saved": 4,
        "not_known": [],
        "text": "4 of 17 will miss their deadline; one more worker saves them",
    }
    assert "forecast: 4 of 17 will miss their deadline; one more worker saves them" in " ".join(status().split())
