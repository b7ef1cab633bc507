"""The metrics of CONTRACT section 7, read from the ledger at each scrape, so any number of web processes say the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from worker import forecast
from worker.forecast import Forecast
from worker.ledger import Ledger, ProofState, SourceStatus
from worker.model import OutputState
from worker.settings import Settings

# What labels can be, so that each series begins at zero and `rate` and `increase` see its first step.
_POLL_RESULTS = ("ok", "unavailable", "refused", "throttled", "malformed", "blocked", "archive-refused", "stopped", "error")
_DOWNLOAD_RESULTS = ("ok", "failed", "refused", "mismatch")
_LOSS_REASONS = ("gone", "expired", "deleted", "superseded", "invalid-result")
_BOUNDS = ("1", "5", "15", "60", "300", "900", "3600", "14400", "86400", "604800", "+Inf")  # as ledger.lua counts them

Counters = dict[str, dict[str, float]]


def render(ledger: Ledger, settings: Settings) -> bytes:
    """Give all metrics as Prometheus text (format 0.0.4). Raises `LedgerUnavailableError`."""
    registry = CollectorRegistry()
    registry.register(_LedgerCollector(ledger, settings))
    return generate_latest(registry)


class _LedgerCollector(Collector):
    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._sources = tuple(settings.sources)

    def describe(self) -> list[Metric]:
        """Keep the registry from asking Redis what there is."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read everything first, so that a scrape is whole or fails."""
        now = self._ledger.now()
        rows = {source: self._ledger.status(source, self._settings.worker.at_risk) for source in self._sources}
        counters = self._ledger.counters()
        workers, beat_at = self._ledger.workers(), self._ledger.beat_at()
        outlook = forecast.read(self._ledger, self._settings, rows)
        proofs = self._ledger.proofs(["verify", *(f"audit:{source}" for source in self._sources)])
        last_proof = self._ledger.last_proof()
        yield from _state_of_sources(rows, now)
        yield from _forecast(outlook)
        yield from _proofs(proofs, last_proof)
        yield from self._counted(counters)
        yield self._latency(counters)
        yield GaugeMetricFamily("lastcall_workers", "Worker processes that are alive.", value=len(workers))
        yield GaugeMetricFamily(
            "lastcall_beat_timestamp_seconds", "When a beat last ticked; 0 is never.", value=_epoch_seconds(beat_at)
        )

    def _counted(self, counters: Counters) -> Iterator[Metric]:
        for metric, what in (
            ("archived", "Outputs archived since Redis began to count."),
            ("archived_bytes", "Bytes of the files archived since Redis began to count."),
            ("unproven", "Outputs archived although nothing proved that their bytes were whole."),
            ("takeovers", "Outputs taken over from a worker whose lease ended."),
            ("oddities", "Vendor answers that an operator should look at: unknown states, failed jobs that name a file."),
        ):
            plain = CounterMetricFamily(f"lastcall_{metric}", what, labels=["source"])
            for source in self._sources:
                plain.add_metric([source], counters[metric].get(source, 0))
            yield plain
        for metric, what, label, usual in (
            ("lost", "Outputs lost, by the vendor's reason.", "reason", _LOSS_REASONS),
            ("downloads", "Downloads made, by result.", "result", _DOWNLOAD_RESULTS),
            ("polls", "Listings made, by result.", "result", _POLL_RESULTS),
        ):
            labelled = CounterMetricFamily(f"lastcall_{metric}", what, labels=["source", label])
            for source in self._sources:
                seen = {key.partition("|")[2]: value for key, value in counters[metric].items() if key.startswith(f"{source}|")}
                for value in dict.fromkeys((*usual, *sorted(seen))):
                    labelled.add_metric([source, value], seen.get(value, 0))
            yield labelled

    def _latency(self, counters: Counters) -> Metric:
        histogram = HistogramMetricFamily(
            "lastcall_ready_to_archived_seconds", "From ready at the vendor to archived here.", labels=["source"]
        )
        buckets, sums = counters["ready_to_archived"], counters["ready_to_archived_sum"]
        for source in self._sources:
            each = (buckets.get(f"{source}|{bound}", 0) for bound in _BOUNDS)
            counts = list(zip(_BOUNDS, itertools.accumulate(each), strict=True))
            histogram.add_metric([source], counts, sum_value=sums.get(source, 0))
        return histogram


