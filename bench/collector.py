"""One worker's collecting without its messages: a process that collects an output at a time when it is told to.

Everything from the claim to the receipt is the daemon's own; only the wake-up is a line on standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.house import SOURCE, memory_mib
from bench.peers import Took, own_cpu_seconds
from worker import logs
from worker.collect import collect
from worker.daemon import open_daemon
from worker.discover import discover
from worker.model import Checksum, Output, OutputId
from worker.settings import child_environment, load


class Collector:
    """The process. A context manager."""

    def __init__(self, config: Path, environment: Mapping[str, str] | None = None) -> None:
        """Prepare it for the daemon of this configuration file."""
        self._environment = child_environment({"LASTCALL_CONFIG": str(config), **(environment or {})})
        self._log = config.with_name("collector.log")

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.collector"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                text=True,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def collect(self, job_id: str, *, md5: str | None = None) -> Took:
        """Let it collect one output. Raises `RuntimeError` when that was not archived."""
        assert self._process.stdin is not None  # noqa: S101 - pipes were asked for
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps({"job_id": job_id, "md5": md5}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or "{}")
        if not answer.get("archived"):
            raise RuntimeError(f"lastcall did not archive it: {answer.get('what') or self._log.read_text()[-800:]}")
        return Took(seconds=answer["seconds"], cpu_seconds=answer["cpu_seconds"], peak_mib=answer["peak_mib"])


def _serve() -> None:
    logs.configure()
    daemon = open_daemon(load())
    daemon.keeper.start()
    discover(daemon, SOURCE, by_hand=True)
    for line in sys.stdin:
        order = json.loads(line)
        now = datetime.now(UTC)
        output = Output(
            id=OutputId(SOURCE, order["job_id"], order["job_id"]),
            completed_at=now,
            deadline=now + timedelta(days=1),
            filename=f"{order['job_id']}.csv",
            checksum=Checksum(algorithm="md5", value=order["md5"]) if order["md5"] else None,
        )
        daemon.ledger.owe_all([(output, False)])
        cpu, began = own_cpu_seconds(), datetime.now(UTC)
        outcome = collect(daemon)
        seconds = (datetime.now(UTC) - began).total_seconds()
        answer = {
            "archived": outcome is not None and outcome.archived is not None,
            "what": str(outcome),
            "seconds": seconds,
            "cpu_seconds": own_cpu_seconds() - cpu,
            "peak_mib": memory_mib(os.getpid()),
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
