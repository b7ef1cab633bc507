"""Spaaza: export tasks that can run again under their id, and download links that are minted on request and age.

Facts: the vendor's Services API pages (https://docs.spaaza.com/integrations/exporting-data/), which give conditions and
texts of refusals but neither status codes nor the shape of error bodies. So a refusal is known by its text, wherever in the
body that is, before its status.

A job is a task; its one output is one *run* of it, named by the run's `last_run_date`. Links lead to a storage host that
must never see the account's token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote

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
from worker.model import Job, JobState, JsonObject, Link, Output, OutputId, Shared, encode_id
from worker.settings import SpaazaSettings
from worker.sources.http import JsonSession, KeyAuth, Reply, retry_after
from worker.sources.reading import Fields, Moment, id_of, parse_json, parse_link, receipt_copy

PAGE_ROWS = 50
MAX_PAGES = 2000
LEAST_LEFT = timedelta(seconds=60)  # a link with less than this, or a tenth of its life, is minted again

_CLOCKS_AGREE = timedelta(seconds=2)
_STATES = {
    "READY": JobState.RUNNING,
    "INPROGRESS": JobState.RUNNING,
    "DONE": JobState.COMPLETED,
    "ERROR": JobState.FAILED,
}
_SCOPE = [("action", "export")]
# Logs and debug hold whatever the task's author printed, links included.
_NOT_KEPT = frozenset({"logs", "debug", "url", "download_url", "token", "token_secret", "access_token", "secret", "password"})
_XML_CODE = re.compile(r"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One task as it is now. `run` names its last run, None before the first."""

    id: str
    exports: bool
    word: str
    ran: Moment | None
    document: JsonObject

    @property
    def run(self) -> str | None:
        return None if self.ran is None else f"{self.ran.at:%Y%m%dT%H%M%SZ}"

    @property
    def done(self) -> bool:
        return _STATES.get(self.word) is JobState.COMPLETED


