"""A simulated Crayon Cloud-iQ: the exports queue, with every misbehaviour of the fact sheet on a switch.

Written from vendors/crayon.md alone; section numbers below are the sheet's.
"""

from __future__ import annotations

import base64
import functools
import json
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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
    Made,
    Raw,
    Reply,
    Request,
    Stream,
    Truth,
    Vendor,
    json_member,
)

OSLO = ZoneInfo("Europe/Oslo")
STATUS_NAMES = {0: "None", 1: "Queued", 2: "Processed", 4: "Deleted", 8: "Failed"}
REFUSAL_CODES = {
    400: "400 BadRequest",
    404: "404 NotFound",
    409: "409 Conflict",
    410: "410 Gone",
    500: "500 InternalServerError",
}
CONTENT_TYPES = {
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "zip": "application/zip",
    "csv": "text/csv",
    "json": "application/json",
}


def error_document(code: str, message: str) -> dict[str, Any]:
    """Give the error body of section 5."""
    return {
        "ErrorCode": code,
        "Message": message,
        "Parameters": {},
        "ObjectErrors": [{"ErrorCode": code, "Message": message, "Parameters": {}}],
    }


# Item 11 of section 6, for `Vendor.fail` and `Vendor.standing`; slow and cut answers are `Fault(delay_seconds=…)` and so on.
SERVER_FAULT = Fault.answer(
    500, json.dumps(error_document("500 InternalServerError", "Ops. Something broke")), "application/json"
)
EMPTY_SERVER_FAULT = Fault.answer(500)
BAD_GATEWAY = Fault.answer(502, "<html><head><title>502 Bad Gateway</title></head><body>502</body></html>")
TOO_MANY_REQUESTS = Fault.answer(429)


@dataclass(kw_only=True)
class CrayonSwitches:
    """Section 6 of the sheet, the default first. An item may carry switches of its own for what concerns it alone.

    5, the states, is in `ExportItem`; 11, the faults of the wire, is `Vendor.fail`, `Vendor.standing` and `ExportItem.fault`.
    """

    # 1. A raw, B `FileContent` as base64 or as numbers, C `Data`, by the request's `Accept`, B with camelCase members.
    form: Literal["raw", "file-content", "numbers", "data", "accept", "camel"] = "raw"
    # 2. The kind of file is the content's. `cut_short`: it ends early under a matching length.
    disposition: Literal["quoted", "unquoted", "extended", "missing", "path"] = "quoted"
    cut_short: bool = False
    length_off_by: int = 0
    # 3.
    list_form: Literal["pascal", "camel", "bare", "null"] = "pascal"
    nr_of_days: int | None = 7
    order: Literal["newest", "shuffled"] = "newest"
    duplicate_row: bool = False
    # 4. What happens when the window is over: the item is listed no more, or its download alone answers 404.
    window: timedelta = timedelta(days=7)
    after_window: Literal["vanishes", "listed"] = "vanishes"
    # 5. (the rest is in the items)
    status_as: Literal["integer", "text"] = "integer"
    # 6.
    created: Literal["utc", "oslo", "zulu", "seconds"] = "utc"
    # 7. `token_dies_after`: the token's real life where it is not what `ExpiresIn` says.
    login_answer: Literal["pascal", "snake", "error", "null"] = "pascal"
    token_life_seconds: int = 3600
    token_dies_after: timedelta | None = None
    bad_login_status: int = 400
    bad_login_body: bool = True
    secret_expired: bool = False
    # 8.
    unauthorized_body: Literal["message", "empty"] = "message"
    rights_missing: Literal[0, 401, 403] = 0
    # 9. With 204 and 200 the body is empty. `error_under_200`: all of these are the error object under 200.
    not_ready_status: int = 404
    failed_status: int = 404
    gone_status: int = 404
    nothing_status: int = 404
    error_under_200: bool = False
    # 10.
    trailing_slash: Literal["both", "redirect", "required"] = "both"


