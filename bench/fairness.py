"""What a well vendor's outputs wait for while others hang, trickle, throttle and refuse the log-in: a real daemon.

One worker process, one beat, a real Redis, an S3 server. Files of the well source become ready one after the other; each is
timed from then until the ledger knows of its receipt. First alone, then beside four sick sources whose outputs are all more
urgent than its own.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench.page import Section, table
from worker.demo.api2convert import Api2convert, OutputFile
from worker.demo.crayon import Crayon
from worker.demo.embedded import Child, RedisServer, S3Server, wait_until
from worker.demo.sellercloud import Sellercloud
from worker.demo.server import Content, Fault, Vendor
from worker.demo.spaaza import Spaaza
from worker.ledger import Ledger
from worker.model import OutputId, OutputState

CONCURRENCY = (16, 4)
SECONDS = 60.0
A_SECOND = 2.0
FILE_BYTES, BYTES_PER_SECOND = 40_000, 100_000.0
SICK_OUTPUTS = 40


def _table(**keys: Any) -> dict[str, Any]:
    return {"poll_every": "1s", "requests_per_second": 100, "allow_private_hosts": True, **keys}


def _well() -> tuple[Sellercloud, dict[str, Any]]:
    vendor = Sellercloud()
    vendor.standing["download"] = Fault(bytes_per_second=BYTES_PER_SECOND)
    return vendor, _table(vendor="sellercloud", username=vendor.username, password=vendor.password)


def _sick() -> Iterator[tuple[str, Vendor, dict[str, Any]]]:
    for name, fault in (("hangs", Fault(delay_seconds=3600)), ("trickles", Fault(bytes_per_second=100))):
        spaaza = Spaaza()
        spaaza.standing["storage"] = fault
        for number in range(SICK_OUTPUTS):
            spaaza.add_task(Content(f"{name} {number}", 1_000_000))
        secrets = {"access_token_id": spaaza.token_id, "access_token_secret": spaaza.token_secret}
        yield name, spaaza, _table(vendor="spaaza", **secrets)
    throttling = Api2convert()
    throttling.standing["download"] = Fault.answer(429, "slow down")
    for number in range(SICK_OUTPUTS):
        throttling.add_job(OutputFile("a.csv", Content(f"a{number}", 1000)))
    hosts = {"api_key": throttling.api_key, "download_hosts": ["127.0.0.1"], "max_downloads": 1000}
    yield "throttles", throttling, _table(vendor="api2convert", **hosts)
    refusing = Crayon()
    secrets = {"client_id": "x", "client_secret": "x", "username": "x", "password": "x"}
    yield "refuses", refusing, _table(vendor="crayon", **secrets)


@contextmanager
def _daemon(sources: dict[str, dict[str, Any]], concurrency: int) -> Iterator[Ledger]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(RedisServer(folder))
        s3 = stack.enter_context(S3Server(folder))
        s3.create_bucket("bench")
        tables: dict[str, dict[str, Any]] = {
            "archive": {
                "bucket": "bench",
                "endpoint_url": s3.url,
                "region": "eu-west-1",
                "access_key_id": "dummy",
                "secret_access_key": "dummy",
            },
            "worker": {"concurrency": concurrency},
            **{f"sources.{name}": keys for name, keys in sources.items()},
        }
        lines = [f"redis_url = {json.dumps(redis.url)}"]
        for name, keys in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        config = folder / "lastcall.toml"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name in ("worker", "beat"):
            environment = {"LASTCALL_CONFIG": str(config)}
            stack.enter_context(Child(name, [sys.executable, "-m", "worker", name], folder, environment=environment))
        ledger = Ledger(redis.url, lease=timedelta(seconds=60), worker="bench")
        wait_until(lambda: bool(ledger.workers()), 30, "a worker")
        yield ledger


def _latencies(concurrency: int, *, beside_the_sick: bool) -> list[float]:
    """Let files become ready for `SECONDS`; gives how long each took to be archived."""
    well, keys = _well()
    vendors: list[Vendor] = [well]
    sources = {"well": keys}
    if beside_the_sick:
        for name, vendor, more in _sick():
            vendors.append(vendor)
            sources[name] = more
    for vendor in vendors:
        vendor.start()
    for name, vendor in zip(sources, vendors, strict=True):
        sources[name]["base_url"] = vendor.base_url
    try:
        with _daemon(sources, concurrency) as ledger:
            return _watch(ledger, well)
    finally:
        for vendor in vendors:
            vendor.stop()


def _watch(ledger: Ledger, well: Sellercloud) -> list[float]:
    dice = random.Random(1)
    waiting: dict[OutputId, float] = {}
    took: list[float] = []
    begin = next_at = time.monotonic()
    while (now := time.monotonic()) < begin + SECONDS or (waiting and now < begin + 3 * SECONDS):
        while next_at <= now and next_at < begin + SECONDS:
            job = str(well.add_job(Content(f"w{len(took) + len(waiting)}", FILE_BYTES)).id)
            waiting[OutputId("well", job, job)] = now
            next_at += dice.expovariate(A_SECOND)
        for output, state in ledger.states(list(waiting)).items():
            if state is OutputState.ARCHIVED:
                took.append(now - waiting.pop(output))
        time.sleep(0.02)
    return sorted([*took, *(now - since for since in waiting.values())])


def run() -> Section:
    """Measure the well source alone and beside the sick ones."""
    rows = []
    for concurrency in CONCURRENCY:
        alone = _latencies(concurrency, beside_the_sick=False)
        beside = _latencies(concurrency, beside_the_sick=True)
        figures = [(took[len(took) // 2], took[len(took) * 95 // 100]) for took in (alone, beside)]
        ratios = [with_them / without for without, with_them in zip(*figures, strict=True)]
        rows.append(
            (
                str(concurrency),
                *(f"{middle:.2f} / {worst:.2f}" for middle, worst in figures),
                f"{ratios[0]:.2f} / {ratios[1]:.2f}",
            )
        )
    return Section(
        "What one sick vendor costs the others",
        table(("slots", "alone, s", "beside four sick sources, s", "ratio"), rows) + _SETTING,
        {},
    )


_SETTING = f"""

Ready to archived, median / 95th percentile, with one worker and from the start of the daemon on. Some
{A_SECOND * SECONDS:.0f} files of a well source, {A_SECOND:.0f} a second, {FILE_BYTES / BYTES_PER_SECOND:.1f} s of download
each; `poll_every` is 1 s. Of the others one hangs, one trickles at 100 B/s, one answers each download with 429, one refuses
the log-in; each of the first three owes {SICK_OUTPUTS} outputs, all due sooner than those of the well one. The limits are
the default ones: 4 downloads at once, `read_timeout` 60 s. Where the well one needs more slots than the sick ones leave, it
waits for longer ([decision 20](decisions/0020-fair-shares.md)).
"""
