"""The simulated API2Convert keeps to the vendor's specification, satisfies the vendor's own SDK, and has every nasty habit."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import api2convert as sdk
import pytest
import requests
from jsonschema import Draft202012Validator

from worker.demo.api2convert import MISSING_INPUT, Api2convert, OutputFile, payment_required, throttled
from worker.demo.server import Content, Fault

SPECIFICATION = json.loads((Path(__file__).parents[1] / "specs" / "api2convert.openapi.json").read_text())
HOUR = timedelta(hours=1)


class Caller:
    """Calls the API with the account's key, and holds every JSON answer to the specification."""

    def __init__(self, vendor: Api2convert) -> None:
        self.vendor = vendor
        self.checked: set[tuple[str, str, int]] = set()

    def __call__(self, method: str, path: str, *, strict: bool = True, headers=None, **how) -> requests.Response:
        headers = {"X-Api2convert-Api-Key": self.vendor.api_key} if headers is None else headers
        answer = requests.request(method, self.vendor.base_url + path, headers=headers, allow_redirects=False, timeout=5, **how)
        if strict:
            self.check(method, path.partition("?")[0], answer)
        return answer

    def check(self, method: str, path: str, answer: requests.Response) -> None:
        for template, operations in SPECIFICATION["paths"].items():
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path) and method.lower() in operations:
                described = operations[method.lower()]["responses"][str(answer.status_code)]
                schema = described.get("content", {}).get("application/json", {}).get("schema")
                self.checked.add((method, template, answer.status_code))
                if schema is None:
                    assert answer.content == b""
                else:
                    assert answer.headers["Content-Type"].startswith("application/json")
                    Draft202012Validator({**schema, "components": SPECIFICATION["components"]}).validate(answer.json())
                return
        raise AssertionError(f"{method} {path} is not in the specification")


@pytest.fixture
def vendor():
    with Api2convert() as vendor:
        yield vendor
        assert vendor.crashes == []


@pytest.fixture
def call(vendor):
    return Caller(vendor)


@pytest.fixture
def client(vendor):
    with sdk.Api2Convert(
        vendor.api_key, base_url=vendor.base_url, sleeper=lambda seconds: vendor.now.advance(timedelta(seconds=seconds))
    ) as client:
        yield client


def file(name: str = "report.csv", size: int = 5000) -> OutputFile:
    return OutputFile(name, Content(name, size))


def fetch(vendor: Api2convert, output: OutputFile, **how) -> requests.Response:
    return requests.get(vendor.uri(output), timeout=5, **how)


def bytes_of(output: OutputFile) -> bytes:
    return b"".join(output.content.read())


def shown(call: Caller, job, **how) -> dict:
    """The first output of a job, as the API shows it; not held to the specification."""
    return call("GET", f"/jobs/{job.id}", strict=False, **how).json()["output"][0]


# --- the specification and the SDK ---


def test_every_answer_has_the_shape_of_the_specification(vendor, call):
    job = vendor.add_job(file(), inputs=[{"id": "i", "type": "upload", "source": "x"}])
    vendor.add_job(file(), warnings=[MISSING_INPUT | {"details": {}}], fail_on_error=False)
    vendor.add_job(ends="failed", errors=[MISSING_INPUT])
    vendor.add_job(lasts=None, until="incomplete")
    output = job.outputs[0].id
    for path in (
        "/jobs",
        "/jobs?page=9",
        "/statuses",
        "/conversions?target=pdf",
        "/presets",
        "/contracts",
        "/stats/day/2026-01-01/all",
    ):
        call("GET", path)
    for path in ("", "/output", f"/output/{output}", "/input", "/history", "/threads"):
        call("GET", f"/jobs/{job.id}{path}")
        call("GET", f"/jobs/{job.id}{path}", headers={})
        call("GET", f"/jobs/nobody{path}")
    made = call("POST", "/jobs", json={"process": False, "conversion": [{"target": "pdf"}]}).json()
    call("POST", "/jobs")
    call("POST", "/jobs", json={"process": True}, headers={})
    call("POST", f"/jobs/{made['id']}/input", json={"type": "remote", "source": "https://example.com/a.docx"})
    call("PATCH", f"/jobs/{made['id']}", json={"process": True})
    call("PATCH", f"/jobs/{job.id}", json={"process": True})
    call("PATCH", f"/jobs/{job.id}/output/{output}", json={"filename": "renamed"})
    call("DELETE", f"/jobs/{job.id}/output/{output}")
    call("PATCH", f"/jobs/{job.id}/output/{output}", json={"filename": "late"})
    call("DELETE", f"/jobs/{made['id']}")
    call("DELETE", f"/jobs/{job.id}")
    vendor.contracts.clear()
    call("GET", "/contracts")
    vendor.fail("create", throttled("3"), payment_required())
    assert [call("POST", "/jobs", json={"process": True}).status_code for _ in range(2)] == [429, 402]
    assert len(call.checked) >= 35


