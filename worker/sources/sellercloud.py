"""Sellercloud: queued jobs and their one output file, by the REST API ("Delta Client API", v1).

Vendor pages: the Swagger 2.0 document of ``/rest`` and the prose pages on tokens, queued jobs and rate limiting. What they
leave open (marked *assumed* there) is a setting or read tolerantly here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

import structlog

from worker.errors import (
    HeldError,
    LastcallError,
    LinkExpiredError,
    LogInRefusedError,
    NotReadyError,
    OutputGoneError,
    RefusedError,
    VendorReplyError,
)
from worker.model import Job, JobState, JsonObject, Link, Output, OutputId, Shared, Wrapping, encode_id
from worker.settings import SellercloudSettings
from worker.sources.http import JsonSession, Reply, Token, TokenAuth, revealed
from worker.sources.reading import Fields, Moment, parse_json, parse_moment, receipt_copy

PAGE_SIZE = 50  # the vendor's maximum; more is cut to it without a word
MAX_PAGES = 1000  # 50,000 jobs in a window of days: beyond it, the list has no end

_QUEUED_JOBS = "/api/QueuedJobs"
_OUTPUT_FILE = "/api/QueuedJobs/OutputFile"
_UNSET = datetime(1970, 1, 1, tzinfo=UTC)
_PROSE_LIFE_SECONDS = 1800.0  # the shorter of the two lives that the vendor's pages name, where an answer names none
_LONGEST_LIFE_SECONDS = 86400.0

# By value, never by position: 2 does not exist.
_STATUSES: Mapping[int, str] = {
    0: "Submitted",
    1: "Processing",
    3: "Completed",
    4: "Failed",
    5: "PartialSuccess",
    6: "OnHold",
    7: "Cancelled",
    8: "Cancelled_Service_Restarted",
    9: "Aborted_Too_Much_Time_Consumed",
    10: "Cancelled_While_Running",
}
_COMPLETED, _PARTIAL_SUCCESS = 3, 5
_RUNNING = frozenset({0, 1, 6})
_FAILED = frozenset({4, 7, 8, 9, 10})

# A missing record is 500 with this text, never 404.
_NO_RECORD = re.compile(r"could not find or load record", re.IGNORECASE)
_WRONG_LOG_IN = re.compile(r"invalid username or password", re.IGNORECASE)  # its status is not known for certain
# The vendor's own sample of a log-in has unquoted dates, which is not JSON.
_TOKEN = re.compile(rb'"access_token"\s*:\s*"([^"\\]+)"')
_LIFE = re.compile(rb'"expires_in"\s*:\s*"?(\d+(?:\.\d+)?)')

log = structlog.get_logger(__name__)


class Sellercloud:
    """One Sellercloud account. See `worker.sources.base.Source` for what each method promises."""

    asks_for_one: ClassVar[bool] = True

    def __init__(self, settings: SellercloudSettings, shared: Shared) -> None:
        self._settings = settings
        self._auth = TokenAuth(shared, self._log_in)
        self._api = JsonSession(
            settings,
            shared,
            self._auth,
            headers={"Content-Type": "application/json"},
            log_in_statuses=frozenset({401, 403}),
            throttle_statuses=frozenset({409, 429}),
            reset_time=_reset_time,
        )
        self._by_path = False  # the second form of the download's URL, once the first has turned out not to exist here

    def jobs(self, since: datetime) -> Iterator[Job]:
        """Yield the jobs submitted since `since`; where the zone is unclear, the window reaches back by the margin more."""
        seen: set[str] = set()
        for _ in range(2):
            # A row that leaves while we page moves another one from an unread page to one that was read: look once more.
            rows_left = yield from self._pass(since, seen)
            if not rows_left:
                return

    def job(self, job_id: str) -> Job:
        """Ask for one job. A record that is not there may be one that was submitted just now: `NotReadyError`."""
        if not re.fullmatch(r"\d{1,18}", job_id, re.ASCII):
            raise OutputGoneError(f"job {job_id[:40]!r}: not an id that Sellercloud gives")
        call = f"job {job_id}"
        reply = self._api.get(call, f"{_QUEUED_JOBS}/{encode_id(job_id)}")
        if reply.status == 404 or (not reply.ok and _names_no_record(reply)):
            raise NotReadyError(f"{call}: the vendor has no such record (yet)")
        if not reply.ok:
            raise reply.unexpected()
        document = Fields(reply.json(), call)
        fields = document.child("Basic") or document
        if fields.integer("ID") != int(job_id):
            raise VendorReplyError(f"{call}: the vendor answered with another job")
        status = fields.get("Status", "QueuedJobStatus")
        return self._read(job_id, fields, status, document.text("OutputFile"), document.document)

    def link(self, output: Output) -> Link:
        """Give the download call with a living token. There are no links to mint, and nothing is asked of the vendor."""
        return Link(
            url=self._download_url(output.id.job_id),
            headers={**self._auth.link_headers(output.id), "Content-Type": "application/json"},
            wrapping=Wrapping.SELLERCLOUD,
            resumable=False,
            fallback_filename=output.filename or f"{output.id.job_id}.bin",
        )

    def refused(self, output: Output, refusal: RefusedError) -> LastcallError:
        """Say what a refused download means. Asks the vendor at most three times."""
        reply = Reply.of_refusal(refusal, f"download of job {output.id.job_id}")
        if error := self._api.throttled(reply):
            return error
        if _names_no_record(reply):
            return OutputGoneError(f"{reply.call}: the vendor no longer has the record")
        if reply.status in {401, 403}:
            return self._file_refused(output, reply)
        if reply.status == 404:
            return self._no_route(output, reply)
        if reply.status == 200:
            return VendorReplyError(f"{reply.call}: an error page came in place of the file")
        return reply.unexpected()

    def confirm(self, output: Output) -> None:
        """Nothing to ask: a job runs once."""

    # --- the log-in --------------------------------------------------------------------------------------------------

    def _log_in(self) -> Token:
        username, password = revealed(lambda: (self._settings.username.reveal(), self._settings.password.reveal()))
        body = json.dumps({"Username": username, "Password": password}).encode()
        reply = self._api.post_log_in("log-in", "/api/token", body=body, content_type="application/json")
        token = _TOKEN.search(reply.body) if reply.ok else None
        if token is None:
            # A 200 that is an object without a token is an answer; one that is a page is a fault.
            answered = reply.ok and reply.body.lstrip().startswith(b"{")
            if not (answered or reply.status in {400, 401, 403} or _WRONG_LOG_IN.search(reply.text)):
                raise reply.unexpected()
            raise LogInRefusedError(
                f"log-in: Sellercloud gives no token ({reply.status}); check username and password, and that the employee"
                " account is not locked and has no two-factor log-in"
            )
        life = _LIFE.search(reply.body)
        seconds = float(life[1]) if life else _PROSE_LIFE_SECONDS
        return Token(token[1].decode("utf-8", "replace"), min(seconds, _LONGEST_LIFE_SECONDS))

    # --- the list ----------------------------------------------------------------------------------------------------

    def _page(self, since: datetime, number: int) -> Fields:
        settings = self._settings
        start = (since - settings.margin(zoned=False)).astimezone(settings.zone)
        params = [("model.pageNumber", str(number)), ("model.pageSize", str(PAGE_SIZE))]
        params += [("model.submittedFrom", start.strftime("%Y-%m-%dT%H:%M:%S"))]
        params += [("model.jobType", str(job_type)) for job_type in settings.job_types]
        reply = self._api.get("list of queued jobs", _QUEUED_JOBS, params)
        if reply.status == 404:
            raise VendorReplyError(
                f"{reply.call}: answered 404; check base_url (it ends in /rest) and that the account may read queued jobs"
            )
        if not reply.ok:
            raise reply.unexpected()
        return Fields(reply.json(), reply.call)

    def _pass(self, since: datetime, seen: set[str]) -> Generator[Job, None, bool]:
        """Yield the jobs of all pages that are not in `seen`; give whether rows left the list meanwhile."""
        name = "list of queued jobs"
        listed: set[str] = set()  # ids, and whole rows without a readable one
        rows_left, most, stale_pages = False, 0, 0
        for number in range(1, MAX_PAGES + 1):
            page = self._page(since, number)
            rows, total = page.rows("Items"), page.integer("TotalResults")
            rows_left, most = rows_left or (total or most) < most, total or most
            known = len(listed)
            for row in rows:
                job_id = self._id(row)
                listed.add(job_id or repr(row))
                if job_id is not None and job_id not in seen:
                    seen.add(job_id)
                    yield self._row(job_id, row)
            # Rows repeat when others arrive while we read, so distinct ones count, not pages times rows.
            if not rows or (total and len(listed) >= total):
                return rows_left
            stale_pages = stale_pages + 1 if len(listed) == known else 0
            if stale_pages and not total:
                return rows_left
            if stale_pages > 1:
                raise VendorReplyError(f"{name}: the pages repeat themselves after {len(listed)} of {total} jobs")
        raise VendorReplyError(f"{name}: no end after {MAX_PAGES} pages")

    def _id(self, row: Any) -> str | None:
        try:
            fields = Fields(row, "row of the list of queued jobs")
            return str(fields.need("ID", fields.integer("ID")))
        except VendorReplyError as exc:
            log.warning("malformed-row", source=self._settings.name, why=str(exc))
            return None

    def _row(self, job_id: str, row: Any) -> Job:
        fields = Fields(row, f"job {job_id}")
        try:
            return self._read(job_id, fields, fields.get("QueuedJobStatus", "Status"), fields.text("OutputFile"), row)
        except VendorReplyError as exc:
            return Job(id=job_id, state=JobState.RUNNING, warnings=(str(exc),))

    # --- one job -----------------------------------------------------------------------------------------------------

    def _read(self, job_id: str, fields: Fields, raw_status: object, output_file: str | None, document: JsonObject) -> Job:
        """Make a job of a list's row or of a single answer's ``Basic``; `document` is the whole answer."""
        status = _status(raw_status)
        name = (output_file or "").strip() or None
        label = _STATUSES.get(-1 if status is None else status, str(raw_status)[:40])
        if status in _FAILED or (status == _PARTIAL_SUCCESS and name is None):
            return Job(id=job_id, state=JobState.FAILED, status=label, named_file=name is not None)
        if status not in {_COMPLETED, _PARTIAL_SUCCESS}:
            unknown = () if status in _RUNNING else (f"job {job_id}: unknown status {label!r}",)
            return Job(id=job_id, state=JobState.RUNNING, status=label, warnings=unknown)
        completed_at, deadline, warnings = self._times(job_id, fields)
        output = Output(
            id=OutputId(self._settings.name, job_id, job_id),
            completed_at=completed_at,
            deadline=deadline,
            filename=name,
            job=receipt_copy(document, drop={"Parameters"}),  # values of unknown content, credentials perhaps among them
        )
        return Job(
            id=job_id,
            state=JobState.COMPLETED,
            outputs=(output,) if name is not None else (),
            status=label,
            partial=status == _PARTIAL_SUCCESS,
            completed_at=completed_at,
            deadline=deadline,
            warnings=warnings,
        )

    def _times(self, job_id: str, fields: Fields) -> tuple[datetime, datetime, tuple[str, ...]]:
        """Give when the job was completed, its deadline, and what to warn of.

        A completed job without any usable time is archived all the same: under a fixed date, since keys must not depend on
        when we ran, and as overdue, which is urgent and never lost.
        """
        moments: dict[str, Moment] = {}
        warnings: list[str] = []
        for name in ("SubmittedOn", "StartedOn", "CompletedOn"):
            try:
                moment = fields.moment(name, zone=self._settings.zone)
            except VendorReplyError as exc:
                warnings.append(str(exc))
                continue
            if moment is not None:
                moments[name] = moment
        if not moments:
            warnings.append(f"job {job_id}: completed without any time; archived under 1970-01-01")
        unset = Moment(_UNSET, zoned=True)
        completed = next((moments[name] for name in ("CompletedOn", "StartedOn", "SubmittedOn") if name in moments), unset)
        earliest = moments.get("SubmittedOn") or min(moments.values(), key=lambda moment: moment.at, default=unset)
        deadline = min(earliest.at, completed.at) + self._settings.retention - self._settings.margin(zoned=earliest.zoned)
        return completed.at, deadline, tuple(warnings)

    # --- refused downloads -------------------------------------------------------------------------------------------

    def _download_url(self, job_id: str) -> str:
        if self._by_path:
            return self._api.url(f"{_OUTPUT_FILE}/{encode_id(job_id)}")
        return self._api.url(_OUTPUT_FILE, [("id", job_id)])

    def _file_refused(self, output: Output, reply: Reply) -> LastcallError:
        """A 401: once it may be the token; with one made for this very output it is the file, or the list is refused too."""
        if self._auth.link_refused(output.id, lambda: self._page(datetime.now(UTC), 1)):
            return LinkExpiredError(f"{reply.call}: the token was refused; logged in again")
        return HeldError(
            f"{reply.call}: this one file is refused ({reply.status}) while other calls work; check rights and retry"
        )

    def _no_route(self, output: Output, reply: Reply) -> LastcallError:
        """A 404, which the pages don't know: the record may be gone, or this tenant has the other form of the URL alone."""
        job_id = output.id.job_id
        try:
            job = self.job(job_id)
        except NotReadyError:
            return OutputGoneError(f"{reply.call}: the vendor no longer has the record")
        if job.state is JobState.RUNNING:
            return NotReadyError(f"{reply.call}: the job is running")
        for by_path, path, params in ((False, _OUTPUT_FILE, [("id", job_id)]), (True, f"{_OUTPUT_FILE}/{job_id}", [])):
            if self._api.get(reply.call, path, params, only_head=True).ok:
                self._by_path = by_path
                return LinkExpiredError(f"{reply.call}: the other form of the URL is the one that exists here")
        return VendorReplyError(f"{reply.call}: answered 404 while the job is still there; check the account's rights")


def _status(raw: object) -> int | None:
    """Read a status that came as a number, as digits, or as the vendor's word in any case; None for anything else."""
    if isinstance(raw, (int, float)) and not isinstance(raw, bool) and raw == int(raw):
        return int(raw)
    if not isinstance(raw, str):
        return None
    if re.fullmatch(r"\d{1,4}", raw.strip(), re.ASCII):
        return int(raw)
    words = {_plain(word): value for value, word in _STATUSES.items()}
    return words.get(_plain(raw))


def _plain(word: str) -> str:
    return re.sub(r"[^a-z]", "", word.casefold())


def _names_no_record(reply: Reply) -> bool:
    return any(_NO_RECORD.search(text) for text in (reply.reason, reply.text))


def _reset_time(reply: Reply) -> datetime | None:
    """Read the throttle's body, under whatever status it came: ``{"Error": …, "RateLimitResetTime": …}``."""
    if b"RateLimitResetTime" not in reply.body[:4096]:
        return None
    try:
        text = Fields(parse_json(reply.body, reply.call), reply.call).text("RateLimitResetTime")
        return parse_moment(text, UTC).at if text else None
    except (VendorReplyError, ValueError):
        return None
