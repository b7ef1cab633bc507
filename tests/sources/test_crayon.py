"""Crayon against its simulator, switch by switch (the sheet's section 6)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.demo.crayon import BAD_GATEWAY, EMPTY_SERVER_FAULT, SERVER_FAULT, TOO_MANY_REQUESTS, CrayonSwitches
from worker.demo.crayon import Crayon as Simulator
from worker.demo.server import Fault
from worker.errors import (
    HeldError,
    LastcallError,
    LogInRefusedError,
    NotReadyError,
    OutputGoneError,
    RefusedError,
    ThrottledError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.model import Job, JobState, Output, Wrapping
from worker.settings import CrayonSettings
from worker.sources.crayon import Crayon

LONG_AGO = datetime.now(UTC) - timedelta(days=8)
HOUR = timedelta(hours=1)


@pytest.fixture
def vendor() -> Iterator[Simulator]:
    with Simulator() as vendor:
        yield vendor
        assert vendor.crashes == []


@pytest.fixture
def open_source(vendor: Simulator, shared: Any) -> Callable[..., Crayon]:
    secrets = {key: getattr(vendor, key) for key in ("client_id", "client_secret", "username", "password")}
    table = {"name": "acme", "vendor": "crayon", "base_url": vendor.base_url, "allow_private_hosts": True, **secrets}
    return lambda **more: Crayon(CrayonSettings.model_validate({**table, **more}), shared)


@pytest.fixture
def source(open_source: Callable[..., Crayon]) -> Crayon:
    return open_source()


def listed(source: Crayon) -> dict[str, Job]:
    jobs = list(source.jobs(LONG_AGO))
    assert len({job.id for job in jobs}) == len(jobs)
    return {job.id: job for job in jobs}


def only_output(source: Crayon) -> Output:
    ((output,),) = [job.outputs for job in listed(source).values() if job.outputs]
    return output


# --- the log-in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["pascal", "snake"])
def test_a_token_is_read_in_any_spelling(vendor: Simulator, source: Crayon, shared: Any, answer: Any) -> None:
    vendor.switches.login_answer = answer
    assert listed(source) == {}
    assert shared.token_life_seconds == 3420


@pytest.mark.parametrize("answer", ["error", "null"])
def test_a_200_without_a_token_is_a_refusal(vendor: Simulator, source: Crayon, answer: Any) -> None:
    vendor.switches.login_answer = answer
    with pytest.raises(LogInRefusedError):
        listed(source)
    assert len(vendor.requests("token")) == 1
    vendor.switches.login_answer = "pascal"
    assert listed(source) == {}


@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize("body", [True, False])
def test_an_expired_secret_is_refused_once_and_the_message_points_there(
    vendor: Simulator, source: Crayon, status: int, body: bool
) -> None:
    vendor.switches = CrayonSwitches(secret_expired=True, bad_login_status=status, bad_login_body=body)
    with pytest.raises(LogInRefusedError, match="Client secrets end two years after"):
        listed(source)
    assert len(vendor.requests("token")) == 1


def test_a_log_in_that_fails_otherwise_is_not_a_refusal(vendor: Simulator, source: Crayon) -> None:
    for fault, error in ((SERVER_FAULT, VendorUnavailableError), (Fault.answer(301, Location="/x"), VendorReplyError)):
        vendor.fail("token", fault)
        with pytest.raises(error):
            listed(source)
    vendor.fail("token", Fault.answer(200, "<html>"))
    with pytest.raises(VendorReplyError):
        listed(source)
    assert listed(source) == {}


@pytest.mark.parametrize("slash", ["both", "redirect", "required"])
def test_every_path_has_its_trailing_slash(vendor: Simulator, source: Crayon, download: Any, slash: Any) -> None:
    vendor.switches.trailing_slash = slash
    vendor.add_job()
    assert download(source, only_output(source))
    assert {entry.status for entry in vendor.log} == {200}


# --- the list --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pascal", "camel", "bare"])
def test_the_list_is_read_in_any_spelling(vendor: Simulator, source: Crayon, form: Any) -> None:
    vendor.switches = CrayonSwitches(list_form=form, order="shuffled", duplicate_row=True)
    made = {str(vendor.add_job().id) for _ in range(20)}
    jobs = listed(source)
    assert set(jobs) == made
    assert all(len(job.outputs) == 1 for job in jobs.values())
    assert len(vendor.requests("list")) == 1


def test_null_items_are_an_empty_list(vendor: Simulator, source: Crayon) -> None:
    vendor.switches.list_form = "null"
    assert listed(source) == {}


@pytest.mark.parametrize(("days", "used"), [(None, 7), (7, 7), (3, 3), (0, 7), (-1, 7), (30, 7), (10**400, 7)])
def test_the_window_shortens_the_deadline_and_never_lengthens_it(
    vendor: Simulator, source: Crayon, days: Any, used: int
) -> None:
    vendor.switches.nr_of_days = days
    item = vendor.add_job()
    created = item.created_at.replace(microsecond=item.created_at.microsecond // 1000 * 1000)
    output = only_output(source)
    assert output.completed_at == created
    assert output.deadline == created + timedelta(days=used) - 6 * HOUR


def test_times_carry_a_zone_or_have_the_settings_or_a_margin(vendor: Simulator, open_source: Callable[..., Crayon]) -> None:
    item = vendor.add_job()
    created = item.created_at.replace(microsecond=item.created_at.microsecond // 1000 * 1000)
    cases: list[tuple[Any, dict[str, str], timedelta]] = [
        ("utc", {}, 6 * HOUR),
        ("zulu", {}, timedelta()),
        ("oslo", {"timezone": "Europe/Oslo"}, timedelta()),
        ("utc", {"deadline_margin": "2h"}, 2 * HOUR),
        ("utc", {"retention": "24h"}, 3 * HOUR),
    ]
    for form, more, margin in cases:
        vendor.switches.created = form
        output = only_output(open_source(**more))
        assert output.completed_at == created
        assert output.deadline == created + (timedelta(days=1) if "retention" in more else timedelta(days=7)) - margin
    vendor.switches.created = "seconds"
    assert only_output(open_source()).completed_at == created.replace(microsecond=0)


@pytest.mark.parametrize("form", ["integer", "text"])
def test_every_status_is_mapped_as_a_whole_value(vendor: Simulator, source: Crayon, form: Any) -> None:
    vendor.switches.status_as = form
    states = {
        0: (JobState.RUNNING, True),
        1: (JobState.RUNNING, False),
        2: (JobState.COMPLETED, False),
        3: (JobState.RUNNING, True),
        4: (JobState.FAILED, False),
        5: (JobState.RUNNING, True),
        6: (JobState.RUNNING, True),
        8: (JobState.FAILED, False),
        9: (JobState.RUNNING, True),
    }
    made = {status: vendor.add_job(status=status, attempts_grow=True) for status in states}
    jobs = listed(source)
    for status, item in made.items():
        job = jobs[str(item.id)]
        assert (job.state, bool(job.warnings)) == states[status]
        assert bool(job.outputs) == (status == 2)
        assert source.job(job.id).state is job.state


def test_processed_without_a_file_is_waited_for_an_hour_and_then_nothing(vendor: Simulator, source: Crayon) -> None:
    now = datetime.now(UTC)
    young = vendor.add_job(created_at=now - 0.5 * HOUR, processed_at=now, downloadable_after=None)
    old = vendor.add_job(created_at=now - 2 * HOUR, processed_at=now - HOUR, downloadable_after=None)
    jobs = listed(source)
    assert jobs[str(young.id)].state is JobState.RUNNING
    assert jobs[str(young.id)].warnings
    assert jobs[str(old.id)].state is JobState.COMPLETED
    assert jobs[str(old.id)].outputs == ()
    assert jobs[str(old.id)].deadline is not None
    young.downloadable_after = old.downloadable_after = timedelta()
    assert all(len(job.outputs) == 1 for job in listed(source).values())


def test_a_receipts_document_has_no_action_url(vendor: Simulator, source: Crayon) -> None:
    for form in ("pascal", "camel"):
        vendor.items.clear()
        vendor.switches.list_form = form  # type: ignore[assignment]
        item = vendor.add_job()
        document = only_output(source).job
        assert "tenantId" not in json.dumps(document)
        assert item.action_name in document.values()


def test_a_malformed_item_never_ends_the_pass(vendor: Simulator, source: Crayon) -> None:
    items = (
        'null, [], {"Id": null}, {"Id": 1, "Status": 2, "Downloadable": "perhaps"},'
        '{"Id": "2", "Status": "2", "Downloadable": 1}, {"Id": 3, "Status": 2, "Downloadable": true, "CreatedDate": "soon"}'
    )
    body = f'{{"Items": [{items}], "NrOfDays": "x"}}'
    vendor.fail("list", Fault.answer(200, body, "application/json"))
    jobs = listed(source)
    assert {job_id: job.state for job_id, job in jobs.items()} == {
        "1": JobState.RUNNING,
        "2": JobState.COMPLETED,
        "3": JobState.RUNNING,
    }
    assert all(job.warnings for job in jobs.values())
    assert jobs["2"].outputs[0].completed_at == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("body", ["", "7", "<html>", '{"Items": 1}', '{"ErrorCode": "500 X", "Message": "Ops"}'])
def test_a_list_that_is_no_list_is_a_wrong_reply(vendor: Simulator, source: Crayon, body: str) -> None:
    vendor.fail("list", Fault.answer(200, body, "application/json"))
    with pytest.raises(VendorReplyError):
        listed(source)
    assert listed(source) == {}


def test_a_list_that_is_too_long_is_a_wrong_reply(vendor: Simulator, source: Crayon) -> None:
    vendor.fail("list", Fault.answer(200, b" " * (16 * 2**20 + 1), "application/json"))
    with pytest.raises(VendorReplyError, match="larger than"):
        listed(source)


def test_faults_of_the_list_pass(vendor: Simulator, source: Crayon, shared: Any) -> None:
    vendor.fail("list", BAD_GATEWAY, Fault(cut_fraction=0.5))
    assert listed(source) == {}
    for fault in (SERVER_FAULT, EMPTY_SERVER_FAULT):
        vendor.fail("list", fault)
        with pytest.raises(VendorUnavailableError):
            listed(source)
    vendor.fail("list", TOO_MANY_REQUESTS)
    with pytest.raises(ThrottledError):
        listed(source)
    shared.forgive()
    assert listed(source) == {}


def test_a_job_that_is_not_listed_is_not_known(source: Crayon) -> None:
    with pytest.raises(OutputGoneError):
        source.job("5")


# --- the download ----------------------------------------------------------------------------------------------------


def test_a_link_asks_for_the_raw_bytes_with_a_living_token(vendor: Simulator, source: Crayon, download: Any) -> None:
    vendor.switches.form = "accept"
    item = vendor.add_job()
    output = only_output(source)
    link = source.link(output)
    assert link.wrapping is Wrapping.CRAYON
    assert link.fallback_filename == f"export-{item.id}"
    assert link.url not in repr(link)
    assert hashlib.sha256(download(source, output)).hexdigest() == item.content.sha256
    assert vendor.requests("download")[0].path == f"/api/v1/exports/{item.id}/download/"
    vendor.switches.form = "file-content"
    assert base64.b64decode(json.loads(download(source, output))["FileContent"])[:2] == b"PK"
    source.confirm(output)


Situation = Callable[[Simulator, Any], None]


def _queued(vendor: Simulator, item: Any) -> None:
    item.status = 1


def _failed(vendor: Simulator, item: Any) -> None:
    item.status = 8


def _deleted(vendor: Simulator, item: Any) -> None:
    item.deleted = True


def _marked_deleted(vendor: Simulator, item: Any) -> None:
    item.status = 4


def _expired(vendor: Simulator, item: Any) -> None:
    vendor.now.advance(timedelta(days=7))


def _expired_but_listed(vendor: Simulator, item: Any) -> None:
    vendor.switches.after_window = "listed"
    vendor.now.advance(timedelta(days=7))


@pytest.mark.parametrize(
    ("situation", "switch", "statuses", "error", "reason"),
    [
        (_queued, "not_ready_status", (404, 400, 409, 204), NotReadyError, None),
        (_failed, "failed_status", (404, 400, 500), OutputGoneError, "gone"),
        (_deleted, "gone_status", (404, 410), OutputGoneError, "expired"),
        (_marked_deleted, "gone_status", (404, 410, 500), OutputGoneError, "deleted"),
        (_expired, "gone_status", (404, 410), OutputGoneError, "expired"),
        (_expired_but_listed, "gone_status", (404, 410), OutputGoneError, "gone"),
    ],
)
def test_a_refused_download_means_what_answer_and_list_say_together(
    vendor: Simulator,
    source: Crayon,
    download: Any,
    situation: Situation,
    switch: str,
    statuses: tuple[int, ...],
    error: type[LastcallError],
    reason: str | None,
) -> None:
    item = vendor.add_job()
    output = only_output(source)
    assert download(source, output)
    situation(vendor, item)
    listed(source)  # the next poll; until then a refusal is judged by the poll before
    for under_200 in (False, True):
        vendor.switches.error_under_200 = under_200
        for status in statuses:
            setattr(vendor.switches, switch, status)
            if under_200 and status == 204:
                continue
            before = len(vendor.requests("list"))
            with pytest.raises(error) as caught:
                download(source, output)
            assert len(vendor.requests("list")) == before
            assert getattr(caught.value, "reason", None) == reason


def test_a_500_for_what_is_no_longer_listed_is_gone_only_past_the_deadline(
    vendor: Simulator, open_source: Callable[..., Crayon], download: Any
) -> None:
    vendor.switches.gone_status = 500
    now = datetime.now(UTC)
    for age, error in ((timedelta(days=1), VendorUnavailableError), (timedelta(days=6.9), OutputGoneError)):
        source = open_source()
        item = vendor.add_job(created_at=now - age)
        output = only_output(source)
        item.deleted = True
        listed(source)
        with pytest.raises(error):
            download(source, output)


def test_neither_a_failed_download_nor_a_watched_job_lists_out_of_turn(
    vendor: Simulator, source: Crayon, download: Any
) -> None:
    item = vendor.add_job()
    output = only_output(source)
    for fault in (SERVER_FAULT, Fault.answer(404), Fault.answer(204)):
        vendor.fail("download", fault)
        with pytest.raises((VendorUnavailableError, OutputGoneError)):
            download(source, output)
    assert source.job(str(item.id)).outputs == (output,)
    with pytest.raises(OutputGoneError):
        source.job("4711")
    assert len(vendor.requests("list")) == 1


def test_a_worker_that_has_not_listed_judges_by_the_answer_alone(
    vendor: Simulator, open_source: Callable[..., Crayon], download: Any
) -> None:
    vendor.add_job()
    output = only_output(open_source())
    other = open_source()
    for fault, error in (
        (SERVER_FAULT, VendorUnavailableError),
        (Fault.answer(204), VendorUnavailableError),
        (Fault.answer(404), OutputGoneError),
    ):
        vendor.fail("download", fault)
        with pytest.raises(error):
            download(other, output)
    assert len(vendor.requests("list")) == 1


def test_faults_of_a_download_are_tried_later(vendor: Simulator, source: Crayon, shared: Any, download: Any) -> None:
    vendor.add_job()
    output = only_output(source)
    for fault in (SERVER_FAULT, EMPTY_SERVER_FAULT, BAD_GATEWAY, Fault.answer(400), Fault.answer(409)):
        vendor.fail("download", fault)
        with pytest.raises(VendorUnavailableError):
            download(source, output)
    vendor.fail("download", Fault.answer(200, "<html>Welcome</html>"))
    with pytest.raises(VendorReplyError):
        download(source, output)
    vendor.fail("download", Fault.answer(302, Location="http://127.0.0.1:1/"))
    with pytest.raises(VendorReplyError):
        download(source, output)
    vendor.fail("download", TOO_MANY_REQUESTS)
    with pytest.raises(ThrottledError):
        download(source, output)
    assert shared.hushes
    shared.forgive()
    assert download(source, output)


def test_a_token_that_dies_early_costs_one_log_in(vendor: Simulator, source: Crayon, download: Any) -> None:
    for body in ("message", "empty"):
        vendor.switches.unauthorized_body = body  # type: ignore[assignment]
        vendor.items.clear()
        vendor.add_job()
        output = only_output(source)
        before = len(vendor.requests("token"))
        vendor.revoke_tokens()
        assert download(source, output)
        assert len(vendor.requests("token")) == before + 1


@pytest.mark.parametrize("status", [401, 403])
def test_missing_rights_are_a_refused_log_in_after_one_more_log_in(vendor: Simulator, source: Crayon, status: Any) -> None:
    vendor.switches.rights_missing = status
    with pytest.raises(LogInRefusedError):
        listed(source)
    assert len(vendor.requests("token")) == 2
    vendor.switches.rights_missing = 0
    assert listed(source) == {}


@pytest.mark.parametrize("status", [401, 403])
def test_one_refused_file_is_held_while_the_list_works(vendor: Simulator, source: Crayon, download: Any, status: int) -> None:
    vendor.add_job()
    output = only_output(source)
    vendor.standing["download"] = Fault.answer(status)
    with pytest.raises(HeldError, match="this one file is refused"):
        download(source, output)
    vendor.switches.rights_missing = 401
    with pytest.raises(LogInRefusedError):
        download(source, output)
    vendor.switches.rights_missing = 0
    vendor.standing.clear()
    assert download(source, output)


def test_an_error_object_under_200_without_a_number_is_asked_about(vendor: Simulator, source: Crayon) -> None:
    vendor.add_job()
    output = only_output(source)
    error = source.refused(output, RefusedError(200, body=b'{"message": "not now"}'))
    assert isinstance(error, VendorUnavailableError)
    error = source.refused(output, RefusedError(200, body=b'{"errorCode": "404 NotFound", "message": "x"}'))
    assert isinstance(error, OutputGoneError)
