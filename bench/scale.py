"""How throughput grows with worker processes, and what distance and cuts cost: three hosts against one Redis."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.house import House, Store, Way
from bench.loopback import Server
from bench.page import Section, table
from bench.peers import Took
from bench.small import BYTES, archive
from bench.wire import CUT_EVERY_SECONDS, CUT_FOR_SECONDS

OUTPUTS = 2_000
HOSTS = 3
DELAY_MS = 10.0
_AT_ONCE = 200
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
            yield [stack.enter_context(_namespace(number)) for number in range(1, count + 1)], _NAMESPACES
            return
        except (subprocess.CalledProcessError, TypeError, FileNotFoundError):
            stack.close()
    yield [Way(address=f"127.0.0.{number + 1}") for number in range(1, count + 1)], _LOOPBACK


def _row(name: str, took: Took, count: int, base: float) -> list[str]:
    rate = count / took.seconds
    return [name, f"{rate:,.0f}", f"{rate / base:.2f}", f"{1000 * took.cpu_seconds / count:.2f}"]


def run(count: int = OUTPUTS) -> Section:
    """Measure 1, 2 and 4 processes side by side, then three hosts: near, far, and far with cuts."""
    rows: list[list[str]] = []
    base = 0.0
    with (
        tempfile.TemporaryDirectory(prefix="lastcall-bench-") as name,
        Server("vendor", Path(name) / "v", BYTES) as vendor,
        Server("sink", Path(name) / "s") as sink,
        hosts(HOSTS) as (ways, what),
    ):
        store = Store(name="sink", url=sink.url)
        far = f"{HOSTS} hosts, {2 * DELAY_MS:.0f} ms away"
        plans: list[tuple[str, int, Sequence[Way], float, bool]] = [
            *((f"{workers} process{'es' if workers > 1 else ''}, one host", workers, (), 0.0, False) for workers in (1, 2, 4)),
            (f"1 host, {2 * DELAY_MS:.0f} ms away", 1, ways[:1], DELAY_MS, False),
            (far, HOSTS, ways, DELAY_MS, False),
            (
                f"{far}, cut for {CUT_FOR_SECONDS:.0f} s every {CUT_EVERY_SECONDS + CUT_FOR_SECONDS:.0f}",
                HOSTS,
                ways,
                DELAY_MS,
                True,
            ),
        ]
        for place, (plan, workers, some, delay, cut) in enumerate(plans):
            vendor.release(0)
            house = House(
                Path(name) / f"h{place}", vendor, store, workers=workers, at_once=_AT_ONCE, ways=some, delay_ms=delay, cut=cut
            )
            with house:
                house.ready()
                archive(house, 100)
                took = archive(house, count)
            base = base or count / took.seconds
            rows.append(_row(plan, took, count, base))
            sys.stderr.write(f"  {plan}: {count / took.seconds:.0f}/s\n")
    columns = ("workers", "files/s", "× the first", "CPU ms per file")
    return Section(
        "More workers, more hosts",
        f"""{table(columns, rows)}

{count:,} files of 20 KB as above, on the discarding sink; beat, Flower and the board run beside the workers, and everything
shares this machine's cores: what these do not hold, more processes cannot give. The hosts are {what}; each reaches Redis,
vendor and bucket through a TCP proxy of its own that delays each direction by {DELAY_MS:.0f} ms and, in the last row, breaks
every connection and refuses new ones for {CUT_FOR_SECONDS:.0f} s, again and again. All outputs were archived in every row.
""",
        {},
    )
