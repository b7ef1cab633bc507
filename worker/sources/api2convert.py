"""API2Convert (online-convert.com): conversion jobs with several outputs each, fixed links, a small budget of downloads.

Facts: the vendor's OpenAPI 2.0.1 and guides (https://www.api2convert.com/documentation). An output's link is the secret
`uri` of the job document; it is read in `link` and nowhere else. Every GET of it is taken as counted, whatever it is answered
with, and what the download host answers in a bad case is not documented: the output's `status`, read again, decides.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import unquote

import structlog

from worker.errors import (
    HeldError,
    LastcallError,
    OutputGoneError,
    OverusedError,
    RefusedError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.model import Checksum, Job, JobState, JsonObject, Link, Output, OutputId, Shared, encode_id
from worker.settings import Api2convertSettings
from worker.sources.http import JsonSession, KeyAuth, Reply, retry_after, revealed
from worker.sources.reading import Fields, Moment, id_of, parse_link, receipt_copy

PAGE_ROWS = 50  # documented: "in any case"
MAX_PAGES = 2000
MAX_SWEEPS = 2

_STATES = {
    "created": JobState.RUNNING,
    "incomplete": JobState.RUNNING,
    "ready": JobState.RUNNING,
    "downloading": JobState.RUNNING,
    "pending": JobState.RUNNING,
    "queued": JobState.RUNNING,
    "processing": JobState.RUNNING,
    "completed": JobState.COMPLETED,
    "failed": JobState.FAILED,
    "canceled": JobState.FAILED,
}
_GONE = {"expired": "expired", "disabled": "deleted"}
_OFFERED = "enabled"
_OVERUSED = "overuse"
_ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}
_OVERUSED_ADVICE = "the vendor says that it was downloaded too often; ask the vendor to allow more, then `lastcall retry`"
# Secrets, places, and where the inputs came from. Options may carry the passwords of documents.
_NOT_KEPT = frozenset(
    {
        *("token", "uri", "download_uri", "server", "callback", "url", "credentials", "parameters"),
        *("download_password", "download_passwords", "password", "user_password", "owner_password", "open_password"),
        *("details", "secret", "access_token", "refresh_token", "api_key", "apikey", "signature", "authorization"),
    }
)

log = structlog.get_logger(__name__)


class Api2convert:
    """One API2Convert account (see `base.Source`)."""

    asks_for_one: ClassVar[bool] = True

    def __init__(self, settings: Api2convertSettings, shared: Shared) -> None:
        self._settings = settings
        auth = KeyAuth(lambda: {"X-Api2convert-Api-Key": settings.api_key.reveal()})
        self._session = JsonSession(
            settings,
            shared,
            auth,
            passing_statuses=frozenset({500, 502, 503, 504}),
            log_in_statuses=frozenset({401, 403}),
            throttle_statuses=frozenset({402, 429}),
        )

    # --- listing -----------------------------------------------------------------------------------------------------

    def jobs(self, since: datetime) -> Iterator[Job]:
        """Yield every job that the vendor still lists, in whatever state, once.

        There is no date filter and the order is not stated, so `since` cannot shorten the pass: the vendor itself drops
        old jobs. No status filter either: one pass shows what runs and what is done. Rows shift between pages while jobs
        come and go. Those that come push rows back, which costs duplicates; page 1 is read once more at the end. Those
        that go pull rows forward, past us: when ``X-Count`` shows that, the pages are read again.
        """
        del since
        seen: set[str] = set()
        for _ in range(MAX_SWEEPS):
            if (yield from self._sweep(seen)):
                return
        log.warning("listing_short", source=self._settings.name, jobs=len(seen))

    def _sweep(self, seen: set[str]) -> Generator[Job, None, bool]:
        """Read all pages, yield the jobs that are not in `seen` and add them. Returns False when some must have been missed."""
        swept: set[str] = set()
        most = pages_without_news = 0
        for page in range(1, MAX_PAGES + 1):
            rows, total = self._page(page)
            most = max(most, total or 0)
            known = len(swept)
            yield from self._unseen(rows, seen, swept)
            pages_without_news = pages_without_news + 1 if len(swept) == known else 0
            counted_all = total is not None and len(swept) >= total and len(rows) < PAGE_ROWS
            # One page of old rows may be a shift by a whole page; two are a vendor that repeats itself.
            if not rows or counted_all or pages_without_news == 2:
                break
        else:
            raise VendorReplyError(f"list of jobs: no end after {MAX_PAGES} pages")
        if page > 2 or len(swept) > PAGE_ROWS:
            rows, total = self._page(1)
            yield from self._unseen(rows, seen, swept)
        return total is None or most <= total <= len(swept)

    def _page(self, page: int) -> tuple[list[Any], int | None]:
        """Read one page: its rows, and the number of all jobs where the vendor tells."""
        reply = self._session.get("list of jobs", "/jobs", [("page", str(page))])
        if not reply.ok:
            raise reply.unexpected()
        announced = reply.headers.get("x-count", "")
        total = int(announced) if announced.isascii() and announced.isdigit() and len(announced) < 10 else None
        if reply.status == 204:
            return [], total
        rows = reply.json()
        if not isinstance(rows, list):
            raise VendorReplyError("list of jobs: expected an array")
        return rows, total

    def _unseen(self, rows: list[Any], seen: set[str], swept: set[str]) -> Iterator[Job]:
        for row in rows:
            job_id = id_of(row)
            key = repr(row) if job_id is None else job_id
            swept.add(key)
            if key in seen:
                continue
            seen.add(key)
            if job_id is None:
                log.warning("row_unreadable", source=self._settings.name)
            else:
                yield self._job_or_oddity(job_id, row)

    def job(self, job_id: str) -> Job:
        """Ask for one job (see `base.Source`)."""
        return self._job_or_oddity(job_id, self._document(job_id))

    # --- one job -----------------------------------------------------------------------------------------------------

    def _document(self, job_id: str) -> JsonObject:
        """Read the job's document now. Raises `OutputGoneError` when the vendor does not know the job."""
        reply = self._session.get(f"job {job_id}", f"/jobs/{encode_id(job_id)}")
        if reply.status in {404, 410}:
            raise OutputGoneError(f"job {job_id}: the vendor does not know it any more")
        if not reply.ok:
            raise reply.unexpected()
        return Fields(reply.json(), f"job {job_id}").document

    def _job_or_oddity(self, job_id: str, document: Any) -> Job:
        """Make our noun of the vendor's document; one that cannot be read is RUNNING with a warning, and ends no pass."""
        try:
            return self._job(document)
        except VendorReplyError as exc:
            return Job(id=job_id, state=JobState.RUNNING, warnings=(str(exc),))

    def _job(self, document: Any) -> Job:
        """Make our noun of the vendor's document. Raises `VendorReplyError` where nothing can be said about the job."""
        fields = Fields(document, "job")
        job_id = fields.identity("id")
        fields = Fields(document, f"job {job_id}")
        warnings: list[str] = []
        code = _status_code(fields)
        state = _STATES.get(code)
        if state is None:
            warnings.append(f"job {job_id}: unknown status {code[:40]!r}, taken as running")
        if state is JobState.FAILED:
            return Job(id=job_id, state=state, status=code, named_file=_names_file(fields))
        if state is not JobState.COMPLETED:
            return Job(id=job_id, state=JobState.RUNNING, status=code, warnings=tuple(warnings))
        return self._completed(job_id, fields, code)

    def _completed(self, job_id: str, fields: Fields, code: str) -> Job:
        warnings: list[str] = []
        modified = self._moment(fields, warnings, "modified_at") or self._moment(fields, warnings, "created_at")
        rows = _output_rows(fields)
        kept = _kept(fields.document, len(rows))
        outputs: dict[str, Output] = {}
        for row in rows:
            try:
                output = self._output(job_id, row, kept, modified, warnings)
            except VendorReplyError as exc:
                warnings.append(str(exc))
            else:
                if outputs.setdefault(output.id.output_id, output) != output:
                    name = output.id.output_id[:40]
                    warnings.append(f"job {job_id}: two outputs have the id {name!r}; the first alone is archived")
        if not outputs and (rows or modified is None):
            # Outputs that nobody can read must not look like a job that produced nothing.
            warnings.append(f"job {job_id}: completed, but none of its {len(rows)} outputs can be read")
            return Job(id=job_id, state=JobState.RUNNING, status=code, warnings=tuple(warnings))
        ends = [output.deadline for output in outputs.values()]
        return Job(
            id=job_id,
            state=JobState.COMPLETED,
            outputs=tuple(outputs.values()),
            status=code,
            partial=bool(fields.get("warnings") or fields.get("errors")),
            completed_at=modified.at if modified else min(output.completed_at for output in outputs.values()),
            deadline=min(ends) if ends or modified is None else self._deadline(modified),
            warnings=tuple(warnings),
        )

    def _output(self, job_id: str, row: Any, kept: JsonObject, modified: Moment | None, warnings: list[str]) -> Output:
        fields = Fields(row, f"job {job_id}, output")
        output_id = fields.identity("id")
        fields = Fields(row, f"job {job_id}, output {output_id}")
        created = self._moment(fields, warnings, "created_at")
        moments = [moment for moment in (created, modified) if moment is not None]
        if not moments:
            raise fields.wrong("created_at", "is missing, and so is the job's own time")
        word = _word(fields, warnings)
        if word not in {_OFFERED, _OVERUSED, *_GONE}:
            warnings.append(f"{fields.where}: unknown status {word[:40]!r}, tried once")
        return Output(
            id=OutputId(self._settings.name, job_id, output_id),
            completed_at=moments[0].at,
            deadline=self._deadline(min(moments, key=lambda moment: moment.at)),
            filename=_optional_text(fields, warnings, "filename", "name"),
            size=_count(fields, warnings, "size"),
            checksum=_checksum(fields, warnings),
            content_type=_optional_text(fields, warnings, "content_type"),
            downloads=_count(fields, warnings, "downloads_counter") or 0,
            job={**kept, "output": [receipt_copy(fields.document, _NOT_KEPT)]},
            gone=_GONE.get(word),
        )

    def _deadline(self, earliest: Moment) -> datetime:
        return earliest.at + self._settings.retention - self._settings.margin(zoned=earliest.zoned)

    def _moment(self, fields: Fields, warnings: list[str], name: str) -> Moment | None:
        try:
            return fields.moment(name, zone=self._settings.zone)
        except VendorReplyError as exc:
            warnings.append(str(exc))
            return None

    # --- one download ------------------------------------------------------------------------------------------------

    def link(self, output: Output) -> Link:
        """Read the job now and give the output's `uri` with the vendor's own counter (see `base.Source`).

        The link is counted: one GET, never a HEAD, never a resume. It carries no key; only the download password, if set.
        """
        fields = self._standing(output.id)
        if (withheld := _withheld(_word(fields, []), fields.where)) is not None:
            raise withheld
        uri = fields.need("uri", fields.text("uri", "download_uri"))
        parts = parse_link(uri, f"{fields.where}: uri")
        headers = {"Accept": "*/*"}
        if (password := self._settings.download_password) is not None:
            headers["X-Api2convert-Download-Password"] = revealed(password.reveal)
        return Link(
            url=uri,
            headers=headers,
            counted=True,
            resumable=False,
            filename=output.filename or _optional_text(fields, [], "filename", "name"),
            fallback_filename=unquote(parts.path.rpartition("/")[2]) or output.id.output_id,
            downloads=_count(fields, [], "downloads_counter"),
        )

    def refused(self, output: Output, refusal: RefusedError) -> LastcallError:
        """Read the job again and say what its status makes of the answer (see `base.Source`).

        The API's word goes first: expired, deleted, over used. While it still offers the file, the answer decides:

        * slow down (429, 402): the source is hushed; 5xx: try later;
        * 404, 410, a page under 200: API and download host disagree. Neither is believed: no loss is declared on an
          undocumented answer while the API says the opposite, and a host that lags behind would heal. It is tried later,
          and as the refused GET may have been counted, the budget ends the tries: the output is then held with the
          reserve untouched, or lost as soon as the API says so (which costs no download to hear);
        * 401, 403 and other refusals: held at once; more of the same GETs would only eat up the budget.

        A status that nobody knows was worth one try; after it the output is held.
        """
        fields = self._standing(output.id)
        word = _word(fields, [])
        return (
            _withheld(word, fields.where)
            or self._session.throttled(Reply.of_refusal(refusal))
            or self._disagreement(word, fields.where, refusal)
        )

    def _disagreement(self, word: str, where: str, refusal: RefusedError) -> LastcallError:
        """Say what to do with a refused download whose status reads as if it could be had."""
        status = refusal.status
        if status >= 500 or status == 408:
            message = f"{where}: the download host answered {status}"
            return VendorUnavailableError(message, not_before=retry_after(refusal.headers, datetime.now(UTC)))
        if word != _OFFERED:
            return HeldError(f"{where}: status {word[:40]!r}, and the download was refused with {status}; ask the vendor")
        if status in {401, 403}:
            advice = "check it" if self._settings.download_password is not None else "set it if the file has one"
            why = f"the download was refused with {status}; download_password: {advice}, then `lastcall retry`"
            return HeldError(f"{where}: {why}")
        if status in {404, 410} or status < 400:
            return VendorReplyError(f"{where}: the API offers the file, the download host answered {status} without it")
        return HeldError(f"{where}: the download was refused with {status}; ask the vendor, then `lastcall retry`")

    def confirm(self, output: Output) -> None:
        """Nothing to ask: a job runs once."""

    def _standing(self, output: OutputId) -> Fields:
        """Read now what the vendor says about one output. Raises `OutputGoneError` when it does not know it any more."""
        document = self._document(output.job_id)
        where = f"job {output.job_id}, output {output.output_id}"
        for row in _output_rows(Fields(document, f"job {output.job_id}")):
            if id_of(row) == output.output_id:
                return Fields(row, where)
        # Absence from a list proves nothing; the output's own address does.
        reply = self._session.get(where, f"/jobs/{encode_id(output.job_id)}/output/{encode_id(output.output_id)}")
        if reply.status in {404, 410}:
            raise OutputGoneError(f"{where}: the vendor does not know it any more", reason="deleted")
        if not reply.ok:
            raise reply.unexpected()
        return Fields(reply.json(), where)


