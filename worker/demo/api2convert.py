"""A simulated API2Convert: the API under ``/v2``, and a download host that counts and refuses.

Three addresses: the API, the download host, and storage on ``127.0.0.2`` for redirects to another host. States are computed
from the clock, so turning it lets conversions end and files expire. Faults of the wire (429, 402, 5xx, slow, cut) go by
`Vendor.fail` on the routes ``jobs``, ``job``, ``download`` and so on; all else of the sheet's section 6 is in `Switches`, or
a property of a job. Left out: callbacks (nobody here listens to them) and the calls that change presets or conversions.
"""

from __future__ import annotations

import json
import posixpath
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.cookies import SimpleCookie
from typing import Any, ClassVar, Literal
from urllib.parse import quote
from zoneinfo import ZoneInfo

from worker.demo.server import Base64, Clock, Content, Entry, Fault, Made, Reply, Request, Stream, Truth, Vendor

PAGE_SIZE = 50
HOUR = timedelta(hours=1)

STATUSES = {
    "created": "The job has been created.",
    "incomplete": "The job is missing information to be run.",
    "ready": "The job is ready to be run.",
    "downloading": "The file is currently downloading from the source URL.",
    "pending": "The job is waiting for its files.",
    "queued": "The job is waiting for a converter.",
    "processing": "The file is being processed.",
    "completed": "The file has been successfully converted.",
    "failed": "The file has not been converted due to errors.",
    "canceled": "The job has been canceled.",
}
MISSING_INPUT = {
    "source": "input",
    "id_source": "0f5e1c2a-0000-4000-8000-000000000004",
    "code": 17,
    "message": (
        "File not found, reasons for this error could be: bucket has incorrect permissions, "
        "you sent invalid credentials, or the file is really not there"
    ),
}


@dataclass
class Switches:
    """How the vendor behaves where its sheet (section 6) leaves room; defaults first. May be turned at any time."""

    header_names: Literal["both", "new", "old"] = "both"
    full_errors: bool = False  # error bodies with `code` and `errors` beside `message`
    total_header: bool = True
    empty_list: Literal[204, 200] = 204
    order: Literal["newest", "oldest"] = "newest"
    arriving: list[int] = field(default_factory=list)  # how many jobs arrive after the next list answer, after the one then, …
    status_form: Literal["object", "string"] = "object"
    name_key: Literal["filename", "name", ""] = "filename"
    uri_key: Literal["uri", "download_uri"] = "uri"
    metadata: Literal["object", "array"] = "object"
    max_downloads: int = 10
    counting: Literal["full", "all"] = "full"  # whole GETs, or every answered GET and HEAD
    counter: Literal["live", "stale"] = "live"
    api_lags: bool = False  # the API says `enabled` whatever the download host answers
    host_lags: bool = False  # the download host serves what the API calls expired
    expired_answer: Literal[404, 410] = 404
    deleted_answer: Literal[404, 410] = 404
    overuse_answer: Literal[403, 429, 410] = 403
    password_answer: Literal[401, 403] = 401
    html_refusals: bool = False  # every refusal of the download host is an HTML page under 200
    checksum: Literal["md5", "sha1", "sha256", "ABCD", "absent", "wrong"] = "md5"
    size: Literal["right", "wrong", "absent"] = "right"
    body: Literal["right", "short", "changed"] = "right"  # what is served, as an answer that is whole by itself
    redirect: Literal["none", "same", "other", "loop"] = "none"
    disposition: Literal["quoted", "missing", "path"] = "quoted"
    base64_lines: bool = False
    ranges: bool = False
    times: Literal["plain", "german", "zulu"] = "plain"
    clock_skew: timedelta = timedelta()  # what the `Date` header is ahead


@dataclass
class OutputFile:
    """A file that a conversion makes. `status` overrules what the clock and the counts say (``disabled``, an unknown word)."""

    filename: str
    content: Content
    content_type: str = "text/csv"
    status: str | None = None
    password: str | None = None
    deleted: bool = False
    requests: int = 0
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    folder: str = ""  # where it lies on the download host; given by `Api2convert.add_job`


