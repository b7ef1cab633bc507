"""The simulated Sellercloud tenant: its shapes, and that every switch does what the fact sheet's section 6 calls it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jsonschema
import pytest
import requests

from worker.demo.sellercloud import STATUS_NAMES, Sellercloud, SellercloudSwitches
from worker.demo.server import Content, Fault

SPEC = json.loads((Path(__file__).parents[1] / "specs" / "sellercloud.json").read_text())


def conforms(document: Any, shape: str) -> Any:
    jsonschema.validate(document, {**SPEC, "$ref": f"#/$defs/{shape}"})
    return document


@pytest.fixture
def vendor() -> Iterator[Sellercloud]:
    with Sellercloud() as vendor:
        yield vendor
    assert vendor.crashes == []


@pytest.fixture
def session(vendor: Sellercloud) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Content-Type"] = "application/json"
        log_in(vendor, session)
        yield session


def log_in(vendor: Sellercloud, session: requests.Session) -> dict[str, Any]:
    reply = session.post(f"{vendor.base_url}/api/token", json={"Username": vendor.username, "Password": vendor.password})
    assert reply.status_code == 200, reply.text
    session.headers["Authorization"] = f"Bearer {reply.json()['access_token']}"
    return reply.json()


def listing(vendor: Sellercloud, session: requests.Session, **query: Any) -> dict[str, Any]:
    reply = session.get(f"{vendor.base_url}/api/QueuedJobs", params={f"model.{name}": value for name, value in query.items()})
    assert reply.status_code == 200, reply.text
    return conforms(reply.json(), "list")


def download(vendor: Sellercloud, session: requests.Session, job_id: int) -> requests.Response:
    return session.get(f"{vendor.base_url}/api/QueuedJobs/OutputFile", params={"id": job_id})


def whole(content: Content) -> bytes:
    return b"".join(content.read())


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_the_same_job_is_flat_in_the_list_and_nested_alone(vendor, session):
    job = vendor.add_job()
    row = listing(vendor, session)["Items"][0]
    alone = conforms(session.get(f"{vendor.base_url}/api/QueuedJobs/{job.id}").json(), "single")
    assert (row["ID"], row["QueuedJobStatus"], row["CompanyID"]) == (job.id, 3, "164")
    assert (alone["Basic"]["ID"], alone["Basic"]["Status"], alone["Basic"]["CompanyID"]) == (job.id, 3, 164)
    assert row["OutputFile"] == alone["OutputFile"] == job.filename
    conforms(session.get(f"{vendor.base_url}/api/QueuedJobs/{job.id}/Logs").json(), "logs")
    assert session.get(f"{vendor.base_url}/api/QueuedJobs/BulkUpdateLog/{job.id}").status_code == 400
    assert session.get(f"{vendor.base_url}/api/QueuedJobs/BulkUpdateLog/1").status_code == 404


def test_a_job_is_submitted_then_processing_then_completed_as_the_clock_says(vendor, session):
    now = vendor.now()
    job = vendor.add_job(submitted_at=now, started_at=now + timedelta(minutes=1), completed_at=now + timedelta(minutes=2))
    seen = []
    for _ in range(3):
        row = listing(vendor, session)["Items"][0]
        seen.append((row["QueuedJobStatus"], row["OutputFile"], row["StartedOn"] is not None, row["CompletedOn"] is not None))
        vendor.now.advance(timedelta(minutes=1))
    assert seen == [(0, "", False, False), (1, "", True, False), (3, job.filename, True, True)]


def test_the_list_has_ten_rows_unless_asked_and_fifty_at_most(vendor, session):
    for _ in range(120):
        vendor.add_job()
    assert len(listing(vendor, session)["Items"]) == 10
    pages = [listing(vendor, session, pageSize=200, pageNumber=number) for number in (1, 2, 3, 4)]
    assert [len(page["Items"]) for page in pages] == [50, 50, 20, 0]
    assert {page["TotalResults"] for page in pages} == {120}
    ids = [row["ID"] for page in pages for row in page["Items"]]
    assert ids == sorted(vendor.jobs, reverse=True)


def test_filters_of_the_list(vendor, session):
    now = vendor.now()
    old = vendor.add_job(submitted_at=now - timedelta(days=3), job_type=5)
    new = vendor.add_job(final=4)
    iso, prose = "%Y-%m-%dT%H:%M:%S", "%m/%d/%Y %H:%M"
    yesterday = now - timedelta(days=1)
    for query, expected in [
        ({"jobID": old.id}, [old.id]),
        ({"jobType": [5, 6]}, [old.id]),
        ({"jobStatuses": [4, 5]}, [new.id]),
        ({"submittedFrom": yesterday.strftime(iso)}, [new.id]),
        ({"submittedFrom": yesterday.strftime(prose)}, [new.id]),
        ({"submittedTo": yesterday.isoformat()}, [old.id]),
        ({"submittedBy": 18}, []),
        ({"companyIDList": 164, "queuedJobPriorities": 1}, [new.id, old.id]),
    ]:
        assert [row["ID"] for row in listing(vendor, session, **query)["Items"]] == expected, query
    assert session.get(f"{vendor.base_url}/api/QueuedJobs", params={"model.pageNumber": "one"}).status_code == 400


# --- 1, 2: the download's body and name --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 300_000])
def test_every_form_of_the_body_carries_the_same_file(vendor, session, size):
    job = vendor.add_job(Content("forms", size))
    file = whole(job.content)
    decoders = {
        "base64": lambda body: base64.b64decode(body, validate=True),
        "json-string": lambda body: base64.b64decode(json.loads(body), validate=True),
        "object": lambda body: base64.b64decode(conforms(json.loads(body), "file")["Content"], validate=True),
        "raw": lambda body: body,
        "lines": base64.b64decode,
        "bom": lambda body: base64.b64decode(body.removeprefix(b"\xef\xbb\xbf"), validate=True),
    }
    for form, decode in decoders.items():
        vendor.switches.body = form
        assert decode(download(vendor, session, job.id).content) == file, form
    vendor.switches.body = "lines"
    assert all(len(line) <= 76 for line in download(vendor, session, job.id).content.split(b"\r\n"))


def test_a_body_that_is_cut_short_looks_whole_to_http(vendor, session):
    job = vendor.add_job()
    for form, start in (("cut", b"c2t1"), ("cut-json-string", b'"c2t1'), ("cut-object", b'{"FileName"')):
        vendor.switches.body = form
        reply = download(vendor, session, job.id)
        assert int(reply.headers["Content-Length"]) == len(reply.content) < job.content.size * 4 / 3
        assert reply.content.startswith(start)
        assert len(reply.content) % 4 == 1


def test_pages_and_errors_come_under_200(vendor, session):
    job = vendor.add_job()
    vendor.switches.body = "html"
    page = download(vendor, session, job.id)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    vendor.switches.body = "error-object"
    assert list(download(vendor, session, job.id).json()) == ["Error"]


def test_the_name_of_the_file_in_every_form(vendor, session):
    job = vendor.add_job(filename="Übersicht, März.csv")
    seen = {}
    for form in ("quoted", "extended", "missing"):
        vendor.switches.disposition = form
        seen[form] = download(vendor, session, job.id).headers.get("Content-Disposition")
    assert seen == {
        "quoted": 'attachment; filename="Übersicht, März.csv"',
        "extended": "attachment; filename*=UTF-8''%C3%9Cbersicht%2C%20M%C3%A4rz.csv",
        "missing": None,
    }
    plain = vendor.add_job(job_id=7)
    vendor.switches.disposition = "unquoted"
    assert download(vendor, session, plain.id).headers["Content-Disposition"] == "attachment; filename=CustomExport_7.csv"
    vendor.switches.disposition = "path"
    assert "\\..\\Exports/164/" in download(vendor, session, plain.id).headers["Content-Disposition"]


# --- 3, 4: URLs and queries --------------------------------------------------------------------------------------------


def test_both_download_urls_in_any_case_or_only_one(vendor, session):
    job = vendor.add_job()
    urls = [f"{vendor.base_url}/api/queuedjobs/outputfile/{job.id}", f"{vendor.base_url}/API/QueuedJobs/OutputFile?ID={job.id}"]
    statuses = {}
    for switch in ("both", "query", "path"):
        vendor.switches.download_urls = switch
        statuses[switch] = [session.get(url).status_code for url in urls]
    assert statuses == {"both": [200, 200], "query": [404, 200], "path": [200, 404]}


def test_bare_query_names_may_be_ignored(vendor, session):
    for _ in range(12):
        vendor.add_job()
    url = f"{vendor.base_url}/api/QueuedJobs"
    assert len(session.get(url, params={"pageSize": 12}).json()["Items"]) == 12
    vendor.switches.query_names = "model"
    assert len(session.get(url, params={"pageSize": 12}).json()["Items"]) == 10
    assert len(session.get(url, params={"model.pageSize": 12}).json()["Items"]) == 12


def test_page_size_over_fifty_refused_and_empty_pages_null_and_oldest_first(vendor, session):
    vendor.switches = SellercloudSwitches(page_size="refused", empty_items="null", order="oldest")
    assert listing(vendor, session) == {"Items": None, "TotalResults": 0}
    assert session.get(f"{vendor.base_url}/api/QueuedJobs", params={"model.pageSize": 51}).status_code == 500
    first, second = vendor.add_job(), vendor.add_job()
    assert [row["ID"] for row in listing(vendor, session)["Items"]] == [first.id, second.id]


def test_rows_shift_between_pages(vendor, session):
    for _ in range(12):
        vendor.add_job(submitted_at=vendor.now() - timedelta(hours=1))
    vendor.switches.shift = "arrive"
    first, second = ([row["ID"] for row in listing(vendor, session, pageNumber=number)["Items"]] for number in (1, 2))
    assert first[-1] == second[0]
    vendor.switches.shift = "leave"
    first, second = ([row["ID"] for row in listing(vendor, session, pageNumber=number)["Items"]] for number in (1, 2))
    assert first[-1] - second[0] == 2


# --- 5, 6: states and times --------------------------------------------------------------------------------------------


def test_any_status_on_demand_as_number_or_text(vendor, session):
    jobs = {status: vendor.add_job(status=status) for status in (*range(11), 99)}
    url = f"{vendor.base_url}/api/QueuedJobs"
    rows = {row["ID"]: row for row in session.get(url, params={"model.pageSize": 50}).json()["Items"]}
    assert {status: rows[job.id]["QueuedJobStatus"] for status, job in jobs.items()} == {status: status for status in jobs}
    assert {job.status for job in jobs.values() if not rows[job.id]["OutputFile"]} == {0, 1, 6}
    vendor.switches.status_as = "text"
    rows = {row["ID"]: row for row in session.get(url, params={"model.pageSize": 50}).json()["Items"]}
    assert rows[jobs[8].id]["QueuedJobStatus"] == STATUS_NAMES[8] == "Cancelled_Service_Restarted"
    assert rows[jobs[2].id]["QueuedJobStatus"] == "2"
    assert session.get(f"{url}/{jobs[3].id}").json()["Basic"]["Status"] == "Completed"


def test_endings_with_and_without_a_file(vendor, session):
    cases = [(3, "named"), (3, "empty"), (3, "null"), (5, "named"), (5, "empty"), (7, "named"), (4, "named")]
    jobs = [vendor.add_job(final=final, output_file=file) for final, file in cases]
    rows = listing(vendor, session)["Items"][::-1]
    names = {"named": None, "empty": "", "null": None}
    for job, row, (final, file) in zip(jobs, rows, cases, strict=True):
        assert row["QueuedJobStatus"] == final
        assert row["OutputFile"] == (job.filename if file == "named" else names[file])
        assert bool(download(vendor, session, job.id).content) == (file == "named")
    assert [truth.job_id for truth in vendor.truth()] == [str(jobs[0].id), str(jobs[3].id)]


def test_a_job_that_stands_still_goes_on_when_its_status_is_freed(vendor, session):
    job = vendor.add_job(status=6)
    vendor.now.advance(timedelta(minutes=30))
    assert listing(vendor, session)["Items"][0]["QueuedJobStatus"] == 6
    job.status = None
    assert listing(vendor, session)["Items"][0]["QueuedJobStatus"] == 3


def test_times_have_no_zone_or_the_tenants_or_utc(vendor, session):
    at = datetime(2026, 3, 26, 12, 53, 17, 585_000, tzinfo=UTC)
    vendor.switches.retention = timedelta(days=10_000)
    vendor.add_job(submitted_at=at, completed_at=at.replace(microsecond=100_000, minute=55))
    vendor.add_job(submitted_at=at, completed_at=at.replace(microsecond=0), switches=replace(vendor.switches, times="zulu"))
    zulu, plain = listing(vendor, session)["Items"]
    assert (plain["SubmittedOn"], plain["CompletedOn"]) == ("2026-03-26T12:53:17.585", "2026-03-26T12:55:17.1")
    assert zulu["CompletedOn"] == "2026-03-26T12:53:17Z"
    vendor.switches.times = "local"
    local = listing(vendor, session, submittedFrom="2026-03-26T08:53:00", submittedTo="2026-03-26T08:54:00")["Items"][1]
    assert local["SubmittedOn"] == "2026-03-26T08:53:17.585"
    assert datetime.fromisoformat(local["SubmittedOn"]).replace(tzinfo=ZoneInfo("America/New_York")) == at


# --- 7, 8: missing, early, gone ----------------------------------------------------------------------------------------


def test_a_missing_job_is_500_with_the_records_text(vendor, session):
    single = f"{vendor.base_url}/api/QueuedJobs/404"
    for url in (single, f"{vendor.base_url}/api/QueuedJobs/OutputFile?id=404"):
        reply = session.get(url)
        assert (reply.status_code, reply.text) == (500, "Could not find or load record with ID 404!")
    vendor.switches.error_form = "message"
    assert session.get(single).json() == {"Message": "Could not find or load record with ID 404!"}
    vendor.switches.error_form = "json-string"
    assert session.get(single).json() == "Could not find or load record with ID 404!"
    vendor.switches.missing_status = 404
    assert session.get(single).status_code == 404


def test_a_job_just_submitted_is_not_there_yet(vendor, session):
    vendor.switches.hidden_for = timedelta(seconds=30)
    job = vendor.add_job(submitted_at=vendor.now(), completed_at=vendor.now())
    assert listing(vendor, session)["Items"] == []
    assert "load record" in session.get(f"{vendor.base_url}/api/QueuedJobs/{job.id}").text
    vendor.switches.hidden_from = frozenset({"download"})
    assert len(listing(vendor, session)["Items"]) == 1
    assert "load record" in download(vendor, session, job.id).text
    vendor.now.advance(timedelta(seconds=31))
    assert download(vendor, session, job.id).status_code == 200


def test_the_file_of_a_running_job(vendor, session):
    job = vendor.add_job(completed_at=vendor.now() + timedelta(hours=1))
    answers = {}
    for switch in ("500", "empty", "404"):
        vendor.switches.running_file = switch
        reply = download(vendor, session, job.id)
        answers[switch] = (reply.status_code, reply.text)
    assert answers == {"500": (500, "Internal Server Error"), "empty": (200, ""), "404": (404, "Not Found")}


def test_jobs_are_deleted_ten_days_after_submission_or_after_completion_or_earlier(vendor, session):
    now = vendor.now()
    job = vendor.add_job(submitted_at=now - timedelta(days=2), completed_at=now)
    vendor.now.advance(timedelta(days=7, hours=23))
    log_in(vendor, session)
    assert download(vendor, session, job.id).status_code == 200
    vendor.now.advance(timedelta(hours=2))
    log_in(vendor, session)
    assert download(vendor, session, job.id).text == f"Could not find or load record with ID {job.id}!"
    assert listing(vendor, session) == {"Items": [], "TotalResults": 0}
    (truth,) = vendor.truth()
    assert (truth.gone, truth.full_downloads, truth.sha256) == (True, 1, job.content.sha256)
    vendor.switches.purge_from = "completed"
    assert download(vendor, session, job.id).status_code == 200
    vendor.switches.retention = timedelta(days=1)
    assert download(vendor, session, job.id).status_code == 500


# --- 9: tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_lives_as_long_as_it_says_and_then_401_stands_in_the_reason(vendor, session):
    vendor.switches.token_life_seconds = 1800.0
    token = conforms(log_in(vendor, session), "token")
    assert token["expires_in"] == 1800.0
    assert re.fullmatch(r".*\.\d{7}Z", token[".issued"])
    assert listing(vendor, session)["TotalResults"] == 0
    vendor.now.advance(timedelta(seconds=1801))
    reply = session.get(f"{vendor.base_url}/api/QueuedJobs")
    assert (reply.status_code, reply.reason, reply.content) == (401, "Invalid token", b"")
    vendor.switches.unauthorized_body = "message"
    assert session.get(f"{vendor.base_url}/api/QueuedJobs").json() == {"Message": "Invalid token"}


def test_a_token_may_die_early_or_by_the_next_login(vendor, session):
    url = f"{vendor.base_url}/api/QueuedJobs"
    vendor.switches.token_dies_after = timedelta(seconds=10)
    assert log_in(vendor, session)["expires_in"] == 3600.0
    vendor.now.advance(timedelta(seconds=11))
    assert session.get(url).status_code == 401
    vendor.switches = SellercloudSwitches(login_voids_old=True)
    log_in(vendor, session)
    with requests.Session() as other:
        log_in(vendor, other)
        assert (session.get(url).status_code, other.get(url).status_code) == (401, 200)
        vendor.revoke_tokens()
        assert other.get(url).status_code == 401


def test_token_dates_may_be_reversed_or_not_even_json(vendor, session):
    vendor.switches.issued_dates = "reversed"
    token = log_in(vendor, session)
    assert token[".expires"] < token[".issued"]
    vendor.switches.issued_dates = "unquoted"
    body = {"Username": vendor.username, "Password": vendor.password}
    reply = session.post(f"{vendor.base_url}/api/token", json=body)
    assert re.search(r'"\.issued": \d{4}-', reply.text)
    with pytest.raises(requests.JSONDecodeError):
        reply.json()


def test_logins_are_taken_in_every_documented_form_and_refused_in_the_vendors_words(vendor, session):
    url = f"{vendor.base_url}/api/token"
    for accepted in (
        {"json": {"username": vendor.username, "password": vendor.password}},
        {"data": {"Username": vendor.username, "Password": vendor.password}, "headers": {"Content-Type": None}},
        {
            "data": json.dumps({"Username": vendor.username, "Password": vendor.password}),
            "headers": {"Content-Type": "text/json"},
        },
    ):
        with requests.Session() as fresh:
            assert fresh.post(url, **accepted).status_code == 200, accepted
    for status in (400, 401, 403):
        vendor.switches.bad_login_status = status
        for body in (b'{"Username": "x", "Password": "y"}', b"[]", b"nothing"):
            reply = session.post(url, data=body)
            assert (reply.status_code, reply.json()) == (status, {"Message": "Sorry, invalid username or password"})


def test_the_server_of_a_team_can_be_asked_for(vendor, session):
    url = f"{vendor.origin()}/api/server-by-team/"
    assert session.get(url, params={"team": "example"}).json()["RestApiEndpoint"] == f"{vendor.base_url}/"
    unknown = session.get(url, params={"team": "other"})
    assert unknown.json() == {"Success": False, "Message": "Team name not found. Please try again."}


# --- 10, 11: throttling and faults -------------------------------------------------------------------------------------


def test_the_throttle_answers_409_with_the_reset_time_until_the_window_ends(vendor, session):
    vendor.switches = SellercloudSwitches(throttle="409", throttle_calls=2, throttle_on=frozenset({"list"}))
    job = vendor.add_job()
    url = f"{vendor.base_url}/api/QueuedJobs"
    replies = [session.get(url) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 409]
    reset = conforms(replies[2].json(), "throttled")["RateLimitResetTime"]
    assert "Retry-After" not in replies[2].headers
    assert download(vendor, session, job.id).status_code == 200
    wait = datetime.fromisoformat(reset[:26] + "+00:00") - vendor.now()
    assert timedelta(minutes=59) < wait <= timedelta(hours=1)
    vendor.switches.throttle = "429"
    throttled = session.get(url)
    assert (throttled.status_code, 3500 < int(throttled.headers["Retry-After"]) <= 3600) == (429, True)
    vendor.now.advance(wait + timedelta(seconds=1))
    log_in(vendor, session)
    assert session.get(url).status_code == 200


@pytest.mark.parametrize("route", ["token", "download"])
def test_the_throttle_may_be_on_logins_or_downloads(vendor, session, route):
    vendor.switches = SellercloudSwitches(throttle="409", throttle_calls=0, throttle_on=frozenset({route}))
    job = vendor.add_job()
    assert listing(vendor, session)["TotalResults"] == 1
    reply = download(vendor, session, job.id) if route == "download" else session.post(f"{vendor.base_url}/api/token")
    assert reply.status_code == 409


def test_faults_pass_and_the_download_then_succeeds(vendor, session):
    job = vendor.add_job(Content("cut", 200_000))
    for status in (500, 502, 503, 504):
        vendor.fail("download", Fault.answer(status, "<html>no</html>"), times=2)
        assert [download(vendor, session, job.id).status_code for _ in range(3)] == [status, status, 200]
    vendor.fail("download", Fault(cut_fraction=0.5), Fault(cut_fraction=0.5, reset=True))
    for _ in range(2):
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            download(vendor, session, job.id)
    assert base64.b64decode(download(vendor, session, job.id).content) == whole(job.content)
    (truth,) = vendor.truth()
    assert (truth.full_downloads, truth.partial_downloads) == (5, 2)


def test_one_job_alone_may_be_slow_and_differently_wrapped(vendor, session):
    odd = vendor.add_job(fault=Fault(delay_seconds=0.2), switches=SellercloudSwitches(body="raw"))
    even = vendor.add_job()
    slow = download(vendor, session, odd.id)
    assert (slow.content, slow.elapsed > timedelta(seconds=0.19)) == (whole(odd.content), True)
    assert base64.b64decode(download(vendor, session, even.id).content) == whole(even.content)