@dataclass(kw_only=True)
class ExportItem:
    """An item of the exports queue: queued when created, processed by the vendor's clock.

    `final` is the status that it ends with. `status` is one that it has instead, whatever the clock says (0 and 6 too).
    `downloadable_after` is how long a processed item stays without `Downloadable`; None: for ever, it produced nothing.
    `listed_after` is the delay of the message bus before the item appears.
    """

    id: int
    created_at: datetime
    processed_at: datetime
    content: Content
    filename: str
    action_name: str = "New Commerce License-based Report@2015.01.01 - 2024.05.22"
    final: int = 2
    status: int | None = None
    downloadable_after: timedelta | None = timedelta()
    listed_after: timedelta = timedelta()
    attempts: int = 1
    attempts_grow: bool = False
    deleted: bool = False
    fault: Fault = FAULTLESS
    switches: CrayonSwitches | None = None

    def status_at(self, now: datetime) -> int:
        """Give the status of the moment."""
        if self.status is not None:
            return self.status
        return self.final if now >= self.processed_at else 1

    def downloadable_at(self, now: datetime) -> bool:
        """Tell whether a file can be downloaded."""
        return self.status_at(now) == 2 and self._file_made(now)

    def had_file(self, now: datetime) -> bool:
        """Tell whether there was ever a file, deleted since or not."""
        return self.downloadable_at(now) or (self.status == 4 and self.final == 2 and self._file_made(now))

    def _file_made(self, now: datetime) -> bool:
        return self.downloadable_after is not None and now >= self.processed_at + self.downloadable_after


