"""One large output, from the vendor's socket to the receipt, against what a user would take instead."""

from __future__ import annotations

import hashlib
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import servers
from bench.collector import Collector
from bench.house import House, Store
from bench.loopback import Server
from bench.page import Section, table
from bench.peers import (
    BOTO3,
    PIPELINE,
    PIPELINE_HASHED,
    PLAIN_PIPELINE,
    RCLONE,
    SMART_OPEN,
    Figures,
    Peer,
    Took,
    ratio,
    skipped,
)
from bench.peers import (
    run as run_peer,
)

SIZE = 2**30 // 3 * 3  # no padding, so that ten of them in a row are base64, too
GIB = 2**30
WRAPPED, PLAIN, MD5 = "lastcall, base64", "lastcall, plain", "lastcall, plain, its MD5 checked"
_WRAPPED_PEERS = (PIPELINE, PIPELINE_HASHED)
_PLAIN_PEERS = (PLAIN_PIPELINE, RCLONE, BOTO3, SMART_OPEN)
_numbers = itertools.count(1)


def _job(kind: int) -> str:
    """A new job's id; its last digit says what its file is (`bench.loopback`)."""
    return f"{next(_numbers)}{kind}"


def _ways(vendor: Server, store: Store, collector: Collector, md5: str, size: int) -> dict[str, Callable[[], Took]]:
    """Each way to bring the file there, by name."""

    def peer(one: Peer, path: str) -> Callable[[], Took]:
        return lambda: run_peer(one, f"{vendor.url}/{path}/{next(_numbers)}", f"peer-{next(_numbers)}", store, size)

    ways: dict[str, Callable[[], Took]] = {
        WRAPPED: lambda: collector.collect(_job(0)),
        **{one.name: peer(one, "wrapped") for one in _WRAPPED_PEERS if not one.missing},
        PLAIN: lambda: collector.collect(_job(1)),
        MD5: lambda: collector.collect(_job(1), md5=md5),
        **{one.name: peer(one, "plain") for one in _PLAIN_PEERS if not one.missing},
    }
    return ways


def _measure(ways: dict[str, Callable[[], Took]], rounds: int, after: Callable[[], None]) -> dict[str, Figures]:
    """Run all ways in turn, so often; what the machine does meanwhile meets them all alike."""
    runs: dict[str, list[Took]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            took = way()
            runs[name].append(took)
            sys.stderr.write(f"  round {number + 1}: {name}: {took.seconds:.2f} s\n")
            after()
    return {name: Figures(tuple(taken)) for name, taken in runs.items()}


def _rows(found: dict[str, Figures], size: int) -> list[list[str]]:
    rows = []
    wrapped = {WRAPPED, *(peer.name for peer in _WRAPPED_PEERS)}
    for name, figures in found.items():
        ours = found[WRAPPED if name in wrapped else PLAIN]
        rows.append(
            [
                name,
                f"{figures.seconds:.2f}",
                figures.spread,
                f"{size / figures.seconds / 1e6:,.0f}",
                f"{ratio(figures, ours):.2f}",
                f"{figures.cpu_seconds * GIB / size:.2f}",
                f"{figures.peak_mib:.0f}",
            ]
        )
    return rows


def _ratios(store: str, found: dict[str, Figures]) -> dict[str, float]:
    pairs = {
        "base64 against the hashing pipeline": (PIPELINE_HASHED.name, WRAPPED),
        "plain against rclone": (RCLONE.name, PLAIN),
        "with MD5 against without": (PLAIN, MD5),
    }
    return {
        f"large, {store}: {what}": ratio(found[theirs], found[ours])
        for what, (theirs, ours) in pairs.items()
        if theirs in found and ours in found
    }


_COLUMNS = ("1 GiB", "s, median", "spread", "MB/s", "lastcall × as fast", "CPU s per GiB", "peak MiB")


def run(size: int = SIZE, rounds: int = 3) -> Section:
    """Measure on the discarding sink, on real S3 servers, and ten times the size once."""
    text, ratios = [_SETTING.format(rounds=rounds)], dict[str, float]()
    with tempfile.TemporaryDirectory(prefix="lastcall-bench-") as root, Server("vendor", Path(root) / "v", size) as vendor:
        folder = Path(root)
        md5 = _md5(folder / "v" / "plain")
        with Server("sink", folder / "s") as sink:
            store = Store(name="discarding sink", url=sink.url)
            with House(folder / "h", vendor, store, workers=0, others=()) as house:
                with Collector(house.config) as collector:
                    found = _measure(_ways(vendor, store, collector, md5, size), rounds, lambda: None)
                peaks = []
                for kind in (0, 2):
                    with Collector(house.config) as collector:
                        took = collector.collect(_job(kind))
                        sys.stderr.write(f"  {'10 GiB' if kind else '1 GiB'} alone: {took.peak_mib:.0f} MiB\n")
                        peaks.append(took)
        ratios |= _ratios("sink", found)
        text.append(f"### To a sink that throws bytes away\n\n{table(_COLUMNS, _rows(found, size))}\n")
        text.append(
            f"A worker that collects 1 GiB of base64 and nothing else peaks at {peaks[0].peak_mib:.0f} MiB, one that collects "
            f"10 GiB at {peaks[1].peak_mib:.0f} MiB ({peaks[1].seconds:.1f} s).\n"
        )
        ratios["large: peak of 10 GiB, MiB to spare below 150"] = 150 - peaks[1].peak_mib
        for place, (name, make) in enumerate(servers.installed().items()):
            with (
                make(folder / f"s{place}") as server,
                House(folder / f"h{place}", vendor, server.store, workers=0, others=()) as house,
                Collector(house.config) as collector,
            ):
                sys.stderr.write(f"{server.store.name}:\n")
                found = _measure(_ways(vendor, server.store, collector, md5, size), rounds, server.empty)
            ratios |= _ratios(name, found)
            text.append(f"### To {server.store.name}\n\n{table(_COLUMNS, _rows(found, size))}\n")
    text.append(skipped([*_WRAPPED_PEERS, *_PLAIN_PEERS]) + servers.skipped())
    return Section("One large output", "\n".join(text), {}, ratios)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


_SETTING = """One file of 1 GiB from a vendor to a bucket, both on loopback, {rounds} rounds of all ways in turn, medians;
*× as fast* is the median of the rounds' own ratios. The vendor sends from the kernel's cache (sendfile). Nothing is encrypted.

*lastcall* is a worker's own walk from the claim to the receipt: the download proved whole, unwrapped, hashed (SHA-256), each
part with a CRC32, completed create-only, with a receipt and the ledger's book-keeping. A service that says which CRC32 it
took, as the sink and S3 do, gets parts whose signature leaves the bytes out; one that doesn't, here rclone's and Swift, gets
the bytes signed as well, which in the clear costs a second hash, as it costs the others. *CPU* is that of the client's
processes, *peak* that of the largest one among them. The others do what their command says: none proves that the body was
whole, all overwrite what stands there.
"""
