"""The simulated Crayon exports queue: its shapes, and that every switch does what the fact sheet's section 6 calls it."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest
import requests

from worker.demo.crayon import BAD_GATEWAY, EMPTY_SERVER_FAULT, SERVER_FAULT, TOO_MANY_REQUESTS, Crayon, CrayonSwitches
from worker.demo.server import Content, Fault

# The shapes that the sheet shows, in our own writing: the vendor publishes no specification for these calls.
NO_ZONE = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,3})?$"}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


ITEM = closed(
    Id={"type": "integer"},
    Status={"enum": [0, 1, 2, 4, 8]},
    ActionUrl={"type": "string"},
    Downloadable={"type": "boolean"},
    Attempts={"type": "integer", "minimum": 1},
    ActionName={"type": "string"},
    RequestedBy={"type": "string"},
    CreatedDate=NO_ZONE,
)
LIST = closed(Items={"type": "array", "items": ITEM}, NrOfDays={"const": 7})
TOKEN = closed(
    AccessToken={"type": ["string", "null"]},
    IdentityToken={"type": "null"},
    Error={"type": ["string", "null"]},
    ExpiresIn={"type": "integer"},
    TokenType={"enum": ["Bearer", None]},
    RefreshToken={"type": "null"},
)
DETAIL = {"ErrorCode": {"type": "string"}, "Message": {"type": "string"}, "Parameters": {"type": "object"}}
ERROR = closed(**DETAIL, ObjectErrors={"type": "array", "items": closed(**DETAIL)})


def conforms(document: Any, shape: dict[str, Any]) -> Any:
    jsonschema.validate(document, shape)
    return document


@pytest.fixture
def vendor() -> Iterator[Crayon]:
    with Crayon() as vendor:
        yield vendor
    assert vendor.crashes == []


@pytest.fixture
def session(vendor: Crayon) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Accept"] = "application/json"
        log_in(vendor, session)
        yield session


def ask_for_token(vendor: Crayon, session: requests.Session, slash: str = "/", **changes: str) -> requests.Response:
    form = {
        "grant_type": "password",
        "username": vendor.username,
        "password": vendor.password,
        "scope": "CustomerApi",
    } | changes
    return session.post(
        f"{vendor.base_url}/api/v1/connect/token{slash}",
        data=form,
        headers={"Authorization": None},
        auth=(vendor.client_id, vendor.client_secret),
        allow_redirects=False,
    )


def log_in(vendor: Crayon, session: requests.Session) -> dict[str, Any]:
    document = ask_for_token(vendor, session).json()
    session.headers["Authorization"] = f"Bearer {document['AccessToken']}"
    return document


def ask_for_list(vendor: Crayon, session: requests.Session, slash: str = "/") -> requests.Response:
    return session.get(f"{vendor.base_url}/api/v1/exports{slash}", allow_redirects=False)


def rows(vendor: Crayon, session: requests.Session) -> list[dict[str, Any]]:
    return ask_for_list(vendor, session).json()["Items"]


def download(vendor: Crayon, session: requests.Session, item_id: int, slash: str = "/", **headers: str) -> requests.Response:
    url = f"{vendor.base_url}/api/v1/exports/{item_id}/download{slash}"
    return session.get(url, headers=headers, allow_redirects=False)


def whole(content: Content) -> bytes:
    return b"".join(content.read())


# --- 1, 2: the download ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2000, 100_000])
def test_every_form_of_the_download_carries_the_same_file(vendor, session, size):
    item = vendor.add_job(Content("forms", size, "xlsx"))
    file = whole(item.content)
    decoders = {
        "raw": lambda body: body,
        "file-content": lambda body: base64.b64decode(json.loads(body)["FileContent"], validate=True),
        "numbers": lambda body: bytes(json.loads(body)["FileContent"]),
        "data": lambda body: base64.b64decode(json.loads(body)["Data"], validate=True),
        "camel": lambda body: base64.b64decode(json.loads(body)["fileContent"], validate=True),
    }
    for form, decode in decoders.items():
        vendor.switches.form = form
        assert decode(download(vendor, session, item.id).content) == file, form
    vendor.switches.form = "data"
    assert list(download(vendor, session, item.id).json()) == ["FileName", "Data"]
    vendor.switches.form = "file-content"
    assert list(download(vendor, session, item.id).json()) == ["FileContent", "FileName", "FileContentType"]


def test_the_accept_header_may_choose_the_form(vendor, session):
    item = vendor.add_job()
    vendor.switches.form = "accept"
    assert download(vendor, session, item.id, Accept="application/octet-stream").content == whole(item.content)
    assert download(vendor, session, item.id, Accept="application/json").json()["FileName"] == item.filename


def test_kinds_of_files_are_what_they_say(vendor, session):
    names = {}
    for kind in ("xlsx", "zip"):
        reply = download(vendor, session, vendor.add_job(Content("kinds", 5000, kind)).id)
        with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
            assert archive.testzip() is None
            names[kind] = archive.namelist()
    assert "[Content_Types].xml" in names["xlsx"]
    assert names["zip"] == ["report-1.xlsx", "report-2.xlsx"]
    csv = download(vendor, session, vendor.add_job(Content("kinds", 5000, "csv")).id)
    assert (csv.headers["Content-Type"], csv.text[:4]) == ("text/csv", "sku,")


def test_the_name_of_the_file_in_every_form(vendor, session):
    item = vendor.add_job(item_id=5, filename="a b.xlsx")
    seen = {}
    for form in ("quoted", "unquoted", "extended", "missing", "path"):
        vendor.switches.disposition = form
        seen[form] = download(vendor, session, item.id).headers.get("Content-Disposition")
    assert seen == {
        "quoted": 'attachment; filename="a b.xlsx"',
        "unquoted": "attachment; filename=a b.xlsx",
        "extended": "attachment; filename*=UTF-8''a%20b.xlsx",
        "missing": None,
        "path": 'attachment; filename="../../exports\\a b.xlsx"',
    }


def test_cut_short_looks_whole_and_a_wrong_length_does_not(vendor, session):
    item = vendor.add_job()
    vendor.switches.cut_short = True
    assert len(download(vendor, session, item.id).content) == item.content.size * 6 // 10
    vendor.switches = CrayonSwitches(length_off_by=7)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        download(vendor, session, item.id)


# --- 3 to 6: the list ----------------------------------------------------------------------------------------------------


def test_the_list_has_the_sheets_shape_and_holds_everything_at_once(vendor, session):
    for _ in range(120):
        vendor.add_job()
    items = conforms(ask_for_list(vendor, session).json(), LIST)["Items"]
    assert [item["Id"] for item in items] == sorted(vendor.items, reverse=True)
    assert len({item["ActionName"] for item in items}) == 1
    assert "%3a00%3a00.0000000%2b00" in items[0]["ActionUrl"]


def test_other_shapes_of_the_list(vendor, session):
    vendor.add_job()
    answers = {}
    for form in ("camel", "bare", "null"):
        vendor.switches.list_form = form
        answers[form] = ask_for_list(vendor, session).json()
    assert sorted(answers["camel"]) == ["items", "nrOfDays"]
    assert {"id", "status", "downloadable", "createdDate"} <= set(answers["camel"]["items"][0])
    assert [type(answers["bare"]), answers["bare"][0]["Status"]] == [list, 2]
    assert answers["null"] == {"Items": None, "NrOfDays": 7}
    for days in (3, 0, None):
        vendor.switches = CrayonSwitches(nr_of_days=days)
        assert ask_for_list(vendor, session).json().get("NrOfDays") == days


def test_rows_may_be_shuffled_or_double(vendor, session):
    for _ in range(20):
        vendor.add_job()
    vendor.switches.order = "shuffled"
    ids = [row["Id"] for row in rows(vendor, session)]
    assert ids != sorted(ids, reverse=True)
    assert sorted(ids) == sorted(vendor.items)
    vendor.switches = CrayonSwitches(duplicate_row=True)
    assert len(rows(vendor, session)) == 21


def test_an_item_vanishes_after_the_window_or_only_its_file_does(vendor, session):
    item = vendor.add_job(created_at=vendor.now() - timedelta(days=6, hours=23, minutes=30))
    assert len(rows(vendor, session)) == 1
    vendor.now.advance(timedelta(minutes=31))
    assert rows(vendor, session) == []
    assert download(vendor, session, item.id).status_code == 404
    vendor.switches.after_window = "listed"
    assert [row["Downloadable"] for row in rows(vendor, session)] == [True]
    assert download(vendor, session, item.id).status_code == 404
    assert [truth.gone for truth in vendor.truth()] == [True]
    vendor.switches = CrayonSwitches(window=timedelta(days=30))
    assert download(vendor, session, item.id).status_code == 200
    vendor.switches = CrayonSwitches(window=timedelta(days=3))
    assert rows(vendor, session) == []


def test_an_item_is_queued_then_processed_and_downloadable_perhaps_later_or_never(vendor, session):
    now = vendor.now()
    times = {"created_at": now, "processed_at": now + timedelta(minutes=10)}
    vendor.add_job(**times)
    vendor.add_job(**times, downloadable_after=timedelta(minutes=10))
    vendor.add_job(**times, downloadable_after=None)
    vendor.add_job(**times, listed_after=timedelta(minutes=5))
    seen = []
    for _ in range(3):
        seen.append([(row["Status"], row["Downloadable"]) for row in sorted(rows(vendor, session), key=lambda row: row["Id"])])
        vendor.now.advance(timedelta(minutes=10))
    assert seen == [
        [(1, False)] * 3,
        [(2, True), (2, False), (2, False), (2, True)],
        [(2, True), (2, True), (2, False), (2, True)],
    ]
    assert len(vendor.truth()) == 3


def test_any_status_on_demand_as_number_or_name(vendor, session):
    statuses = (0, 1, 2, 4, 6, 8)
    for status in statuses:
        vendor.add_job(status=status)
    assert [row["Status"] for row in rows(vendor, session)][::-1] == list(statuses)
    vendor.switches.status_as = "text"
    assert [row["Status"] for row in rows(vendor, session)][::-1] == ["None", "Queued", "Processed", "Deleted", "6", "Failed"]
    assert [truth.gone for truth in vendor.truth()] == [False, True], "processed, and deleted since"


def test_attempts_may_grow(vendor, session):
    vendor.add_job(attempts_grow=True)
    assert [rows(vendor, session)[0]["Attempts"] for _ in range(3)] == [2, 3, 4]


def test_created_date_in_every_form(vendor, session):
    vendor.switches.window = timedelta(days=10_000)
    at = datetime(2024, 5, 30, 13, 39, 59, 387_000, tzinfo=UTC)
    item = vendor.add_job(created_at=at)
    seen = {}
    for form in ("utc", "oslo", "zulu", "seconds"):
        item.switches = replace(vendor.switches, created=form)
        seen[form] = rows(vendor, session)[0]["CreatedDate"]
    assert seen == {
        "utc": "2024-05-30T13:39:59.387",
        "oslo": "2024-05-30T15:39:59.387",
        "zulu": "2024-05-30T13:39:59.387Z",
        "seconds": "2024-05-30T13:39:59",
    }


# --- 7, 8: tokens --------------------------------------------------------------------------------------------------------


def test_the_token_answer_is_pascal_case_and_lives_an_hour(vendor, session):
    token = conforms(log_in(vendor, session), TOKEN)
    assert (token["ExpiresIn"], token["TokenType"], token["Error"]) == (3600, "Bearer", None)
    vendor.now.advance(timedelta(seconds=3599))
    assert ask_for_list(vendor, session).status_code == 200
    vendor.now.advance(timedelta(seconds=2))
    refusal = ask_for_list(vendor, session)
    document = conforms(refusal.json(), ERROR)
    assert (refusal.status_code, document["ErrorCode"], document["Message"]) == (401, "401 Unauthorized", "Invalid token")
    vendor.switches.unauthorized_body = "empty"
    assert ask_for_list(vendor, session).content == b""


def test_other_answers_to_a_login(vendor, session):
    vendor.switches.login_answer = "snake"
    assert {"access_token", "expires_in"} <= set(ask_for_token(vendor, session).json())
    vendor.switches.login_answer = "error"
    reply = ask_for_token(vendor, session)
    assert (reply.status_code, reply.json()["AccessToken"], bool(reply.json()["Error"])) == (200, None, True)
    vendor.switches.login_answer = "null"
    document = conforms(ask_for_token(vendor, session).json(), TOKEN)
    assert (document["AccessToken"], document["Error"]) == (None, None)


def test_a_token_may_die_early(vendor, session):
    vendor.switches.token_dies_after = timedelta(seconds=5)
    assert log_in(vendor, session)["ExpiresIn"] == 3600
    vendor.now.advance(timedelta(seconds=6))
    assert ask_for_list(vendor, session).status_code == 401
    vendor.switches.token_dies_after = None
    log_in(vendor, session)
    vendor.revoke_tokens()
    assert ask_for_list(vendor, session).status_code == 401


def test_bad_credentials_and_an_expired_secret_are_400(vendor, session):
    bad = ask_for_token(vendor, session, password="wrong")
    assert (bad.status_code, conforms(bad.json(), TOKEN)["Error"]) == (400, "invalid_grant")
    assert ask_for_token(vendor, session, scope="Other").status_code == 400
    vendor.switches.secret_expired = True
    assert ask_for_token(vendor, session).status_code == 400
    vendor.switches = CrayonSwitches(bad_login_status=401, bad_login_body=False)
    vendor.client_secret, secret = "changed", vendor.client_secret
    assert ask_for_token(vendor, session).status_code == 200
    form = {"grant_type": "password", "username": vendor.username, "password": vendor.password, "scope": "CustomerApi"}
    url = f"{vendor.base_url}/api/v1/connect/token/"
    refused = session.post(url, data=form, auth=(vendor.client_id, secret))
    assert (refused.status_code, refused.content) == (401, b"")


def test_missing_rights_are_401_or_403(vendor, session):
    for status in (401, 403):
        vendor.switches.rights_missing = status
        assert ask_for_list(vendor, session).status_code == status
    vendor.switches.rights_missing = 0
    assert ask_for_list(vendor, session).status_code == 200


# --- 9: downloads that are refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switch", "alternatives", "fields"),
    [
        ("not_ready_status", [400, 409, 204, 200], {"status": 1}),
        ("failed_status", [400, 500], {"final": 8}),
        ("gone_status", [410, 500], {"status": 4}),
        ("nothing_status", [200], {"downloadable_after": None}),
    ],
)
def test_refused_downloads_and_their_alternatives(vendor, session, switch, alternatives, fields):
    item = vendor.add_job(**fields)
    reply = download(vendor, session, item.id)
    assert reply.status_code == 404
    conforms(reply.json(), ERROR)
    for status in alternatives:
        setattr(vendor.switches, switch, status)
        reply = download(vendor, session, item.id)
        assert reply.status_code == status
        assert bool(reply.content) == (status not in {200, 204})
    vendor.switches.error_under_200 = True
    reply = download(vendor, session, item.id)
    assert (reply.status_code, bool(conforms(reply.json(), ERROR))) == (200, True)


def test_an_item_that_never_was_is_gone_too(vendor, session):
    assert download(vendor, session, 1).status_code == 404
    item = vendor.add_job()
    item.deleted = True
    assert (rows(vendor, session), download(vendor, session, item.id).status_code) == ([], 404)


# --- 10, 11: slashes and faults --------------------------------------------------------------------------------------------


def test_trailing_slashes(vendor, session):
    item = vendor.add_job()

    def statuses(slash: str) -> list[int]:
        token, listed = ask_for_token(vendor, session, slash), ask_for_list(vendor, session, slash)
        return [token.status_code, listed.status_code, download(vendor, session, item.id, slash).status_code]

    assert statuses("") == statuses("/") == [200, 200, 200]
    vendor.switches.trailing_slash = "redirect"
    assert (statuses(""), statuses("/")) == ([301, 301, 301], [200, 200, 200])
    assert ask_for_list(vendor, session, "").headers["Location"] == "/api/v1/exports/"
    vendor.switches.trailing_slash = "required"
    assert (statuses(""), statuses("/")) == ([404, 404, 404], [200, 200, 200])


def test_faults_pass_and_the_download_then_succeeds(vendor, session):
    item = vendor.add_job(Content("faults", 300_000, "xlsx"))
    faults = [SERVER_FAULT, EMPTY_SERVER_FAULT, BAD_GATEWAY, TOO_MANY_REQUESTS, Fault(delay_seconds=0.1)]
    vendor.fail("download", *faults)
    replies = [download(vendor, session, item.id) for _ in faults]
    assert [reply.status_code for reply in replies] == [500, 500, 502, 429, 200]
    assert conforms(replies[0].json(), ERROR)["Message"] == "Ops. Something broke"
    assert (replies[1].content, replies[2].text[:6]) == (b"", "<html>")
    vendor.fail("download", Fault(cut_after=100_000), Fault(cut_after=100_000, framing="chunked"))
    for _ in range(2):
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            download(vendor, session, item.id)
    assert download(vendor, session, item.id).content == whole(item.content)
    (truth,) = vendor.truth()
    assert (truth.full_downloads, truth.partial_downloads, truth.size) == (2, 2, 300_000)


def test_calls_that_the_vendor_does_not_have_are_refused(vendor, session):
    item = vendor.add_job()
    assert session.get(f"{vendor.base_url}/api/v1/exports/{item.id}/").status_code == 404
    assert session.delete(f"{vendor.base_url}/api/v1/exports/{item.id}").status_code == 404
    assert [entry.method for entry in vendor.requests("")] == ["GET", "DELETE"]
