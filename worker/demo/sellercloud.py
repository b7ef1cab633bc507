"""A simulated Sellercloud tenant: queued jobs and their output files, with every misbehaviour of the fact sheet on a switch.

Written from vendors/sellercloud.md and the vendor's 2022 specification alone; section numbers below are the sheet's.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal
from urllib.parse import parse_qs, quote
from zoneinfo import ZoneInfo

from worker.demo.server import (
    FAULTLESS,
    Base64,
    Clock,
    Content,
    Fault,
    First,
    Joined,
    Raw,
    Reply,
    Request,
    Stream,
    Truth,
    Vendor,
    json_member,
)

TENANT_ZONE = ZoneInfo("America/New_York")
STATUS_NAMES = {
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
NOT_ENDED = frozenset({0, 1, 6})
INTERNAL_ERROR = "Internal Server Error"
HTML_PAGE = "<!DOCTYPE html>\n<html><head><title>Runtime Error</title></head><body><h1>Server Error</h1></body></html>\n"

BodyForm = Literal[
    "base64",
    "json-string",
    "object",
    "raw",
    "lines",
    "bom",
    "html",
    "error-object",
    "cut",
    "cut-json-string",
    "cut-object",
]
Disposition = Literal["unquoted", "quoted", "extended", "missing", "path"]


@dataclass(kw_only=True)
class SellercloudSwitches:
    """Section 6 of the sheet, the default first. A job may carry switches of its own for what concerns it alone.

    11, the faults of the wire, is `Vendor.fail`, `Vendor.standing` and `QueuedJob.fault`; 5, the states, is `QueuedJob`.
    """

    # 1. The download's body; the forms that begin with "cut" end early under a matching length. "error-object": an
    # object with `Error` under 200.
    body: BodyForm = "base64"
    # 2.
    disposition: Disposition = "unquoted"
    # 3.
    download_urls: Literal["both", "query", "path"] = "both"
    # 4. `shift`: between two pages a job arrives on top, or the newest job that has no file leaves.
    query_names: Literal["both", "model"] = "both"
    page_size: Literal["cut", "refused"] = "cut"
    empty_items: Literal["list", "null"] = "list"
    shift: Literal["none", "arrive", "leave"] = "none"
    order: Literal["newest", "oldest"] = "newest"
    # 5.
    status_as: Literal["integer", "text"] = "integer"
    # 6.
    times: Literal["utc", "local", "zulu"] = "utc"
    # 7. `hidden_for`: a job just submitted is unknown for so long, to the calls named in `hidden_from`.
    missing_status: int = 500
    error_form: Literal["text", "message", "json-string"] = "text"
    hidden_for: timedelta = timedelta()
    hidden_from: frozenset[str] = frozenset({"list", "single", "download"})
    running_file: Literal["500", "empty", "404"] = "500"
    # 8.
    purge_from: Literal["submitted", "completed"] = "submitted"
    retention: timedelta = timedelta(days=10)
    # 9. `token_dies_after`: the token's real life where it is not what `expires_in` says.
    token_life_seconds: float = 3600.0
    token_dies_after: timedelta | None = None
    issued_dates: Literal["right", "reversed", "unquoted"] = "right"
    login_voids_old: bool = False
    unauthorized_body: Literal["empty", "message"] = "empty"
    bad_login_status: int = 400
    # 10. More than `throttle_calls` calls to the routes `throttle_on` in one window are refused until its end.
    throttle: Literal["off", "409", "429"] = "off"
    throttle_calls: int = 10_800
    throttle_window: timedelta = timedelta(hours=1)
    throttle_on: frozenset[str] = frozenset({"token", "list", "single", "download", "logs"})


@dataclass(kw_only=True)
class QueuedJob:
    """A queued job of the tenant. It is submitted, processed and ended by the vendor's clock.

    `final` is the status that it ends with. `status` is one that it has instead, from its submission on, whatever the
    clock says (2 and 99 too); set it to None to let the job go on. `output_file` tells whether the ended job names a file.
    """

    id: int
    submitted_at: datetime
    started_at: datetime
    completed_at: datetime
    content: Content
    filename: str
    job_type: int = 2
    final: int = 3
    status: int | None = None
    output_file: Literal["named", "empty", "null"] = "named"
    error: str = ""
    deleted: bool = False
    fault: Fault = FAULTLESS
    switches: SellercloudSwitches | None = None

    def status_at(self, now: datetime) -> int:
        """Give the status of the moment."""
        if self.status is not None:
            return self.status
        return self.final if now >= self.completed_at else int(now >= self.started_at)

    def ended(self, now: datetime) -> bool:
        """Tell whether the job has come to an end."""
        return now >= self.completed_at and self.status_at(now) not in NOT_ENDED

    def file_at(self, now: datetime) -> str | None:
        """Give the list's `OutputFile`."""
        if not self.ended(now) or self.output_file == "empty":
            return ""
        return self.filename if self.output_file == "named" else None


