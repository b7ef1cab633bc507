"""API2Convert's client against a simulated API2Convert, with every switch that its sheet leaves open."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.demo import api2convert as demo
from worker.demo.api2convert import OutputFile
from worker.demo.server import Content, Fault
from worker.errors import (
    HeldError,
    LastcallError,
    LogInRefusedError,
    OutputGoneError,
    OverusedError,
    RefusedError,
    ThrottledError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.model import Checksum, Job, JobState, Link, Output
from worker.settings import Api2convertSettings
from worker.sources.api2convert import Api2convert

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def vendor() -> Iterator[demo.Api2convert]:
    with demo.Api2convert() as simulated:
        yield simulated
        assert simulated.crashes == []


@pytest.fixture
def source(vendor: demo.Api2convert, shared: Any) -> Api2convert:
    return make(vendor, shared)


def make(vendor: demo.Api2convert, shared: Any, **keys: Any) -> Api2convert:
    table = {
        "name": "acme",
        "vendor": "api2convert",
        "base_url": vendor.base_url,
        "api_key": vendor.api_key,
        "allow_private_hosts": True,
        "requests_per_second": 10_000,
        "read_timeout": "5s",
        **keys,
    }
    return Api2convert(Api2convertSettings.model_validate(table), shared)


def file(name: str = "a.csv", size: int = 1000, **how: Any) -> OutputFile:
    return OutputFile(name, Content(f"{name} {size}", size), **how)


def listed(source: Api2convert) -> list[Job]:
    return list(source.jobs(LONG_AGO))


def only_output(source: Api2convert) -> Output:
    (job,) = listed(source)
    (output,) = job.outputs
    return output


def download(link: Link) -> bytes:
    """Fetch as the worker does: an answer that is not the file is a `RefusedError`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(link.url, headers=dict(link.headers)), timeout=5) as answer:
            body: bytes = answer.read()
            headers, kind = dict(answer.headers), answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        headers = {name.lower(): value for name, value in error.headers.items()}
        raise RefusedError(error.code, error.reason, headers, error.read()) from error
    if kind == "text/html":
        raise RefusedError(200, "", {name.lower(): value for name, value in headers.items()}, body)
    return body


def verdict(source: Api2convert, output: Output) -> LastcallError:
    with pytest.raises(RefusedError) as refused:
        download(source.link(output))
    return source.refused(output, refused.value)


# --- listing ---------------------------------------------------------------------------------------------------------


def test_a_completed_job_carries_its_output_as_the_vendor_states_it(vendor: demo.Api2convert, source: Api2convert) -> None:
    output = file("Größe 1.csv", 4321)
    made = vendor.add_job(output, created_at=datetime(2026, 11, 1, 10, tzinfo=UTC), lasts=HOUR, listed=True)
    vendor.lifetime = timedelta(days=3650)
    (job,) = listed(source)
    (found,) = job.outputs
    assert (job.id, job.state, job.status, job.partial, job.warnings) == (made.id, JobState.COMPLETED, "completed", False, ())
    assert str(found.id) == f"acme/{made.id}/{output.id}"
    assert found.filename == "Größe 1.csv"
    assert (found.size, found.checksum) == (4321, Checksum(algorithm="md5", value=output.content.md5))
    assert (found.content_type, found.downloads, found.gone) == ("text/csv", 0, None)
    assert found.completed_at == datetime(2026, 11, 1, 11, tzinfo=UTC)
    assert found.deadline == datetime(2026, 11, 2, 8, tzinfo=UTC), "24 h of retention less 3 h for an unclear clock"
    assert job.completed_at == found.completed_at
    assert job.deadline == found.deadline
    assert source.job(made.id) == job


def test_asking_again_gives_the_same(vendor: demo.Api2convert, source: Api2convert) -> None:
    vendor.add_job(file("a.csv"), file("a.csv"), file("b.csv"))
    first = listed(source)
    assert listed(source) == first
    assert len({output.id for output in first[0].outputs}) == 3