def _state_of_sources(rows: dict[str, SourceStatus], now: datetime) -> Iterator[Metric]:
    outputs = GaugeMetricFamily(
        "lastcall_outputs",
        "Outputs by state. archived counts receipts; lost does not count what was acknowledged.",
        labels=["source", "state"],
    )
    nearest = GaugeMetricFamily(
        "lastcall_nearest_deadline_seconds",
        "Time left to the nearest deadline of what is owed; negative is overdue, +Inf is nothing owed.",
        labels=["source"],
    )
    at_risk = GaugeMetricFamily("lastcall_at_risk", "Owed outputs with less than [worker] at_risk left.", labels=["source"])
    overdue = GaugeMetricFamily("lastcall_overdue", "Owed outputs whose deadline has passed.", labels=["source"])
    polled = GaugeMetricFamily(
        "lastcall_last_poll_timestamp_seconds", "When the source was last listed; 0 is never.", labels=["source"]
    )
    for source, row in rows.items():
        for state in OutputState:
            outputs.add_metric([source, str(state)], getattr(row, state))
        left = (row.nearest_deadline - now).total_seconds() if row.nearest_deadline else float("inf")
        nearest.add_metric([source], left)
        at_risk.add_metric([source], row.at_risk)
        overdue.add_metric([source], row.overdue)
        polled.add_metric([source], _epoch_seconds(row.last_poll_at))
    yield from (outputs, nearest, at_risk, overdue, polled)


def _forecast(outlook: Forecast) -> Iterator[Metric]:
    """What is not known yet has no sample, so that nobody takes it for a zero."""
    missed = GaugeMetricFamily(
        "lastcall_forecast_missed", "Owed outputs that will miss their deadline as things are now.", labels=["source"]
    )
    for name, source in outlook.sources.items():
        if source.missed is not None:
            missed.add_metric([name], source.missed)
    yield missed
    needed = GaugeMetricFamily("lastcall_forecast_workers_needed", "How many more workers would save what can be saved.")
    if outlook.more_workers is not None:
        needed.add_metric([], outlook.more_workers)
    yield needed


def _proofs(states: dict[str, ProofState], last: tuple[int, str] | None) -> Iterator[Metric]:
    """What no audit has counted yet has no sample, so that nobody takes it for a zero."""
    audited = GaugeMetricFamily(
        "lastcall_last_audit_timestamp_seconds", "When an audit of the source last succeeded; 0 is never.", labels=["source"]
    )
    found = {
        kind: GaugeMetricFamily(f"lastcall_audit_{kind}", f"Outputs that the last audit found {kind}.", labels=["source"])
        for kind in ("missing", "damaged")
    }
    for name, state in states.items():
        if source := name.removeprefix("audit:") if name.startswith("audit:") else "":
            audited.add_metric([source], _epoch_seconds(state.at))
            for kind, metric in found.items():
                if state.at:
                    metric.add_metric([source], state.counts.get(kind, 0))
    yield from (audited, *found.values())
    verified = states["verify"]
    yield GaugeMetricFamily(
        "lastcall_last_verify_timestamp_seconds", "When objects were last read back; 0 is never.", _epoch_seconds(verified.at)
    )
    damaged = GaugeMetricFamily("lastcall_verify_damaged", "Objects that the last verification found damaged.")
    if verified.at:
        damaged.add_metric([], verified.counts.get("damaged", 0))
    yield damaged
    records = GaugeMetricFamily("lastcall_audit_records", "Number of the last record under _state/audit/. It never falls.")
    if last:
        records.add_metric([], last[0])
    yield records


def _epoch_seconds(at: datetime | None) -> float:
    return at.timestamp() if at else 0.0
