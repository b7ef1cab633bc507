"""What a user would take instead: found where it is installed, timed as it is.

`make peers` installs them. Each is a command line that brings the body of a URL to a key, as its documentation would write it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.house import BUCKET, Store
from worker.settings import child_environment

TOOLS = Path(__file__).parent.parent / ".peers" / "bin"
_PYTHON = Path(__file__).with_name("peer_python.py")


def tool(name: str) -> str | None:
    """Where a tool is: what `make peers` installed, else what is on PATH."""
    return shutil.which(name, path=str(TOOLS)) or shutil.which(name)


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to bring a URL to a key. `script`: for bash, with ``$URL`` and ``$KEY``; `needs`: the tools in it."""

    name: str
    script: str
    needs: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """The tools that it needs and that are not there."""
        return [name for name in self.needs if tool(name) is None]


_AWS = f"aws --endpoint-url $ENDPOINT s3 cp - s3://{BUCKET}/$KEY --expected-size $SIZE --only-show-errors"
_TO = f"python {_PYTHON}"
PIPELINE = Peer("curl \\| base64 -d \\| aws s3 cp -", f"curl -sSf $URL | base64 -d | {_AWS}", ("curl", "base64", "aws"))
PIPELINE_HASHED = Peer(
    "the same, hashed: tee >(sha256sum)",
    f"curl -sSf $URL | base64 -d | tee >(sha256sum >$SUM) | {_AWS}",
    ("curl", "base64", "aws", "sha256sum"),
)
PLAIN_PIPELINE = Peer("curl \\| aws s3 cp -", f"curl -sSf $URL | {_AWS}", ("curl", "aws"))
RCLONE = Peer("rclone copyurl", f"rclone copyurl $URL s3:{BUCKET}/$KEY", ("rclone",))
BOTO3 = Peer("boto3 upload_fileobj(r.raw)", f"{_TO} boto3 $URL {BUCKET} $KEY", ("aws",))
SMART_OPEN = Peer("smart_open", f"{_TO} smart_open $URL {BUCKET} $KEY", ("aws",))
RCLONE_URLS = Peer("rclone copyurl --urls", f"rclone copyurl --urls $URL s3:{BUCKET}/$KEY --transfers 32", ("rclone",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """What one run cost. `peak_mib`: of the largest process in it; `most_seconds`: until nine tenths were done, of many."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    most_seconds: float = 0.0


def run(peer: Peer, url: str, key: str, store: Store, size: int) -> Took:
    """Run it once. Raises `RuntimeError` with what it said when it fails."""
    environment = _environment(store) | {"URL": url, "KEY": key, "SIZE": str(size), "SUM": os.devnull, "ENDPOINT": store.url}
    began = time.monotonic()
    process = subprocess.Popen(
        [str(tool("bash")), "-o", "pipefail", "-c", peer.script],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None  # noqa: S101 - a pipe was asked for
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{peer.name} ended with {process.returncode}: {said.decode(errors='replace')[-500:]}")
    return Took(seconds=time.monotonic() - began, cpu_seconds=usage.ru_utime + usage.ru_stime, peak_mib=usage.ru_maxrss / 1024)


def _environment(store: Store) -> dict[str, str]:
    settings = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENDPOINT": store.url,
        "ACCESS_KEY_ID": store.access_key,
        "SECRET_ACCESS_KEY": store.secret_key,
        "REGION": store.region,
        "NO_CHECK_BUCKET": "true",
    }
    return child_environment(
        {
            "PATH": f"{TOOLS}:{child_environment({}).get('PATH', '')}",
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
            "AWS_DEFAULT_REGION": store.region,
            "AWS_ENDPOINT_URL": store.url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "RCLONE_CONFIG": "/notfound",
            **{f"RCLONE_CONFIG_S3_{name}": value for name, value in settings.items()},
        }
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """The runs of one way: medians, with the spread that belongs to them."""

    runs: tuple[Took, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return median(run.seconds for run in self.runs)

    @property
    def spread(self) -> str:
        """The quickest and the slowest run."""
        seconds = [run.seconds for run in self.runs]
        return f"{min(seconds):.2f}-{max(seconds):.2f}"

    @property
    def cpu_seconds(self) -> float:
        """The median."""
        return median(run.cpu_seconds for run in self.runs)

    @property
    def peak_mib(self) -> float:
        """The largest."""
        return max(run.peak_mib for run in self.runs)


def ratio(theirs: Figures, ours: Figures) -> float:
    """How many times as fast we are: the median over the rounds, each of which met the same moment of the machine."""
    return median(one.seconds / other.seconds for one, other in zip(theirs.runs, ours.runs, strict=True))


def skipped(peers: Iterable[Peer]) -> str:
    """Name the peers that are not installed, or nothing."""
    absent = [f"{peer.name} (no {', '.join(peer.missing)})" for peer in peers if peer.missing]
    return f"\nNot here, so not compared: {'; '.join(absent)}. `make peers` installs them.\n" if absent else ""


def own_cpu_seconds() -> float:
    """CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
