"""Sellercloud against its simulator, switch by switch (the sheet's section 6)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.demo.sellercloud import Sellercloud as Simulator
from worker.demo.sellercloud import SellercloudSwitches
from worker.demo.server import Fault
from worker.errors import (
    HeldError,
    LinkExpiredError,
    LogInRefusedError,
    NotReadyError,
    OutputGoneError,
    RefusedError,
    ThrottledError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.model import Job, JobState, Output, Wrapping
from worker.settings import SellercloudSettings
from worker.sources.sellercloud import Sellercloud

NOW = datetime.now(UTC).replace(microsecond=585000)
LONG_AGO = NOW - timedelta(days=11)


@pytest.fixture
def vendor() -> Iterator[Simulator]:
    with Simulator() as vendor:
        yield vendor
        assert vendor.crashes == []


def settings_for(vendor: Simulator, **more: Any) -> SellercloudSettings:
    table = {"vendor": "sellercloud", "base_url": vendor.base_url, "username": vendor.username, "password": vendor.password}
    return SellercloudSettings.model_validate({"name": "acme", **table, "allow_private_hosts": True, **more})


@pytest.fixture
def open_source(vendor: Simulator, shared: Any) -> Callable[..., Sellercloud]:
    return lambda **more: Sellercloud(settings_for(vendor, **more), shared)


@pytest.fixture
def source(open_source: Callable[..., Sellercloud]) -> Sellercloud:
    return open_source()


def listed(source: Sellercloud) -> dict[str, Job]:
    jobs = list(source.jobs(LONG_AGO))
    assert len({job.id for job in jobs}) == len(jobs)
    return {job.id: job for job in jobs}


def only_output(source: Sellercloud) -> Output:
    ((output,),) = [job.outputs for job in listed(source).values() if job.outputs]
    return output


# --- the log-in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dates", ["right", "reversed", "unquoted"])
def test_only_expires_in_is_believed_of_a_log_in(vendor: Simulator, source: Sellercloud, shared: Any, dates: Any) -> None:
    vendor.switches.issued_dates = dates
    assert listed(source) == {}
    assert shared.token_life_seconds == 3420
    vendor.revoke_tokens()
    vendor.switches.token_life_seconds = 1800.0
    assert listed(source) == {}
    assert shared.token_life_seconds == 1620


@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_a_wrong_password_is_refused_once_and_named(vendor: Simulator, source: Sellercloud, status: int) -> None:
    vendor.password, right = "changed", vendor.password
    vendor.switches.bad_login_status = status
    with pytest.raises(LogInRefusedError, match="check username and password"):
        listed(source)
    assert len(vendor.requests("token")) == 1
    vendor.password = right
    assert listed(source) == {}


def test_a_log_in_that_fails_otherwise_is_not_a_refusal(vendor: Simulator, source: Sellercloud) -> None:
    vendor.fail("token", Fault.answer(500, "<html>"))
    with pytest.raises(VendorUnavailableError):
        listed(source)
    for status in (404, 200, 302):
        vendor.fail("token", Fault.answer(status, "<html>"))
        with pytest.raises(VendorReplyError):
            listed(source)
    assert listed(source) == {}


def test_an_account_with_two_factor_log_in_gets_no_token_and_that_is_a_refusal(vendor: Simulator, source: Sellercloud) -> None:
    vendor.fail("token", Fault.answer(200, '{"Message": "Two factor needed"}', "application/json"))
    with pytest.raises(LogInRefusedError, match="two-factor"):
        listed(source)


# --- the list --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 100, 101])
@pytest.mark.parametrize("empty", ["list", "null"])
def test_every_job_of_every_page_is_seen_once(vendor: Simulator, source: Sellercloud, count: int, empty: Any) -> None:
    vendor.switches.empty_items = empty
    for _ in range(count):
        vendor.add_job()
    assert set(listed(source)) == {str(job_id) for job_id in vendor.jobs}
    assert len(vendor.requests("list")) == max(-(-count // 50), 1)


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("shift", ["arrive", "leave"])
def test_rows_that_move_while_we_page_hide_no_export(vendor: Simulator, source: Sellercloud, shift: Any, order: Any) -> None:
    vendor.switches.shift, vendor.switches.order = shift, order
    wanted = {str(vendor.add_job(submitted_at=NOW - timedelta(hours=9, minutes=n)).id) for n in range(130)}
    for n in range(12):
        vendor.add_job(submitted_at=NOW - timedelta(minutes=n), output_file="empty")
    assert wanted <= set(listed(source))


@pytest.mark.parametrize("switch", [{"query_names": "model"}, {"page_size": "refused"}, {"times": "local"}])
def test_the_strictest_readings_of_our_query_are_served(vendor: Simulator, source: Sellercloud, switch: Any) -> None:
    vendor.switches = SellercloudSwitches(**switch)
    early = vendor.add_job(submitted_at=LONG_AGO + timedelta(days=1, minutes=1), completed_at=NOW)
    vendor.switches.retention = timedelta(days=30)
    assert set(listed(source)) == {str(early.id)}


def test_job_types_are_asked_for(vendor: Simulator, open_source: Callable[..., Sellercloud]) -> None:
    vendor.add_job(job_type=2)
    wanted = {str(vendor.add_job(job_type=kind).id) for kind in (5, 68)}
    assert set(listed(open_source(job_types=(5, 68)))) == wanted


def test_pages_that_repeat_themselves_end_the_pass_with_an_error(vendor: Simulator, source: Sellercloud) -> None:
    row = '{"ID": 1, "QueuedJobStatus": 1}'
    vendor.standing["list"] = Fault.answer(200, f'{{"Items": [{row}], "TotalResults": 9}}', "application/json")
    with pytest.raises(VendorReplyError, match="repeat themselves after 1 of 9"):
        listed(source)
    vendor.standing["list"] = Fault.answer(200, f'{{"Items": [{row}]}}', "application/json")
    assert set(listed(source)) == {"1"}


def test_a_malformed_row_never_ends_the_pass(vendor: Simulator, source: Sellercloud) -> None:
    rows = (
        'null, 7, {"ID": true}, {"ID": "x"}, {"ID": 1.0, "QueuedJobStatus": {}},'
        '{"ID": "2", "QueuedJobStatus": 3, "OutputFile": 5}, {"ID": 3, "QueuedJobStatus": 3, "OutputFile": []},'
        '{"ID": 4, "QueuedJobStatus": 3, "OutputFile": "a", "SubmittedOn": "x"}'
    )
    vendor.standing["list"] = Fault.answer(200, f'{{"Items": [{rows}], "TotalResults": 8}}', "application/json")
    jobs = listed(source)
    assert {job_id: job.state for job_id, job in jobs.items()} == {
        "1": JobState.RUNNING,
        "2": JobState.COMPLETED,
        "3": JobState.RUNNING,
        "4": JobState.COMPLETED,
    }
    assert all(job.warnings for job in jobs.values())
    assert jobs["4"].outputs[0].completed_at == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("body", ["", "[]", "<html>", '{"Items": {}}', '{"Items": [', "NaN"])
def test_a_list_that_is_no_list_is_a_wrong_reply(vendor: Simulator, source: Sellercloud, body: str) -> None:
    vendor.fail("list", Fault.answer(200, body, "application/json"))
    with pytest.raises(VendorReplyError):
        listed(source)
    assert listed(source) == {}


def test_a_list_that_the_account_may_not_read_says_what_to_check(vendor: Simulator, source: Sellercloud) -> None:
    vendor.fail("list", Fault.answer(404))
    with pytest.raises(VendorReplyError, match="base_url"):
        listed(source)


# --- states ----------------------------------------------------------------------------------------------------------

STATES = {
    0: JobState.RUNNING,
    1: JobState.RUNNING,
    2: JobState.RUNNING,
    3: JobState.COMPLETED,
    4: JobState.FAILED,
    5: JobState.COMPLETED,
    6: JobState.RUNNING,
    7: JobState.FAILED,
    8: JobState.FAILED,
    9: JobState.FAILED,
    10: JobState.FAILED,
    99: JobState.RUNNING,
}


@pytest.mark.parametrize("form", ["integer", "text"])
@pytest.mark.parametrize("output_file", ["named", "empty", "null"])
def test_every_status_is_mapped_by_value(vendor: Simulator, source: Sellercloud, form: Any, output_file: Any) -> None:
    vendor.switches.status_as = form
    made = {status: vendor.add_job(status=status, output_file=output_file) for status in STATES}
    jobs = listed(source)
    for status, job in made.items():
        found = jobs[str(job.id)]
        named = output_file == "named"
        assert found.state is (JobState.FAILED if status == 5 and not named else STATES[status])
        assert bool(found.outputs) == (status in {3, 5} and named)
        assert found.partial == (status == 5 and named)
        assert bool(found.warnings) == (status in {2, 99})
        assert found.named_file == (found.state is JobState.FAILED and named)
        if found.state is JobState.COMPLETED:
            assert found.completed_at is not None
            assert found.deadline is not None
        assert {**vars_of(source.job(found.id))} == {**vars_of(found)}


def vars_of(job: Job) -> dict[str, Any]:
    """All of a job but the vendor's document, which differs between the list and the single call."""
    outputs = [(output.id, output.filename, output.completed_at, output.deadline) for output in job.outputs]
    return {"id": job.id, "state": job.state, "status": job.status, "outputs": outputs, "partial": job.partial}


