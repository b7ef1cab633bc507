"""`lastcall demo`: the whole daemon against four simulated vendors on a bad day, and proof that nothing is lost.

Reading order: `scene` (what the vendors hold and how they misbehave), `stage` (the processes), here (the play and its proof),
`screen` (how it looks), `compare` (the bucket against the vendors' truth, without lastcall's own code).
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.text import Text

from worker.demo.compare import Comparison, compare
from worker.demo.embedded import Child
from worker.demo.scene import FULL, SMALL, Scene, VendorFault
from worker.demo.screen import URGENT, WIDTH, Row, Urgent, View, open_screen, span
from worker.demo.server import MIB, Truth
from worker.demo.stage import BUCKET, PREFIX, WORKERS, Interrupt, Stage
from worker.errors import LastcallError, LedgerUnavailableError, StoppedError
from worker.ledger import Record, SourceStatus
from worker.model import OutputId, OutputState

_LOOK_EVERY_SECONDS = 0.25
_RATE_OVER_SECONDS = 3.0
_RESTART_AFTER_SECONDS = 2.0  # as a supervisor would
_CALM_SECONDS = 1.0  # what a fault does shows a little after it
_LAST_LINES = 4
_FAULT, _GOOD, _BAD = "yellow", "green", "bold red"
_VENDORS = {"sellercloud": "Sellercloud", "api2convert": "API2Convert", "spaaza": "Spaaza", "crayon": "Crayon"}


def run(*, keep: bool = False, logs: bool = False, small: bool = False) -> int:
    """Play it all; gives the exit code: 0 when everything was archived and proved, 1 when not, 128 + signal when stopped.

    `keep` leaves everything running until Ctrl-C; `logs` (and `keep`) keeps the folder with the logs; `small` is for tests.
    Raises `ConfigurationError` when this machine has no Redis or no embedded S3 to run.
    """
    console = Console(highlight=False, width=min(Console().width, WIDTH))
    folder = Path(tempfile.mkdtemp(prefix="lastcall-demo-"))
    code = 1
    try:
        with Interrupt() as interrupt:
            stage = Stage(Scene(SMALL if small else FULL), folder, interrupt)
            code = _run(stage, console, interrupt, keep=keep)
    finally:
        if keep or logs or (code == 1 and any(folder.rglob("*.log"))):
            console.print(f"Logs and configuration stay in {folder}", soft_wrap=True)
        else:
            shutil.rmtree(folder)
    return code


def _run(stage: Stage, console: Console, interrupt: Interrupt, *, keep: bool) -> int:
    code, good = 1, False
    try:
        good = _Show(stage, console, interrupt).play_and_prove()
        code = 0 if good else 1
        if keep:
            _keep(stage, console, interrupt)
    except StoppedError:
        code = 128 + (interrupt.number or 0)
    except LastcallError as exc:
        console.print(Text(f"The demo cannot go on: {exc}", _BAD))
    finally:
        stubborn = stage.stop(politely=good)
    if stubborn:
        console.print(f"These did not stop well when they were asked to: {', '.join(stubborn)}")
        code = 1
    if code > 128:
        console.print("Stopped; nothing was left running.")
    elif not good:
        _explain(stage, console)
    return code


def _keep(stage: Stage, console: Console, interrupt: Interrupt) -> None:
    """Leave everything running until we are asked to stop."""
    console.print("\nEverything goes on running. Look around, and press Ctrl-C to end it.")
    for name, url in stage.urls.items():
        console.print(f"  {name:8} {url}", soft_wrap=True)
    console.print(f"  commands lastcall --config {stage.config} status", soft_wrap=True)
    try:
        while True:
            interrupt.pause(3600)
    except StoppedError:
        console.print("\nStopping.")


def _explain(stage: Stage, console: Console) -> None:
    """Show the last lines of each log, for whoever must find out what went wrong."""
    for log in stage.all_logs():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        if lines:
            console.print(Text(f"-- {log.name}", "bold"))
        for line in lines:
            console.print(Text(line[:300]), soft_wrap=True)


class _Show:
    """One play: what was seen and done so far."""

    def __init__(self, stage: Stage, console: Console, interrupt: Interrupt) -> None:
        self._stage = stage
        self._scene = stage.scene
        self._console = console
        self._interrupt = interrupt
        self._began = 0.0
        self._statuses: dict[str, SourceStatus] = {}
        self._open: list[Record] = []
        self._sent: deque[tuple[float, int]] = deque()
        self._troubled: set[str] = set()
        self._recovered = 0
        self._names: dict[str, str] = {}  # of outputs, for people
        self._latest = ""
        self._survived: list[str] = []

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def play_and_prove(self) -> bool:
        """Set up, play, prove. True when everything was archived and is as the vendors made it."""
        self._introduce()
        self._stage.start()
        self._scene.open()
        self._began = time.monotonic()
        self._screen = open_screen(self._console)
        try:
            done = self._play()
        finally:
            self._screen.end()
        return self._prove(whole=done)

    def _introduce(self) -> None:
        self._console.print(
            "[bold]lastcall demo[/]: vendors delete their export files after a while; lastcall brings them into the bucket "
            f"before that. All runs on this machine and is real but the vendors: {WORKERS} workers, beat, Flower, the board, "
            "a Redis and an S3, against five accounts at four simulated vendors that fail on purpose. Starting …\n"
        )

    # --- the play ----------------------------------------------------------------------------------------------------

    def _play(self) -> bool:
        """Let things happen until all is archived; False when time is up before that."""
        scene, scale = self._scene, self._scene.scale
        now = scene.now()
        waiting = sum(account.made(now) for account in scene.accounts.values())
        self._tell("begin", f"{waiting} files wait at the vendors, {scene.expected - waiting} more are made while we watch")
        acts = [*map(self._fault, scene.faults()), self._kill(), self._flush()]
        while True:
            acts = [act for act in acts if next(act, None) is not None]
            self._look()
            self._news()
            self._screen.show(self._view())
            if not acts and scene.ends_at < scene.now() and self._all_archived():
                self._tell("end", f"all {scene.expected} outputs are archived", _GOOD)
                self._screen.show(self._view())
                return True
            if self._elapsed > scale.limit_seconds:
                self._tell("end", "time is up before everything was archived", _BAD)
                return False
            self._interrupt.pause(_LOOK_EVERY_SECONDS)

    def _tell(self, topic: str, text: str, style: str = "") -> None:
        self._screen.tell(self._elapsed, topic, text, style)

    def _all_archived(self) -> bool:
        archived = sum(status.archived for status in self._statuses.values())
        return archived == self._scene.expected and not self._open

    def _fault(self, fault: VendorFault) -> Iterator[bool]:
        """A fault at a vendor, at its time. Like the other acts, a generator that is asked again and again."""
        while self._elapsed < fault.at_seconds:
            yield True
        fault.begin()
        at, what = self._elapsed, f"{fault.source}: {fault.what}"
        self._tell(fault.name, what, _FAULT)
        self._survived.append(fault.name)
        calm_at: float | None = None
        while calm_at is None or self._elapsed - calm_at < _CALM_SECONDS:
            yield True
            if fault.lasts() or any(output.startswith(f"{fault.source}/") for output in self._troubled):
                calm_at = None
            else:
                calm_at = calm_at or self._elapsed
        self._tell(fault.name, f"{what}: made good {calm_at - at:.0f} s later", _GOOD)

    def _kill(self) -> Iterator[bool]:
        """Kill the worker that is in the middle of the large file, and see who takes over."""
        victim = self._scene.victim
        while self._elapsed < self._scene.scale.kill_at:
            yield True
        while not (found := self._mid_download(victim)):
            yield True
        worker, record = found
        holding = sum(other.worker == record.worker for other in self._open)
        worker.kill()
        at, what = self._elapsed, f"kill -9 {worker.name} amid {_name(record)}"
        self._tell("kill", f"{what}, with {holding} outputs in its hands", _FAULT)
        self._survived.append("a worker killed in mid download")
        restarted = False
        while True:
            yield True
            if not restarted and self._elapsed > at + _RESTART_AFTER_SECONDS:
                worker.start()
                restarted = True
                self._screen.note(self._elapsed, f"{worker.name} is started again, as a supervisor would")
            taker = next((open_.worker for open_ in self._open if open_.output.id == victim), None)
            if restarted and taker != record.worker:
                break
        process = self._stage.worker_of(taker)
        by = " by its successor" if process is worker else f" by {process.name}" if process else ""
        self._tell("kill", f"{what}: taken over{by} {self._elapsed - at:.0f} s later", _GOOD)

    def _mid_download(self, output: OutputId | None) -> tuple[Child, Record] | None:
        """Find who is in the middle of downloading `output`: between a tenth and nine tenths of it."""
        record = next((open_ for open_ in self._open if open_.output.id == output), None)
        worker = self._stage.worker_of(record.worker) if record and record.state is OutputState.CLAIMED else None
        if output is None or record is None or worker is None:
            return None
        entries = self._scene.erp.requests("download")
        sent = max((entry.sent for entry in entries if output.job_id in f"{entry.path}{entry.query}"), default=0)
        size = self._scene.scale.large[0] * 4 / 3
        return (worker, record) if 0.1 * size < sent < 0.9 * size else None

    def _flush(self) -> Iterator[bool]:
        """Throw away all that Redis knows, in the middle of it."""
        while self._elapsed < self._scene.scale.flush_at:
            yield True
        known = self._known()
        self._stage.flush_redis()
        at = self._elapsed
        what = f"FLUSHALL of Redis, {len(self._open)} outputs owed"
        self._tell("flush", what, _FAULT)
        self._survived.append("a FLUSHALL of Redis")
        yield True
        while self._known() < known:
            yield True
        self._tell("flush", f"{what}: all known again {self._elapsed - at:.0f} s later", _GOOD)

    def _known(self) -> int:
        """How many outputs the ledger knows of, archived or not."""
        return sum(status.archived for status in self._statuses.values()) + len(self._open)

    # --- looking -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        ledger, at_risk = self._stage.ledger, self._stage.settings.worker.at_risk
        try:
            statuses = {name: ledger.status(name, at_risk) for name in self._scene.accounts}
            records = [
                record
                for name in self._scene.accounts
                for state in (OutputState.OWED, OutputState.CLAIMED)
                for record in ledger.records(name, state)
            ]
        except LedgerUnavailableError:
            return  # the last picture stands
        self._statuses = statuses
        self._open = sorted(records, key=lambda record: record.output.deadline)
        self._names |= {str(record.output.id): _name(record) for record in records}

    def _view(self) -> View:
        now = self._scene.now()
        sent = sum(account.sent_bytes() for account in self._scene.accounts.values())
        self._sent.append((self._elapsed, sent))
        while self._elapsed - self._sent[0][0] > _RATE_OVER_SECONDS:
            self._sent.popleft()
        (since, before), seconds = self._sent[0], self._elapsed
        return View(
            elapsed_seconds=seconds,
            rows=tuple(
                Row(
                    source=account.name,
                    vendor=_VENDORS[account.kind],
                    made=account.made(now),
                    owed=status.owed,
                    claimed=status.claimed,
                    archived=status.archived,
                    empty=status.empty,
                    lost=status.lost,
                    held=status.held,
                )
                for account in self._scene.accounts.values()
                if (status := self._statuses.get(account.name))
            ),
            urgent=tuple(
                Urgent(
                    name=_name(record),
                    source=record.output.id.source,
                    state="in work" if record.state is OutputState.CLAIMED else "owed",
                    left=record.output.deadline - now,
                )
                for record in self._open[:URGENT]
            ),
            expected=self._scene.expected,
            sent_bytes=sent,
            bytes_per_second=(sent - before) / (seconds - since) if seconds > since else 0.0,
            latest=self._latest,
            trouble=self._trouble(),
        )

    def _news(self) -> None:
        """Tell of the workers' own log what a newcomer wants to read, equal things once."""
        again: Counter[tuple[str, str]] = Counter()
        recovered = []
        for event in self._stage.news():
            output = event.get("output", "")
            name, source = self._names.get(output, output), output.partition("/")[0]
            match event.get("event"):
                case "archived":
                    self._latest = f"archived {source}: {name}, {int(event.get('size', 0)):,} bytes"
                    if output in self._troubled:
                        self._troubled.discard(output)
                        self._recovered += 1
                        recovered.append(f"{source}: {name}")
                case "owed again":
                    self._troubled.add(output)
                    again[source, _gist(event.get("error", ""))] += 1
                case "lost" | "held" | "paused" as what:
                    why = event.get("error") or event.get("reason") or event.get("why")
                    self._tell(output, f"{what}: {output or event.get('source')}: {why}", _BAD)
                case _:
                    pass
        for (source, error), count in again.items():
            outputs = "1 output" if count == 1 else f"{count} outputs"
            self._screen.note(self._elapsed, f"{source}: {outputs} tried again: {error}")
        if recovered:
            others = f" and {len(recovered) - 1} more" if len(recovered) > 1 else ""
            self._screen.note(self._elapsed, f"archived after trouble: {recovered[0]}{others}")

    def _trouble(self) -> str:
        met = self._recovered + len(self._troubled)
        return f"{met} outputs met trouble, {self._recovered} of them are archived since" if met else ""

    # --- the proof ---------------------------------------------------------------------------------------------------

    def _prove(self, *, whole: bool) -> bool:
        """Hold the bucket against the vendors' truth, and let lastcall audit itself. A line for each check."""
        scene, stage, say = self._scene, self._stage, self._console.print
        seconds = self._elapsed
        say("\nEvery object is read back and compared with what its vendor made …")
        truths = scene.truths()
        found = compare(stage.s3.url, BUCKET, PREFIX, truths, self._interrupt.check)
        say("\n[bold]lastcall audit[/]")
        audit_code, audit = stage.command("audit", color=self._console.is_terminal)
        sys.stdout.write(audit)
        sys.stdout.flush()
        say()
        checks = [*self._checks_of_bucket(found, truths), (audit_code == 0, "the audit is empty"), *self._checks_of_processes()]
        if not whole:
            checks.insert(0, (False, f"not everything was archived within {scene.scale.limit_seconds:.0f} s"))
        for ok, text in checks:
            say(Text("ok      " if ok else "FAILED  ", _GOOD if ok else _BAD).append(text, "default"))
        for problem in found.problems[:20]:
            say(Text(f"        {problem}"), soft_wrap=True)
        good = all(ok for ok, _ in checks)
        say(f"\nSurvived: {', '.join(self._survived)}.")
        gone = sum(truth.gone for truth in scene.truths().values())
        if gone:
            say(f"{gone} of the files are deleted at their vendors by now; only the bucket has them still.")
        if good:
            say(f"[bold green]{found.files} outputs in {seconds:.0f} s, nothing lost.[/]")
        else:
            say("[bold red]Something is missing or differs.[/]")
        return good

    def _checks_of_bucket(self, found: Comparison, truths: dict[OutputId, Truth]) -> Iterator[tuple[bool, str]]:
        expected = self._scene.expected
        yield (
            found.same == found.files == expected,
            f"{found.same} of {expected} files are byte for byte the vendors' ({found.read_bytes / MIB:,.0f} MiB, sha256)",
        )
        yield (
            not found.problems and found.receipts == found.objects == expected,
            f"{found.receipts} receipts for {found.objects} objects, none without the other",
        )
        whole = sum(truth.full_downloads for truth in truths.values())
        broken = sum(truth.partial_downloads for truth in truths.values())
        twice = sum(max(0, truth.full_downloads - 1) for truth in truths.values())
        yield twice <= WORKERS * 8, f"{whole} whole downloads for {len(truths)} outputs, {broken} more that broke off"
        if found.least_left is not None:
            yield found.least_left > timedelta(0), f"the closest call had {span(found.least_left)} left to its deadline"

    def _checks_of_processes(self) -> Iterator[tuple[bool, str]]:
        ended = [process.name for process in self._stage.processes if not process.running]
        yield not ended, f"all {len(self._stage.processes)} processes are alive" if not ended else f"ended: {', '.join(ended)}"
        logs = self._stage.all_logs()
        traces = [log.name for log in logs if "Traceback" in log.read_text(encoding="utf-8", errors="replace")]
        crashes = sum(len(account.vendor.crashes) for account in self._scene.accounts.values())
        yield (
            not traces and not crashes,
            f"no traceback in {len(logs)} logs" if not traces else f"tracebacks in {', '.join(traces)}",
        )


def _name(record: Record) -> str:
    """Name an output for people; only the download of some tells their file's name."""
    return record.output.filename or f"job {record.output.id.job_id}"


def _gist(error: str) -> str:
    """Leave out which job it was, so that equal errors read equal."""
    return re.sub(r"\b(download of )?(export|job|task|output) [\w-]*\d[\w-]*: | after \d+ of \d+ bytes", "", error)