@pytest.mark.parametrize("empty", [204, 200])
@pytest.mark.parametrize("total", [True, False])
def test_an_empty_account_is_an_empty_list(vendor: demo.Api2convert, source: Api2convert, empty: Any, total: bool) -> None:
    vendor.switches.empty_list, vendor.switches.total_header = empty, total
    assert listed(source) == []


@pytest.mark.parametrize("count", [1, 50, 51, 100, 130])
def test_every_page_is_read_once_in_either_order(vendor: demo.Api2convert, source: Api2convert, count: int) -> None:
    made = [vendor.add_job(file(), created_at=vendor.now() - timedelta(seconds=number)).id for number in range(count)]
    for order, total in product(("newest", "oldest"), (True, False)):
        vendor.switches.order, vendor.switches.total_header = order, total
        calls = len(vendor.requests("jobs"))
        assert sorted(job.id for job in listed(source)) == sorted(made)
        assert len(vendor.requests("jobs")) - calls <= count // 50 + 3


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("arriving", [[1, 1, 1], [50], [60, 60], [0, 30, 120]])
def test_jobs_that_arrive_during_the_pass_hide_no_others(
    vendor: demo.Api2convert, source: Api2convert, order: Any, arriving: list[int]
) -> None:
    made = {vendor.add_job(file(), created_at=vendor.now() - HOUR).id for _ in range(120)}
    vendor.switches.order, vendor.switches.arriving = order, list(arriving)
    found = [job.id for job in listed(source)]
    assert made <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("page", [1, 2])
def test_jobs_that_vanish_during_the_pass_hide_no_others(vendor: demo.Api2convert, source: Api2convert, page: int) -> None:
    """With the oldest first, a job that is dropped pulls a row past us; the announced total shows it."""
    vendor.switches.order = "oldest"
    made = [vendor.add_job(file(), created_at=vendor.now() - HOUR + timedelta(seconds=number)).id for number in range(120)]
    found = []
    for job in source.jobs(LONG_AGO):
        found.append(job.id)
        if len(found) == page * 50:
            for gone in made[:7]:
                vendor.forget(gone)
    assert set(found) == set(made)


def test_a_vendor_that_repeats_one_page_for_ever_does_not_hang_the_pass(vendor: demo.Api2convert, source: Api2convert) -> None:
    rows = [{"id": f"job-{number}", "status": "processing"} for number in range(50)]
    vendor.standing["jobs"] = Fault.answer(200, json.dumps(rows), "application/json", X_Count="90")
    assert len(listed(source)) == 50
    assert len(vendor.requests("jobs")) < 10


def test_a_job_that_is_not_listed_is_found_by_its_id(vendor: demo.Api2convert, source: Api2convert) -> None:
    made = vendor.add_job(file(), listed=False)
    assert listed(source) == []
    assert source.job(made.id).state is JobState.COMPLETED
    with pytest.raises(OutputGoneError):
        source.job("no-such-job")


# --- one job ---------------------------------------------------------------------------------------------------------

RUNNING, COMPLETED, FAILED = JobState.RUNNING, JobState.COMPLETED, JobState.FAILED
CODES = [
    *[(code, RUNNING, 0) for code in ("created", "incomplete", "ready", "downloading", "pending", "queued", "processing")],
    *[("running", RUNNING, 1), ("invented", RUNNING, 1), ("completed", COMPLETED, 0)],
    *[("failed", FAILED, 0), ("canceled", FAILED, 0)],
]


@pytest.mark.parametrize("form", ["object", "string"])
def test_every_status_has_its_state_and_an_unknown_one_a_warning(
    vendor: demo.Api2convert, source: Api2convert, form: Any
) -> None:
    vendor.switches.status_form = form
    made = {vendor.add_job(file(), ends=code).id: (code, state, warnings) for code, state, warnings in CODES}
    for job in listed(source):
        assert (job.status, job.state, len(job.warnings)) == made.pop(job.id)
        assert len(job.outputs) == (job.state is COMPLETED)
        assert job.named_file == (job.state is FAILED)
    assert made == {}