@dataclass
class _Window:
    ends_at: datetime
    calls: int = 0


@dataclass
class _Token:
    ends_at: datetime


class Sellercloud(Vendor):
    """The tenant. `base_url` ends in ``/rest``; `username` and `password` are the one employee's and may be changed."""

    base_path = "/rest"

    def __init__(
        self,
        *,
        now: Clock | None = None,
        port: int = 0,
        username: str = "svc-archive@example.com",
        password: str = "correct horse",  # noqa: S107 (a placeholder that protects nothing)
        switches: SellercloudSwitches | None = None,
    ) -> None:
        super().__init__(now=now, port=port)
        self.username, self.password = username, password
        self.switches = switches or SellercloudSwitches()
        self.jobs: dict[int, QueuedJob] = {}
        self._tokens: dict[str, _Token] = {}
        self._window: _Window | None = None
        jobs = "/rest/api/QueuedJobs"
        for name, methods, pattern, handler in (
            ("team", "GET", "/api/server-by-team/?", self._team),
            ("token", "POST", "/rest/api/token/?", self._token),
            ("list", "GET", f"{jobs}/?", self._list),
            ("download", "GET", f"{jobs}/OutputFile/?", self._download_by_query),
            ("download", "GET", rf"{jobs}/OutputFile/(?P<job_id>-?\d+)", self._download_by_path),
            ("logs", "GET", rf"{jobs}/(?P<job_id>-?\d+)/Logs/?", self._logs),
            ("bulk-update-log", "GET", rf"{jobs}/BulkUpdateLog/(?P<job_id>-?\d+)", self._bulk_update_log),
            ("single", "GET", rf"{jobs}/(?P<job_id>-?\d+)", self._single),
        ):
            self.route(name, methods, pattern, handler, ignore_case=True)

    @property
    def credentials(self) -> dict[str, str]:
        """What the table of its source needs to be let in."""
        return {"username": self.username, "password": self.password}

    # what a test or the demo sets up

    def add_job(
        self,
        content: Content | None = None,
        *,
        job_id: int | None = None,
        submitted_at: datetime | None = None,
        started_at: datetime | None = None,
        completed_at: datetime | None = None,
        filename: str | None = None,
        **other: Any,
    ) -> QueuedJob:
        """Add a job; without times it was submitted a minute ago and has just ended. `other`: fields of `QueuedJob`."""
        with self.lock:
            job_id = job_id or max(self.jobs, default=2_206_922) + 1
            content = content or Content(f"sellercloud {job_id}", 1000)
            submitted_at = submitted_at or min(self.now(), completed_at or self.now()) - timedelta(seconds=60)
            completed_at = completed_at or max(self.now(), submitted_at)
            started_at = started_at or submitted_at + (completed_at - submitted_at) / 4
            job = QueuedJob(
                id=job_id,
                content=content,
                submitted_at=submitted_at,
                started_at=started_at,
                completed_at=completed_at,
                filename=f"CustomExport_{job_id}.{'bin' if content.kind == 'bytes' else content.kind}"
                if filename is None
                else filename,
                **other,
            )
            self.jobs[job_id] = job
            return job

    def gone(self, job: QueuedJob) -> bool:
        """Tell whether the vendor has deleted the job."""
        switches = self._switches(job)
        start = job.submitted_at if switches.purge_from == "submitted" else job.completed_at
        return job.deleted or self.now() >= start + switches.retention

    def truth(self) -> list[Truth]:
        """List the outputs of all jobs that have ended well or partly."""
        now = self.now()
        with self.lock:
            done = [job for job in self.jobs.values() if job.ended(now) and job.status_at(now) in {3, 5} and job.file_at(now)]
        return [
            Truth(
                job_id=str(job.id),
                output_id=str(job.id),
                filename=job.filename,
                size=job.content.size,
                sha256=job.content.sha256,
                completed_at=job.completed_at,
                full_downloads=self.served[job.id].full,
                partial_downloads=self.served[job.id].partial,
                gone=self.gone(job),
            )
            for job in done
        ]

    def revoke_tokens(self) -> None:
        """Let every token that was given out be refused from now on."""
        with self.lock:
            self._tokens.clear()

    # section 2

    def _team(self, request: Request) -> Reply:
        if request.first("team") != "example":
            return Reply.json({"Success": False, "Message": "Team name not found. Please try again."})
        return Reply.json({"ServerID": "tt", "RestApiEndpoint": self.base_url + "/"})

    def _token(self, request: Request) -> Reply:
        switches = self.switches
        given = _credentials(request)
        if (given.get("username"), given.get("password")) != (self.username, self.password):
            return Reply.json({"Message": "Sorry, invalid username or password"}, switches.bad_login_status)
        now = self.now()
        if switches.login_voids_old:
            self._tokens.clear()
        token = secrets.token_urlsafe(48)
        life = timedelta(seconds=switches.token_life_seconds)
        self._tokens[token] = _Token(now + (life if switches.token_dies_after is None else switches.token_dies_after))
        expires = now - timedelta(minutes=30) if switches.issued_dates == "reversed" else now + life
        document = {
            "access_token": token,
            "token_type": "Bearer",
            "username": self.username,
            "expires_in": switches.token_life_seconds,
            ".issued": _seven_digits(now),
            ".expires": _seven_digits(expires),
        }
        text = json.dumps(document)
        if switches.issued_dates == "unquoted":
            for moment in (now, expires):
                text = text.replace(f'"{_seven_digits(moment)}"', f"{moment:%Y-%m-%dT%H:%M:%S}")
        return Reply.text(text, content_type="application/json; charset=utf-8")

    def screen(self, request: Request, route: str) -> Reply | None:
        """Throttle by address (section 5), then ask for a token."""
        if (refusal := self._throttled(request, route)) is not None:
            return refusal
        if route in {"token", "team"}:
            return None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        known = self._tokens.get(token) if scheme.lower() == "bearer" else None
        if known is not None and request.at < known.ends_at:
            return None
        if self.switches.unauthorized_body == "message":
            return Reply.json({"Message": "Invalid token"}, 401, reason="Invalid token")
        return Reply(status=401, reason="Invalid token")

    def _throttled(self, request: Request, route: str) -> Reply | None:
        switches = self.switches
        if switches.throttle == "off" or route not in switches.throttle_on:
            return None
        if self._window is None or request.at >= self._window.ends_at:
            self._window = _Window(request.at + switches.throttle_window)
        self._window.calls += 1
        if self._window.calls <= switches.throttle_calls:
            return None
        reset = self._window.ends_at
        document = {"Error": "Too many requests.", "RateLimitResetTime": _seven_digits(reset)}
        if switches.throttle == "409":
            return Reply.json(document, 409)
        return Reply.json(document, 429, headers={"Retry-After": str(math.ceil((reset - request.at).total_seconds()))})

    # section 3

    def _list(self, request: Request) -> Reply:
        switches = self.switches
        try:
            wanted = _Query(
                request, bare_too=switches.query_names == "both", zone=TENANT_ZONE if switches.times == "local" else UTC
            )
        except ValueError:
            return Reply.json({"Message": "The request is invalid."}, 400)
        if wanted.page_size > 50 and switches.page_size == "refused":
            return self._error(500, "Page size cannot be greater than 50.")
        size = max(min(wanted.page_size, 50), 1)
        rows = [job for job in self.jobs.values() if self._visible(job, "list") and wanted.takes(job, request.at)]
        rows.sort(key=lambda job: (job.submitted_at, job.id), reverse=switches.order == "newest")
        first = (max(wanted.page_number, 1) - 1) * size
        page = [self._row(job, request.at) for job in rows[first : first + size]]
        if first + size < len(rows):
            self._shift()
        items = None if not page and switches.empty_items == "null" else page
        return Reply.json({"Items": items, "TotalResults": len(rows)})

    def _shift(self) -> None:
        if self.switches.shift == "arrive":
            self.add_job(submitted_at=self.now(), completed_at=self.now() + timedelta(days=1))
        elif self.switches.shift == "leave":
            without_file = [job for job in self.jobs.values() if not job.deleted and not job.file_at(self.now())]
            if without_file:
                max(without_file, key=lambda job: (job.submitted_at, job.id)).deleted = True

    def _row(self, job: QueuedJob, now: datetime) -> dict[str, Any]:
        return {
            "ID": job.id,
            **self._times(job, now),
            "QueuedJobPriority": 1,
            "QueuedJobType": job.job_type,
            "QueuedJobStatus": self._status(job, now),
            "ErrorMessage": job.error,
            "CompanyID": "164",
            "CompanyName": "Example Co",
            "UserID": 17,
            "SubmittedBy": "someone@example.com",
            "InputFile": "",
            "OutputFile": job.file_at(now),
            "RelatedTaskID": 0,
        }

    def _single(self, request: Request, job_id: str) -> Reply:
        job = self.jobs.get(int(job_id))
        if job is None or not self._visible(job, "single"):
            return self._missing(job_id)
        now = request.at
        return Reply.json(
            {
                "Basic": {
                    "ID": job.id,
                    "CompanyID": 164,
                    "CompanyName": "Example Co",
                    "ItemIDsList": ["SKU1"],
                    "ItemIDsListString": "SKU1",
                    "SubmittedBy": 17,
                    "SubmittedByEmail": "someone@example.com",
                    "JobType": job.job_type,
                    "Status": self._status(job, now),
                    "ErrorMessage": job.error or None,
                    "Priority": 1,
                    **self._times(job, now),
                    "ScheduledTime": None,
                    "ScheduledTimeVisible": False,
                    "Process": "",
                    "ScheduleTaskName": "",
                    "ScheduleTaskID": 0,
                    "IsModified": False,
                },
                "OutputFile": job.file_at(now),
                "InputFile": "",
                "TotalItemsInPhase": 0,
                "TotalProcessedInPhase": 0,
                "TotalPhases": 0,
                "CurrentPhase": 0,
                "TotalRecords": 1,
                "TotalProcessed": 1,
                "TotalSucceeded": 1,
                "TotalFailure": 0,
                "Parameters": [{"JobID": job.id, "ParameterName": "p", "ParameterValue": "v"}],
                "PickListID": 0,
                "UploadFileRecordId": 0,
                "IsModified": False,
            }
        )

    def _times(self, job: QueuedJob, now: datetime) -> dict[str, Any]:
        times = self._switches(job).times
        ended = job.ended(now)
        started = job.started_at <= now and job.status_at(now) != 0
        elapsed = ((job.completed_at if ended else now) - job.started_at).total_seconds() if started else 0.0
        return {
            "SubmittedOn": _written(job.submitted_at, times),
            "StartedOn": _written(job.started_at, times) if started else None,
            "CompletedOn": _written(job.completed_at, times) if ended else None,
            "TimeElapsed": round(elapsed, 1),
        }

    def _status(self, job: QueuedJob, now: datetime) -> int | str:
        status = job.status_at(now)
        return status if self._switches(job).status_as == "integer" else STATUS_NAMES.get(status, str(status))

    def _logs(self, request: Request, job_id: str) -> Reply:
        job = self.jobs.get(int(job_id))
        if job is None or not self._visible(job, "single"):
            return self._missing(job_id)
        errors_only = (request.first("model.isError", "isError") or "").lower() == "true"
        entries = [(job.submitted_at, False, "Job submitted.")]
        if job.error:
            entries.append((job.completed_at, True, job.error))
        items = [
            {"LogTime": _written(at, "zulu"), "IsError": is_error, "Message": message}
            for at, is_error, message in entries
            if at <= request.at and (is_error or not errors_only)
        ]
        return Reply.json({"Items": items, "TotalResults": len(items)})

    def _bulk_update_log(self, request: Request, job_id: str) -> Reply:
        del request
        if int(job_id) not in self.jobs:
            return Reply.json({"Message": "Not Found"}, 404)
        return Reply.json({"Message": "Job is not a bulk update."}, 400)

    # section 4

    def _download_by_query(self, request: Request) -> Reply:
        if self.switches.download_urls == "path":
            return self.no_route(request)
        try:
            return self._download(request, int(request.first("id") or ""))
        except ValueError:
            return Reply.json({"Message": "The request is invalid."}, 400)

    def _download_by_path(self, request: Request, job_id: str) -> Reply:
        return self.no_route(request) if self.switches.download_urls == "query" else self._download(request, int(job_id))

    def _download(self, request: Request, job_id: int) -> Reply:
        job = self.jobs.get(job_id)
        if job is None or not self._visible(job, "download"):
            return self._missing(job_id)
        if not job.ended(request.at):
            match self._switches(job).running_file:
                case "500":
                    return self._error(500, INTERNAL_ERROR)
                case "404":
                    return self._error(404, "Not Found")
                case "empty":
                    return Reply(headers={"Content-Type": "application/json; charset=utf-8"})
        if not job.file_at(request.at):
            return Reply(headers={"Content-Type": "application/json; charset=utf-8"})
        return self._file(job)

    def _file(self, job: QueuedJob) -> Reply:
        switches = self._switches(job)
        is_page = switches.body == "html"
        headers = {"Content-Type": "text/html; charset=utf-8" if is_page else "application/json; charset=utf-8"}
        if not is_page and (disposition := _disposition(job.filename, switches.disposition)):
            headers["Content-Disposition"] = disposition
        return Reply(headers=headers, body=_body(job, switches.body), counts=job.id, fault=job.fault)

    # shared

    def _switches(self, job: QueuedJob) -> SellercloudSwitches:
        return job.switches or self.switches

    def _visible(self, job: QueuedJob, call: str) -> bool:
        switches = self._switches(job)
        now = self.now()
        hidden = call in switches.hidden_from and now < job.submitted_at + switches.hidden_for
        return job.submitted_at <= now and not hidden and not self.gone(job)

    def _missing(self, job_id: int | str) -> Reply:
        return self._error(self.switches.missing_status, f"Could not find or load record with ID {job_id}!")

    def _error(self, status: int, text: str) -> Reply:
        match self.switches.error_form:
            case "text":
                return Reply.text(text, status)
            case "message":
                return Reply.json({"Message": text}, status)
            case "json-string":
                return Reply.json(text, status)