def test_the_sdk_lists_polls_and_downloads(vendor, client, tmp_path):
    slow = vendor.add_job(file("slow.csv"), lasts=timedelta(seconds=30))
    vendor.add_job(lasts=None, until="ready")
    assert [job.id for job in client.jobs.list(status="processing")] == [slow.id]
    assert client.jobs.wait(slow.id).is_completed()
    (output,) = client.jobs.outputs(slow.id)
    path = client.download(output).save(tmp_path)
    assert path.name == output.filename == "slow.csv"
    assert path.stat().st_size == output.size
    assert hashlib.md5(path.read_bytes()).hexdigest() == output.checksum
    assert len(client.jobs.list()) == 2
    (truth,) = vendor.truth()
    assert (truth.job_id, truth.output_id, truth.full_downloads, truth.gone) == (slow.id, output.id, 1, False)
    assert truth.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_sdk_converts_an_upload_and_a_url(vendor, client, tmp_path):
    source = tmp_path / "letter.docx"
    source.write_text("Dear Sir")
    result = client.convert(source, "pdf", download_password="open sesame")
    assert result.output().filename == "letter.pdf"
    assert hashlib.sha256(result.contents()).hexdigest() == vendor.truth()[0].sha256
    with pytest.raises(sdk.AuthenticationError):
        result.contents(download_password="guess")
    assert client.convert("https://example.com/a.docx", "png").output().filename == "a.png"
    assert client.options("pdf") == {}
    again = [
        client.jobs.create({"process": False, "conversion": [{"target": "pdf"}]}, idempotency_key="k").id for _ in range(2)
    ]
    assert again[0] == again[1]
    client.jobs.cancel(again[0])
    assert client.jobs.get(again[0]).is_canceled()
    assert client.contracts.get() == vendor.contracts


def test_the_sdk_gets_the_right_errors(vendor, client):
    with pytest.raises(sdk.ConversionFailedError, match="File not found"):
        client.jobs.wait(vendor.add_job(ends="failed", errors=[MISSING_INPUT]).id)
    with pytest.raises(sdk.NotFoundError):
        client.jobs.get("nobody")
    vendor.api_key = "changed"
    with pytest.raises(sdk.AuthenticationError, match="Invalid api key"):
        client.jobs.list()
    vendor.switches.full_errors = True
    with pytest.raises(sdk.AuthenticationError) as caught:
        client.jobs.list()
    assert caught.value.body["code"] == 1


# --- 1. log-in ---


@pytest.mark.parametrize(
    ("kept", "prefix", "status"),
    [
        ("both", "X-Api2convert", 200),
        ("both", "x-oc", 200),
        ("new", "X-Oc", 401),
        ("new", "X-Api2convert", 200),
        ("old", "X-OC", 200),
    ],
)
def test_header_names_old_and_new(vendor, call, kept, prefix, status):
    vendor.add_job()
    vendor.switches.header_names = kept
    assert call("GET", "/jobs", headers={f"{prefix}-Api-Key": vendor.api_key}).status_code == status


def test_a_jobs_token_opens_that_job_alone(vendor, call):
    mine, other = vendor.add_job(), vendor.add_job()
    headers = {"X-Api2convert-Token": mine.token}
    assert [job["id"] for job in call("GET", "/jobs", headers=headers).json()] == [mine.id]
    assert call("GET", f"/jobs/{mine.id}", headers=headers).status_code == 200
    assert call("GET", f"/jobs/{other.id}", headers=headers).status_code == 401


# --- 2. list ---