def test_a_job_completes_while_we_look(vendor: demo.Api2convert, source: Api2convert) -> None:
    vendor.add_job(file(), lasts=HOUR)
    assert [job.state for job in listed(source)] == [RUNNING]
    vendor.now.advance(HOUR)
    assert [job.state for job in listed(source)] == [COMPLETED]


def test_a_completed_job_without_outputs_produced_nothing(vendor: demo.Api2convert, source: Api2convert) -> None:
    vendor.add_job()
    vendor.add_job(file(), delivered=True)
    for job in listed(source):
        assert (job.state, job.outputs, job.warnings) == (COMPLETED, (), ())
        assert job.completed_at is not None
        assert job.deadline is not None


def test_warnings_on_a_completed_job_flag_it_as_partial(vendor: demo.Api2convert, source: Api2convert) -> None:
    vendor.add_job(file(), warnings=[demo.MISSING_INPUT], fail_on_error=False)
    (job,) = listed(source)
    assert (job.state, job.partial, len(job.outputs)) == (COMPLETED, True, 1)


@pytest.mark.parametrize(
    ("form", "algorithm"),
    [("md5", "md5"), ("sha1", "sha1"), ("sha256", "sha256"), ("ABCD", None), ("absent", None), ("wrong", "md5")],
)
def test_the_length_of_the_checksum_names_its_algorithm(
    vendor: demo.Api2convert, source: Api2convert, form: Any, algorithm: str | None
) -> None:
    vendor.switches.checksum = form
    vendor.add_job(file())
    (job,) = listed(source)
    checksum = job.outputs[0].checksum
    assert (checksum.algorithm if checksum else None) == algorithm
    assert len(job.warnings) == (form == "ABCD")


def test_other_spellings_of_keys_are_read(vendor: demo.Api2convert, source: Api2convert) -> None:
    vendor.switches.name_key, vendor.switches.uri_key, vendor.switches.metadata = "name", "download_uri", "array"
    vendor.switches.size = "absent"
    made = file("other.csv")
    vendor.add_job(made)
    output = only_output(source)
    assert (output.filename, output.size) == ("other.csv", None)
    assert source.link(output).url == vendor.uri(made)


def test_without_a_name_the_link_offers_its_last_segment(vendor: demo.Api2convert, source: Api2convert) -> None:
    vendor.switches.name_key = ""
    vendor.add_job(file("Größe 2.csv"))
    output = only_output(source)
    link = source.link(output)
    assert (output.filename, link.filename, link.fallback_filename) == (None, None, "Größe 2.csv")


@pytest.mark.parametrize(
    ("times", "timezone", "margin"),
    [("plain", None, 3 * HOUR), ("plain", "UTC", 0 * HOUR), ("german", "Europe/Berlin", 0 * HOUR), ("zulu", None, 0 * HOUR)],
)
def test_the_margin_covers_a_clock_without_a_zone(
    vendor: demo.Api2convert, shared: Any, times: Any, timezone: str | None, margin: timedelta
) -> None:
    at = vendor.now().replace(microsecond=0) - HOUR
    vendor.switches.times = times
    vendor.add_job(file(), created_at=at)
    output = only_output(make(vendor, shared, **({"timezone": timezone} if timezone else {})))
    assert output.completed_at == at
    assert output.deadline == at + 24 * HOUR - margin


def test_the_clock_starts_at_the_earlier_of_the_two_times(vendor: demo.Api2convert, source: Api2convert) -> None:
    at = vendor.now().replace(microsecond=0) - 2 * HOUR
    vendor.add_job(file(), created_at=at, changed_at=at - HOUR)
    output = only_output(source)
    assert output.completed_at == at
    assert output.deadline == at - HOUR + 24 * HOUR - 3 * HOUR