class _Query:
    """The list's filters, read as the vendor reads them. Raises `ValueError` for what is no number or date."""

    def __init__(self, request: Request, *, bare_too: bool, zone: tzinfo) -> None:
        def values(name: str) -> list[str]:
            return [value for value in request.all(f"model.{name}", *([name] if bare_too else [])) if value]

        def number(name: str, default: int) -> int:
            return int(next(iter(values(name)), default))

        def moment(name: str) -> datetime | None:
            return next((_read_time(value, zone) for value in values(name)), None)

        self.page_number = number("pageNumber", 1)
        self.page_size = number("pageSize", 10)
        self._id = number("jobID", 0)
        self._submitted_by = number("submittedBy", 0)
        self._types = set(map(int, values("jobType")))
        self._statuses = set(map(int, values("jobStatuses")))
        self._companies = set(map(int, values("companyIDList")))
        self._priorities = set(map(int, values("queuedJobPriorities")))
        self._from, self._to = moment("submittedFrom"), moment("submittedTo")

    def takes(self, job: QueuedJob, now: datetime) -> bool:
        return all(self._conditions(job, now))

    def _conditions(self, job: QueuedJob, now: datetime) -> Iterator[bool]:
        yield self._id in {0, job.id}
        yield self._submitted_by in {0, 17}
        yield not self._types or job.job_type in self._types
        yield not self._statuses or job.status_at(now) in self._statuses
        yield not self._companies or 164 in self._companies
        yield not self._priorities or 1 in self._priorities
        yield self._from is None or job.submitted_at >= self._from
        yield self._to is None or job.submitted_at <= self._to