def _status_code(fields: Fields) -> str:
    """Give the job's status: an object by the specification, a plain string in one of the vendor's guides."""
    status = fields.get("status")
    code = status.get("code") if isinstance(status, dict) else status
    return code.strip().lower() if isinstance(code, str) else ""


def _output_rows(fields: Fields) -> list[Any]:
    """Give the job's outputs. An absent list is an error: only an empty one says that nothing was produced."""
    if fields.get("output") == {}:  # an empty array in the other of PHP's two spellings
        return []
    fields.need("output", fields.get("output"))
    return fields.rows("output")


def _names_file(fields: Fields) -> bool:
    rows = fields.get("output")
    return isinstance(rows, list) and any(isinstance(row, dict) and (row.get("uri") or row.get("download_uri")) for row in rows)


def _word(fields: Fields, warnings: list[str]) -> str:
    return (_optional_text(fields, warnings, "status") or "").strip().lower()


def _withheld(word: str, where: str) -> LastcallError | None:
    """Give the error for an output whose status says that it cannot be downloaded, else None."""
    if word in _GONE:
        return OutputGoneError(f"{where}: the vendor says that it is {_GONE[word]}", reason=_GONE[word])
    if word == _OVERUSED:
        return OverusedError(f"{where}: {_OVERUSED_ADVICE}")
    return None


