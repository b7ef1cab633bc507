"""What the demo plays: five accounts at four simulated vendors, some hundred jobs, and the faults of a bad day.

Everything is made from one seed, so two runs differ only in what the machine makes of them. Files are as large, as urgent and
as oddly wrapped as the vendors' own; the vendors really delete them at their deadline.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias

from worker.demo import api2convert, crayon, sellercloud, spaaza
from worker.demo.server import MIB, Clock, Content, Fault, Kind, Truth, Vendor
from worker.model import OutputId

CrayonForm: TypeAlias = Literal["raw", "file-content", "numbers", "data", "camel"]

KIB = 1 << 10
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)

ERP, MEDIA, SHOPS, NORDIC, BILLS = "erp-exports", "media-files", "shops", "shops-nordic", "cloud-bills"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the play is, and when what happens, in seconds from its beginning."""

    jobs: Mapping[str, int]
    large: tuple[int, int]  # bytes: the file whose worker is killed, and the largest one
    large_bytes_per_second: float
    work_lasts: float  # the last job completes then
    faults_at: float
    kill_at: float
    flush_at: float
    lease: str
    poll_every: str
    limit_seconds: float


FULL = Scale(
    jobs={ERP: 124, MEDIA: 52, SHOPS: 46, NORDIC: 18, BILLS: 56},
    large=(96 * MIB, 300 * MIB),
    large_bytes_per_second=16 * MIB,
    work_lasts=57.0,
    faults_at=4.0,
    kill_at=12.0,
    flush_at=25.0,
    lease="5s",
    poll_every="2s",
    limit_seconds=105.0,
)
SMALL = Scale(
    jobs={ERP: 8, MEDIA: 3, SHOPS: 4, NORDIC: 2, BILLS: 5},
    large=(3 * MIB, 1 * MIB),
    large_bytes_per_second=2 * MIB,
    work_lasts=3.0,
    faults_at=0.5,
    kill_at=1.0,
    flush_at=5.0,
    lease="2s",
    poll_every="1s",
    limit_seconds=60.0,
)


@dataclass(frozen=True, kw_only=True)
class VendorFault:
    """A fault at one source. `lasts` tells whether the vendor still has some of it in store."""

    at_seconds: float
    source: str
    name: str
    what: str
    begin: Callable[[], object]
    lasts: Callable[[], bool]


@dataclass(kw_only=True)
class Account:
    """One account at a simulated vendor: its table in the configuration, and when its files are made."""

    name: str
    vendor: Vendor
    kind: str
    download_route: str
    made_at: list[datetime] = field(default_factory=list)

    def made(self, now: datetime) -> int:
        """How many files the vendor has made by now."""
        return sum(at <= now for at in self.made_at)

    def sent_bytes(self) -> int:
        """How many bytes of files the vendor has sent."""
        return sum(entry.sent for entry in self.vendor.requests(self.download_route))

    def truths(self) -> dict[OutputId, Truth]:
        """What the vendor alone knows to be right."""
        return {OutputId(self.name, truth.job_id, truth.output_id): truth for truth in self.vendor.truth()}