def serve(vendor: demo.Api2convert, *rows: Any) -> None:
    vendor.standing["jobs"] = Fault.answer(200, json.dumps(list(rows)), "application/json", X_Count=str(len(rows)))


GOOD = {
    "id": "good",
    "status": {"code": "completed"},
    "output": [{"id": "o1", "uri": "https://www13.api2convert.com/v2/dl/web2/download-file/x/a.csv", "status": "enabled"}],
    "modified_at": "2026-11-01T10:00:00",
}


@pytest.mark.parametrize("bad", [None, 7, "text", [], {}, {"id": {}}, {"id": ["x"]}, {"id": ""}])
def test_a_row_that_cannot_be_read_harms_no_other(vendor: demo.Api2convert, source: Api2convert, bad: Any) -> None:
    serve(vendor, bad, GOOD)
    (job,) = listed(source)
    assert (job.id, len(job.outputs)) == ("good", 1)
    assert job.outputs[0].completed_at == datetime(2026, 11, 1, 10, tzinfo=UTC), "the job's time where the output has none"


@pytest.mark.parametrize("output", [None, 7, "x", {"a": 1}, [None], [{}], [{"id": []}, 3]])
def test_outputs_that_cannot_be_read_never_look_like_nothing_produced(
    vendor: demo.Api2convert, source: Api2convert, output: Any
) -> None:
    serve(vendor, GOOD, {**GOOD, "id": "bad", "output": output})
    good, bad = listed(source)
    assert good.state is COMPLETED
    assert (bad.id, bad.state, bad.outputs) == ("bad", RUNNING, ())
    assert bad.warnings


def test_a_job_that_cannot_be_read_is_running_when_asked_for(vendor: demo.Api2convert, source: Api2convert) -> None:
    """A watched job must not end the pass of all the others."""
    vendor.fail("job", Fault.answer(200, json.dumps({**GOOD, "output": None}), "application/json"))
    job = source.job("good")
    assert (job.id, job.state, len(job.warnings)) == ("good", RUNNING, 1)


def test_one_unreadable_output_leaves_the_others(vendor: demo.Api2convert, source: Api2convert) -> None:
    extra = {"id": 17, "size": "12", "checksum": 5, "downloads_counter": "3", "created_at": "soon", "status": "enabled"}
    serve(vendor, {**GOOD, "output": [*GOOD["output"], None, extra, {**extra, "size": {}, "metadata": []}]})
    (job,) = listed(source)
    assert [output.id.output_id for output in job.outputs] == ["o1", "17"]
    assert (job.outputs[1].size, job.outputs[1].downloads) == (12, 3)
    assert job.warnings


@given(
    row=st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))
)
@pytest.mark.parametrize("name", ["id", "status", "output", "modified_at", "warnings", "input"])
def test_whatever_a_field_holds_only_our_errors_come_out(name: str, row: Any) -> None:
    settings = Api2convertSettings.model_validate({"name": "acme", "vendor": "api2convert", "api_key": "k"})
    source = Api2convert(settings, None)
    for document in ({**GOOD, name: row}, {**GOOD, "output": [{**GOOD["output"][0], name: row}]}):
        try:
            job = source._job(document)
        except VendorReplyError:
            continue
        assert job.state is not COMPLETED or job.completed_at is not None