def _optional_text(fields: Fields, warnings: list[str], *names: str) -> str | None:
    try:
        return fields.text(*names) or None
    except VendorReplyError as exc:
        warnings.append(str(exc))
        return None


def _count(fields: Fields, warnings: list[str], name: str) -> int | None:
    """Give a number that is not negative. One that cannot be read is no reason to leave the file where it is."""
    try:
        value = fields.integer(name)
    except VendorReplyError as exc:
        warnings.append(str(exc))
        return None
    if value is not None and value < 0:
        warnings.append(f"{fields.where}: {name} is negative")
        return None
    return value


def _checksum(fields: Fields, warnings: list[str]) -> Checksum | None:
    """Give the digest; the vendor does not name its algorithm, so the length tells. An unknown form is a warning only."""
    text = (_optional_text(fields, warnings, "checksum") or "").strip().lower()
    if not text:
        return None
    algorithm = _ALGORITHMS.get(len(text))
    if algorithm is None or not set(text) <= set("0123456789abcdef"):
        warnings.append(f"{fields.where}: checksum of an unknown form, not checked")
        return None
    return Checksum(algorithm=algorithm, value=text)


def _kept(document: JsonObject, outputs: int) -> JsonObject:
    """Give the job as each of its `outputs` receipts keeps it, which adds its own row: no secrets, links, input sources.

    The more outputs, the less of it: together they must not fill Redis.
    """
    inputs = document.get("input")
    kept = [
        {key: value for key, value in item.items() if key != "source"}
        for item in (inputs if isinstance(inputs, list) else ())
        if isinstance(item, dict)
    ]
    return receipt_copy({**document, "input": kept, "output": []}, _NOT_KEPT, together=outputs)