class Spaaza:
    """One Spaaza chain (see `base.Source`)."""

    asks_for_one: ClassVar[bool] = True

    def __init__(self, settings: SpaazaSettings, shared: Shared) -> None:
        self._settings = settings

        def bearer() -> Mapping[str, str]:
            token = f"{settings.access_token_id.reveal()}:{settings.access_token_secret.reveal()}"
            return {"Authorization": f"Bearer {token}"}

        self._session = JsonSession(settings, shared, KeyAuth(bearer))

    # --- listing -----------------------------------------------------------------------------------------------------

    def jobs(self, since: datetime) -> Iterator[Job]:
        """Yield every export task that the chain has, in whatever state, once.

        There is no date filter, the order is not stated, and how long a file stays is not known, so `since` cannot shorten
        the pass. No `status` filter either: one pass shows what runs and what is done. The next page begins a tenth of a
        page before the end of the last one, since rows may shift in between; only an empty page ends the list, since a
        short one may be a silent cap of `limit`.
        """
        del since
        seen: set[str] = set()
        offset = pages_without_news = 0
        for _ in range(MAX_PAGES):
            rows = self._page(offset, PAGE_ROWS)
            news = 0
            for row in rows:
                task_id = id_of(row)
                key = repr(row) if task_id is None else task_id
                if key not in seen:
                    seen.add(key)
                    news += 1
                    yield from self._listed(row, task_id)
            pages_without_news = 0 if news else pages_without_news + 1
            if not rows or pages_without_news == 3:  # three in a row: a vendor that pays no heed to `offset`
                return
            offset += len(rows) - (len(rows) // 10 if news else 0)
        raise VendorReplyError(f"list of tasks: no end after {MAX_PAGES} pages")

    def _page(self, offset: int, limit: int) -> list[Any]:
        params = [*_SCOPE, ("limit", str(limit)), ("offset", str(offset))]
        reply = self._session.get("list of tasks", "/tasks", params)
        if reply.status == 204:
            return []
        rows = _json_or_none(reply) if reply.ok else None
        if not isinstance(rows, list):
            raise self._list_refusal(reply)
        return rows

    def _listed(self, row: Any, task_id: str | None) -> Iterator[Job]:
        """Give the task of one row, if it is an export. A row that cannot be read harms no other."""
        if task_id is None:
            log.warning("row_unreadable", source=self._settings.name)
            return
        try:
            task = self._task(row)
        except VendorReplyError as exc:
            yield _oddity(task_id, exc)
        else:
            if task.exports:
                yield self._job(task)

    def job(self, job_id: str) -> Job:
        """Ask for one task (see `base.Source`). A task that is no export is FAILED: it will never produce a file for us."""
        document = self._document(job_id)
        try:
            task = self._task(document)
        except VendorReplyError as exc:
            return _oddity(job_id, exc)
        if task.exports:
            return self._job(task)
        return Job(id=task.id, state=JobState.FAILED, status=task.word, warnings=(f"task {task.id}: not an export",))

    # --- one task ----------------------------------------------------------------------------------------------------

    def _task(self, document: Any) -> _Task:
        fields = Fields(document, "task")
        task_id = fields.identity("id")
        fields = Fields(document, f"task {task_id}")
        target = fields.child("target")
        # The list is asked for exports alone, so one that doesn't say what it is counts as one; minting will tell.
        action = target.text("action") if target is not None else None
        state = fields.child("state")
        return _Task(
            id=task_id,
            exports=action is None or action.strip().lower() == "export",
            word=((state.text("code") if state is not None else None) or "").strip().upper(),
            ran=state.moment("last_run_date", zone=self._settings.zone) if state is not None else None,
            document=fields.document,
        )

    def _job(self, task: _Task) -> Job:
        state = _STATES.get(task.word)
        if state is None:
            warning = f"task {task.id}: unknown state {task.word[:40]!r}, taken as running"
            return Job(id=task.id, state=JobState.RUNNING, status=task.word, warnings=(warning,))
        if state is not JobState.COMPLETED:
            return Job(id=task.id, state=state, status=task.word)
        if task.ran is None or task.run is None:
            warning = f"task {task.id}: done, but without last_run_date, so its run has no name"
            return Job(id=task.id, state=JobState.RUNNING, status=task.word, warnings=(warning,))
        deadline = task.ran.at + self._settings.retention - self._settings.margin(zoned=task.ran.zoned)
        output = Output(
            id=OutputId(self._settings.name, task.id, task.run),
            completed_at=task.ran.at,
            deadline=deadline,
            job=receipt_copy(task.document, _NOT_KEPT),
        )
        return Job(
            id=task.id,
            state=state,
            outputs=(output,),
            status=task.word,
            completed_at=output.completed_at,
            deadline=deadline,
        )

    def _document(self, task_id: str) -> JsonObject:
        """Read one task's document now. Raises `OutputGoneError` when the chain has no such task."""
        reply = self._session.get(f"task {task_id}", f"/tasks/{encode_id(task_id)}")
        document = _json_or_none(reply) if reply.ok else None
        if not isinstance(document, dict) or "id" not in document:
            raise self._task_refusal(reply, task_id)
        return document

    def _read(self, output: Output) -> _Task:
        """Read the output's task now."""
        return self._task(self._document(output.id.job_id))

    # --- one download ------------------------------------------------------------------------------------------------

    def link(self, output: Output) -> Link:
        """Read the task, and mint a link if its last run is still the output's (see `base.Source`).

        A link that is about to age is minted once more; of the second one, whatever is left is used.
        """
        self._check_run(output, self._read(output))
        link, fresh = self._mint(output.id.job_id)
        if not fresh:
            link, _ = self._mint(output.id.job_id)
            if link.expires_at is not None and link.expires_at <= datetime.now(UTC):
                raise VendorReplyError(f"task {output.id.job_id}: the vendor mints links that have lapsed already")
        return link

    def _check_run(self, output: Output, task: _Task) -> None:
        """Return when the task's last run is the output's and can be had. Else raise `OutputGoneError` or `NotReadyError`."""
        if not task.done:
            what = "its later run failed; run it again" if task.word == "ERROR" else "it is not done any more, or not yet"
            raise NotReadyError(f"task {task.id}: {what} ({task.word[:40]!r})")
        if task.run is None or task.run < output.id.output_id:
            raise NotReadyError(f"task {task.id}: its last run is older than {output.id.output_id}")
        if task.run > output.id.output_id:
            message = f"task {task.id}: run {output.id.output_id} was replaced by run {task.run}"
            raise OutputGoneError(message, reason="superseded")

    def _mint(self, task_id: str) -> tuple[Link, bool]:
        """Mint one link. Says as well whether it lives long enough to be begun with."""
        reply = self._session.get(f"link of task {task_id}", f"/tasks/{encode_id(task_id)}/download_url")
        document = _json_or_none(reply) if reply.ok else None
        url = document.get("url") if isinstance(document, dict) else None
        if not isinstance(url, str) or not url.strip():
            raise self._task_refusal(reply, task_id)
        url = url.strip()
        parts = parse_link(url, f"link of task {task_id}: url")
        life, left = self._life(parts.query, reply)
        link = Link(
            url=url,
            headers={"Accept": "*/*"},
            expires_at=datetime.now(UTC) + left,
            filename=unquote(parts.path.rpartition("/")[2]) or None,
        )
        return link, left >= min(LEAST_LEFT, life / 10)

    def _life(self, query: str, reply: Reply) -> tuple[timedelta, timedelta]:
        """Give the life of a link just minted, and what is left of it: `link_lifetime`, or less where its query says so.

        The query's times are by the vendor's clock, so they are compared with the vendor's own ``Date``, not with ours.
        """
        life = left = self._settings.link_lifetime
        told, expires_at = _told_expiry(query)
        if told is not None:
            life = min(life, told)
        if expires_at is not None:
            left = min(left, expires_at - _vendor_now(reply))
        return life, left

    def refused(self, output: Output, refusal: RefusedError) -> LastcallError:
        """Say what an answer of the storage host means (see `base.Source`).

        Which provider it is nobody says, so the XML error code decides before the status. What reads like a link that has
        aged, or one that was good for one request, is `LinkExpiredError`, and so is a bare 403: another link is worth a
        try, and the caller bounds how many it follows in a row.
        """
        where, status = f"task {output.id.job_id}", refusal.status
        text = refusal.body.decode("utf-8", "replace")
        match = _XML_CODE.search(text)
        code = match[1] if match else ""
        message = f"{where}: the storage refused the download ({status} {code})"
        if (known := _STORAGE_CODES.get(code)) is not None:
            return known(message)
        expired = "expired" in text.lower()
        if status in {401, 403, 410} or (status in {200, 400} and expired):
            return LinkExpiredError(message, certain=expired)
        if status >= 500 or status in {408, 429}:
            return VendorUnavailableError(message, not_before=retry_after(refusal.headers, datetime.now(UTC)))
        if status == 404:
            return _purged(message)
        if 400 <= status < 500 and status not in {412, 416}:
            return _ours(message)
        return VendorReplyError(f"{where}: the storage answered {status} without the file")

    def confirm(self, output: Output) -> None:
        """Read the task again: a run that began in the meantime may have replaced the bytes under our hands.

        While `last_run_date` stands, so does the output, whatever state the task is in; and a task that has vanished says
        nothing against bytes that are whole.
        """
        try:
            task = self._read(output)
        except OutputGoneError:
            return
        if task.run != output.id.output_id:
            self._check_run(output, task)

    # --- refusals of the API -----------------------------------------------------------------------------------------

    def _list_refusal(self, reply: Reply) -> LastcallError:
        """Say what it means that the list was refused. No task is in question, so any word of rights is about the log-in."""
        words = _Words(reply)
        if words.no_log_in or words.not_there_or_not_allowed or reply.status in {401, 403}:
            return LogInRefusedError(
                f"list of tasks: the vendor refuses the access token ({reply.status}); check its id, secret and scope"
            )
        return VendorReplyError("list of tasks: expected an array") if reply.ok else reply.unexpected()

    def _task_refusal(self, reply: Reply, task_id: str) -> LastcallError:
        """Say what it means that a call about one task was refused. May ask the list whether the token is good at all."""
        where, words = f"task {task_id}", _Words(reply)
        if (about_the_task := words.about_the_task(where)) is not None:
            return about_the_task
        if words.no_log_in or reply.status in {401, 403}:
            return LogInRefusedError(
                f"{where}: the vendor refuses the access token ({reply.status}); check its id, secret and scope"
            )
        if words.not_there_or_not_allowed:
            self._page(0, 1)  # raises `LogInRefusedError` unless the token is good; and then it is the task
            return OutputGoneError(f"{where}: the chain has no such task ({reply.status})")
        if reply.status in {404, 410}:
            return OutputGoneError(f"{where}: the chain has no such task ({reply.status})")
        if reply.status == 409:
            return NotReadyError(f"{where}: not done (409)")
        return VendorReplyError(f"{where}: the answer is not what was asked for") if reply.ok else reply.unexpected()


class _Words:
    """What a refusal says, in whatever shape it says it: ``{"error"}``, ``{"message"}``, plain text, an envelope with codes."""

    def __init__(self, reply: Reply) -> None:
        self._text = " ".join(reply.text.lower().split())
        self._codes = set(_error_codes(_json_or_none(reply)))

    def _says(self, *phrases: str) -> bool:
        return any(phrase in self._text for phrase in phrases)

    def about_the_task(self, where: str) -> LastcallError | None:
        """Give the error for a documented text about a task, None when there is none of them."""
        if self._says("invalid task type", "only export tasks"):
            return HeldError(f"{where}: not an export any more, so there is no file to be had; look at the task at the vendor")
        if self._says("status is not done"):
            return NotReadyError(f"{where}: not done")
        if self._says("invalid result"):
            return OutputGoneError(
                f"{where}: done, but with an invalid result: it produced nothing, or the file was purged",
                reason="invalid-result",
                answers=5,
                over=timedelta(seconds=30),
                lost_at_deadline=True,
            )
        if self._says("no task exists", "task not found", "task does not exist"):
            return OutputGoneError(f"{where}: the chain has no such task")
        return None

    @property
    def no_log_in(self) -> bool:
        """Whether the access token is refused, or may not do this."""
        return 6 in self._codes or self._says("no_valid_session", "no valid authentication", "insufficient permissions")

    @property
    def not_there_or_not_allowed(self) -> bool:
        """Whether it is the main API's one answer for a missing record and for missing rights."""
        return 68 in self._codes or self._says("permission_denied_or_non_existent")


def _oddity(task_id: str, why: VendorReplyError) -> Job:
    """Give a task that cannot be read: RUNNING with a warning, so that it ends no pass and is looked at again."""
    return Job(id=task_id, state=JobState.RUNNING, warnings=(str(why),))


def _error_codes(document: Any) -> Iterator[int]:
    """Give the codes of the main API's envelope, whose errors are one object or several."""
    if not isinstance(document, dict):
        return
    for key in ("error", "errors"):
        errors = document.get(key)
        for error in errors if isinstance(errors, list) else [errors]:
            code = error.get("code") if isinstance(error, dict) else None
            if isinstance(code, int | str) and str(code).isdecimal() and len(str(code)) < 10:
                yield int(code)


def _json_or_none(reply: Reply) -> Any:
    """Give the body as JSON, None where it is none: a refusal may come as plain text."""
    try:
        return parse_json(reply.body, reply.call)
    except VendorReplyError:
        return None


def _vendor_now(reply: Reply) -> datetime:
    """Give the time by the vendor's clock: ours, unless the reply's ``Date``, which has whole seconds, shows another one."""
    now = datetime.now(UTC)
    try:
        told = parsedate_to_datetime(reply.headers["date"])
        told = told.astimezone(UTC) if told.tzinfo is not None else told.replace(tzinfo=UTC)
    except (KeyError, ValueError, TypeError, OverflowError):
        return now
    return told if abs(told - now) > _CLOCKS_AGREE else now


def _told_expiry(query: str) -> tuple[timedelta | None, datetime | None]:
    """Read from a signed URL's query how long it lives and until when, by the signer's clock; None for what it doesn't say."""
    told = {name.lower(): value for name, value in parse_qsl(query)}
    for provider in ("amz", "goog"):
        signed_at, seconds = told.get(f"x-{provider}-date"), told.get(f"x-{provider}-expires", "")
        if signed_at is not None and _is_count(seconds):
            life = timedelta(seconds=int(seconds))
            try:
                return life, datetime.strptime(signed_at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) + life
            except (ValueError, OverflowError):
                continue
    if _is_count(told.get("expires", "")):
        return None, datetime.fromtimestamp(int(told["expires"]), UTC)
    return None, None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10


_StorageError = Callable[[str], LastcallError]


def _ours(message: str) -> LastcallError:
    return HeldError(f"{message}: a fault of the request, another link would not help; report it")


def _purged(message: str) -> LastcallError:
    return OutputGoneError(f"{message}: the file was purged")


# By the codes of S3 and Google Cloud Storage (both in XML); https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_STORAGE_CODES: Mapping[str, _StorageError] = {
    "ExpiredToken": LinkExpiredError,
    "TokenRefreshRequired": LinkExpiredError,
    "RequestTimeTooSkewed": LinkExpiredError,
    "SignatureDoesNotMatch": _ours,
    "InvalidArgument": _ours,  # two sign-ins at once
    "MethodNotAllowed": _ours,
    "NoSuchBucket": HeldError,
    "NoSuchKey": _purged,
    "NoSuchVersion": _purged,
    "RequestTimeout": VendorUnavailableError,
}
