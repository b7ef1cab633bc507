"""Measure the ledger: how long a claim takes, and what an output costs in Redis. Run by hand, it is no test.

``python tests/ledger/measure.py [OUTPUTS…]``
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis

from worker.demo.embedded import RedisServer
from worker.ledger import Ledger
from worker.model import Output, OutputId

SOURCES = 4
JOB = {
    "Id": 28142,
    "JobType": "ExportOrders",
    "Status": "Completed",
    "CompletedOn": "2026-03-26T12:55:02.123",
    "CreatedOn": "2026-03-26T12:53:17.456",
    "Parameters": {"CompanyID": 163, "Format": "CSV", "View": "Orders by date"},
    "FileName": "CustomExport.csv",
}


def measure(ledger: Ledger, url: str, outputs: int, claims: int = 1000) -> None:
    """Owe `outputs`, claim some of them, and print one row."""
    now = datetime.now(UTC)
    with redis.Redis.from_url(url) as client:
        client.flushall()
        ledger.ping()
        before = client.info("memory")["used_memory"]
        began = time.perf_counter()
        for number in range(outputs):
            one = Output(
                id=OutputId(f"source-{number % SOURCES}", str(100_000 + number), str(100_000 + number)),
                completed_at=now,
                deadline=now + timedelta(seconds=3600 + number * 7919 % 864_000),
                filename="CustomExport.csv",
                job=JOB | {"Id": 100_000 + number},
            )
            ledger.owe(one, recheck=False)
        owed = time.perf_counter() - began
        size = (client.info("memory")["used_memory"] - before) / outputs
        ledger.open_epoch(ledger.epoch()[0], timedelta(0))
        slots = {f"source-{number}": outputs for number in range(SOURCES)}
        times = []
        for _ in range(min(claims, outputs)):
            began = time.perf_counter()
            ledger.claim(slots)
            times.append((time.perf_counter() - began) * 1000)
    times.sort()
    middle, worst = times[len(times) // 2], times[len(times) * 99 // 100]
    row = f"{outputs:>8,} owed: {size:5.0f} bytes each; owe {owed / outputs * 1000:.3f} ms"
    print(f"{row}; claim p50 {middle:.3f} p99 {worst:.3f} ms")  # noqa: T201


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        for count in map(int, sys.argv[1:] or ["1000", "100000"]):
            measure(Ledger(server.url, lease=timedelta(seconds=60), worker="w1"), server.url, count)