def test_the_receipts_copy_of_the_job_holds_no_secret_and_no_link(vendor: demo.Api2convert, source: Api2convert) -> None:
    sources = [
        {"id": "i1", "type": "remote", "source": "https://user:pw@example.com/x?sig=1", "credentials": {"token": "s3cret"}}
    ]
    conversions = [{"target": "pdf", "options": {"open_password": "s3cret", "dpi": 300}}]
    warnings = [{"code": 17, "message": "cannot read https://user:pw@example.com/x?sig=1 twice", "details": {"at": "sig=1"}}]
    how = {"inputs": sources, "conversions": conversions, "warnings": warnings}
    vendor.add_job(file("a.csv"), file("b.csv"), callback="https://example.com/s3cret", token="s3cret", **how)
    (job,) = listed(source)
    first, second = job.outputs
    text = json.dumps(first.job)
    for secret in ("s3cret", "://", "download-file", "sig="):
        assert secret not in text
    assert first.job["id"] == job.id
    assert first.job["warnings"] == [{"code": 17, "message": "cannot read (link) twice"}]
    assert first.job["conversion"][0]["options"] == {"dpi": 300}
    assert [row["id"] for row in second.job["output"]] == [second.id.output_id], "each receipt tells of its own output"


# --- links -----------------------------------------------------------------------------------------------------------


def test_a_link_is_counted_and_carries_no_key(vendor: demo.Api2convert, source: Api2convert) -> None:
    made = file("a.csv", 500)
    vendor.add_job(made)
    output = only_output(source)
    link = source.link(output)
    assert (link.counted, link.resumable, link.wrapping, link.expires_at) == (True, False, "none", None)
    assert dict(link.headers) == {"Accept": "*/*"}
    assert (link.filename, link.fallback_filename, link.downloads) == ("a.csv", "a.csv", 0)
    assert download(link) == b"".join(made.content.read())
    assert source.link(output).downloads == 1, "the vendor's own counter comes with each link"
    source.confirm(output)
    entries = vendor.requests("download")
    assert [entry.method for entry in entries] == ["GET"]
    assert not [name for name in entries[0].headers if "api-key" in name]


@pytest.mark.parametrize("names", ["both", "new"])
def test_the_key_goes_by_its_present_name(vendor: demo.Api2convert, source: Api2convert, names: Any) -> None:
    vendor.switches.header_names = names
    vendor.add_job(file())
    assert len(listed(source)) == 1


@pytest.mark.parametrize("answer", [401, 403])
def test_a_protected_file_is_fetched_with_the_password_and_held_without(
    vendor: demo.Api2convert, shared: Any, answer: Any
) -> None:
    vendor.switches.password_answer = answer
    vendor.add_job(file("a.csv", 10, password="open sesame"))
    source = make(vendor, shared)
    output = only_output(source)
    assert isinstance(verdict(source, output), HeldError)
    assert isinstance(verdict(make(vendor, shared, download_password="wrong"), output), HeldError)
    assert len(download(make(vendor, shared, download_password="open sesame").link(output))) == 10


@pytest.mark.parametrize(
    ("status", "kind", "reason"), [("expired", OutputGoneError, "expired"), ("disabled", OutputGoneError, "deleted")]
)
def test_what_the_vendor_calls_gone_is_gone_before_any_download(
    vendor: demo.Api2convert, source: Api2convert, status: str, kind: type[OutputGoneError], reason: str
) -> None:
    made = file()
    vendor.add_job(made)
    output = only_output(source)
    made.status = status
    assert only_output(source).gone == reason
    with pytest.raises(kind) as gone:
        source.link(output)
    assert gone.value.reason == reason
    assert (gone.value.answers, gone.value.lost_at_deadline) == (2, False)
    assert vendor.requests("download") == []


def test_an_over_used_output_is_held_before_any_download(vendor: demo.Api2convert, source: Api2convert) -> None:
    vendor.switches.max_downloads = 1
    vendor.add_job(file())
    output = only_output(source)
    download(source.link(output))
    with pytest.raises(OverusedError):
        source.link(output)


def test_a_file_expires_with_its_clock(vendor: demo.Api2convert, source: Api2convert) -> None:
    vendor.add_job(file())
    output = only_output(source)
    vendor.now.advance(24 * HOUR)
    with pytest.raises(OutputGoneError, match="expired"):
        source.link(output)