class Crayon(Vendor):
    """Cloud-iQ for one account. The credentials are attributes and may be changed."""

    def __init__(self, *, now: Clock | None = None, port: int = 0, switches: CrayonSwitches | None = None) -> None:
        super().__init__(now=now, port=port)
        self.client_id, self.client_secret = "client-0001", "client-placeholder"
        self.username, self.password = "svc-archive@example.com", "correct horse"
        self.switches = switches or CrayonSwitches()
        self.items: dict[int, ExportItem] = {}
        self._tokens: dict[str, datetime] = {}
        self.route("token", "POST", "/api/v1/connect/token/?", self._token)
        self.route("list", "GET", "/api/v1/exports/?", self._list)
        self.route("download", "GET", r"/api/v1/exports/(?P<item_id>\d+)/download/?", self._download)

    @property
    def credentials(self) -> dict[str, str]:
        """What the table of its source needs to be let in."""
        return {key: getattr(self, key) for key in ("client_id", "client_secret", "username", "password")}

    # what a test or the demo sets up

    def add_job(
        self,
        content: Content | None = None,
        *,
        item_id: int | None = None,
        created_at: datetime | None = None,
        processed_at: datetime | None = None,
        filename: str | None = None,
        **other: Any,
    ) -> ExportItem:
        """Add an item; without times it was created a minute ago and has just been processed.

        `other`: further fields of `ExportItem`.
        """
        with self.lock:
            item_id = item_id or max(self.items, default=2436) + 1
            content = content or Content(f"crayon {item_id}", 2000, "xlsx")
            created_at = created_at or min(self.now(), processed_at or self.now()) - timedelta(seconds=60)
            ending = "bin" if content.kind == "bytes" else content.kind
            item = ExportItem(
                id=item_id,
                content=content,
                created_at=created_at,
                processed_at=processed_at or max(self.now(), created_at),
                filename=f"New Commerce License-based Report {item_id}.{ending}" if filename is None else filename,
                **other,
            )
            self.items[item_id] = item
            return item

    def gone(self, item: ExportItem) -> bool:
        """Tell whether the file can be had no more."""
        over = self.now() >= item.created_at + self._switches(item).window
        return item.deleted or over or item.status_at(self.now()) == 4

    def truth(self) -> list[Truth]:
        """List the outputs of all items that were processed and had a file; those deleted since are gone."""
        with self.lock:
            done = [item for item in self.items.values() if item.had_file(self.now())]
        return [
            Truth(
                job_id=str(item.id),
                output_id=str(item.id),
                filename=item.filename,
                size=item.content.size,
                sha256=item.content.sha256,
                completed_at=item.created_at,
                full_downloads=self.served[item.id].full,
                partial_downloads=self.served[item.id].partial,
                gone=self.gone(item),
            )
            for item in done
        ]

    def revoke_tokens(self) -> None:
        """Let every token that was given out be refused from now on."""
        with self.lock:
            self._tokens.clear()

    # sections 2 and 5

    def _token(self, request: Request) -> Reply:
        switches = self.switches
        if switches.secret_expired or not self._credentials_fit(request):
            refusal = _token_document(None, "invalid_grant", 0)
            return (
                Reply.json(refusal, switches.bad_login_status)
                if switches.bad_login_body
                else Reply(status=switches.bad_login_status)
            )
        if switches.login_answer == "error":
            return Reply.json(_token_document(None, "The token could not be made.", 0))
        if switches.login_answer == "null":
            return Reply.json(_token_document(None, None, switches.token_life_seconds))
        token = ".".join(secrets.token_urlsafe(length) for length in (27, 90, 48))
        life = timedelta(seconds=switches.token_life_seconds)
        self._tokens[token] = request.at + (life if switches.token_dies_after is None else switches.token_dies_after)
        if switches.login_answer == "snake":
            return Reply.json({"access_token": token, "expires_in": switches.token_life_seconds, "token_type": "Bearer"})
        return Reply.json(_token_document(token, None, switches.token_life_seconds))

    def _credentials_fit(self, request: Request) -> bool:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        expected = {"grant_type": "password", "username": self.username, "password": self.password, "scope": "CustomerApi"}
        basic = base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()
        return form | expected == form and request.headers.get("authorization") == f"Basic {basic}"

    def screen(self, request: Request, route: str) -> Reply | None:
        """Settle the trailing slash, then ask for a token and for rights."""
        switches = self.switches
        if not request.path.endswith("/") and switches.trailing_slash != "both":
            if switches.trailing_slash == "redirect":
                return Reply(status=301, headers={"Location": request.path + "/"})
            return self.no_route(request)
        if route == "token":
            return None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        ends_at = self._tokens.get(token)
        if scheme != "Bearer" or ends_at is None or request.at >= ends_at:
            return self._unauthorized(401)
        return self._unauthorized(switches.rights_missing) if switches.rights_missing else None

    def _unauthorized(self, status: int) -> Reply:
        if self.switches.unauthorized_body == "empty":
            return Reply(status=status)
        code = "401 Unauthorized" if status == 401 else "403 Forbidden"
        return Reply.json({**error_document(code, "Invalid token"), "ObjectErrors": []}, status)

    # section 3

    def _list(self, request: Request) -> Reply:
        switches = self.switches
        items = [item for item in self.items.values() if self._listed(item)]
        items.sort(key=lambda item: (item.created_at, item.id), reverse=True)
        if switches.duplicate_row and items:
            items.append(items[0])
        if switches.order == "shuffled":
            random.Random(len(self.log)).shuffle(items)
        for item in items:
            item.attempts += item.attempts_grow
        rows: list[dict[str, Any]] | None = [self._row(item, request.at) for item in items]
        if switches.list_form == "bare":
            return Reply.json(rows)
        document: dict[str, Any] = {"Items": None if switches.list_form == "null" else rows}
        if switches.nr_of_days is not None:
            document["NrOfDays"] = switches.nr_of_days
        if switches.list_form == "camel":
            document = _camel(document) | {"items": [_camel(row) for row in rows or []]}
        return Reply.json(document)

    def _listed(self, item: ExportItem) -> bool:
        switches = self._switches(item)
        now = self.now()
        inside = now < item.created_at + switches.window or switches.after_window == "listed"
        return inside and not item.deleted and now >= item.created_at + item.listed_after

    def _row(self, item: ExportItem, now: datetime) -> dict[str, Any]:
        switches = self._switches(item)
        status = item.status_at(now)
        return {
            "Id": item.id,
            "Status": status if switches.status_as == "integer" else STATUS_NAMES.get(status, str(status)),
            "ActionUrl": "subscriptions/file/xlsx?tenantId=1000&organizationId=4000000"
            "&userId=00000000-0000-4000-8000-000000000001&from=2015-01-01T00%3a00%3a00.0000000%2b00%3a00&to=2024-05-22T00%3a00%3a00.0000000%2b00%3a00"
            "&publisherId=2&cloudAccountId=&invoiceProfileId=",
            "Downloadable": item.downloadable_at(now),
            "Attempts": item.attempts,
            "ActionName": item.action_name,
            "RequestedBy": "someone@example.com",
            "CreatedDate": _written(item.created_at, switches.created),
        }

    # section 4

    def _download(self, request: Request, item_id: str) -> Reply:
        switches = self.switches
        item = self.items.get(int(item_id))
        if item is None or self.gone(item):
            return self._refusal(switches.gone_status, "The export cannot be found.")
        status = item.status_at(request.at)
        if item.downloadable_at(request.at):
            return self._file(item, request)
        if status == 8:
            return self._refusal(switches.failed_status, "The export failed.")
        if status == 2:
            return self._refusal(switches.nothing_status, "The export has no file.")
        return self._refusal(switches.not_ready_status, "The export is not ready.")

    def _refusal(self, status: int, message: str) -> Reply:
        code = REFUSAL_CODES.get(status, REFUSAL_CODES[500])
        if self.switches.error_under_200:
            return Reply.json(error_document(code, message))
        return Reply(status=status) if status in {200, 204} else Reply.json(error_document(code, message), status)

    def _file(self, item: ExportItem, request: Request) -> Reply:
        switches = self._switches(item)
        form = switches.form
        if form == "accept":
            form = "file-content" if "json" in request.headers.get("accept", "") else "raw"
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if form == "raw":
            headers = {"Content-Type": CONTENT_TYPES.get(item.content.kind, "application/octet-stream")}
            if disposition := _disposition(item.filename, switches.disposition):
                headers["Content-Disposition"] = disposition
        body = _body(item, form)
        if switches.cut_short:
            body = First(body, body.size * 6 // 10)
        fault = item.fault
        if switches.length_off_by and fault is FAULTLESS:
            fault = Fault(length_off_by=switches.length_off_by)
        return Reply(headers=headers, body=body, counts=item.id, fault=fault)

    def no_route(self, request: Request) -> Reply:
        """Answer a path that does not exist; ``DELETE`` and the call for a single item among them."""
        del request
        return Reply.json(error_document("404 NotFound", "Not found"), 404)

    def _switches(self, item: ExportItem) -> CrayonSwitches:
        return item.switches or self.switches


def _token_document(token: str | None, error: str | None, life_seconds: int) -> dict[str, Any]:
    return {
        "AccessToken": token,
        "IdentityToken": None,
        "Error": error,
        "ExpiresIn": life_seconds,
        "TokenType": None if error else "Bearer",
        "RefreshToken": None,
    }


def _camel(document: dict[str, Any]) -> dict[str, Any]:
    return {name[0].lower() + name[1:]: value for name, value in document.items()}


def _written(at: datetime, form: str) -> str:
    """Write a time as .NET does: milliseconds, no trailing zeros."""
    local = at.astimezone(OSLO if form == "oslo" else UTC)
    text = f"{local:%Y-%m-%dT%H:%M:%S}"
    if form != "seconds":
        text = f"{text}.{local.microsecond // 1000:03}".rstrip("0").rstrip(".")
    return text + ("Z" if form == "zulu" else "")


def _disposition(filename: str, form: str) -> str | None:
    return {
        "quoted": f'attachment; filename="{filename}"',
        "unquoted": f"attachment; filename={filename}",
        "extended": f"attachment; filename*=UTF-8''{quote(filename, safe='')}",
        "path": f'attachment; filename="../../exports\\{filename}"',
    }.get(form)


def _body(item: ExportItem, form: str) -> Stream:
    text = Base64(item.content)
    named = {"FileContent": "", "FileName": item.filename, "FileContentType": CONTENT_TYPES.get(item.content.kind, "")}
    match form:
        case "file-content":
            return json_member(named, "FileContent", text)
        case "camel":
            return json_member(_camel(named), "fileContent", text)
        case "numbers":
            return json_member(named, "FileContent", _numbers(item.content), quoted=False)
        case "data":
            return json_member({"FileName": item.filename, "Data": ""}, "Data", text)
        case _:
            return item.content


@functools.lru_cache(maxsize=64)
def _numbers(content: Content) -> Joined:
    """Give the content as a JSON array of byte numbers; kept, since only a pass through it tells its length."""
    words = [str(number).encode() for number in range(256)]

    def make() -> Iterator[bytes]:
        separator = b""
        for chunk in content.read():
            yield separator + b",".join(map(words.__getitem__, chunk))
            separator = b","

    return Joined((Raw(b"["), Made(make), Raw(b"]")))