@dataclass(kw_only=True)
class ConversionJob:
    """A job: from `created_at` it is `until`, and after `lasts` (None: never) it is `ends`, and its outputs are there.

    Outputs of a job that ends badly are shown as well, where a test gives it some. `delivered`: an `output_target` took the
    file, so none is here. `listed` False: only asking by id shows it. `process` False: it waits for a PATCH.
    """

    created_at: datetime
    outputs: list[OutputFile] = field(default_factory=list)
    lasts: timedelta | None = timedelta()
    until: str = "processing"
    ends: str = "completed"
    warnings: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    conversions: list[dict[str, Any]] = field(default_factory=list)
    callback: str = ""
    notify_status: bool = False
    fail_on_error: bool = True
    delivered: bool = False
    listed: bool = True
    process: bool = True
    changed_at: datetime | None = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def ends_at(self) -> datetime | None:
        """When it ends, None while nobody can tell."""
        return self.created_at + self.lasts if self.process and self.lasts is not None else None

    def ended(self, now: datetime) -> bool:
        """Whether it has ended."""
        return self.ends_at is not None and self.ends_at <= now

    def code(self, now: datetime) -> str:
        """Give the status code."""
        return self.ends if self.ended(now) else self.until

    def produced(self, now: datetime) -> list[OutputFile]:
        """Give the outputs that exist."""
        return self.outputs if self.ended(now) and not self.delivered else []


def throttled(retry_after: str | None = None) -> Fault:
    """Give the 429 of the concurrency cap, with or without ``Retry-After``."""
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    return Fault.answer(429, '{"message":"Too many concurrent requests"}', "application/json", **headers)


def payment_required() -> Fault:
    """Give the 402 of a spent plan."""
    text = '{"message":"The request exceeded the contract limits. Payment may be required."}'
    return Fault.answer(402, text, "application/json")