class Scene:
    """The accounts. `prepare` before `open`; `stop` ends the vendors."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.now = Clock()
        self.erp = sellercloud.Sellercloud(now=self.now)
        self.media = api2convert.Api2convert(now=self.now)
        self.shops = spaaza.Spaaza(now=self.now, switches=spaaza.Switches(purge_after=HOUR))
        self.nordic = spaaza.Spaaza(
            now=self.now, chain=2112, switches=spaaza.Switches(storage="gcs", encoding="gzip", purge_after=HOUR)
        )
        self.bills = crayon.Crayon(now=self.now)
        self.accounts = {
            account.name: account
            for account in (
                Account(name=ERP, vendor=self.erp, kind="sellercloud", download_route="download"),
                Account(name=MEDIA, vendor=self.media, kind="api2convert", download_route="download"),
                Account(name=SHOPS, vendor=self.shops, kind="spaaza", download_route="storage"),
                Account(name=NORDIC, vendor=self.nordic, kind="spaaza", download_route="storage"),
                Account(name=BILLS, vendor=self.bills, kind="crayon", download_route="download"),
            )
        }
        self.victim: OutputId | None = None
        self._random = random.Random("lastcall")
        first, largest = scale.large
        self._victim_content = Content("the victim", first, "csv")
        self._largest_content = Content("the largest", largest, "zip")

    def prepare(self) -> None:
        """Start the vendors, still without any job, and work out the digests of what is large."""
        for account in self.accounts.values():
            account.vendor.start()
        for content in (self._victim_content, self._largest_content):
            _ = content.sha256

    def stop(self) -> None:
        """Stop the vendors."""
        for account in self.accounts.values():
            account.vendor.stop()

    @property
    def expected(self) -> int:
        """How many files there will have been when all jobs have ended."""
        return sum(len(account.made_at) for account in self.accounts.values())

    @property
    def ends_at(self) -> datetime:
        """When the last job ends."""
        return max(at for account in self.accounts.values() for at in account.made_at)

    def truths(self) -> dict[OutputId, Truth]:
        """What the vendors alone know to be right, of all files made so far."""
        return {output: truth for account in self.accounts.values() for output, truth in account.truths().items()}

    def configuration(self, folder: Path) -> str:
        """Write the secrets into `folder`, and give the source tables that name them."""
        lines = []
        for account in self.accounts.values():
            lines += [
                f"[sources.{account.name}]",
                f'vendor = "{account.kind}"',
                f'base_url = "{account.vendor.base_url}"',
                f'poll_every = "{self.scale.poll_every}"',
                'timezone = "UTC"',
                "requests_per_second = 50.0",
                "allow_private_hosts = true",
                'download_hosts = ["127.0.0.1"]',
            ]
            for key, value in account.vendor.credentials.items():
                path = folder / f"{account.name}.{key}"
                path.touch(mode=0o600)
                path.write_text(value, encoding="utf-8")
                lines.append(f"{key} = {{ file = {json.dumps(str(path))} }}")
            lines.append("")
        return "\n".join(lines)

    # --- the jobs ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Let every account have its jobs: most have ended, some with little time left; others end while we watch."""
        now = self.now()
        self._fill_erp(now)
        self._fill_media(now)
        self._fill_chain(now, SHOPS, self.shops)
        self._fill_chain(now, NORDIC, self.nordic)
        self._fill_bills(now)

    def _plan(self, name: str, now: datetime, retention: timedelta) -> Iterator[tuple[int, timedelta, datetime | None]]:
        """Give (number, time left to the deadline, when the job ends; None: before we came). A third ends while we watch."""
        urgent = max(1, self.scale.jobs[name] // 12)
        for number in range(self.scale.jobs[name]):
            if number < urgent:
                left = timedelta(seconds=54 + 7 * number + self._random.uniform(0, 5))
            else:  # from five minutes up to all of it, every order of magnitude as likely as the next
                left = timedelta(minutes=5) * (retention / timedelta(minutes=5)) ** self._random.uniform(0, 0.98)
            latest = min(self.scale.work_lasts, left.total_seconds() / 2)
            ends_at = now + timedelta(seconds=self._random.uniform(1, latest)) if number % 3 == 2 else None
            yield number, left, ends_at

    def _content(self, seed: str, kind: Kind, most: int = 6 * MIB) -> Content:
        """A file of a size as exports have: mostly tens of kilobytes, now and then some megabytes."""
        size = int(200 * (most / 200) ** (self._random.uniform(0, 1) ** 1.6))
        return Content(seed, size, kind)

    def _ends(self, name: str, at: datetime, files: int = 1) -> None:
        self.accounts[name].made_at += [at] * files

    def _fill_erp(self, now: datetime) -> None:
        forms: Iterator[sellercloud.BodyForm] = itertools.cycle(("base64", "json-string", "object", "raw", "lines", "bom"))
        kinds: Iterator[Kind] = itertools.cycle(("csv", "xlsx", "csv", "zip", "csv"))
        for number, left, ends in self._plan(ERP, now, 10 * DAY):
            submitted, ends_at = now - 10 * DAY + left, ends or now
            job: dict[str, Any] = {"submitted_at": submitted, "started_at": submitted, "completed_at": ends_at}
            if number % 14 == 5:
                self.erp.add_job(output_file="empty", **job)
            elif number % 14 == 9:
                self.erp.add_job(final=4, error="The export timed out.", output_file="empty", **job)
            else:
                form, kind = next(forms), next(kinds)
                content = self._content(f"erp {number}", "csv" if form == "raw" else kind)
                abroad = number % 10 == 3
                switches = sellercloud.SellercloudSwitches(body=form, disposition="extended" if abroad else "quoted")
                job["filename"] = f"{'Lagerbestand Köln' if abroad else 'Inventory'} {number}.{content.kind}"
                self.erp.add_job(content, switches=switches, fault=Fault(delay_seconds=1.1), **job)
                self._ends(ERP, ends_at)
        self._add_victim(now)

    def _add_victim(self, now: datetime) -> None:
        """Add the file in whose middle a worker is killed: large, slow, and urgent enough to be begun at once."""
        ends_at = now + timedelta(seconds=max(0.0, self.scale.kill_at - 4))
        submitted = now - 10 * DAY + timedelta(seconds=100)
        job = self.erp.add_job(
            self._victim_content,
            submitted_at=submitted,
            started_at=submitted,
            completed_at=ends_at,
            filename="All orders.csv",
            fault=Fault(bytes_per_second=self.scale.large_bytes_per_second),
        )
        self._ends(ERP, ends_at)
        self.victim = OutputId(ERP, str(job.id), str(job.id))

    def _fill_media(self, now: datetime) -> None:
        self.media.standing["download"] = Fault(delay_seconds=0.8)
        lasts = timedelta(seconds=20)
        for number, left, ends in self._plan(MEDIA, now, DAY):
            ends_at = ends or now - DAY + left
            if number % 14 == 6:
                self.media.add_job(created_at=ends_at - lasts, lasts=lasts, ends="failed")
                continue
            files = [
                api2convert.OutputFile(
                    f"page-{number}-{page}.pdf", self._content(f"media {number} {page}", "pdf", 3 * MIB), "application/pdf"
                )
                for page in range(1 + number % 3)
            ]
            if number == 3:
                files = [api2convert.OutputFile("film.zip", self._largest_content, "application/zip")]
            if number == 1:
                files.append(api2convert.OutputFile("notes.txt", Content("empty", 0, "bytes"), "text/plain"))
            self.media.add_job(*files, created_at=ends_at - lasts, lasts=lasts)
            self._ends(MEDIA, ends_at, len(files))

    def _fill_chain(self, now: datetime, name: str, chain: spaaza.Spaaza) -> None:
        chain.standing["storage"] = Fault(delay_seconds=0.8)
        indexes = itertools.cycle(spaaza.INDEX_WORDS)
        for number, left, ends in self._plan(name, now, HOUR):
            begins_at = now - timedelta(seconds=self._random.uniform(1, 600)) if ends else now - HOUR + left
            ends_at = ends or begins_at
            run: dict[str, Any] = {"created_at": begins_at - DAY, "begins_at": begins_at, "lasts": ends_at - begins_at}
            if number % 14 == 8:
                chain.add_task(None, ends="ERROR", **run)
            else:
                content = Content(name, 0) if number == 7 else self._content(f"{name} {number}", "csv", 2 * MIB)
                chain.add_task(content, export_index=next(indexes), **run)
                self._ends(name, ends_at)
        chain.add_task(None, after=None)  # one that never ran

    def _fill_bills(self, now: datetime) -> None:
        forms: Iterator[CrayonForm] = itertools.cycle(("raw", "file-content", "raw", "data", "numbers", "camel"))
        kinds: Iterator[Kind] = itertools.cycle(("xlsx", "xlsx", "zip", "csv"))
        for number, left, ends in self._plan(BILLS, now, 7 * DAY):
            ends_at = ends or now
            item: dict[str, Any] = {"created_at": now - 7 * DAY + left, "processed_at": ends_at}
            if number % 14 == 5:
                self.bills.add_job(downloadable_after=None, **item)
            elif number % 14 == 9:
                self.bills.add_job(final=8, **item)
            else:
                form = next(forms)
                content = self._content(f"bills {number}", next(kinds), 40 * KIB if form == "numbers" else 3 * MIB)
                switches = crayon.CrayonSwitches(form=form)
                self.bills.add_job(content, switches=switches, fault=Fault(delay_seconds=1.1), **item)
                self._ends(BILLS, ends_at)

    # --- the faults --------------------------------------------------------------------------------------------------

    def faults(self) -> list[VendorFault]:
        """Give the vendors' faults of the day, in their order."""
        erp, media, shops, bills = self.erp, self.media, self.shops, self.bills
        step = self.scale.work_lasts / 14
        cut, bursts = Fault(delay_seconds=0.3, cut_fraction=0.5), (crayon.SERVER_FAULT, crayon.BAD_GATEWAY)
        log_ins = 0

        def age_links() -> None:
            shops.switches.lapsed_links += 2

        def revoke() -> None:
            nonlocal log_ins
            log_ins = len(erp.requests("token"))
            erp.revoke_tokens()

        table: list[tuple[str, str, str, Callable[[], object], Callable[[], bool]]] = [
            (BILLS, "500s and 502s", "500 and 502, six times", lambda: bills.fail("*", *bursts, times=3), bills.failing),
            (ERP, "cut downloads", "three downloads break off", lambda: erp.fail("download", cut, times=3), erp.failing),
            (MEDIA, "a throttle", "429, Retry-After: 3", lambda: media.fail("*", api2convert.throttled("3")), media.failing),
            (SHOPS, "expired links", "two links expire too soon", age_links, lambda: shops.switches.lapsed_links > 0),
            (ERP, "revoked tokens", "log-in tokens revoked", revoke, lambda: len(erp.requests("token")) == log_ins),
        ]
        return [
            VendorFault(
                at_seconds=self.scale.faults_at + number * step, source=source, name=name, what=what, begin=begin, lasts=lasts
            )
            for number, (source, name, what, begin, lasts) in enumerate(table)
        ]
