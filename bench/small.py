"""Many small outputs through the whole daemon, messages, ledger and receipts included, against rclone's bulk copy."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import redis

from bench import servers
from bench.house import SOURCE, House, Store, cpu_seconds, family, memory_mib
from bench.loopback import Server
from bench.page import Section, table
from bench.peers import RCLONE_URLS, Figures, Took, ratio, skipped
from bench.peers import run as run_peer
from worker.demo.embedded import wait_until

OUTPUTS = 5_000
BYTES = 20 * 1024
PROCESSES = 2  # as in the Procfile: one for each core of the host that this is made for
_SLOWEST_PER_SECOND = 20
_PATIENCE_SECONDS = 180  # some leases: what a cut takes from its worker waits for one
_FEWER = {"Swift": 5}  # it takes a hundred objects a second, whoever writes them
_numbers = itertools.count(1)


def archive(house: House, count: int) -> Took:
    """Let `count` outputs be listed and wait until all have their receipt; time runs from the first call of the vendor."""
    with redis.Redis.from_url(house.redis.url) as client:

        def archived() -> int:
            return int(client.hget("lastcall:m:archived", SOURCE) or 0)

        before = archived()
        pids = [child.pid for child in house.children.values()]
        house.vendor.release(count)
        cpu = cpu_seconds(pids)
        house.poll_soon()
        wait_until(lambda: bool(client.exists(f"lastcall:polled:{SOURCE}")), 10, "a poll")
        began = time.monotonic()
        limit = _PATIENCE_SECONDS + count / _SLOWEST_PER_SECOND
        wait_until(lambda: archived() >= before + count * 9 // 10, limit, f"most of {count} receipts")
        most = time.monotonic() - began
        wait_until(lambda: archived() >= before + count, limit, f"{count} receipts")
        seconds = time.monotonic() - began
    workers = [child for name, child in house.children.items() if name.startswith("worker")]
    peak = max(memory_mib(pid) for worker in workers for pid in family(worker.pid))
    return Took(seconds=seconds, most_seconds=most, cpu_seconds=cpu_seconds(pids) - cpu, peak_mib=peak)


def _rclone(house: House, count: int) -> Took:
    """The same files by rclone, in one command."""
    run = next(_numbers)
    urls = house.folder / "urls.csv"
    urls.write_text(
        "".join(f"{house.vendor.url}/plain/{number},r{run}/{number}.csv\n" for number in range(count)), encoding="utf-8"
    )
    return run_peer(RCLONE_URLS, str(urls), "bulk", house.store, count)


_COLUMNS = ("", "files/s, median", "spread, s", "lastcall × as fast", "CPU ms per file", "peak MiB")
OURS = "lastcall: worker, beat, Flower, board"


def _compare(house: House, count: int, rounds: int) -> dict[str, Figures]:
    house.ready()
    archive(house, 200)  # so that connections are open and code is loaded, as in a daemon that runs for days
    runs: dict[str, list[Took]] = {OURS: []}
    for number in range(rounds):
        runs[OURS].append(archive(house, count))
        if not RCLONE_URLS.missing:
            runs.setdefault(RCLONE_URLS.name, []).append(_rclone(house, count))
        told = ", ".join(f"{name}: {taken[-1].seconds:.1f} s" for name, taken in runs.items())
        sys.stderr.write(f"  round {number + 1}: {told}\n")
    return {name: Figures(tuple(taken)) for name, taken in runs.items()}


def _rows(found: dict[str, Figures], count: int) -> list[list[str]]:
    return [
        [
            name,
            f"{count / figures.seconds:,.0f}",
            figures.spread,
            f"{ratio(figures, found[OURS]):.2f}",
            f"{1000 * figures.cpu_seconds / count:.2f}",
            f"{figures.peak_mib:.0f}",
        ]
        for name, figures in found.items()
    ]


def run(count: int = OUTPUTS, rounds: int = 3) -> Section:
    """Measure on the discarding sink and on real S3 servers."""
    text, ratios = [_SETTING.format(count=count, rounds=rounds)], dict[str, float]()
    with tempfile.TemporaryDirectory(prefix="lastcall-bench-") as root, Server("vendor", Path(root) / "v", BYTES) as vendor:
        folder = Path(root)
        with Server("sink", folder / "s") as sink:
            store = Store(name="sink", url=sink.url)
            with House(folder / "h", vendor, store, processes=PROCESSES) as house:
                found = _compare(house, count, rounds)
        text.append(f"### To a sink that throws bytes away\n\n{table(_COLUMNS, _rows(found, count))}\n")
        ratios["small, sink: files a second"] = count / found[OURS].seconds
        if RCLONE_URLS.name in found:
            ratios["small, sink: against rclone copyurl --urls"] = ratio(found[RCLONE_URLS.name], found[OURS])
        for place, (name, make) in enumerate(servers.installed().items()):
            vendor.release(0)  # what was listed is another bucket's
            some = count // _FEWER.get(name, 1)
            with (
                make(folder / f"s{place}") as server,
                House(folder / f"h{place}", vendor, server.store, processes=PROCESSES) as house,
            ):
                sys.stderr.write(f"{server.store.name}:\n")
                found = _compare(house, some, rounds)
            text.append(f"### To {server.store.name}, {some:,} files\n\n{table(_COLUMNS, _rows(found, some))}\n")
            if RCLONE_URLS.name in found:
                ratios[f"small, {name}: against rclone copyurl --urls"] = ratio(found[RCLONE_URLS.name], found[OURS])
    text.append(skipped([RCLONE_URLS]) + servers.skipped())
    return Section("Many small outputs", "\n".join(text), {}, ratios)


_SETTING = """{count:,} files of 20 KB that a vendor lists at once, {rounds} rounds in turn with rclone, everything on the same
cores. *lastcall* is what the Procfile starts, two worker processes among it, from the first page of the list to the
last receipt: listed, looked up in the bucket, owed, claimed by deadline, downloaded, unwrapped from base64, hashed, stored
create-only, and a receipt for each; so two objects for each of rclone's. rclone is told the URLs, gets the files plain,
and copies 32 at a time. *CPU* is that of lastcall's own processes (without Redis), and of rclone.
"""


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.stdout.write(run(*map(int, sys.argv[1:])).text + "\n")