def test_pages_of_fifty_with_a_total_and_an_end(vendor, call):
    for number in range(101):
        vendor.add_job(created_at=vendor.now() - timedelta(seconds=number))
    sizes = [len(call("GET", f"/jobs?page={page}").json()) for page in (1, 2, 3)]
    assert sizes == [50, 50, 1]
    assert call("GET", "/jobs").headers["X-Count"] == "101"
    past = call("GET", "/jobs?page=4")
    assert (past.status_code, past.content) == (204, b"")
    vendor.switches.empty_list, vendor.switches.total_header = 200, False
    past = call("GET", "/jobs?page=4")
    assert past.json() == []
    assert "X-Count" not in past.headers


def test_newest_or_oldest_first(vendor, call):
    new, old = vendor.add_job(), vendor.add_job(created_at=vendor.now() - HOUR)
    assert [job["id"] for job in call("GET", "/jobs").json()] == [new.id, old.id]
    vendor.switches.order = "oldest"
    assert [job["id"] for job in call("GET", "/jobs").json()] == [old.id, new.id]


def test_rows_shift_while_jobs_arrive(vendor, call):
    for number in range(60):
        vendor.add_job(created_at=vendor.now() - timedelta(minutes=number))
    vendor.switches.arriving = [3]
    first, second = (call("GET", f"/jobs?page={page}").json() for page in (1, 2))
    assert [job["id"] for job in second[:3]] == [job["id"] for job in first[-3:]]
    assert len(second) == 13


def test_a_job_leaves_the_list_and_can_still_be_asked_for(vendor, call):
    job, hidden = vendor.add_job(file()), vendor.add_job(listed=False)
    assert [row["id"] for row in call("GET", "/jobs").json()] == [job.id]
    vendor.now.advance(49 * HOUR)
    assert call("GET", "/jobs").status_code == 204
    assert call("GET", f"/jobs/{job.id}", strict=False).json()["output"][0]["status"] == "expired"
    assert call("GET", f"/jobs/{hidden.id}").status_code == 200
    vendor.forget(job.id)
    assert call("GET", f"/jobs/{job.id}").status_code == 404


# --- 3, 4. status, keys ---


def test_status_words_and_forms(vendor, call):
    vendor.add_job(lasts=None, until="incomplete")
    vendor.add_job(lasts=timedelta(minutes=1), until="queued", ends="rotated")
    assert {job["status"]["code"] for job in call("GET", "/jobs").json()} == {"incomplete", "queued"}
    vendor.now.advance(1000 * HOUR)
    vendor.add_job()
    vendor.switches.status_form = "string"
    assert {job["status"] for job in call("GET", "/jobs", strict=False).json()} == {"incomplete", "completed"}
    vendor.now.advance(-999 * HOUR)
    assert "rotated" in {job["status"] for job in call("GET", "/jobs", strict=False).json()}


def test_outputs_are_there_once_the_job_has_ended(vendor, call):
    job = vendor.add_job(file(), lasts=HOUR)
    assert call("GET", f"/jobs/{job.id}").json()["output"] == vendor.truth() == []
    vendor.now.advance(HOUR)
    assert shown(call, job)["filename"] == "report.csv"


def test_output_keys(vendor, call):
    job = vendor.add_job(file())
    vendor.switches.name_key, vendor.switches.uri_key, vendor.switches.metadata = "name", "download_uri", "array"
    output = shown(call, job)
    assert (output["name"], output["download_uri"], output["metadata"]) == ("report.csv", vendor.uri(job.outputs[0]), [])
    assert not {"filename", "uri"} & set(output)
    vendor.switches.name_key = ""
    assert not {"filename", "name"} & set(shown(call, job))


# --- 5, 6, 7. what happens to outputs ---


def test_files_expire(vendor, call):
    job = vendor.add_job(file())
    (output,) = job.outputs
    assert fetch(vendor, output).content == bytes_of(output)
    vendor.now.advance(24 * HOUR)
    assert shown(call, job)["status"] == "expired"
    assert fetch(vendor, output).status_code == 404
    assert fetch(vendor, output).json() == {"message": "The file has expired."}
    vendor.switches.expired_answer = 410
    assert fetch(vendor, output).status_code == 410
    assert vendor.truth()[0].gone
    vendor.switches.host_lags = True
    assert fetch(vendor, output).status_code == 200
    vendor.switches.host_lags, vendor.switches.api_lags = False, True
    assert shown(call, job)["status"] == "enabled"
    assert fetch(vendor, output).status_code == 410
    vendor.lifetime = 48 * HOUR
    assert fetch(vendor, output).status_code == 200