def _read_time(text: str, zone: tzinfo) -> datetime:
    """Read ISO 8601 or the prose's ``mm/dd/yyyy hh:mm``; without a zone it is the tenant's."""
    at = datetime.strptime(text, "%m/%d/%Y %H:%M") if "/" in text else datetime.fromisoformat(text)  # noqa: DTZ007
    return at if at.tzinfo else at.replace(tzinfo=zone)


def _credentials(request: Request) -> dict[str, str]:
    """Read JSON or a form, keys in any case; what cannot be read holds no credentials."""
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return {name.lower(): values[0] for name, values in parse_qs(request.body.decode()).items()}
    try:
        document = json.loads(request.body)
    except ValueError:
        return {}
    return {str(name).lower(): value for name, value in document.items()} if isinstance(document, dict) else {}


def _written(at: datetime, times: str) -> str:
    """Write a time as .NET does: milliseconds, no trailing zeros."""
    local = at.astimezone(TENANT_ZONE if times == "local" else UTC)
    text = f"{local:%Y-%m-%dT%H:%M:%S}.{local.microsecond // 1000:03}".rstrip("0").rstrip(".")
    return text + ("Z" if times == "zulu" else "")


def _seven_digits(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}1Z"


def _disposition(filename: str, form: Disposition) -> str | None:
    match form:
        case "unquoted":
            return f"attachment; filename={filename}"
        case "quoted":
            return f'attachment; filename="{filename}"'
        case "extended":
            return f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        case "path":
            return f"attachment; filename=..\\..\\Exports/164/{filename}"
        case "missing":
            return None


def _body(job: QueuedJob, form: BodyForm) -> Stream:
    text = Base64(job.content)
    string = Joined((Raw(b'"'), text, Raw(b'"')))
    document = json_member({"FileName": job.filename, "Content": ""}, "Content", text)
    forms: dict[BodyForm, Stream] = {
        "base64": text,
        "json-string": string,
        "object": document,
        "raw": job.content,
        "lines": Base64(job.content, line_length=76),
        "bom": Joined((Raw(b"\xef\xbb\xbf"), text)),
        "html": Raw(HTML_PAGE.encode()),
        "error-object": Raw(json.dumps({"Error": "The file could not be read."}).encode()),
        "cut": _cut(text),
        "cut-json-string": _cut(string),
        "cut-object": _cut(document),
    }
    return forms[form]


def _cut(body: Stream) -> First:
    """Keep about 60 %, ending inside a group of four characters so that what is left is no base64."""
    return First(body, min(body.size, body.size * 6 // 10 // 4 * 4 + 1))
