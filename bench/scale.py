"""How throughput grows with worker processes, and what distance and cuts cost: three hosts against one Redis."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from bench.house import BUCKET, House, Store, Way, cpu_seconds
from bench.loopback import Server
from bench.page import Section, table
from bench.peers import Took
from bench.small import BYTES, archive
from bench.wire import CUT_EVERY_SECONDS, CUT_FOR_SECONDS

OUTPUTS = 2_000
HOSTS = 3
DELAY_MS = 10.0
_AT_ONCE = 200
_MORE_AT_ONCE = 64
_CUT_OFTEN = "10s"  # where cuts are the rule, what one takes from a worker waits so long
_FIRST = 100  # so that connections are open and code is loaded
_NAMESPACES = "network namespaces of their own"
_LOOPBACK = "loopback addresses of their own (network namespaces need root here)"


def _ip(*arguments: str) -> None:
    subprocess.run([str(shutil.which("ip")), *arguments], check=True, capture_output=True)


@contextmanager
def _namespace(number: int) -> Iterator[Way]:
    """A network namespace with one link to us. Raises `CalledProcessError` where this is not allowed."""
    name, here, there = f"lastcall{number}", f"10.77.{number}.1", f"10.77.{number}.2"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("address", "add", f"{here}/24", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", name, "address", "add", f"{there}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
        yield Way(address=here, command=(str(shutil.which("ip")), "netns", "exec", name))
    finally:
        _ip("netns", "delete", name)


@contextmanager
def hosts(count: int) -> Iterator[tuple[Sequence[Way], str]]:
    """So many hosts, and what they are."""
    with ExitStack() as stack:
        try:
            ways, what = [stack.enter_context(_namespace(number)) for number in range(1, count + 1)], _NAMESPACES
        except (subprocess.CalledProcessError, FileNotFoundError, PermissionError):
            ways, what = [Way(address=f"127.0.0.{number + 1}") for number in range(1, count + 1)], _LOOPBACK
        yield ways, what


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """So many worker processes; `far`: the first of them on hosts of their own, each this many ms away in each direction."""

    name: str
    workers: int
    ways: Sequence[Way] = ()
    delay_ms: float = 0.0
    cut: bool = False
    concurrency: int | None = None


def _plans(ways: Sequence[Way]) -> Iterator[Plan]:
    for workers in (1, 2, 4):
        yield Plan(name=f"{workers} process{'es' if workers > 1 else ''}, one host", workers=workers)
    yield Plan(name=f"{HOSTS} hosts, near", workers=HOSTS, ways=ways)
    away, most = f"{2 * DELAY_MS:.0f} ms away", f"`concurrency` {_MORE_AT_ONCE}"
    cuts = f"cut for {CUT_FOR_SECONDS:.0f} s every {CUT_EVERY_SECONDS + CUT_FOR_SECONDS:.0f}"
    yield Plan(name=f"1 host, {away}", workers=1, ways=ways[:1], delay_ms=DELAY_MS)
    yield Plan(name=f"1 host, {away}, {most}", workers=1, ways=ways[:1], delay_ms=DELAY_MS, concurrency=_MORE_AT_ONCE)
    yield Plan(name=f"{HOSTS} hosts, {away}", workers=HOSTS, ways=ways, delay_ms=DELAY_MS)
    yield Plan(name=f"{HOSTS} hosts, {away}, {cuts}", workers=HOSTS, ways=ways, delay_ms=DELAY_MS, cut=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a plan came to: all `took`, Redis' part of it, and what the vendor gave more than once."""

    took: Took
    redis_seconds: float
    redis_calls: int
    again: int


def _measure(folder: Path, vendor: Server, plan: Plan, count: int) -> _Found:
    """Archive `count` files. Raises `RuntimeError` when one has no receipt, or a second download although no way is cut."""
    vendor.release(0)
    with Server("sink", folder / "sink") as sink:
        house = House(
            folder,
            vendor,
            Store(name="sink", url=sink.url),
            workers=plan.workers,
            concurrency=plan.concurrency,
            at_once=_AT_ONCE,
            ways=plan.ways,
            delay_ms=plan.delay_ms,
            cut=plan.cut,
            poll_every=_CUT_OFTEN if plan.cut else "60s",
            lease=_CUT_OFTEN if plan.cut else "60s",
        )
        with house, redis.Redis.from_url(house.redis.url) as client:
            house.ready()
            archive(house, _FIRST)
            cpu, calls = cpu_seconds([house.redis.pid]), _calls(client)
            took = archive(house, count)
            cpu, calls = cpu_seconds([house.redis.pid]) - cpu, _calls(client) - calls
        (downloads, files), receipts = vendor.served(), sink.receipts(BUCKET)
    if files != count or receipts != _FIRST + count or (downloads != files and not plan.cut):
        raise RuntimeError(f"{plan.name}: of {count} files {files} were downloaded, {downloads} times; {receipts} receipts")
    return _Found(took=took, redis_seconds=cpu, redis_calls=calls, again=downloads - files)


def _calls(client: Any) -> int:
    return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


def run(count: int = OUTPUTS) -> Section:
    """Measure 1, 2 and 4 processes side by side, then three hosts: near, far, and far with cuts."""
    rows: list[list[str]] = []
    base = 0.0
    with (
        tempfile.TemporaryDirectory(prefix="lastcall-bench-") as name,
        Server("vendor", Path(name) / "v", BYTES) as vendor,
        hosts(HOSTS) as (ways, what),
    ):
        for place, plan in enumerate(_plans(ways)):
            found = _measure(Path(name) / f"h{place}", vendor, plan, count)
            rate = count / found.took.seconds
            base = base or rate
            costs = [1000 * seconds / count for seconds in (found.took.cpu_seconds, found.redis_seconds)]
            row = [plan.name, f"{rate:,.0f}", f"{rate / base:.2f}"]
            row += [f"{found.took.most_seconds:.1f}", f"{found.took.seconds:.1f}", *(f"{cost:.2f}" for cost in costs)]
            rows.append([*row, f"{found.redis_calls / count:.1f}", f"{found.again}"])
            sys.stderr.write(f"  {plan.name}: {rate:.0f}/s\n")
    columns = (
        "workers",
        "files/s",
        "× the first",
        "nine tenths, s",
        "all, s",
        "CPU ms per file",
        "of Redis",
        "calls of Redis",
        "downloads too many",
    )
    return Section(
        "More workers, more hosts",
        f"""{table(columns, rows)}

{count:,} files of 20 KB as above, on the discarding sink; beat, Flower and the board run beside the workers, and everything
shares this machine's cores: what these do not hold, more processes cannot give. The hosts are {what}; each
reaches Redis, vendor and bucket through a TCP proxy of its own that delays each direction by {DELAY_MS:.0f} ms (*near*: by
nothing) and, in the last row, breaks every connection and refuses new ones for {CUT_FOR_SECONDS:.0f} s, again and again. *CPU*
is that of all processes without Redis, *calls* are those of the ledger's script, the listing's included. After each row the
vendor tells how often it gave each file, and the bucket is looked at: each file has one receipt, and none was downloaded twice,
save those of the last column. An output that a cut takes from its worker waits for its lease: 10 s in the last row, where
`poll_every` is 10 s too.
""",
        {},
    )