def test_files_are_deleted_or_in_an_unknown_state(vendor, call):
    job = vendor.add_job(file(), file("odd.csv"))
    deleted, odd = job.outputs
    odd.status = "quarantined"
    call("DELETE", f"/jobs/{job.id}/output/{deleted.id}")
    assert [row["status"] for row in call("GET", f"/jobs/{job.id}/output", strict=False).json()] == ["disabled", "quarantined"]
    assert fetch(vendor, deleted).status_code == 404
    vendor.switches.deleted_answer = 410
    assert fetch(vendor, deleted).status_code == 410
    assert fetch(vendor, odd).status_code == 200
    assert [truth.gone for truth in vendor.truth()] == [True, False]


def test_ten_downloads_and_no_more(vendor, call):
    job = vendor.add_job(file(size=100))
    (output,) = job.outputs
    assert [fetch(vendor, output).status_code for _ in range(11)] == [200] * 10 + [403]
    assert (shown(call, job)["status"], shown(call, job)["downloads_counter"]) == ("overuse", 10)
    for status in (429, 410):
        vendor.switches.overuse_answer = status
        assert fetch(vendor, output).status_code == status
    vendor.switches.counter = "stale"
    assert shown(call, job)["downloads_counter"] == 0


def test_counting_of_whole_gets_or_of_every_request(vendor, call):
    job = vendor.add_job(file())
    (output,) = job.outputs
    vendor.switches.ranges = True
    assert requests.head(vendor.uri(output), timeout=5).headers["Content-Length"] == "5000"
    assert fetch(vendor, output, headers={"Range": "bytes=0-9"}).status_code == 206
    vendor.fail("download", Fault(cut_after=100))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        fetch(vendor, output)
    assert shown(call, job)["downloads_counter"] == 0
    vendor.switches.counting = "all"
    assert shown(call, job)["downloads_counter"] == 3
    vendor.switches.max_downloads = 3
    assert fetch(vendor, output).status_code == 403
    assert (vendor.truth()[0].full_downloads, vendor.truth()[0].partial_downloads) == (0, 2)


def test_passwords(vendor):
    job = vendor.add_job(file(), passwords=["one", "two"])
    (output,) = job.outputs
    assert fetch(vendor, output).status_code == 401
    vendor.switches.password_answer = 403
    assert fetch(vendor, output, headers={"X-Oc-Download-Password": "three"}).status_code == 403
    assert fetch(vendor, output, headers={"X-Api2convert-Download-Password": "zero, two"}).status_code == 200
    assert fetch(vendor, output, cookies={"x-oc-download-password": "one"}).status_code == 200
    output.password = "own"
    assert fetch(vendor, output, headers={"X-Api2convert-Download-Password": "own"}).status_code == 200


def test_a_refusal_may_be_a_page_under_200(vendor):
    job = vendor.add_job(file())
    vendor.switches.html_refusals = True
    vendor.now.advance(24 * HOUR)
    answer = fetch(vendor, job.outputs[0])
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html")
    assert answer.text.startswith("<!DOCTYPE html>")
    assert vendor.truth()[0].full_downloads == 0


# --- 8, 9, 10. bytes, headers, times ---


def test_checksums_and_sizes(vendor, call):
    job = vendor.add_job(file())
    content = job.outputs[0].content
    data = bytes_of(job.outputs[0])
    assert shown(call, job)["checksum"] == hashlib.md5(data).hexdigest()
    expected = {
        "sha1": hashlib.sha1(data).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "ABCD": "ABCD",
        "wrong": "0" * 32,
    }
    for form, value in expected.items():
        vendor.switches.checksum = form
        assert shown(call, job)["checksum"] == value
    vendor.switches.size = "wrong"
    assert shown(call, job)["size"] != content.size
    vendor.switches.size = vendor.switches.checksum = "absent"
    assert not {"size", "checksum"} & set(shown(call, job))


def test_bytes_cut_short_or_changed(vendor):
    (output,) = vendor.add_job(file()).outputs
    vendor.switches.body = "short"
    assert fetch(vendor, output).content == bytes_of(output)[:2500]
    vendor.switches.body = "changed"
    changed = fetch(vendor, output).content
    assert changed[:-1] == bytes_of(output)[:-1]
    assert changed[-1] != bytes_of(output)[-1]


