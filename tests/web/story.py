"""The web process as a child of the test, and a ledger with a story in it: what the tests of this folder share."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests

from worker.demo.embedded import Child, free_port
from worker.ledger import Claim, Ledger
from worker.model import Output, OutputId

SOURCES = """
[sources.acme-exports]
vendor = "sellercloud"
base_url = "http://127.0.0.1:1/rest"
username = { env = "NOT_SET_AND_NOT_NEEDED" }
password = { env = "NOT_SET_AND_NOT_NEEDED" }
allow_private_hosts = true

[sources.conversions]
vendor = "api2convert"
api_key = "dummy"
"""


class Web(Child):
    """``lastcall web`` on a port of its own."""

    def __init__(
        self, folder: Path, redis_url: str, *, web: str = "", sources: str = SOURCES, archive: str = 'bucket = "exports"'
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir(exist_ok=True)
        config = folder / "lastcall.toml"
        config.write_text(
            f'redis_url = "{redis_url}"\n[archive]\n{archive}\n[web]\nlisten = "127.0.0.1:{self.port}"\n{web}\n{sources}'
        )
        super().__init__("web", [sys.executable, "-m", "worker", "web"], folder, environment={"LASTCALL_CONFIG": str(config)})

    def ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/healthz", timeout=5).status_code in {200, 503}
        except requests.ConnectionError:
            return False

    def get(self, path: str, **options: object) -> requests.Response:
        return requests.get(self.url + path, timeout=10, **options)


def open_ledger(url: str) -> Ledger:
    """Give a ledger in which claims are given at once."""
    ledger = Ledger(url, lease=timedelta(seconds=60), worker="worker-1")
    epoch, _ = ledger.epoch()
    ledger.open_epoch(epoch, timedelta(0))
    return ledger


def output(source: str, number: int, *, ready: timedelta, left: timedelta, **facts: Any) -> Output:
    """Give an output that was ready `ready` ago and has `left` to its deadline."""
    now = datetime.now(UTC).replace(microsecond=0)
    identity = OutputId(source, str(number), str(number))
    return Output(id=identity, completed_at=now - ready, deadline=now + left, **{"filename": f"export-{number}.csv"} | facts)


def tell_story(ledger: Ledger) -> None:
    """Put one output into every state: archived, owed, at risk, overdue, claimed, waiting, held, lost, acknowledged, empty."""
    hour, day = timedelta(hours=1), timedelta(days=1)

    def owe(number: int, left: timedelta, **facts: Any) -> Output:
        owed = output("acme-exports", number, ready=2 * day, left=left, **facts)
        ledger.owe(owed, recheck=False)
        return owed

    def claim() -> Claim:
        claim = ledger.claim({"acme-exports": 100})
        assert claim is not None
        return claim

    owe(1, -2 * day)
    ledger.archived(claim().output.id, "archive/1", 1_000, unproven=True)
    owe(2, -2 * day)
    held = claim()
    ledger.hold(held.output.id, held.fence, "9 downloads are used and the rest is kept in reserve")
    for number in (3, 4):
        owe(number, -2 * day, filename="<script>alert(1)</script>.csv")
        lost = claim()
        ledger.lose(lost.output.id, lost.fence, "expired", "job: the file was purged")
    ledger.acknowledge(OutputId("acme-exports", "4", "4"), "an old test export")
    owe(5, -day)
    again = claim()
    ledger.again(again.output.id, again.fence, ledger.now() + hour, "the vendor answered 503")
    owe(6, -hour)
    claim()
    owe(7, -timedelta(minutes=5))
    owe(8, timedelta(minutes=5))
    owe(9, 5 * day)
    ledger.note_empty(output("acme-exports", 10, ready=day, left=day, filename=None))
    turn = ledger.take_poll_turn("acme-exports", timedelta(seconds=60))
    assert turn is not None
    ledger.end_poll_turn(turn, "ok", {})
    ledger.count("downloads", "acme-exports|ok")
    ledger.pause("conversions", ledger.now() + hour, "the vendor refuses the log-in", times=1, fingerprint="")
    ledger.stamp_worker(16)
    ledger.stamp_beat()
