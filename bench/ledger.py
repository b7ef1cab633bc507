"""What the ledger costs: the time of a claim and the bytes of an output, whatever the backlog."""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis

from bench.page import Section, table
from worker.demo.embedded import RedisServer
from worker.ledger import Ledger
from worker.model import Output, OutputId

SOURCES = 4
CLAIMS = 1000
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


def _output(number: int, now: datetime) -> Output:
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
        id=OutputId(f"source-{number % SOURCES}", str(2_206_925 + number), str(2_206_925 + number)),
        completed_at=ready,
        deadline=ready + timedelta(days=1, seconds=3600 + number * 7919 % 777_600),
        filename=f"CustomExport_{number}.csv",
        job=job,
    )


def _measure(ledger: Ledger, client: Any, owed: int) -> tuple[str, ...]:
    now = datetime.now(UTC).replace(microsecond=0)  # vendors tell milliseconds at most
    client.flushall()
    ledger.ping()
    before = client.info("memory")["used_memory"]
    for number in range(owed):
        ledger.owe(_output(number, now), recheck=False)
    size = (client.info("memory")["used_memory"] - before) / owed
    ledger.open_epoch(ledger.epoch()[0], timedelta(0))
    slots = {f"source-{number}": owed for number in range(SOURCES)}
    ledger.claim(slots)
    client.config_set("slowlog-log-slower-than", 0)
    client.config_set("slowlog-max-len", CLAIMS * 100)  # what the script calls is there as well
    client.slowlog_reset()
    seen = []
    for _ in range(min(CLAIMS, owed - 1)):
        began = time.perf_counter()
        ledger.claim(slots)
        seen.append((time.perf_counter() - began) * 1000)
    inside = [entry["duration"] / 1000 for entry in client.slowlog_get(CLAIMS * 100) if entry["command"].startswith(b"EVALSHA")]
    client.config_set("slowlog-log-slower-than", 10_000)
    figures = [*_middle_and_worst(inside), *_middle_and_worst(seen)]
    return (f"{owed:,}", f"{size:,.0f}", *(f"{figure:.2f}" for figure in figures))


def _middle_and_worst(times: list[float]) -> tuple[float, float]:
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100]


def run(sizes: tuple[int, ...] = (1_000, 100_000)) -> Section:
    """Owe more and more, and claim a thousand times each."""
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        ledger = Ledger(server.url, lease=timedelta(seconds=600), worker="bench")
        with redis.Redis.from_url(server.url) as client:
            rows = [_measure(ledger, client, owed) for owed in sizes]
    columns = ("owed", "bytes each", "claim in Redis p50 ms", "p99 ms", "with the way there p50 ms", "p99 ms")
    return Section(
        "What the ledger costs",
        f"""{table(columns, rows)}

{SOURCES} sources, each output with a Sellercloud job of some 500 bytes of JSON; a claim looks at all sources. *In Redis* is
the script's own time (`SLOWLOG`); *with the way there* is what a worker waits for, on a machine that does other things too.
The row of a million is made by `python -m bench.ledger 1000000` (some minutes).""",
        {},
    )


if __name__ == "__main__":
    sys.stdout.write(run(tuple(map(int, sys.argv[1:]))).text + "\n")
