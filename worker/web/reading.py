"""What the board and the probes are told: plain documents made from the ledger. No secret can be in them: it holds none."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from worker import forecast
from worker.errors import LedgerUnavailableError
from worker.forecast import Forecast
from worker.ledger import Flow, Kept, Ledger, Record, SourceStatus
from worker.model import JsonObject, OutputState, timestamp
from worker.settings import Settings

ROWS = 200  # as many bars as one can look at, and as a page draws without a stutter
_PEOPLE_ROWS = 50  # of lost and of held ones
_HOUR = timedelta(hours=1) // Flow.SLOT
_COUNTS = ("owed", "claimed", "archived", "lost", "acknowledged", "held", "empty", "at_risk", "overdue")

_T = TypeVar("_T")


class Reading(Generic[_T]):
    """One blocking reading, shared by all who ask while it goes on, and good for `fresh_seconds` after that.

    A Redis that hangs costs one thread, however many ask, and each of them learns it within `patience_seconds`.
    """

    def __init__(self, read: Callable[[], _T], *, fresh_seconds: float = 0, patience_seconds: float = 4) -> None:
        self._read = read
        self._fresh_seconds = fresh_seconds
        self._patience_seconds = patience_seconds
        self._going_on: asyncio.Future[_T] | None = None
        self._read_at = float("-inf")
        self._last: _T | None = None

    async def get(self) -> _T:
        """Give what was read. Raises `LedgerUnavailableError`."""
        if self._last is not None and time.monotonic() - self._read_at < self._fresh_seconds:
            return self._last
        if self._going_on is None:
            self._going_on = asyncio.wrap_future(in_thread(self._read))
            self._going_on.add_done_callback(self._ended)
        try:
            return await asyncio.wait_for(asyncio.shield(self._going_on), self._patience_seconds)
        except TimeoutError:
            raise LedgerUnavailableError(f"Redis did not answer within {self._patience_seconds:g} s") from None

    def _ended(self, reading: asyncio.Future[_T]) -> None:
        self._going_on = None
        if not reading.cancelled() and reading.exception() is None:
            self._last, self._read_at = reading.result(), time.monotonic()


def in_thread(read: Callable[[], _T]) -> Future[_T]:
    """Run it in a thread that keeps nobody from ending the process, as those of an executor would while Redis hangs."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(read())
        except Exception as exc:  # noqa: BLE001 - whoever waits for the future gets it
            future.set_exception(exc)

    threading.Thread(target=run, name="reading", daemon=True).start()
    return future


def health(ledger: Ledger) -> JsonObject:
    """Give ``{"ok": true, …}``, or ``{"ok": false, "reason": …}``. Raises `LedgerUnavailableError`."""
    beat_at = ledger.beat_at()
    reasons = ledger.missing_processes()
    found = {"workers": len(ledger.workers()), "beat_at": timestamp(beat_at) if beat_at else None}
    return {"ok": False, "reason": "; ".join(reasons), **found} if reasons else {"ok": True, **found}


def board(ledger: Ledger, settings: Settings, chosen: str | None) -> JsonObject:
    """Give what the board shows now; `chosen` is the one source whose owed and archived outputs it shows, None for all.

    Raises `LedgerUnavailableError`. Only the most urgent `ROWS` outputs are read, however many are owed.
    """
    now, at_risk = ledger.now(), settings.worker.at_risk
    rows = {source: ledger.status(source, at_risk) for source in settings.sources}
    shown = [chosen] if chosen else list(rows)
    owed: dict[str, Record] = {}
    for source in shown:
        for state in (OutputState.OWED, OutputState.CLAIMED):  # claimed last: an output may change between the two
            owed |= {str(record.output.id): record for record in ledger.records(source, state, ROWS)}
    lost: list[Record] = []
    held: list[Record] = []
    for source, row in rows.items():
        # Acknowledged losses come after those that are not.
        lost += itertools.islice(ledger.records(source, OutputState.LOST, _PEOPLE_ROWS), row.lost)
        held += ledger.records(source, OutputState.HELD, _PEOPLE_ROWS)
    totals = {key: sum(getattr(row, key) for row in rows.values()) for key in _COUNTS}
    open_ = sum(rows[source].owed + rows[source].claimed for source in shown)
    outlook = forecast.read(ledger, settings, rows)
    everything = ledger.paused(None)
    return {
        "now": timestamp(now),
        "health": {key: value for key, value in health(ledger).items() if key != "beat_at"},  # which changes at each tick
        "everything": {"until": timestamp(everything.until), "why": everything.why} if everything else None,
        "at_risk_seconds": at_risk.total_seconds(),
        "totals": {**totals, "forecast": outlook.to_json()},
        "sources": [_source(settings, name, row, outlook, ledger.flow(name)) for name, row in rows.items()],
        "outputs": _most_urgent(list(owed.values()), ROWS, open_, now, at_risk),
        "lost": _most_urgent(lost, _PEOPLE_ROWS, totals["lost"], now, at_risk),
        "held": _most_urgent(held, _PEOPLE_ROWS, totals["held"], now, at_risk),
        "archived": [_kept(kept) for kept in ledger.recent() if kept.output.source in shown],
    }


def _most_urgent(records: list[Record], most: int, total: int, now: datetime, at_risk: timedelta) -> JsonObject:
    shown = sorted(records, key=lambda record: (record.output.deadline, str(record.output.id)))[:most]
    return {"rows": [_output(record, now, at_risk) for record in shown], "more": max(0, total - len(shown))}


def _source(settings: Settings, name: str, row: SourceStatus, outlook: Forecast, flow: tuple[Flow, ...]) -> JsonObject:
    fields = {key: timestamp(value) if isinstance(value, datetime) else value for key, value in asdict(row).items()}
    configured = settings.sources[name]
    figure = outlook.sources[name].to_json() if name in outlook.sources else None
    rest = {"forecast": figure, "flow": [slot.outputs for slot in flow], "hour": _sum(flow[-_HOUR:]), "day": _sum(flow)}
    return {"name": name, "vendor": configured.vendor, "enabled": configured.enabled, **fields, **rest}


def _sum(flow: tuple[Flow, ...]) -> JsonObject:
    return {"outputs": sum(slot.outputs for slot in flow), "size": sum(slot.size for slot in flow)}


def _kept(kept: Kept) -> JsonObject:
    return {
        "id": str(kept.output),
        "source": kept.output.source,
        "job_id": kept.output.job_id,
        "filename": kept.key.rpartition("/")[2],
        "size": kept.size,
        "archived_at": timestamp(kept.archived_at),
    }


def _output(record: Record, now: datetime, at_risk: timedelta) -> JsonObject:
    return {
        **record.to_json(),
        "ready_at": timestamp(record.output.completed_at),
        "worker": record.worker,
        "urgency": _urgency(record.output.deadline - now, at_risk),
        "commands": _commands(record),
    }


def _urgency(left: timedelta, at_risk: timedelta) -> str:
    if left <= timedelta(0):
        return "overdue"
    return "at-risk" if left <= at_risk else "fine"


def _commands(record: Record) -> list[str]:
    """What a person can do about it."""
    output = record.output.id
    if record.state is OutputState.LOST:
        return [f"lastcall retry {output}", f'lastcall acknowledge {output} --reason "…"']
    if record.state is OutputState.HELD:
        return [f"lastcall show {output}", f"lastcall retry {output}"]
    return []