def test_times_become_the_deadline_of_the_contract(vendor: Simulator, open_source: Callable[..., Sellercloud]) -> None:
    vendor.switches.retention = timedelta(days=100)
    submitted = datetime(2026, 10, 26, 12, 53, 17, 585000, tzinfo=UTC)
    vendor.now.offset = submitted - datetime.now(UTC) + timedelta(days=1)
    completed = submitted + timedelta(minutes=2)
    vendor.add_job(submitted_at=submitted, completed_at=completed)
    cases: list[tuple[str, dict[str, Any], timedelta]] = [
        ("utc", {}, timedelta(hours=24)),
        ("zulu", {}, timedelta(0)),
        ("local", {"timezone": "America/New_York"}, timedelta(0)),
        ("utc", {"deadline_margin": "1h"}, timedelta(hours=1)),
        ("utc", {"retention": "8h"}, timedelta(hours=1)),
    ]
    for times, more, margin in cases:
        vendor.switches.times = times  # type: ignore[assignment]
        source = open_source(**more)
        (output,) = [output for job in source.jobs(submitted - timedelta(days=2)) for output in job.outputs]
        assert output.completed_at == completed
        retention = timedelta(hours=8) if "retention" in more else timedelta(days=10)
        assert output.deadline == submitted + retention - margin, (times, more)


