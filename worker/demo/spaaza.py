"""A simulated Spaaza: the Services API that runs export tasks, and the storage that its minted links point at.

Two addresses: the API, and a storage host that checks signatures, expiry and method as S3 and Google Cloud Storage do. States
are computed from the clock. Faults of the wire (429, 5xx, slow, cut) go by `Vendor.fail` on the routes ``tasks``, ``task``,
``mint`` and ``storage``; everything else of the sheet's section 6 is in `Switches`, or a property of a task or a run.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, urlencode

from worker.demo.server import Clock, Content, Fault, Reply, Request, Stream, Truth, Vendor, digest, gzipped

BUCKET = "spaaza-exports"
INDEX_WORDS = {
    "transactions": "Transaction",
    "users": "User",
    "vouchers": "Voucher",
    "wallet-ledger": "Wallet",
    "products": "Product",
    "product-variants": "ProductVariant",
}
STAMP = "%Y%m%dT%H%M%SZ"
NOT_EXPORT = "invalid task type: only export tasks actions are allowed"
NOT_DONE = "task status is not DONE"
INVALID_RESULT = "the task completed successfully, but contains an invalid result"
NO_TASK = "No task exists with the specified ID for this chain."
NO_LOG_IN = "No valid authentication provided or insufficient permissions."


@dataclass
class Switches:
    """How the vendor behaves where its sheet (section 6) leaves room; defaults first. May be turned at any time."""

    log_in: Literal["good", "unknown", "inactive", "scope", "session", "hidden"] = "good"
    revoked_after: int | None = None  # this many more calls to the API are answered
    error_body: Literal["error", "message", "text", "envelope", "empty"] = "error"
    order: Literal["newest", "oldest", "none"] = "newest"
    limit_cap: int = 100
    arriving: list[int] = field(default_factory=list)  # how many tasks arrive after the next list answer, after the one then, …
    duplicate_rows: bool = False  # every tenth row comes twice
    lower_case: bool = False
    times: Literal["whole", "fraction", "offset"] = "whole"
    not_done_status: Literal[400, 409] = 400
    invalid_status: Literal[500, 400] = 500
    unknown_status: Literal[404, 500] = 404  # 500 comes as the main API's code 68
    refused_status: Literal[401, 403] = 401
    storage: Literal["s3", "gcs", "s3-old"] = "s3"  # how links are signed
    link_seconds: int = 3600
    credential_seconds: int | None = None  # the signer's own credentials lapse sooner: 400 ExpiredToken
    lapsed_links: int = 0  # so many of the next links have lapsed when minted
    one_time_links: bool = False
    lapsed_answer: Literal["s3-403", "s3-400", "gcs-400", "plain-403"] = "s3-403"
    encoding: Literal["identity", "gzip", "hidden-gzip"] = "identity"  # hidden: gzip bytes under the plain name, unannounced
    framing: Literal["length", "chunked"] = "length"
    etag: Literal["md5", "multipart", "absent"] = "md5"
    ranges: bool = True
    purge_after: timedelta | None = None
    purged_answer: Literal["invalid", "missing"] = "invalid"  # at the mint, or only at the storage
    reruns_during_download: int = 0  # so many of the next downloads see their task run again meanwhile


@dataclass(kw_only=True)
class Run:
    """One run of a task: it begins, lasts (None: for ever), and ends as `ends` with `content` (None: an invalid result)."""

    begins_at: datetime
    named_at: datetime  # `last_run_date`: the start in whole seconds, later than every earlier run's
    lasts: timedelta | None = timedelta()
    ends: str = "DONE"
    content: Content | None = None
    invalid_mints: int = 0  # so many of the next mints answer "invalid result" before the link comes

    @property
    def ends_at(self) -> datetime | None:
        """When it ends, None for never."""
        return None if self.lasts is None else self.begins_at + self.lasts

    def ended(self, now: datetime) -> bool:
        """Whether it has ended."""
        return self.ends_at is not None and self.ends_at <= now


@dataclass(kw_only=True)
class Task:
    """A task of a chain and its runs, the earliest first. `has_state` False: its documents lack the state."""

    id: int
    created_at: datetime
    chain: int
    action: str = "export"
    export_index: str = "wallet-ledger"
    export_format: str = "csv"
    has_state: bool = True
    description: str = "Wallet ledger export for analytics warehouse"
    runs: list[Run] = field(default_factory=list)

    @property
    def filename(self) -> str:
        """The name of every run's file."""
        return f"{INDEX_WORDS.get(self.export_index, 'Data')}_Export-{self.id}.{self.export_format}"

    def run(self, now: datetime) -> Run | None:
        """Give the latest run that has begun."""
        return next((run for run in reversed(self.runs) if run.begins_at <= now), None)

    def code(self, now: datetime) -> str:
        """Give the state code."""
        run = self.run(now)
        if run is None:
            return "READY"
        return run.ends if run.ended(now) else "INPROGRESS"

    def file(self, now: datetime) -> Run | None:
        """Give the run whose file lies in storage: the latest that ended well."""
        return next((run for run in reversed(self.runs) if run.ends == "DONE" and run.content and run.ended(now)), None)


