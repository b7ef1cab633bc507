"""Every name and label of CONTRACT section 7, over a real ledger."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta

from prometheus_client.parser import text_string_to_metric_families

from tests.web.story import Web, output, tell_story
from worker.ledger import Ledger

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(web: Web) -> Samples:
    reply = web.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_every_configured_source_has_every_series_from_the_start(start_web: Callable[..., Web]) -> None:
    """`increase()` and "no data" alerts need series that begin at zero."""
    found = scrape(start_web())
    for source in ("acme-exports", "conversions"):
        states = {"owed", "claimed", "archived", "empty", "lost", "held"}
        assert {dict(labels)["state"] for name, labels in found if name == "lastcall_outputs"} == states
        for state in states:
            assert of(found, "lastcall_outputs", source=source, state=state) == 0
        for name in (
            "lastcall_at_risk",
            "lastcall_overdue",
            "lastcall_archived_total",
            "lastcall_archived_bytes_total",
            "lastcall_last_poll_timestamp_seconds",
            "lastcall_unproven_total",
            "lastcall_ready_to_archived_seconds_count",
            "lastcall_ready_to_archived_seconds_sum",
        ):
            assert of(found, name, source=source) == 0
        assert of(found, "lastcall_ready_to_archived_seconds_bucket", source=source, le="+Inf") == 0
        assert of(found, "lastcall_downloads_total", source=source, result="ok") == 0
        assert of(found, "lastcall_polls_total", source=source, result="ok") == 0
        assert of(found, "lastcall_lost_total", source=source, reason="expired") == 0
        assert math.isinf(of(found, "lastcall_nearest_deadline_seconds", source=source)), "nothing owed is infinitely far"
    assert of(found, "lastcall_workers") == 0
    assert of(found, "lastcall_beat_timestamp_seconds") == 0


def test_metrics_tell_what_the_ledger_knows(start_web: Callable[..., Web], ledger: Ledger) -> None:
    """One output in every state is one in every series."""
    began = time.time()
    tell_story(ledger)
    found = scrape(start_web())
    states = {"owed": 4, "claimed": 1, "archived": 1, "empty": 1, "lost": 1, "held": 1}
    assert {state: of(found, "lastcall_outputs", source="acme-exports", state=state) for state in states} == states
    assert of(found, "lastcall_at_risk", source="acme-exports") == 4
    assert of(found, "lastcall_overdue", source="acme-exports") == 3
    assert -86_500 < of(found, "lastcall_nearest_deadline_seconds", source="acme-exports") <= -86_400
    assert of(found, "lastcall_lost_total", source="acme-exports", reason="expired") == 2, "acknowledged ones were lost too"
    assert of(found, "lastcall_archived_total", source="acme-exports") == 1
    assert of(found, "lastcall_archived_bytes_total", source="acme-exports") == 1_000
    assert of(found, "lastcall_unproven_total", source="acme-exports") == 1
    assert of(found, "lastcall_downloads_total", source="acme-exports", result="ok") == 1
    assert of(found, "lastcall_polls_total", source="acme-exports", result="ok") == 1
    assert of(found, "lastcall_last_poll_timestamp_seconds", source="acme-exports") >= began - 1
    assert of(found, "lastcall_beat_timestamp_seconds") >= began - 1
    assert of(found, "lastcall_workers") == 1


def test_histogram_has_the_ledgers_buckets(start_web: Callable[..., Web], ledger: Ledger) -> None:
    """Ready a minute and a half ago and archived now: in each bucket from 300 s on, and in every one the ledger counts."""
    owed = output("conversions", 1, ready=timedelta(seconds=90), left=timedelta(hours=1))
    ledger.owe(owed, recheck=False)
    assert ledger.claim({"conversions": 1})
    ledger.archived(owed.id, "key", 5, unproven=False)
    found = scrape(start_web())
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "lastcall_ready_to_archived_seconds_bucket" and ("source", "conversions") in labels
    }
    assert {bound for bound, value in buckets.items() if value} == {"300", "900", "3600", "14400", "86400", "604800", "+Inf"}
    counted = {label.partition("|")[2] for label in ledger.counters()["ready_to_archived"]}
    assert counted <= buckets.keys()
    assert {bound for bound, value in buckets.items() if not value} == {"1", "5", "15", "60"}
    assert of(found, "lastcall_ready_to_archived_seconds_count", source="conversions") == 1
    assert 85 < of(found, "lastcall_ready_to_archived_seconds_sum", source="conversions") < 120


def test_labels_that_nobody_foresaw_are_counted_too(start_web: Callable[..., Web], ledger: Ledger) -> None:
    """A result that a newer worker writes is not dropped."""
    ledger.count("polls", "conversions|moonshine")
    found = scrape(start_web())
    assert of(found, "lastcall_polls_total", source="conversions", result="moonshine") == 1
    assert of(found, "lastcall_polls_total", source="acme-exports", result="ok") == 0


def test_the_forecast_is_a_metric_as_soon_as_it_is_known(start_web: Callable[..., Web], ledger: Ledger) -> None:
    """No sample before that, since a zero would say that all is well."""
    for number in range(8):
        owed = output("conversions", number, ready=timedelta(seconds=90), left=timedelta(hours=1))
        ledger.owe(owed, recheck=False)
        if number == 0:
            web = start_web()
            assert not [
                labels for name, labels in scrape(web) if name == "lastcall_forecast_missed" and "conversions" in str(labels)
            ]
        if number < 3:
            ledger.archived(owed.id, "key", 5, unproven=False, seconds=2400)
    found = scrape(web)
    assert of(found, "lastcall_forecast_missed", source="conversions") == 5, "no worker is alive"
    assert of(found, "lastcall_forecast_workers_needed") == 1
    assert of(found, "lastcall_forecast_missed", source="acme-exports") == 0