def test_a_receipts_document_has_no_parameters(vendor: Simulator, source: Sellercloud) -> None:
    job = vendor.add_job()
    (output,) = source.job(str(job.id)).outputs
    assert "Parameters" not in output.job
    assert output.job["Basic"]["ID"] == job.id
    assert only_output(source).job["ID"] == job.id


@pytest.mark.parametrize("status", [500, 404])
@pytest.mark.parametrize("form", ["text", "message", "json-string"])
def test_an_unknown_job_may_yet_appear(vendor: Simulator, source: Sellercloud, status: int, form: Any) -> None:
    vendor.switches.missing_status, vendor.switches.error_form = status, form
    with pytest.raises(NotReadyError):
        source.job("5")
    with pytest.raises(OutputGoneError):
        source.job("no number")
    vendor.fail("single", Fault.answer(500, "Internal Server Error"))
    with pytest.raises(VendorUnavailableError):
        source.job("5")


# --- the download ----------------------------------------------------------------------------------------------------


def test_a_link_is_the_second_form_with_a_living_token(vendor: Simulator, source: Sellercloud, download: Any) -> None:
    job = vendor.add_job()
    output = only_output(source)
    link = source.link(output)
    assert link.wrapping is Wrapping.SELLERCLOUD
    assert link.fallback_filename == job.filename
    assert link.url not in repr(link)
    assert hashlib.sha256(base64.b64decode(download(source, output))).hexdigest() == job.content.sha256
    assert vendor.requests("download")[0].query == {"id": [str(job.id)]}
    source.confirm(output)


@pytest.mark.parametrize("urls", ["query", "path", "both"])
def test_the_form_that_exists_is_found_once(vendor: Simulator, source: Sellercloud, download: Any, urls: Any) -> None:
    vendor.switches.download_urls = urls
    vendor.add_job()
    output = only_output(source)
    assert download(source, output)
    before = len(vendor.log)
    assert download(source, output)
    assert len(vendor.log) == before + 1


@pytest.mark.parametrize("form", ["text", "message", "json-string"])
def test_a_record_that_is_gone_is_gone(vendor: Simulator, source: Sellercloud, download: Any, form: Any) -> None:
    vendor.switches.error_form = form
    vendor.add_job()
    output = only_output(source)
    vendor.now.advance(timedelta(days=10))
    for status in (500, 404):
        vendor.switches.missing_status = status
        with pytest.raises(OutputGoneError) as caught:
            download(source, output)
        assert (caught.value.reason, caught.value.answers, caught.value.over) == ("gone", 2, timedelta(seconds=10))