def throttled(retry_after: str | None = None) -> Fault:
    """Give a 429, with or without ``Retry-After``."""
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    return Fault.answer(429, '{"error":"Too Many Requests"}', "application/json", **headers)


def storage_refusal(status: int, code: str, message: str) -> Fault:
    """Give an answer of the storage host, such as 503 ``SlowDown`` or 403 ``AccessDenied``."""
    return Fault.answer(status, _xml(code, message), "application/xml")


class Spaaza(Vendor):
    """One chain. `add_task` and `rerun` fill it; `switches` may be changed at any time."""

    def __init__(
        self,
        *,
        token_id: str = "6b9f8a52-0000-4000-8000-000000000001",  # noqa: S107 (a placeholder)
        token_secret: str = "shown-once",  # noqa: S107 (a placeholder)
        chain: int = 1764,
        switches: Switches | None = None,
        now: Clock | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(now=now, hosts=("127.0.0.1", "127.0.0.1"), port=port)
        self.token_id, self.token_secret, self.chain = token_id, token_secret, chain
        self.switches = switches or Switches()
        self._tasks: dict[int, Task] = {}
        self._next_id = 12345
        self._signing_key = secrets.token_bytes(32)
        self._lapses: dict[str, datetime] = {}  # by signature: when the signer's credentials lapse
        self._used: set[str] = set()
        self._gzipped: dict[Content, Stream] = {}
        self.route("tasks", "GET", r"/tasks", self._list, listener=0)
        self.route("create", "POST", r"/tasks", self._create, listener=0)
        self.route("task", "GET", r"/tasks/(?P<task_id>\d+)", self._task, listener=0)
        self.route("execute", "POST", r"/tasks/(?P<task_id>\d+)/execute", self._execute, listener=0)
        self.route("mint", "GET", r"/tasks/(?P<task_id>\d+)/download_url", self._mint, listener=0)
        self.route("storage", "GET", rf"/{BUCKET}/(?P<chain>\d+)/(?P<name>[^/]+)", self._storage, listener=1)

    @property
    def credentials(self) -> dict[str, str]:
        """What the table of its source needs to be let in."""
        return {"access_token_id": self.token_id, "access_token_secret": self.token_secret}

    # what tests and the demo do

    def add_task(self, content: Content | None = None, *, after: timedelta | None = timedelta(), **how: Any) -> Task:
        """Add a task that runs `after` a while (None: never) and makes `content`.

        `how` are fields of `Task` and of `Run`. A run begins when `begins_at` says, else `after` from now; a `content` of None
        is an invalid result.
        """
        with self.lock:
            created = how.pop("created_at", self.now())
            of_run = {name: how.pop(name) for name in ("lasts", "ends", "invalid_mints", "begins_at") if name in how}
            task = Task(**{"id": self._next_id, "chain": self.chain, "created_at": created, **how})
            self._next_id = max(self._next_id, task.id) + 1
            self._tasks[task.id] = task
            if after is not None:
                self.rerun(task, content, **{"begins_at": created + after, **of_run})
        return task

    def rerun(self, task: Task, content: Content | None = None, **how: Any) -> Run:
        """Let a task run again, now unless `how` (fields of `Run`) says when; the file keeps its name."""
        with self.lock:
            begins = how.pop("begins_at", self.now())
            named = begins.replace(microsecond=0)
            if task.runs:
                named = max(named, task.runs[-1].named_at + timedelta(seconds=1))
            run = Run(**{"begins_at": begins, "named_at": named, "content": content, **how})
            task.runs.append(run)
        return run

    def remove(self, task: Task) -> None:
        """Let a task be unknown from now on."""
        with self.lock:
            del self._tasks[task.id]

    def truth(self) -> list[Truth]:
        """List the file of every run that ended well, as stored; it is gone when purged, or replaced by a later run."""
        with self.lock:
            return [
                self._truth(task, run, run.content)
                for task in self._tasks.values()
                for run in task.runs
                if task.action == "export" and run.ends == "DONE" and run.content and run.ended(self.now())
            ]

    def _truth(self, task: Task, run: Run, content: Content) -> Truth:
        stored, served = self._stored(content), self.served[task.id, run.named_at]
        return Truth(
            job_id=str(task.id),
            output_id=run.named_at.strftime(STAMP),
            filename=task.filename,
            size=stored.size,
            sha256=stored.sha256 if isinstance(stored, Content) else digest(stored, "sha256"),
            completed_at=run.named_at,
            full_downloads=served.full,
            partial_downloads=served.partial,
            gone=self._purged(run) or run is not task.run(self.now()),
        )

    def _stored(self, content: Content) -> Stream:
        if self.switches.encoding == "identity":
            return content
        return self._gzipped.setdefault(content, gzipped(content))

    def _purged(self, run: Run) -> bool:
        after = self.switches.purge_after
        return after is not None and run.ends_at is not None and run.ends_at + after <= self.now()

    # logging in and refusing

    def screen(self, request: Request, route: str) -> Reply | None:
        """Refuse calls to the API without a good token."""
        if route == "storage":
            return None
        switches = self.switches
        state = switches.log_in
        if switches.revoked_after is not None:
            if switches.revoked_after == 0:
                state = "inactive"
            switches.revoked_after = max(switches.revoked_after - 1, 0)
        if state == "good" and request.headers.get("authorization") != f"Bearer {self.token_id}:{self.token_secret}":
            state = "unknown"
        match state:
            case "good":
                return None
            case "unknown" | "inactive":
                return self._error(switches.refused_status, NO_LOG_IN)
            case "scope":
                return self._error(403, NO_LOG_IN)
            case "session":
                return _envelope(401, 6, "no_valid_session", "The session is not valid.")
            case "hidden":
                return _hidden()

    def _error(self, status: int, text: str) -> Reply:
        match self.switches.error_body:
            case "error" | "message" as name:
                return Reply.json({name: text}, status)
            case "text":
                return Reply.text(text, status)
            case "envelope":
                return _envelope(status, 5, "invalid_request", text)
            case "empty":
                return Reply(status=status)

    # the API

    def _visible(self, task_id: str) -> Task | None:
        task = self._tasks.get(int(task_id))
        return task if task and task.chain == self.chain else None

    def _no_task(self) -> Reply:
        return _hidden() if self.switches.unknown_status == 500 else self._error(404, NO_TASK)

    def _list(self, request: Request) -> Reply:
        now, switches = self.now(), self.switches
        rows = [task for task in self._tasks.values() if task.chain == self.chain]
        if status := request.first("status"):
            rows = [task for task in rows if task.code(now).upper() == status.upper()]
        if action := request.first("action"):
            rows = [task for task in rows if task.action == action]
        if switches.order == "none":
            rows.sort(key=lambda task: hashlib.sha256(str(task.id).encode()).digest())
        else:
            rows.sort(key=lambda task: task.id, reverse=switches.order == "newest")
        if switches.duplicate_rows:
            rows = [task for number, task in enumerate(rows) for _ in range(2 if number % 10 == 9 else 1)]
        offset, limit = int(request.first("offset") or 0), min(int(request.first("limit") or 50), switches.limit_cap)
        documents = [self._document(task) for task in rows[offset : offset + limit]]
        for _ in range(switches.arriving.pop(0) if switches.arriving else 0):
            self.add_task(Content(f"arrived {self._next_id}", 100))
        return Reply.json(documents)

    def _task(self, request: Request, task_id: str) -> Reply:
        task = self._visible(task_id)
        if task is None:
            return self._no_task()
        first, count = int(request.first("offset") or 0), int(request.first("log_limit") or 10)
        logs = [{"date": self._time(run.begins_at), "message": f"run {number}"} for number, run in enumerate(task.runs, 1)]
        return Reply.json({**self._document(task), "logs": logs[::-1][first : first + count], "debug": "", "version": 1})

    def _create(self, request: Request) -> Reply:
        wanted = json.loads(request.body)
        if missing := [name for name in ("chain", "desc", "target", "trigger") if name not in wanted]:
            return self._error(400, f"missing: {', '.join(missing)}")
        target = wanted["target"]
        task = self.add_task(
            Content(f"task {self._next_id}", 20_000),
            description=wanted["desc"],
            action=target.get("action", "export"),
            export_index=target.get("export_index", "users"),
            export_format=target.get("export_format", "csv"),
        )
        return Reply.json(self._document(task), 201)

    def _execute(self, request: Request, task_id: str) -> Reply:
        del request
        task = self._visible(task_id)
        if task is None:
            return self._no_task()
        self.rerun(task, Content(f"task {task_id} run {len(task.runs) + 1}", 20_000))
        return Reply.json(self._state(task))

    def _mint(self, request: Request, task_id: str) -> Reply:
        del request
        now, switches = self.now(), self.switches
        task = self._visible(task_id)
        if task is None:
            return self._no_task()
        if task.action != "export":
            return self._error(400, NOT_EXPORT)
        run = task.run(now)
        if run is None or task.code(now) != "DONE":
            return self._error(switches.not_done_status, NOT_DONE)
        purged = self._purged(run) and switches.purged_answer == "invalid"
        if run.content is None or purged or run.invalid_mints > 0:
            run.invalid_mints -= 1
            return self._error(switches.invalid_status, INVALID_RESULT)
        return Reply.json({"url": self._link(task)})

    # documents

    def _time(self, at: datetime) -> str:
        match self.switches.times:
            case "whole":
                return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            case "fraction":
                return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            case "offset":
                return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")

    def _state(self, task: Task) -> dict[str, Any]:
        now = self.now()
        run, code = task.run(now), task.code(now)
        modified = task.created_at if run is None else run.ends_at if run.ends_at and run.ended(now) else run.begins_at
        state = {"code": code.lower() if self.switches.lower_case else code}
        if run is not None:
            state["last_run_date"] = self._time(run.named_at)
        return {**state, "last_modified": self._time(modified), "created_date": self._time(task.created_at)}

    def _document(self, task: Task) -> dict[str, Any]:
        once = task.runs[0].begins_at if task.runs else task.created_at
        target = {"action": task.action}
        if task.action == "export":
            target |= {"export_index": task.export_index, "export_format": task.export_format}
        document = {"id": task.id, "chain": task.chain, "desc": task.description}
        if task.has_state:
            document["state"] = self._state(task)
        return {**document, "trigger": {"once": self._time(once)}, "target": target}

    # storage

    def _link(self, task: Task) -> str:
        """Sign a new link to a task's file, as the wanted kind of storage does."""
        switches = self.switches
        signed_at = self.now()
        if switches.lapsed_links > 0:
            switches.lapsed_links -= 1
            signed_at -= timedelta(seconds=switches.link_seconds + 60)
        stamp, nonce = signed_at.strftime(STAMP), secrets.token_hex(16)
        path = f"/{BUCKET}/{task.chain}/{task.filename}"
        if switches.storage == "s3":
            name = "X-Amz-Signature"
            query = {
                "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
                "X-Amz-Credential": f"ASIAEXAMPLE/{stamp[:8]}/eu-west-1/s3/aws4_request",
                "X-Amz-Date": stamp,
                "X-Amz-Expires": str(switches.link_seconds),
                "X-Amz-Security-Token": nonce,
                "X-Amz-SignedHeaders": "host",
            }
        elif switches.storage == "gcs":
            name = "X-Goog-Signature"
            query = {
                "X-Goog-Algorithm": "GOOG4-RSA-SHA256",
                "X-Goog-Credential": f"{nonce}@example.iam.gserviceaccount.com/{stamp[:8]}/auto/storage/goog4_request",
                "X-Goog-Date": stamp,
                "X-Goog-Expires": str(switches.link_seconds),
                "X-Goog-SignedHeaders": "host",
            }
        else:
            name = "Signature"
            expires = str(int(signed_at.timestamp()) + switches.link_seconds)
            query = {"AWSAccessKeyId": "AKIAEXAMPLE", "Expires": expires, "x-amz-security-token": nonce}
        signature = self._sign("GET", path, query)
        if switches.credential_seconds is not None:
            self._lapses[signature] = self.now() + timedelta(seconds=switches.credential_seconds)
        return f"{self.origin(1)}{quote(path)}?{urlencode({**query, name: signature})}"

    def _sign(self, method: str, path: str, query: dict[str, str]) -> str:
        text = "\n".join((method, path, urlencode(sorted(query.items()))))
        return hmac.new(self._signing_key, text.encode(), "sha256").hexdigest()

    def _storage(self, request: Request, chain: str, name: str) -> Reply:
        now = self.now()
        if refusal := self._refused(request):
            return refusal
        task = next((task for task in self._tasks.values() if (str(task.chain), task.filename) == (chain, name)), None)
        run = task.file(now) if task else None
        if task is None or run is None or run.content is None or self._purged(run):
            return _storage_error(404, "NoSuchKey", "The specified key does not exist.")
        if self.switches.reruns_during_download > 0:
            self.switches.reruns_during_download -= 1
            self.rerun(task, Content(f"again {task.id} {len(task.runs)}", run.content.size))
        return self._bytes(task, run, run.content)

    def _refused(self, request: Request) -> Reply | None:
        """Say no as a storage service does to a link that is not good for this request."""
        query = {name: values[0] for name, values in request.query.items()}
        if "authorization" in request.headers:
            message = (
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter "
            )
            return _storage_error(400, "InvalidArgument", message + "or the Authorization header should be specified")
        signature = next(
            (query.pop(name) for name in ("X-Amz-Signature", "X-Goog-Signature", "Signature") if name in query), ""
        )
        if not hmac.compare_digest(signature, self._sign(request.method, request.path, query)):
            message = "The request signature we calculated does not match the signature you provided."
            return _storage_error(403, "SignatureDoesNotMatch", message)
        lapses = self._lapses.get(signature)
        if lapses is not None and lapses <= self.now():
            return _storage_error(400, "ExpiredToken", "The provided token has expired.")
        if _expiry(query) <= self.now():
            return self._lapsed(_expiry(query))
        if signature in self._used:
            return _storage_error(403, "AccessDenied", "Access Denied")
        if self.switches.one_time_links:
            self._used.add(signature)
        return None

    def _lapsed(self, expiry: datetime) -> Reply:
        match self.switches.lapsed_answer:
            case "s3-403":
                life = str(self.switches.link_seconds)
                details = {"X-Amz-Expires": life, "Expires": _zulu(expiry), "ServerTime": _zulu(self.now())}
                return _storage_error(403, "AccessDenied", "Request has expired", **details)
            case "s3-400":
                return _storage_error(400, "ExpiredToken", "The provided token has expired.")
            case "gcs-400":
                return _storage_error(400, "ExpiredToken", "Invalid argument.")
            case "plain-403":
                return _storage_error(403, "AccessDenied", "Access Denied")

    def _bytes(self, task: Task, run: Run, content: Content) -> Reply:
        switches, stored = self.switches, self._stored(content)
        headers = {"Content-Type": "text/csv" if task.export_format == "csv" else "application/json"}
        if switches.encoding == "gzip":
            headers["Content-Encoding"] = "gzip"
        etag = None
        if switches.etag != "absent":
            md5 = stored.md5 if isinstance(stored, Content) else digest(stored, "md5")
            etag = f'"{md5}-3"' if switches.etag == "multipart" else f'"{md5}"'
        return Reply(
            headers=headers,
            body=stored,
            ranges=switches.ranges,
            etag=etag,
            counts=(task.id, run.named_at),
            fault=Fault(framing=switches.framing),
        )


def _expiry(query: dict[str, str]) -> datetime:
    """Read from a link's query when it lapses."""
    if "Expires" in query:
        return datetime.fromtimestamp(int(query["Expires"]), UTC)
    prefix = "X-Amz-" if "X-Amz-Date" in query else "X-Goog-"
    signed_at = datetime.strptime(query[prefix + "Date"], STAMP).replace(tzinfo=UTC)
    return signed_at + timedelta(seconds=int(query[prefix + "Expires"]))


def _zulu(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _xml(code: str, message: str, **details: str) -> str:
    members = {"Code": code, "Message": message, **details, "RequestId": "EXAMPLE", "HostId": "EXAMPLE"}
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in members.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inside}</Error>'


def _storage_error(status: int, code: str, message: str, **details: str) -> Reply:
    return Reply.text(_xml(code, message, **details), status, "application/xml")


def _envelope(status: int, code: int, name: str, description: str) -> Reply:
    error = {"code": code, "name": name, "description": description}
    return Reply.json({"result": {"code": 2, "status": "error"}, "error": error}, status)


def _hidden() -> Reply:
    return _envelope(500, 68, "permission_denied_or_non_existent", "Permission denied, or the record does not exist.")
