"""What the ledger costs: the time of a claim and of its end, and the bytes of an output, whatever the backlog."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis

from bench.page import Section, table
from worker.demo.embedded import RedisServer
from worker.ledger import Claim, Ledger
from worker.model import Output, OutputId

CLAIMS = 1000
PLANS = (  # owed, sources, workers
    (1_000, 4, 1),
    (100_000, 4, 1),
    (100_000, 40, 100),
    (1_000_000, 4, 1),
)
_BATCH = 1000
_SLOTS = 16  # of a worker, as by default
JOB = {
    "ID": 2206925,
    "CompanyID": "163",
    "CompanyName": "Example Co",
    "CompletedOn": "2026-03-26T12:55:02.123",
    "ErrorMessage": "",
    "InputFile": "",
    "OutputFile": "CustomExport.csv",
    "QueuedJobPriority": 1,
    "QueuedJobStatus": 3,
    "QueuedJobType": 2,
    "RelatedTaskID": 0,
    "StartedOn": "2026-03-26T12:53:17.456",
    "SubmittedBy": "someone@example.com",
    "SubmittedOn": "2026-03-26T12:53:02.456",
    "TimeElapsed": 104.7,
    "UserID": 17,
}


def _output(number: int, now: datetime, sources: int = 4) -> Output:
    ready = now - timedelta(milliseconds=number * 2_741 % 86_400_000)
    job = JOB | {
        "ID": 2_206_925 + number,
        "CompletedOn": ready.isoformat(timespec="milliseconds"),
        "StartedOn": (ready - timedelta(milliseconds=number * 977 % 90_000)).isoformat(timespec="milliseconds"),
        "OutputFile": f"CustomExport_{number}.csv",
        "TimeElapsed": number * 977 % 90_000 / 1000,
        "UserID": number % 40,
    }
    return Output(
        id=OutputId(f"source-{number % sources}", str(2_206_925 + number), str(2_206_925 + number)),
        completed_at=ready,
        deadline=ready + timedelta(days=1, seconds=3600 + number * 7919 % 777_600),
        filename=f"CustomExport_{number}.csv",
        job=job,
    )


def _measure(url: str, client: Any, owed: int, sources: int, workers: int) -> tuple[str, ...]:
    now = datetime.now(UTC).replace(microsecond=0)  # vendors tell milliseconds at most
    client.flushall()
    ledgers = [Ledger(url, lease=timedelta(seconds=600), worker=f"worker-{number}") for number in range(workers)]
    ledger = ledgers[0]
    ledger.ping()
    before = client.info("memory")["used_memory"]
    for first in range(0, owed, _BATCH):
        ledger.owe_all((_output(number, now, sources), False) for number in range(first, min(owed, first + _BATCH)))
    size = (client.info("memory")["used_memory"] - before) / owed
    ledger.open_epoch(ledger.epoch()[0], timedelta(0))
    slots = {f"source-{number}": owed for number in range(sources)}
    for one in ledgers:
        one.stamp_worker(_SLOTS)
    _archive(ledger, _claim(ledger, slots, 4 * sources))  # so that every source is trusted, as in a daemon that runs for days
    claims: list[Claim] = []
    claim = _timed(client, lambda: claims.extend(_claim(ledger, slots, min(CLAIMS, owed // 2))))
    end = _timed(client, lambda: _archive(ledger, claims))
    return (f"{owed:,}", f"{sources}", f"{workers}", f"{size:,.0f}", claim, end)


def _timed(client: Any, calls: Callable[[], None]) -> str:
    """Make these calls; gives how many ms one was Redis' work, in the mean."""
    client.config_resetstat()
    calls()
    return f"{client.info('commandstats')['cmdstat_evalsha']['usec_per_call'] / 1000:.2f}"


def _claim(ledger: Ledger, slots: Mapping[str, int], count: int) -> list[Claim]:
    claims = [ledger.claim(slots) for _ in range(count)]
    return [claim for claim in claims if claim]


def _archive(ledger: Ledger, claims: Iterable[Claim]) -> None:
    for claim in claims:
        name = claim.output.filename or ""
        ledger.archived(claim.output.id, name, 20_480, unproven=False, seconds=0.05, downloaded=True)


def run(plans: Sequence[tuple[int, int, int]] = PLANS) -> Section:
    """Owe more and more, claim a thousand, and settle them."""
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder)) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        for plan in plans:
            rows.append(_measure(server.url, client, *plan))
            sys.stderr.write(f"  {', '.join(rows[-1])}\n")
    columns = ("owed", "sources", "workers", "bytes each", "claim in Redis, ms", "its end, ms")
    return Section(
        "What the ledger costs",
        f"""{table(columns, rows)}

Each output has a Sellercloud job of some 500 bytes of JSON, and each source has archived something. A claim looks at all
sources and counts the slots of all workers that live; its *end* settles an archived output. The times are the means of a
thousand calls, of the scripts in Redis alone, by its own statistics: while one runs, all others wait. *Bytes* are those of
Redis' memory for an owed output, with its part of all indexes.""",
        {},
    )


if __name__ == "__main__":
    sys.stdout.write(run([(int(sys.argv[1]), 4, 1)]).text + "\n")