def test_an_output_or_a_job_that_the_vendor_forgot_is_gone(vendor: demo.Api2convert, source: Api2convert) -> None:
    made = file("a.csv")
    job = vendor.add_job(made, file("b.csv"))
    output = next(output for output in listed(source)[0].outputs if output.filename == "a.csv")
    job.outputs.remove(made)
    with pytest.raises(OutputGoneError) as gone:
        source.link(output)
    assert gone.value.reason == "deleted"
    vendor.forget(job.id)
    with pytest.raises(OutputGoneError):
        source.link(output)


def test_an_unknown_status_is_worth_one_try(vendor: demo.Api2convert, source: Api2convert) -> None:
    vendor.add_job(file("a.csv", 10, status="frozen"))
    (job,) = listed(source)
    (output,) = job.outputs
    assert (output.gone, len(job.warnings)) == (None, 1)
    assert len(download(source.link(output))) == 10
    vendor.fail("download", Fault.answer(404, "{}", "application/json"))
    assert isinstance(verdict(source, output), HeldError)


@pytest.mark.parametrize("bad", [None, "", "not a link", "ftp://www1.api2convert.com/x", "https://[x/y", {"a": 1}])
def test_a_job_without_a_usable_uri_is_tried_later(vendor: demo.Api2convert, source: Api2convert, bad: Any) -> None:
    made = vendor.add_job(file())
    output = only_output(source)
    document = {**GOOD, "id": made.id, "output": [{"id": output.id.output_id, "status": "enabled", "uri": bad}]}
    vendor.fail("job", Fault.answer(200, json.dumps(document), "application/json"))
    with pytest.raises(VendorReplyError):
        source.link(output)
    assert source.link(output).url


# --- refusals --------------------------------------------------------------------------------------------------------


def expire(vendor: demo.Api2convert, made: OutputFile) -> None:
    vendor.now.advance(25 * HOUR)


def delete(vendor: demo.Api2convert, made: OutputFile) -> None:
    made.deleted = True


def overuse(vendor: demo.Api2convert, made: OutputFile) -> None:
    made.status = "overuse"


@pytest.mark.parametrize("html", [False, True])
@pytest.mark.parametrize(
    ("happen", "switches", "kind"),
    [
        (expire, {"expired_answer": 404}, OutputGoneError),
        (expire, {"expired_answer": 410}, OutputGoneError),
        (delete, {"deleted_answer": 404}, OutputGoneError),
        (delete, {"deleted_answer": 410}, OutputGoneError),
        (overuse, {"overuse_answer": 403}, OverusedError),
        (overuse, {"overuse_answer": 429}, OverusedError),
        (overuse, {"overuse_answer": 410}, OverusedError),
    ],
)
def test_what_happens_between_link_and_download_is_told_by_the_job(
    vendor: demo.Api2convert,
    source: Api2convert,
    shared: Any,
    html: bool,
    happen: Callable[[demo.Api2convert, OutputFile], None],
    switches: dict[str, Any],
    kind: type[LastcallError],
) -> None:
    made = file()
    vendor.add_job(made)
    output = only_output(source)
    for name, value in {**switches, "html_refusals": html}.items():
        setattr(vendor.switches, name, value)
    link = source.link(output)
    happen(vendor, made)
    with pytest.raises(RefusedError) as refused:
        download(link)
    assert isinstance(source.refused(output, refused.value), kind)
    assert shared.hushes == [], "a 429 that means overuse silences nobody"