class Api2convert(Vendor):
    """One account. `add_job` fills it; `switches`, `lifetime` and `api_key` may be changed at any time."""

    base_path: ClassVar[str] = "/v2"

    def __init__(
        self,
        *,
        api_key: str = "0123456789abcdefghijklmnopqrstuv",
        switches: Switches | None = None,
        now: Clock | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(now=now, hosts=("127.0.0.1", "127.0.0.1", "127.0.0.2"), port=port)
        self.api_key = api_key
        self.switches = switches or Switches()
        self.lifetime = 24 * HOUR
        self.listed_after_expiry = 24 * HOUR
        self.conversion_time = timedelta(seconds=0.2)
        self.contracts: list[dict[str, Any]] = [{"name": "free", "credits": 30}]
        self._jobs: dict[str, ConversionJob] = {}
        self._paths: dict[tuple[str, str], tuple[ConversionJob, OutputFile]] = {}
        self._idempotent: dict[str, str] = {}
        self._routes_of_the_api()
        for listener in (1, 2):
            path = r"/v2/dl/web\d+/download-file/(?P<folder>[^/]+)/(?P<name>(?s:.*))"
            self.route("download", "GET", path, self._download, listener=listener)
        self.route("upload", "POST", r"/v2/dl/web\d+/upload-file/(?P<job_id>[^/]+)", self._upload, listener=1)

    @property
    def credentials(self) -> dict[str, str]:
        """What the table of its source needs to be let in."""
        return {"api_key": self.api_key}

    def _routes_of_the_api(self) -> None:
        job = r"/v2/jobs/(?P<job_id>[^/]+)"
        output = job + r"/output/(?P<output_id>[^/]+)"
        table: list[tuple[str, str, str, Callable[..., Reply]]] = [
            ("jobs", "GET", r"/v2/jobs", self._list),
            ("create", "POST", r"/v2/jobs", self._create),
            ("job", "GET", job, self._job),
            ("change", "PATCH", job, self._change),
            ("cancel", "DELETE", job, self._cancel),
            ("input", "GET", job + "/input", self._inputs),
            ("add_input", "POST", job + "/input", self._add_input),
            ("outputs", "GET", job + "/output", self._outputs),
            ("output", "GET", output, self._output),
            ("change_output", "PATCH", output, self._change_output),
            ("delete_output", "DELETE", output, self._delete_output),
            ("history", "GET", job + "/history", self._history),
            ("threads", "GET", job + "/threads", self._threads),
            ("contracts", "GET", r"/v2/contracts", self._contracts),
            ("stats", "GET", r"/v2/stats/(?:day|month|year)/[^/]+/[^/]+", lambda _: Reply.json([])),
            ("statuses", "GET", r"/v2/statuses", self._statuses),
            ("conversions", "GET", r"/v2/conversions", self._conversions),
            ("presets", "GET", r"/v2/presets", lambda _: Reply.json([])),
        ]
        for name, method, pattern, handler in table:
            self.route(name, method, pattern, handler, listener=0)

    # what tests and the demo do

    def add_job(self, *outputs: OutputFile, **how: Any) -> ConversionJob:
        """Add a job; `how` are fields of `ConversionJob`. It was created now, unless `how` says otherwise."""
        job = ConversionJob(**{"outputs": list(outputs), "created_at": self.now(), **how})
        with self.lock:
            if not job.conversions:
                job.conversions = [{"target": "csv", "category": "document", "options": {}}]
            for conversion in job.conversions:
                conversion.setdefault("id", str(uuid.uuid4()))
            self._jobs[job.id] = job
            for output in job.outputs:
                self._place(job, output)
        return job

    def forget(self, job_id: str) -> None:
        """Let a job be unknown from now on; its files stay."""
        with self.lock:
            del self._jobs[job_id]

    def uri(self, output: OutputFile) -> str:
        """Give the address of an output's bytes."""
        return f"{self._server_url}/download-file/{output.folder}/{quote(output.filename, safe='')}"

    def truth(self) -> list[Truth]:
        """List every output of every job that ended well, forgotten ones included."""
        with self.lock:
            now = self.now()
            completed = [placed for placed in self._paths.values() if placed[0].code(now) == "completed"]
            return [self._truth(job, output) for job, output in completed if not job.delivered]

    def _truth(self, job: ConversionJob, output: OutputFile) -> Truth:
        served = self.served[output.id]
        return Truth(
            job_id=job.id,
            output_id=output.id,
            filename=output.filename,
            size=output.content.size,
            sha256=output.content.sha256,
            completed_at=job.ends_at or job.created_at,
            full_downloads=served.full,
            partial_downloads=served.partial,
            gone=output.deleted or self._expired(job) or output.status in {"disabled", "expired"},
        )

    def _place(self, job: ConversionJob, output: OutputFile) -> None:
        """Give an output its address; a second file of one name lies in a folder of its own."""
        output.folder = output.id if (job.id, output.filename) in self._paths else job.id
        self._paths[output.folder, output.filename] = job, output

    # logging in

    def screen(self, request: Request, route: str) -> Reply | None:
        """Refuse calls without the account's key, or without the job's token where that is enough."""
        if route in {"statuses", "conversions", "presets", "download"}:
            return None
        if self._header(request, "api-key") == self.api_key and route != "upload":
            return None
        named = re.fullmatch(r"/v2/(?:jobs|dl/web\d+/upload-file)/([^/]+).*", request.path)
        owner = self._owner(request)
        if owner and ((named and named[1] == owner.id) or route == "jobs"):
            return None
        return self._error(401, "Invalid api key", 1)

    def _header(self, request: Request, name: str) -> str | None:
        """Read an ``X-Api2convert-…`` header under its new or its old name."""
        names = {"new": ("api2convert",), "old": ("oc",), "both": ("api2convert", "oc")}[self.switches.header_names]
        return next((value for prefix in names if (value := request.headers.get(f"x-{prefix}-{name}")) is not None), None)

    def _owner(self, request: Request) -> ConversionJob | None:
        token = self._header(request, "token")
        return next((job for job in self._jobs.values() if job.token == token), None)

    def _error(self, status: int, message: str, code: int) -> Reply:
        full = self.switches.full_errors
        return Reply.json({"code": code, "message": message, "errors": {}} if full else {"message": message}, status)

    def no_route(self, request: Request) -> Reply:
        """Answer a path that does not exist."""
        del request
        return self._error(404, "Not Found", 4)

    def answer(self, request: Request, entry: Entry) -> Reply:
        """Answer as every vendor, under a clock that may be wrong."""
        reply = super().answer(request, entry)
        date = format_datetime((self.now() + self.switches.clock_skew).replace(microsecond=0), usegmt=True)
        return replace(reply, headers={"Date": date, **reply.headers})

    # the API

    def _list(self, request: Request) -> Reply:
        now, switches = self.now(), self.switches
        jobs = [job for job in self._jobs.values() if self._listed(job)]
        if self._header(request, "api-key") != self.api_key:
            owner = self._owner(request)
            jobs = [job for job in jobs if job is owner]
        if wanted := request.first("status"):
            jobs = [job for job in jobs if job.code(now) == wanted]
        jobs.sort(key=lambda job: job.created_at, reverse=switches.order == "newest")
        page = max(int(request.first("page") or 1), 1)
        rows = [self._job_document(job) for job in jobs[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]]
        for _ in range(switches.arriving.pop(0) if switches.arriving else 0):
            self.add_job(OutputFile("arrived.csv", Content(f"arrived {len(self._jobs)}", 100)))
        headers = {"X-Count": str(len(jobs))} if switches.total_header else {}
        if not rows and switches.empty_list == 204:
            return Reply(status=204, headers=headers)
        return Reply.json(rows, headers=headers)

    def _listed(self, job: ConversionJob) -> bool:
        dropped = job.ends_at is not None and job.ends_at + self.lifetime + self.listed_after_expiry <= self.now()
        return job.listed and not dropped

    def _create(self, request: Request) -> Reply:
        try:
            wanted = json.loads(request.body or b"null")
        except ValueError:
            wanted = None
        if not isinstance(wanted, dict) or not wanted:
            return Reply.json({"code": 8, "message": "The JSON body is empty", "errors": {}}, 400)
        key = request.headers.get("idempotency-key", "")
        if key in self._idempotent:
            return self._job(request, self._idempotent[key])
        job = self.add_job(
            lasts=self.conversion_time,
            until="processing",
            process=False,
            callback=wanted.get("callback") or "",
            notify_status=bool(wanted.get("notify_status")),
            passwords=list(wanted.get("download_passwords") or []),
            conversions=[{"options": {}, **conversion} for conversion in wanted.get("conversion") or []],
            fail_on_error=bool(wanted.get("fail_on_conversion_error", True)),
        )
        for described in wanted.get("input") or []:
            self._attach(job, described)
        if key:
            self._idempotent[key] = job.id
        if wanted.get("process", True):
            self._begin(job)
        elif not job.inputs:
            job.until = "incomplete"
        return Reply.json(self._job_document(job), 201)

    def _attach(self, job: ConversionJob, described: dict[str, Any]) -> dict[str, Any]:
        source = str(described.get("source", ""))
        name = described.get("filename") or posixpath.basename(source) or "input"
        added = {
            "id": str(uuid.uuid4()),
            "type": described.get("type", "remote"),
            "source": source,
            "status": "ready",
            "filename": name,
            "size": 1000,
            "checksum": "da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "content_type": "application/octet-stream",
            "options": {},
            "parameters": {},
            "credentials": {},
            "metadata": {},
            "created_at": self._time(self.now()),
            "modified_at": self._time(self.now()),
        }
        job.inputs.append(added)
        if not job.process:
            job.until = "ready"
        return added

    def _begin(self, job: ConversionJob) -> None:
        """Let a job run from now on, and fix what it will produce: one output for each input and conversion."""
        if not job.inputs:
            job.until = "incomplete"
            return
        job.process, job.until = True, "processing"
        job.lasts = self.now() + self.conversion_time - job.created_at
        job.delivered = any(conversion.get("output_target") for conversion in job.conversions)
        for conversion in job.conversions:
            for source in job.inputs:
                stem, _ = posixpath.splitext(source["filename"])
                content = Content(f"{job.id} {source['filename']} {conversion['target']}", 20_000, "bytes")
                output = OutputFile(f"{stem}.{conversion['target']}", content, "application/octet-stream")
                job.outputs.append(output)
                self._place(job, output)

    def _job(self, request: Request, job_id: str) -> Reply:
        del request
        job = self._jobs.get(job_id)
        return Reply.json(self._job_document(job)) if job else self._no_job()

    def _no_job(self) -> Reply:
        return self._error(404, "The specified job does not exists.", 4)

    def _change(self, request: Request, job_id: str) -> Reply:
        job = self._jobs.get(job_id)
        if job is None:
            return self._no_job()
        wanted = json.loads(request.body or b"{}")
        if "process" in wanted and job.ended(self.now()):
            return self._error(409, "The status of the job could not be changed since it is in a invalid status.", 9)
        job.passwords = list(wanted.get("download_passwords", job.passwords))
        job.callback = wanted.get("callback", job.callback)
        job.notify_status = wanted.get("notify_status", job.notify_status)
        job.changed_at = self.now()
        if wanted.get("process") and not job.process:
            self._begin(job)
        return Reply.json(self._job_document(job))

    def _cancel(self, request: Request, job_id: str) -> Reply:
        """Cancel a job that runs, remove one that has ended."""
        del request
        job = self._jobs.get(job_id)
        if job is None:
            return self._no_job()
        if job.ended(self.now()):
            for output in job.outputs:
                output.deleted = True
            del self._jobs[job_id]
        else:
            job.process, job.ends, job.lasts = True, "canceled", self.now() - job.created_at
            job.outputs.clear()
        return Reply(status=204)

    def _inputs(self, request: Request, job_id: str) -> Reply:
        del request
        job = self._jobs.get(job_id)
        return Reply.json(job.inputs) if job else self._no_job()

    def _add_input(self, request: Request, job_id: str) -> Reply:
        job = self._jobs.get(job_id)
        return Reply.json(self._attach(job, json.loads(request.body)), 201) if job else self._no_job()

    def _upload(self, request: Request, job_id: str) -> Reply:
        name = re.search(rb'filename="([^"]*)"', request.body)
        self._attach(self._jobs[job_id], {"type": "upload", "filename": name[1].decode() if name else "upload"})
        return Reply.json({"id": {"job": job_id}})

    def _outputs(self, request: Request, job_id: str) -> Reply:
        job = self._jobs.get(job_id)
        if job is None:
            return self._no_job()
        documents = [self._output_document(job, output) for output in job.produced(self.now())]
        if conversion := request.first("conversion_id"):
            documents = [document for document in documents if document["source"]["conversion"] == conversion]
        if source := request.first("input_id"):
            documents = [document for document in documents if source in document["source"]["input"]]
        return Reply.json(documents)

    def _found(self, job_id: str, output_id: str) -> tuple[ConversionJob, OutputFile] | None:
        job = self._jobs.get(job_id)
        outputs = job.produced(self.now()) if job else []
        return next(((job, output) for output in outputs if job and output.id == output_id), None)

    def _output(self, request: Request, job_id: str, output_id: str) -> Reply:
        del request
        found = self._found(job_id, output_id)
        return Reply.json(self._output_document(*found)) if found else self._no_job()

    def _change_output(self, request: Request, job_id: str, output_id: str) -> Reply:
        found = self._found(job_id, output_id)
        if found is None:
            return self._no_job()
        job, output = found
        if self._word(job, output) != "enabled":
            return self._error(409, "The output can not be patched", 9)
        wanted = json.loads(request.body or b"{}")
        output.password = wanted.get("download_password", output.password)
        if "filename" in wanted:
            del self._paths[output.folder, output.filename]
            output.filename = wanted["filename"] + posixpath.splitext(output.filename)[1]
            self._place(job, output)
        job.changed_at = self.now()
        return Reply.json(self._output_document(job, output))

    def _delete_output(self, request: Request, job_id: str, output_id: str) -> Reply:
        del request
        found = self._found(job_id, output_id)
        if found is None:
            return self._no_job()
        found[1].deleted = True
        return Reply(status=204)

    def _history(self, request: Request, job_id: str) -> Reply:
        del request
        job = self._jobs.get(job_id)
        if job is None:
            return self._no_job()
        steps = [("created", job.created_at), (job.until, job.created_at)]
        if job.ends_at is not None and job.ended(self.now()):
            steps.append((job.ends, job.ends_at))
        events = [
            {"id": f"{job.id}-{number}", "status": code, "info": STATUSES.get(code, ""), "created_at": self._time(at)}
            for number, (code, at) in enumerate(steps)
        ]
        return Reply.json(events)

    def _threads(self, request: Request, job_id: str) -> Reply:
        del request
        return Reply.json([]) if job_id in self._jobs else self._no_job()

    def _contracts(self, request: Request) -> Reply:
        del request
        return Reply.json(self.contracts) if self.contracts else Reply(status=204)

    def _statuses(self, request: Request) -> Reply:
        del request
        return Reply.json([{"code": code, "info": info} for code, info in STATUSES.items()])

    def _conversions(self, request: Request) -> Reply:
        catalogue = [("image", "png"), ("image", "jpg"), ("document", "pdf"), ("document", "csv"), ("audio", "mp3")]
        wanted = request.first("category"), request.first("target")
        rows = [
            {"id": str(uuid.uuid5(uuid.NAMESPACE_DNS, target)), "target": target, "category": category, "options": {}}
            for category, target in catalogue
            if wanted[0] in {None, category} and wanted[1] in {None, target}
        ]
        return Reply.json(rows if (request.first("page") or "1") == "1" else [])

    # documents

    @property
    def _server_url(self) -> str:
        return f"{self.origin(1)}/v2/dl/web2"

    def _time(self, at: datetime) -> str:
        match self.switches.times:
            case "plain":
                return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
            case "german":
                return at.astimezone(ZoneInfo("Europe/Berlin")).strftime("%Y-%m-%dT%H:%M:%S")
            case "zulu":
                return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _job_document(self, job: ConversionJob) -> dict[str, Any]:
        now, ended = self.now(), job.ended(self.now())
        code = job.code(now)
        status = {"code": code, "info": STATUSES.get(code, f"The job is {code}.")}
        return {
            "id": job.id,
            "token": job.token,
            "type": "job",
            "status": code if self.switches.status_form == "string" else status,
            "errors": job.errors if ended else [],
            "warnings": job.warnings if ended else [],
            "process": job.process,
            "fail_on_input_error": job.fail_on_error,
            "fail_on_conversion_error": job.fail_on_error,
            "conversion": [self._conversion_document(job, conversion) for conversion in job.conversions],
            "limits": {"job": {}, "input": {}, "output": {}},
            "input": job.inputs,
            "output": [self._output_document(job, output) for output in job.produced(now)],
            "callback": job.callback,
            "notify_status": job.notify_status,
            "server": self._server_url,
            "spent": 0,
            "created_at": self._time(job.created_at),
            "modified_at": self._time(job.changed_at or (job.ends_at if ended and job.ends_at else job.created_at)),
        }

    def _conversion_document(self, job: ConversionJob, conversion: dict[str, Any]) -> dict[str, Any]:
        if not job.delivered:
            return conversion
        status = "completed" if job.ended(self.now()) else "waiting"
        targets = conversion.get("output_target") or [{"type": "amazons3", "parameters": {}}]
        return {**conversion, "output_target": [{**target, "credentials": {}, "status": status} for target in targets]}

    def _output_document(self, job: ConversionJob, output: OutputFile) -> dict[str, Any]:
        switches = self.switches
        document: dict[str, Any] = {
            "id": output.id,
            "source": {"conversion": job.conversions[0]["id"], "input": [source["id"] for source in job.inputs]},
            switches.uri_key: self.uri(output),
            "status": "enabled" if switches.api_lags else self._word(job, output),
            "content_type": output.content_type,
            "downloads_counter": self._used(output) if switches.counter == "live" else 0,
            "created_at": self._time(job.ends_at or job.created_at),
            "metadata": {} if switches.metadata == "object" else [],
        }
        if switches.name_key:
            document[switches.name_key] = output.filename
        if switches.size != "absent":
            document["size"] = output.content.size + (7 if switches.size == "wrong" else 0)
        if switches.checksum != "absent":
            document["checksum"] = self._checksum(output.content)
        return document

    def _checksum(self, content: Content) -> str:
        match self.switches.checksum:
            case "md5":
                return content.md5
            case "sha1":
                return content.sha1
            case "sha256":
                return content.sha256
            case "wrong":
                return "0" * 32
            case other:
                return other

    # the state of an output

    def _expired(self, job: ConversionJob) -> bool:
        return job.ends_at is not None and job.ends_at + self.lifetime <= self.now()

    def _used(self, output: OutputFile) -> int:
        return self.served[output.id].full if self.switches.counting == "full" else output.requests

    def _word(self, job: ConversionJob, output: OutputFile) -> str:
        """Give the output's status."""
        if output.status is not None:
            return output.status
        if output.deleted:
            return "disabled"
        if self._expired(job):
            return "expired"
        return "overuse" if self._used(output) >= self.switches.max_downloads else "enabled"

    # the download host

    def _download(self, request: Request, folder: str, name: str) -> Reply:
        found = self._paths.get((folder, name))
        if found is None:
            return self._refusal(404, "File not found.")
        job, output = found
        ticket = request.first("ticket")  # a redirect's target needs neither password nor another check
        if ticket != output.id:
            if refusal := self._refused(request, job, output):
                return refusal
            if self.switches.redirect != "none":
                return self._redirect(request, output)
        output.requests += 1
        return self._bytes(request, output)

    def _refused(self, request: Request, job: ConversionJob, output: OutputFile) -> Reply | None:
        switches = self.switches
        passwords = {*job.passwords, *([output.password] if output.password else [])}
        match self._word(job, output):
            case "expired" if not switches.host_lags:
                return self._refusal(switches.expired_answer, "The file has expired.")
            case "disabled":
                return self._refusal(switches.deleted_answer, "The file has been deleted.")
            case "overuse":
                return self._refusal(switches.overuse_answer, "The file has been downloaded too often.")
            case _ if passwords and passwords.isdisjoint(self._passwords(request)):
                return self._refusal(switches.password_answer, "The file is protected by a password.")
        return None

    def _passwords(self, request: Request) -> Iterator[str]:
        yield from (part.strip() for part in (self._header(request, "download-password") or "").split(","))
        cookie = SimpleCookie(request.headers.get("cookie", "")).get("x-oc-download-password")
        if cookie is not None:
            yield cookie.value

    def _refusal(self, status: int, message: str) -> Reply:
        if self.switches.html_refusals:
            return Reply.text(f"<!DOCTYPE html>\n<html><body><h1>{message}</h1></body></html>\n", content_type="text/html")
        return Reply.json({"message": message}, status)

    def _redirect(self, request: Request, output: OutputFile) -> Reply:
        path = quote(request.path)
        match self.switches.redirect:
            case "other":
                target = f"{self.origin(2)}{path}?ticket={output.id}"
            case "loop":
                target = f"{path}?hop={int(request.first('hop') or 0) + 1}"
            case _:
                target = f"{path}?ticket={output.id}"
        return Reply(status=302, headers={"Location": target})

    def _bytes(self, request: Request, output: OutputFile) -> Reply:
        switches, headers = self.switches, {"Content-Type": output.content_type}
        shown = output.filename if switches.disposition == "quoted" else f"../../etc/{output.filename}"
        if switches.disposition != "missing":
            shown = re.sub(r"[\x00-\x1f]", "_", shown).replace("\\", "\\\\").replace('"', '\\"')
            headers["Content-Disposition"] = f'attachment; filename="{shown}"'
        body: Stream = _spoiled(output.content, switches.body)
        etag = f'"{output.id}"' if switches.ranges else None
        if request.first("encoding") == "base64":
            body = Base64(body, 76 if switches.base64_lines else 0)
        return Reply(headers=headers, body=body, ranges=switches.ranges, etag=etag, counts=output.id)


def _spoiled(content: Stream, how: Literal["right", "short", "changed"]) -> Stream:
    """Give the content as it is, its first half, or all of it with the last byte turned."""
    last = max(content.size - 1, 0)

    def changed() -> Iterator[bytes]:
        yield from content.read(0, last)
        yield from (bytes([byte ^ 1]) for chunk in content.read(last) for byte in chunk)

    match how:
        case "right":
            return content
        case "short":
            return Made(lambda: content.read(0, content.size // 2))
        case "changed":
            return Made(changed)
