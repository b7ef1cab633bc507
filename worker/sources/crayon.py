"""Crayon Cloud-iQ: the exports queue of the Customer API (v1).

Vendor pages: the exports pages and the token guide of the API documentation, which contradict each other on the download;
so its form is found out by `decode`. The queue has no paging and no call for a single item: the list is all there is.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import urlencode

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
    VendorUnavailableError,
)
from worker.model import Job, JobState, Link, Output, OutputId, Shared, Wrapping, encode_id
from worker.settings import CrayonSettings
from worker.sources.http import JsonSession, Reply, Token, TokenAuth, revealed
from worker.sources.reading import Fields, Moment, receipt_copy

# The documented form has the trailing slash, and a redirect to it could drop the log-in.
_TOKEN = "/api/v1/connect/token/"  # noqa: S105 - a path
_EXPORTS = "/api/v1/exports/"

_STATUSES: Mapping[int, str] = {0: "None", 1: "Queued", 2: "Processed", 4: "Deleted", 8: "Failed"}
_QUEUED, _PROCESSED, _DELETED, _FAILED = 1, 2, 4, 8
_MAY_STILL_COME = timedelta(hours=1)  # Processed but not downloadable: for so long a file may still appear
_UNSET = datetime(1970, 1, 1, tzinfo=UTC)
_LIFE_SECONDS, _LONGEST_LIFE_SECONDS = 3600.0, 86400.0

log = structlog.get_logger(__name__)


class Crayon:
    """One Cloud-iQ account. See `worker.sources.base.Source` for what each method promises."""

    asks_for_one: ClassVar[bool] = False

    def __init__(self, settings: CrayonSettings, shared: Shared) -> None:
        self._settings = settings
        self._auth = TokenAuth(shared, self._log_in)
        self._api = JsonSession(
            settings,
            shared,
            self._auth,
            headers={"Content-Type": "application/json"},
            log_in_statuses=frozenset({401, 403}),
        )
        self._days = settings.retention // timedelta(days=1)  # the window as last seen; it is only compared, to warn once
        self._last: _Queue | None = None

    def jobs(self, since: datetime) -> Iterator[Job]:
        """Yield the whole queue, which the vendor gives in one answer and cuts to its own window, whatever `since` is."""
        del since
        queue = self._queue()
        seen: set[str] = set()
        for item in queue.items:
            job = self._listed(item, queue.retention)
            if job is not None and job.id not in seen:
                seen.add(job.id)
                yield job

    def job(self, job_id: str) -> Job:
        """Pick one job out of the last list; there is no call for a single one. `OutputGoneError` when it is not listed."""
        job = self._find(job_id, self._recent_queue() or self._queue())
        if job is None:
            raise OutputGoneError(f"job {job_id[:40]}: not in the exports queue", reason="expired")
        return job

    def link(self, output: Output) -> Link:
        """Give the download call with a living token. There are no links to mint, and nothing is asked of the vendor."""
        return Link(
            url=self._api.url(f"{_EXPORTS}{encode_id(output.id.job_id)}/download/"),
            headers={**self._auth.link_headers(output.id), "Accept": "application/octet-stream"},
            wrapping=Wrapping.CRAYON,
            resumable=False,
            fallback_filename=f"export-{output.id.job_id}",
        )

    def refused(self, output: Output, refusal: RefusedError) -> LastcallError:
        """Say what a refused download means, by the last listing of this process; only a 401 is a reason to ask for another.

        The vendor documents no answers for the bad cases. 404 and 410 say that the file is not there, and the list then says
        whether it is not there yet or no longer; the other answers are taken for gone only where the list agrees.
        """
        reply = Reply.of_refusal(refusal, f"download of export {output.id.job_id}")
        if error := self._api.throttled(reply):
            return error
        status = _stated_status(reply)
        if status in {401, 403}:
            return self._file_refused(output, reply)
        if status in {404, 410} or status in _SAYS_LITTLE:
            return self._not_served(output, reply, explicit=status in {404, 410})
        if status == 200:
            return VendorReplyError(f"{reply.call}: an error page came in place of the file")
        return reply.unexpected()

    def confirm(self, output: Output) -> None:
        """Nothing to ask: an item is built once."""

    # --- the log-in --------------------------------------------------------------------------------------------------

    def _log_in(self) -> Token:
        settings = self._settings
        client, username, password = revealed(
            lambda: (
                f"{settings.client_id.reveal()}:{settings.client_secret.reveal()}",
                settings.username.reveal(),
                settings.password.reveal(),
            )
        )
        form = {"grant_type": "password", "username": username, "password": password, "scope": "CustomerApi"}
        reply = self._api.post_log_in(
            "log-in",
            _TOKEN,
            body=urlencode(form).encode(),
            content_type="application/x-www-form-urlencoded",
            headers={"Authorization": f"Basic {base64.b64encode(client.encode()).decode()}"},
        )
        if reply.status in {400, 401, 403}:
            raise LogInRefusedError(
                f"log-in: refused ({reply.status}); check the four credentials. Client secrets end two years after they"
                " were made: after long service, make one in Cloud-iQ"
            )
        if not reply.ok:
            raise reply.unexpected()
        # PascalCase, snake_case and camelCase have been seen; a 200 may carry a failure.
        answer = Fields(reply.json(), reply.call, loose=True)
        token = answer.text("AccessToken")
        if answer.get("Error") or not token:
            raise LogInRefusedError("log-in: Crayon answers without a token; check the four credentials and the user's rights")
        life = answer.number("ExpiresIn") or _LIFE_SECONDS
        return Token(token, min(life, _LONGEST_LIFE_SECONDS))

    # --- the list ----------------------------------------------------------------------------------------------------

    def _queue(self) -> _Queue:
        reply = self._api.get("list of exports", _EXPORTS)
        if not reply.ok:
            raise reply.unexpected()
        self._last = queue = self._read_queue(reply)
        return queue

    def _read_queue(self, reply: Reply) -> _Queue:
        document = reply.json()
        if isinstance(document, list):  # other collections of this API come as bare arrays
            return _Queue(document, self._settings.retention)
        fields = Fields(document, reply.call, loose=True)
        if fields.get("Items") is None and fields.text("ErrorCode", "Message"):
            raise VendorReplyError(f"{reply.call}: an error object came in place of the list")
        return _Queue(fields.rows("Items"), self._retention(fields))

    def _recent_queue(self) -> _Queue | None:
        """Give the last listing for as long as the next one may take; None where another worker lists.

        A failed download is no reason to list out of turn.
        """
        last = self._last
        if last is None or time.monotonic() - last.read_at > 2 * self._settings.poll_every.total_seconds():
            return None
        return last

    def _retention(self, fields: Fields) -> timedelta:
        """The vendor lists `NrOfDays` days; what is no longer listed can no longer be counted on."""
        retention = self._settings.retention
        try:
            days = fields.integer("NrOfDays")
        except VendorReplyError:
            days = None
        if days is None or not 0 < days <= 3650:
            return retention
        if days < self._days:
            log.warning("window-shrunk", source=self._settings.name, days=days, before=self._days)
        self._days = days
        return min(retention, timedelta(days=days))

    def _find(self, job_id: str, queue: _Queue) -> Job | None:
        jobs = (self._listed(item, queue.retention) for item in queue.items)
        return next((job for job in jobs if job is not None and job.id == job_id), None)

    def _listed(self, item: Any, retention: timedelta) -> Job | None:
        """Read one item; None where not even its id can be read."""
        try:
            fields = Fields(item, "item of the list of exports", loose=True)
            job_id = str(fields.need("Id", fields.integer("Id")))
        except VendorReplyError as exc:
            log.warning("malformed-item", source=self._settings.name, why=str(exc))
            return None
        fields.where = f"export {job_id}"
        try:
            return self._read(job_id, fields, retention)
        except VendorReplyError as exc:
            return Job(id=job_id, state=JobState.RUNNING, warnings=(str(exc),))

    def _read(self, job_id: str, fields: Fields, retention: timedelta) -> Job:
        raw = fields.get("Status")
        status = _status(raw)
        label = _STATUSES.get(-1 if status is None else status, str(raw)[:40])
        downloadable = bool(fields.flag("Downloadable"))
        if status in {_DELETED, _FAILED}:
            return Job(id=job_id, state=JobState.FAILED, status=label, named_file=status == _FAILED and downloadable)
        if status != _PROCESSED:
            warnings = () if status == _QUEUED else (f"export {job_id}: unknown status {label!r}",)
            return Job(id=job_id, state=JobState.RUNNING, status=label, warnings=warnings)
        created = fields.moment("CreatedDate", zone=self._settings.zone)
        if not downloadable and created is not None and datetime.now(UTC) < created.at + _MAY_STILL_COME:
            warning = f"export {job_id}: processed, but not downloadable (yet)"
            return Job(id=job_id, state=JobState.RUNNING, status=label, warnings=(warning,))
        missing = () if created else (f"export {job_id}: completed without any time; archived under 1970-01-01",)
        created = created or Moment(_UNSET, zoned=True)
        deadline = created.at + retention - self._settings.margin(zoned=created.zoned)
        output = Output(
            id=OutputId(self._settings.name, job_id, job_id),
            completed_at=created.at,
            deadline=deadline,
            # ActionUrl is an internal route of the vendor's back end that holds tenant and user ids.
            job=receipt_copy(fields.document, drop={"ActionUrl"}),
        )
        return Job(
            id=job_id,
            state=JobState.COMPLETED,
            outputs=(output,) if downloadable else (),
            status=label,
            completed_at=created.at,
            deadline=deadline,
            warnings=missing,
        )

    # --- refused downloads -------------------------------------------------------------------------------------------

    def _file_refused(self, output: Output, reply: Reply) -> LastcallError:
        """A 401: once it may be the token; with one made for this very output it is the file, or the list is refused too."""
        if self._auth.link_refused(output.id, self._queue):
            return LinkExpiredError(f"{reply.call}: the token was refused; logged in again")
        return HeldError(
            f"{reply.call}: this one file is refused ({reply.status}) while the list is not; check rights and retry"
        )

    def _not_served(self, output: Output, reply: Reply, *, explicit: bool) -> LastcallError:
        queue = self._recent_queue()
        if queue is None:
            return OutputGoneError(f"{reply.call}: the file cannot be found") if explicit else self._tried_later(reply)
        job = self._find(output.id.job_id, queue)
        overdue = datetime.now(UTC) >= output.deadline
        if job is None:
            if explicit or overdue:
                return OutputGoneError(f"{reply.call}: no longer served and no longer listed", reason="expired")
        elif job.state is JobState.FAILED:
            return OutputGoneError(
                f"{reply.call}: the list now says {job.status}",
                reason="deleted" if job.status == _STATUSES[_DELETED] else "gone",
            )
        elif job.state is JobState.RUNNING:
            return NotReadyError(f"{reply.call}: not ready")
        elif explicit:
            return OutputGoneError(f"{reply.call}: the file cannot be found, though it is listed as {job.status}")
        return self._tried_later(reply)

    @staticmethod
    def _tried_later(reply: Reply) -> LastcallError:
        return reply.unexpected() if reply.status >= 500 else VendorUnavailableError(f"{reply.call}: answered {reply.status}")


@dataclass(frozen=True, slots=True)
class _Queue:
    items: list[Any]
    retention: timedelta
    read_at: float = field(default_factory=time.monotonic)


# Answers that may mean "not ready", "failed" or "gone", and may as well be a fault.
_SAYS_LITTLE = frozenset({204, 400, 409, 500})


def _status(raw: object) -> int | None:
    """Read a status that came as a number, as digits, or as the vendor's word; whole values, no bits."""
    if isinstance(raw, (int, float)) and not isinstance(raw, bool) and raw == int(raw):
        return int(raw)
    if not isinstance(raw, str):
        return None
    word = raw.strip().casefold()
    if word.isascii() and word.isdigit() and len(word) < 5:
        return int(word)
    return next((value for value, name in _STATUSES.items() if name.casefold() == word), None)


def _stated_status(reply: Reply) -> int:
    """Give the status, for an error object under 200 the one in its words (``404 NotFound``); 400 where it has none."""
    if reply.status != 200 or not reply.body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return reply.status
    try:
        code = Fields(reply.json(), reply.call, loose=True).text("ErrorCode") or ""
    except VendorReplyError:
        return reply.status
    return int(code[:3]) if code[:3].isascii() and code[:3].isdigit() else 400