@pytest.mark.parametrize("html", [False, True])
def test_while_the_api_still_offers_the_file_nothing_is_declared_lost(
    vendor: demo.Api2convert, source: Api2convert, html: bool
) -> None:
    vendor.switches.api_lags, vendor.switches.html_refusals = True, html
    made = file("a.csv", 10)
    vendor.add_job(made)
    output = only_output(source)
    made.deleted = True
    assert isinstance(verdict(source, output), VendorReplyError)
    made.deleted = False
    vendor.switches.html_refusals = False
    assert len(download(source.link(output))) == 10
    made.deleted = True
    vendor.switches.api_lags = False
    with pytest.raises(OutputGoneError):
        source.link(output)


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [(demo.throttled(), 1), (demo.throttled("120"), 119), (demo.payment_required(), 1)],
)
def test_a_throttled_download_hushes_the_source(
    vendor: demo.Api2convert, source: Api2convert, shared: Any, fault: Fault, seconds: int
) -> None:
    vendor.add_job(file())
    output = only_output(source)
    vendor.fail("download", fault)
    error = verdict(source, output)
    assert isinstance(error, ThrottledError)
    assert [error.not_before] == shared.hushes
    assert shared.hushes[0] > datetime.now(UTC) + timedelta(seconds=seconds - 0.5)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, VendorUnavailableError), (503, VendorUnavailableError), (408, VendorUnavailableError), (400, HeldError)],
)
def test_other_refusals_of_an_offered_file(
    vendor: demo.Api2convert, source: Api2convert, status: int, kind: type[LastcallError]
) -> None:
    vendor.add_job(file())
    output = only_output(source)
    vendor.fail("download", Fault.answer(status, "no"))
    assert isinstance(verdict(source, output), kind)


def test_a_wrong_key_is_a_refused_log_in_everywhere(vendor: demo.Api2convert, source: Api2convert) -> None:
    made = vendor.add_job(file())
    output = only_output(source)
    for full in (False, True):
        vendor.api_key, vendor.switches.full_errors = "another", full
        for call in (lambda: listed(source), lambda: source.job(made.id), lambda: source.link(output)):
            with pytest.raises(LogInRefusedError):
                call()
    vendor.api_key = "0123456789abcdefghijklmnopqrstuv"
    assert only_output(source) == output


@pytest.mark.parametrize("status", [402, 429])
def test_a_throttled_list_hushes_the_source(vendor: demo.Api2convert, source: Api2convert, shared: Any, status: int) -> None:
    vendor.fail("jobs", Fault.answer(status, "{}", "application/json", Retry_After="30"))
    with pytest.raises(ThrottledError):
        listed(source)
    assert shared.hushes


@pytest.mark.parametrize(
    "fault",
    [
        Fault.answer(200, "<html>maintenance</html>"),
        Fault.answer(200, '{"message": "no list"}', "application/json"),
        Fault.answer(404, '{"message": "Not Found"}', "application/json"),
        Fault.answer(302, "", Location="/elsewhere"),
    ],
)
def test_an_answer_that_is_no_list_ends_the_pass_with_an_error(
    vendor: demo.Api2convert, source: Api2convert, fault: Fault
) -> None:
    """An incomplete pass must not look like a complete one."""
    vendor.add_job(file())
    vendor.fail("jobs", fault)
    with pytest.raises(VendorReplyError):
        listed(source)
    assert len(listed(source)) == 1


def test_a_burst_of_server_errors_is_ridden_out(vendor: demo.Api2convert, source: Api2convert) -> None:
    vendor.add_job(file())
    vendor.fail("jobs", Fault.answer(500), Fault.answer(503))
    assert len(listed(source)) == 1


def test_no_message_carries_a_link_or_a_key(vendor: demo.Api2convert, source: Api2convert) -> None:
    made = file()
    vendor.add_job(made)
    output = only_output(source)
    link = source.link(output)
    vendor.fail("download", Fault.answer(403, "no"), Fault.answer(404, "no"), Fault.answer(500, "no"))
    errors = [verdict(source, output) for _ in range(3)]
    for text in [repr(link), *map(str, errors)]:
        assert "://" not in text
        assert "download-file" not in text
        assert vendor.api_key not in text