@pytest.mark.parametrize(("answer", "error"), [("500", VendorUnavailableError), ("404", NotReadyError)])
def test_a_job_that_runs_again_is_waited_for(
    vendor: Simulator, source: Sellercloud, download: Any, answer: Any, error: type[Exception]
) -> None:
    job = vendor.add_job()
    output = only_output(source)
    vendor.switches.running_file = answer
    job.status = 1
    with pytest.raises(error):
        download(source, output)
    job.status = None
    assert download(source, output)


@pytest.mark.parametrize("status", [409, 429])
@pytest.mark.parametrize("route", ["list", "single", "download", "token"])
def test_a_throttle_is_honoured_in_full_wherever_it_comes(
    vendor: Simulator, source: Sellercloud, shared: Any, download: Any, status: int, route: str
) -> None:
    job = vendor.add_job()
    output = only_output(source)
    if route == "token":
        shared.drop_token(shared.token())
    vendor.switches.throttle = str(status)  # type: ignore[assignment]
    vendor.switches.throttle_on = frozenset({route})
    vendor.switches.throttle_calls = 0
    calls: dict[str, Callable[[], Any]] = {
        "single": lambda: source.job(str(job.id)),
        "download": lambda: download(source, output),
    }
    with pytest.raises(ThrottledError) as caught:
        calls.get(route, lambda: listed(source))()
    assert vendor._window is not None
    assert abs(caught.value.not_before - vendor._window.ends_at) < timedelta(seconds=1.1)  # type: ignore[operator]
    assert shared.hushes == [caught.value.not_before]
    vendor.switches.throttle = "off"
    shared.forgive()
    assert download(source, output)


def test_a_token_that_dies_early_costs_one_log_in(vendor: Simulator, source: Sellercloud, download: Any) -> None:
    for body in ("empty", "message"):
        vendor.switches.unauthorized_body = body  # type: ignore[assignment]
        job = vendor.add_job()
        output = source.job(str(job.id)).outputs[0]
        before = len(vendor.requests("token"))
        vendor.revoke_tokens()
        assert download(source, output)
        assert len(vendor.requests("token")) == before + 1
        vendor.revoke_tokens()
        assert listed(source)
        assert len(vendor.requests("token")) == before + 2


@pytest.mark.parametrize("status", [401, 403])
def test_one_refused_file_is_held_while_the_list_works(
    vendor: Simulator, source: Sellercloud, download: Any, status: int
) -> None:
    vendor.add_job()
    output = only_output(source)
    vendor.standing["download"] = Fault.answer(status)
    with pytest.raises(HeldError, match="this one file is refused"):
        download(source, output)
    assert len(vendor.requests("token")) == 2
    vendor.standing["list"] = Fault.answer(401)
    with pytest.raises(LogInRefusedError):
        download(source, output)
    vendor.standing.clear()
    assert download(source, output)


def test_answers_that_say_nothing_are_tried_later(vendor: Simulator, source: Sellercloud) -> None:
    vendor.add_job()
    output = only_output(source)
    source.link(output)
    for status in (500, 502, 503, 504):
        assert isinstance(source.refused(output, RefusedError(status, body=b"<html>")), VendorUnavailableError)
    assert isinstance(source.refused(output, RefusedError(200, body=b"<html>")), VendorReplyError)
    assert isinstance(source.refused(output, RefusedError(200, body=b'{"Error": "x"}')), VendorReplyError)
    assert isinstance(source.refused(output, RefusedError(302)), VendorReplyError)
    assert isinstance(source.refused(output, RefusedError(418)), VendorReplyError)
    gone = source.refused(output, RefusedError(200, body=b'{"Message": "Could not find or load record with ID 1!"}'))
    assert isinstance(gone, OutputGoneError)
    assert isinstance(source.refused(output, RefusedError(401)), LinkExpiredError)


def test_a_file_that_is_not_found_while_its_job_is_there_is_tried_later(
    vendor: Simulator, source: Sellercloud, download: Any
) -> None:
    vendor.add_job()
    output = only_output(source)
    vendor.standing["download"] = Fault.answer(404)
    before = len(vendor.log)
    with pytest.raises(VendorReplyError):
        download(source, output)
    assert len(vendor.log) - before == 4  # the download, the job, and a probe of each form