def test_redirects(vendor, client):
    job = vendor.add_job(file(), passwords=["secret"])
    (output,) = job.outputs
    (of_sdk,) = client.jobs.get(job.id).output
    vendor.switches.redirect = "same"
    assert client.download(of_sdk, "secret").contents() == bytes_of(output)
    vendor.switches.redirect = "other"
    assert client.download(of_sdk, "secret").contents() == bytes_of(output)
    last = vendor.requests("download")[-1]
    assert last.headers["host"].startswith("127.0.0.2:")
    assert "x-api2convert-download-password" not in last.headers
    vendor.switches.redirect = "loop"
    with pytest.raises(sdk.Api2ConvertError, match="redirects"):
        client.download(of_sdk, "secret").contents()
    assert vendor.truth()[0].full_downloads == 2


def test_content_disposition_and_base64(vendor):
    (output,) = vendor.add_job(file('a "b".csv')).outputs
    assert fetch(vendor, output).headers["Content-Disposition"] == r'attachment; filename="a \"b\".csv"'
    vendor.switches.disposition = "path"
    assert fetch(vendor, output).headers["Content-Disposition"].startswith('attachment; filename="../../etc/a')
    vendor.switches.disposition = "missing"
    assert "Content-Disposition" not in fetch(vendor, output).headers
    plain = fetch(vendor, output, params={"encoding": "base64"}).content
    assert base64.b64decode(plain, validate=True) == bytes_of(output)
    vendor.switches.base64_lines = True
    lines = fetch(vendor, output, params={"encoding": "base64"}).content
    assert lines.replace(b"\r\n", b"") == plain != lines


def test_times_and_a_wrong_clock(vendor, call):
    job = vendor.add_job(file())
    plain = datetime.fromisoformat(shown(call, job)["created_at"])
    assert plain.tzinfo is None
    vendor.switches.times = "german"
    assert datetime.fromisoformat(shown(call, job)["created_at"]) - plain in {HOUR, 2 * HOUR}
    vendor.switches.times = "zulu"
    assert shown(call, job)["created_at"] == plain.isoformat() + "Z"
    vendor.switches.clock_skew = 5 * HOUR
    skew = parsedate_to_datetime(call("GET", "/statuses").headers["Date"]) - vendor.now()
    assert 4.9 * HOUR < skew <= 5 * HOUR


# --- 11, 12. jobs and faults ---


def test_two_files_of_one_name_and_names_that_would_escape(vendor):
    job = vendor.add_job(file("a.csv"), OutputFile("a.csv", Content("other", 10)), file("../../é ü/\n.csv"))
    assert len({vendor.uri(output) for output in job.outputs}) == 3
    for output in job.outputs:
        assert fetch(vendor, output).content == bytes_of(output)


def test_jobs_without_a_file_here(vendor, call):
    nothing = vendor.add_job()
    delivered = vendor.add_job(file(), delivered=True)
    partial = vendor.add_job(file(), fail_on_error=False, warnings=[MISSING_INPUT])
    assert call("GET", f"/jobs/{nothing.id}").json()["output"] == []
    document = call("GET", f"/jobs/{delivered.id}").json()
    assert document["output"] == []
    assert document["conversion"][0]["output_target"][0]["status"] == "completed"
    assert call("GET", f"/jobs/{partial.id}").json()["warnings"] == [MISSING_INPUT]
    assert [truth.job_id for truth in vendor.truth()] == [partial.id]


def test_wire_faults_pass(vendor, client, call):
    job = vendor.add_job(file())
    vendor.fail("jobs", throttled(), throttled("2"), Fault.answer(503))
    assert call("GET", "/jobs", strict=False).status_code == 429
    assert call("GET", "/jobs", strict=False).headers["Retry-After"] == "2"
    assert call("GET", "/jobs", strict=False).status_code == 503
    vendor.fail("download", Fault(cut_fraction=0.5))
    download = client.download(client.jobs.get(job.id).output[0])
    with pytest.raises(sdk.NetworkError):
        download.contents()
    assert download.contents() == bytes_of(job.outputs[0])


def test_ranges_are_ignored_unless_switched_on(vendor):
    (output,) = vendor.add_job(file()).outputs
    assert fetch(vendor, output, headers={"Range": "bytes=10-"}).status_code == 200
    vendor.switches.ranges = True
    part = fetch(vendor, output, headers={"Range": "bytes=10-"})
    assert (part.status_code, part.content) == (206, bytes_of(output)[10:])
