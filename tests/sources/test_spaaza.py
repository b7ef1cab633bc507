"""Spaaza's client against a simulated Spaaza and its storage, with every switch that its sheet leaves open."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import product
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.demo import spaaza as demo
from worker.demo.server import Content, Fault
from worker.errors import (
    HeldError,
    LastcallError,
    LinkExpiredError,
    LogInRefusedError,
    NotReadyError,
    OutputGoneError,
    RefusedError,
    ThrottledError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.model import Job, JobState, Link, Output, OutputId
from worker.settings import SpaazaSettings
from worker.sources.http import Reply
from worker.sources.spaaza import Spaaza

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
RUNNING, COMPLETED, FAILED = JobState.RUNNING, JobState.COMPLETED, JobState.FAILED


@pytest.fixture
def vendor() -> Iterator[demo.Spaaza]:
    with demo.Spaaza() as simulated:
        yield simulated
        assert simulated.crashes == []


@pytest.fixture
def source(vendor: demo.Spaaza, shared: Any) -> Spaaza:
    return make(vendor, shared)


def make(vendor: demo.Spaaza, shared: Any, **keys: Any) -> Spaaza:
    table = {
        "name": "shop",
        "vendor": "spaaza",
        "base_url": vendor.base_url,
        "access_token_id": vendor.token_id,
        "access_token_secret": vendor.token_secret,
        "allow_private_hosts": True,
        "requests_per_second": 10_000,
        "read_timeout": "5s",
        **keys,
    }
    return Spaaza(SpaazaSettings.model_validate(table), shared)


def content(seed: str = "a", size: int = 1000) -> Content:
    return Content(seed, size)


def listed(source: Spaaza) -> list[Job]:
    return list(source.jobs(LONG_AGO))


def only_output(source: Spaaza) -> Output:
    (job,) = listed(source)
    (output,) = job.outputs
    return output


def fetch(link: Link) -> bytes:
    """Fetch as the worker does: an answer that is not the file is a `RefusedError`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(link.url, headers=dict(link.headers)), timeout=5) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        headers = {name.lower(): value for name, value in error.headers.items()}
        raise RefusedError(error.code, error.reason, headers, error.read()) from error


def refusal(source: Spaaza, output: Output, link: Link) -> LastcallError:
    with pytest.raises(RefusedError) as refused:
        fetch(link)
    return source.refused(output, refused.value)


# --- listing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", ["whole", "fraction", "offset"])
def test_a_done_task_carries_its_run(vendor: demo.Spaaza, source: Spaaza, times: Any) -> None:
    vendor.switches.times = times
    at = datetime(2026, 5, 26, 12, tzinfo=UTC)
    task = vendor.add_task(content(), created_at=at)
    (job,) = listed(source)
    (output,) = job.outputs
    assert (job.id, job.state, job.status, job.warnings) == (str(task.id), COMPLETED, "DONE", ())
    assert output.id == OutputId("shop", str(task.id), "20260526T120000Z")
    assert (output.completed_at, output.deadline) == (at, at + HOUR), "UTC is stated, so no margin"
    assert (job.completed_at, job.deadline) == (at, at + HOUR)
    assert (output.filename, output.size, output.checksum, output.downloads) == (None, None, None, 0)
    assert output.job["target"] == {"action": "export", "export_index": "wallet-ledger", "export_format": "csv"}
    assert source.job(job.id).outputs[0].id == output.id


@pytest.mark.parametrize("lower", [False, True])
def test_every_state_is_known_in_any_case(vendor: demo.Spaaza, source: Spaaza, lower: bool) -> None:
    vendor.switches.lower_case = lower
    vendor.add_task(content(), after=None)
    vendor.add_task(content(), lasts=None)
    vendor.add_task(content())
    vendor.add_task(None, ends="ERROR")
    jobs = sorted(listed(source), key=lambda job: job.id)
    assert [job.status for job in jobs] == ["READY", "INPROGRESS", "DONE", "ERROR"]
    assert [job.state for job in jobs] == [RUNNING, RUNNING, COMPLETED, FAILED]
    assert [len(job.outputs) for job in jobs] == [0, 0, 1, 0]
    assert not any(job.warnings for job in jobs)


def test_an_unknown_or_missing_state_is_running_with_a_warning(vendor: demo.Spaaza, source: Spaaza) -> None:
    vendor.add_task(content(), ends="ARCHIVED")
    vendor.add_task(content(), has_state=False)
    for job in listed(source):
        assert (job.state, len(job.warnings), job.outputs) == (RUNNING, 1, ())


def test_a_task_that_runs_again_has_a_new_output_under_its_id(vendor: demo.Spaaza, source: Spaaza) -> None:
    task = vendor.add_task(content(), created_at=vendor.now() - HOUR)
    first = only_output(source)
    vendor.rerun(task, content("b"))
    second = only_output(source)
    assert first.id.job_id == second.id.job_id
    assert first.id.output_id < second.id.output_id


def test_tasks_that_are_no_exports_are_skipped(vendor: demo.Spaaza, source: Spaaza) -> None:
    other = vendor.add_task(content(), action="send-message")
    vendor.add_task(content())
    document = vendor._document(other)
    vendor.fail("tasks", Fault.answer(200, json.dumps([document, vendor._document(vendor._tasks[12346])]), "application/json"))
    assert [job.id for job in listed(source)] == ["12346"]
    job = source.job(str(other.id))
    assert (job.state, job.outputs, len(job.warnings)) == (FAILED, (), 1)


@pytest.mark.parametrize(("count", "cap"), [(0, 100), (1, 100), (50, 100), (51, 100), (120, 100), (60, 7), (30, 1)])
def test_every_task_is_listed_once_whatever_the_server_makes_of_limit(
    vendor: demo.Spaaza, source: Spaaza, count: int, cap: int
) -> None:
    vendor.switches.limit_cap = cap
    made = [str(vendor.add_task(content()).id) for _ in range(count)]
    for order, duplicates in product(("newest", "oldest", "none"), (False, True)):
        vendor.switches.order, vendor.switches.duplicate_rows = order, duplicates
        assert sorted(job.id for job in listed(source)) == made


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("arriving", [[1, 1, 1], [5, 5, 5], [50, 50], [0, 120]])
def test_tasks_that_arrive_during_the_pass_hide_no_others(
    vendor: demo.Spaaza, source: Spaaza, order: Any, arriving: list[int]
) -> None:
    made = {str(vendor.add_task(content()).id) for _ in range(120)}
    vendor.switches.order, vendor.switches.arriving = order, list(arriving)
    found = [job.id for job in listed(source)]
    assert made <= set(found)
    assert len(found) == len(set(found))


def test_a_few_tasks_that_vanish_during_the_pass_hide_no_others(vendor: demo.Spaaza, source: Spaaza) -> None:
    vendor.switches.order = "oldest"
    tasks = [vendor.add_task(content()) for _ in range(120)]
    found = []
    for job in source.jobs(LONG_AGO):
        found.append(job.id)
        if len(found) == 50:
            for task in tasks[:4]:
                vendor.remove(task)
    assert found == [str(task.id) for task in tasks]


def test_a_vendor_that_pays_no_heed_to_offset_does_not_hang_the_pass(vendor: demo.Spaaza, source: Spaaza) -> None:
    rows = [vendor._document(vendor.add_task(content())) for _ in range(5)]
    vendor.standing["tasks"] = Fault.answer(200, json.dumps(rows), "application/json")
    assert len(listed(source)) == 5
    assert len(vendor.requests("tasks")) < 6


GOOD = {
    "id": 1,
    "chain": 1764,
    "state": {"code": "DONE", "last_run_date": "2026-05-26T12:00:00.75Z"},
    "target": {"action": "export"},
}


@pytest.mark.parametrize("bad", [None, 7, "text", [], {}, {"id": {}}, {"id": ""}])
def test_a_row_that_cannot_be_read_harms_no_other(vendor: demo.Spaaza, source: Spaaza, bad: Any) -> None:
    vendor.fail("tasks", Fault.answer(200, json.dumps([bad, GOOD]), "application/json"))
    (job,) = listed(source)
    assert [output.id.output_id for output in job.outputs] == ["20260526T120000Z"]


@pytest.mark.parametrize(
    "change",
    [
        {"state": "DONE"},
        {"state": {"code": "DONE"}},
        {"state": {"code": "DONE", "last_run_date": "soon"}},
        {"state": {"code": 5}},
        {"target": "export"},
    ],
)
def test_a_task_that_cannot_be_read_is_running_with_a_warning(vendor: demo.Spaaza, source: Spaaza, change: Any) -> None:
    vendor.fail("tasks", Fault.answer(200, json.dumps([{**GOOD, **change}, {**GOOD, "id": "2"}]), "application/json"))
    first, second = listed(source)
    assert (first.id, first.state, first.outputs, len(first.warnings)) == ("1", RUNNING, (), 1)
    assert (second.id, second.state) == ("2", COMPLETED)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
    )
)
@pytest.mark.parametrize("name", ["id", "state", "target", "code", "last_run_date"])
def test_whatever_a_field_holds_only_our_errors_come_out(name: str, value: Any) -> None:
    table = {"vendor": "spaaza", "base_url": "https://x.example", "access_token_id": "i", "access_token_secret": "s"}
    source = Spaaza(SpaazaSettings.model_validate({"name": "shop", **table}), None)
    for document in ({**GOOD, name: value}, {**GOOD, "state": {**GOOD["state"], name: value}}):
        try:
            job = source._job(source._task(document))
        except VendorReplyError:
            continue
        assert job.state is not COMPLETED or job.outputs


def test_the_receipts_copy_of_the_task_holds_no_logs_and_no_link(vendor: demo.Spaaza, source: Spaaza) -> None:
    document = {
        **GOOD,
        "logs": [{"message": "at https://x"}],
        "debug": "https://x?sig=1",
        "result": {"file": "https://x"},
        "v": 1,
    }
    vendor.fail("tasks", Fault.answer(200, json.dumps([document]), "application/json"))
    assert only_output(source).job == {**GOOD, "result": {}, "v": 1}


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["s3", "gcs", "s3-old"])
def test_a_link_leads_to_the_file_without_our_token(vendor: demo.Spaaza, source: Spaaza, storage: Any) -> None:
    vendor.switches.storage, vendor.switches.link_seconds = storage, 900
    made = content()
    task = vendor.add_task(made)
    output = only_output(source)
    link = source.link(output)
    assert (link.counted, link.resumable, link.wrapping) == (False, True, "none")
    assert dict(link.headers) == {"Accept": "*/*"}
    assert link.filename == f"Wallet_Export-{task.id}.csv"
    assert link.expires_at is not None
    assert abs(link.expires_at - datetime.now(UTC) - timedelta(seconds=900)) < timedelta(seconds=5)
    assert fetch(link) == b"".join(made.read())
    source.confirm(output)
    assert "authorization" not in vendor.requests("storage")[0].headers


def test_a_link_ages_with_the_configured_life_when_its_query_says_no_less(vendor: demo.Spaaza, shared: Any) -> None:
    vendor.add_task(content())
    source = make(vendor, shared, link_lifetime="10m")
    link = source.link(only_output(source))
    assert link.expires_at is not None
    assert abs(link.expires_at - datetime.now(UTC) - timedelta(minutes=10)) < timedelta(seconds=5)


@pytest.mark.parametrize("offset", [-5 * HOUR, 5 * HOUR])
def test_a_vendor_whose_clock_is_wrong_mints_links_that_live(vendor: demo.Spaaza, source: Spaaza, offset: timedelta) -> None:
    vendor.now.advance(offset)
    vendor.add_task(content())
    output = only_output(source)
    date = format_datetime(datetime.now(UTC) + offset, usegmt=True)
    url = vendor._link(vendor._tasks[12345])
    vendor.fail("mint", Fault.answer(200, json.dumps({"url": url}), "application/json", Date=date))
    link = source.link(output)
    assert link.expires_at is not None
    assert abs(link.expires_at - datetime.now(UTC) - HOUR) < timedelta(seconds=5)
    assert len(vendor.requests("mint")) == 1


def test_a_link_that_is_about_to_age_is_minted_again(vendor: demo.Spaaza, source: Spaaza) -> None:
    vendor.add_task(content())
    output = only_output(source)
    vendor.switches.lapsed_links = 1
    assert fetch(source.link(output))
    vendor.switches.lapsed_links = 2
    with pytest.raises(VendorReplyError):
        source.link(output)
    assert fetch(source.link(output))
    assert len(vendor.requests("mint")) == 2 + 2 + 1


@pytest.mark.parametrize(("left", "life", "mints"), [(59, 3600, 2), (61, 3600, 1), (19, 20, 1), (1, 20, 2)])
def test_how_little_is_too_little_depends_on_the_links_life(
    vendor: demo.Spaaza, source: Spaaza, left: int, life: int, mints: int
) -> None:
    """The second link is used whatever it has left, as long as it lives."""
    vendor.add_task(content())
    output = only_output(source)
    query = urlencode({"X-Amz-Date": "20260526T120000Z", "X-Amz-Expires": str(life)})
    body = json.dumps({"url": f"{vendor.origin(1)}/a.csv?{query}"})
    minted_at = datetime(2026, 5, 26, 12, tzinfo=UTC) + timedelta(seconds=life - left)
    vendor.standing["mint"] = Fault.answer(200, body, "application/json", Date=format_datetime(minted_at, usegmt=True))
    source.link(output)
    assert len(vendor.requests("mint")) == mints


@pytest.mark.parametrize("url", [None, "", 5, "ftp://x/a.csv", "a.csv", "http://", "http://[", {"url": "x"}])
def test_an_answer_without_a_usable_link_is_tried_later(vendor: demo.Spaaza, source: Spaaza, url: Any) -> None:
    vendor.add_task(content())
    output = only_output(source)
    vendor.fail("mint", Fault.answer(200, json.dumps({"url": url}), "application/json"))
    with pytest.raises(VendorReplyError):
        source.link(output)
    assert fetch(source.link(output))


@given(
    date=st.text(max_size=20),
    seconds=st.text("0123456789", max_size=12),
    expires=st.text(max_size=12),
    clock=st.text(max_size=30),
)
@example(date="99991231T235959Z", seconds="9999999999", expires="9999999999", clock="Mon, 01 Jan 0001 00:00:00 +1400")
def test_whatever_a_links_query_says_it_has_a_life(date: str, seconds: str, expires: str, clock: str) -> None:
    query = urlencode({"X-Amz-Date": date, "X-Amz-Expires": seconds, "Expires": expires})
    table = {"vendor": "spaaza", "base_url": "https://x.example", "access_token_id": "i", "access_token_secret": "s"}
    source = Spaaza(SpaazaSettings.model_validate({"name": "shop", **table}), None)
    life, left = source._life(query, Reply(call="mint", status=200, headers={"date": clock}))
    assert max(life, left) <= HOUR


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_replaced_is_superseded(vendor: demo.Spaaza, source: Spaaza) -> None:
    task = vendor.add_task(content())
    output = only_output(source)
    vendor.rerun(task, content("b"), lasts=HOUR)
    with pytest.raises(NotReadyError):
        source.link(output)
    with pytest.raises(NotReadyError):
        source.confirm(output)
    vendor.now.advance(2 * HOUR)
    for ask in (source.link, source.confirm):
        with pytest.raises(OutputGoneError) as gone:
            ask(output)
        assert (gone.value.reason, gone.value.answers) == ("superseded", 2)
    assert vendor.requests("mint") == []


def test_a_run_is_not_given_up_because_the_next_one_failed(vendor: demo.Spaaza, source: Spaaza) -> None:
    task = vendor.add_task(content())
    output = only_output(source)
    vendor.rerun(task, None, ends="ERROR")
    with pytest.raises(NotReadyError, match="failed"):
        source.link(output)


def test_a_run_that_begins_during_the_download_shows_afterwards(vendor: demo.Spaaza, source: Spaaza) -> None:
    vendor.add_task(content())
    output = only_output(source)
    vendor.switches.reruns_during_download = 1
    fetch(source.link(output))
    with pytest.raises(OutputGoneError, match="replaced"):
        source.confirm(output)
    again = only_output(source)
    fetch(source.link(again))
    source.confirm(again)


def test_a_task_that_vanished_says_nothing_against_whole_bytes(vendor: demo.Spaaza, source: Spaaza) -> None:
    task = vendor.add_task(content())
    output = only_output(source)
    vendor.remove(task)
    source.confirm(output)
    with pytest.raises(OutputGoneError):
        source.link(output)


# --- refusals of the API ---------------------------------------------------------------------------------------------

BODIES = ["error", "message", "text", "envelope"]


@pytest.mark.parametrize("body", BODIES)
def test_not_done_is_known_by_its_text(vendor: demo.Spaaza, source: Spaaza, body: Any) -> None:
    vendor.switches.error_body = body
    vendor.add_task(content())
    output = only_output(source)
    for status in (400, 409, 200, 500):
        answer = vendor._error(status, demo.NOT_DONE)
        vendor.fail("mint", Fault.answer(status, b"".join(answer.body.read()), answer.headers["Content-Type"]))
        with pytest.raises(NotReadyError):
            source.link(output)


@pytest.mark.parametrize(("body", "status"), [*((body, 500) for body in BODIES), ("error", 400)])
def test_an_invalid_result_needs_several_answers_and_may_heal(
    vendor: demo.Spaaza, source: Spaaza, body: Any, status: Any
) -> None:
    vendor.switches.error_body, vendor.switches.invalid_status = body, status
    vendor.add_task(content(), invalid_mints=2)
    output = only_output(source)
    for _ in range(2):
        with pytest.raises(OutputGoneError) as gone:
            source.link(output)
        assert (gone.value.reason, gone.value.answers) == ("invalid-result", 5)
        assert (gone.value.over, gone.value.lost_at_deadline) == (timedelta(seconds=30), True)
    assert fetch(source.link(output))


@pytest.mark.parametrize("body", BODIES)
def test_a_task_that_is_no_export_needs_a_person(vendor: demo.Spaaza, source: Spaaza, body: Any) -> None:
    vendor.switches.error_body = body
    task = vendor.add_task(content())
    output = only_output(source)
    answer = vendor._error(400, demo.NOT_EXPORT)
    vendor.fail("mint", Fault.answer(400, b"".join(answer.body.read()), answer.headers["Content-Type"]))
    with pytest.raises(HeldError, match=str(task.id)):
        source.link(output)


@pytest.mark.parametrize("body", [*BODIES, "empty"])
@pytest.mark.parametrize("status", [404, 500])
def test_an_unknown_task_is_gone(vendor: demo.Spaaza, source: Spaaza, body: Any, status: Any) -> None:
    """With code 68, "not there or not allowed", the list tells that the token is good, so the task is not there."""
    vendor.switches.error_body, vendor.switches.unknown_status = body, status
    task = vendor.add_task(content())
    output = only_output(source)
    vendor.remove(task)
    for call in (lambda: source.link(output), lambda: source.job(output.id.job_id)):
        with pytest.raises(OutputGoneError) as gone:
            call()
        assert gone.value.answers == 2


@pytest.mark.parametrize(
    ("state", "refused"),
    [("unknown", 401), ("unknown", 403), ("inactive", 401), ("scope", 403), ("session", 401), ("hidden", 401)],
)
def test_a_refused_token_is_a_refused_log_in_everywhere(vendor: demo.Spaaza, source: Spaaza, state: Any, refused: Any) -> None:
    task = vendor.add_task(content())
    output = only_output(source)
    vendor.switches.refused_status, vendor.switches.log_in = refused, state
    calls = (
        lambda: listed(source),
        lambda: source.job(str(task.id)),
        lambda: source.link(output),
        lambda: source.confirm(output),
    )
    for body, call in product((*BODIES, "empty"), calls):
        vendor.switches.error_body = body
        with pytest.raises(LogInRefusedError):
            call()
    vendor.switches.log_in = "good"
    assert fetch(source.link(output))


@pytest.mark.parametrize("state", ["inactive", "hidden"])
def test_a_token_revoked_between_two_calls_is_a_refused_log_in(vendor: demo.Spaaza, source: Spaaza, state: str) -> None:
    vendor.add_task(content())
    output = only_output(source)
    if state == "inactive":
        vendor.switches.revoked_after = 1
    else:
        hidden = demo._hidden()
        fault = Fault.answer(500, b"".join(hidden.body.read()), "application/json")
        vendor.fail("mint", fault)
        vendor.fail("tasks", fault)
    with pytest.raises(LogInRefusedError):
        source.link(output)


@pytest.mark.parametrize("status", [400, 409, 500])
def test_an_empty_refusal_is_tried_later(vendor: demo.Spaaza, source: Spaaza, status: int) -> None:
    vendor.add_task(content())
    output = only_output(source)
    vendor.fail("mint", Fault.answer(status))
    with pytest.raises((VendorReplyError, NotReadyError, VendorUnavailableError)):
        source.link(output)
    assert fetch(source.link(output))


@pytest.mark.parametrize("route", ["tasks", "task", "mint"])
def test_a_throttled_call_hushes_the_source(vendor: demo.Spaaza, source: Spaaza, shared: Any, route: str) -> None:
    vendor.add_task(content())
    output = only_output(source)
    vendor.fail(route, demo.throttled("30"))
    call = listed if route == "tasks" else partial(Spaaza.link, output=output)
    with pytest.raises(ThrottledError):
        call(source)
    assert shared.hushes


def test_a_burst_of_server_errors_is_ridden_out(vendor: demo.Spaaza, source: Spaaza) -> None:
    vendor.add_task(content())
    for route in ("tasks", "task", "mint"):
        vendor.fail(route, Fault.answer(503), Fault.answer(502))
    assert fetch(source.link(only_output(source)))


@pytest.mark.parametrize("fault", [Fault.answer(200, "<html>"), Fault.answer(200, "{}"), Fault.answer(404), Fault.answer(301)])
def test_an_answer_that_is_no_list_ends_the_pass_with_an_error(vendor: demo.Spaaza, source: Spaaza, fault: Fault) -> None:
    """An incomplete pass must not look like a complete one."""
    vendor.add_task(content())
    vendor.fail("tasks", fault)
    with pytest.raises(VendorReplyError):
        listed(source)
    assert len(listed(source)) == 1


# --- refusals of the storage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["s3-403", "s3-400", "gcs-400", "plain-403"])
def test_a_link_that_aged_is_got_anew(vendor: demo.Spaaza, source: Spaaza, answer: Any) -> None:
    vendor.switches.lapsed_answer, vendor.switches.link_seconds = answer, 600
    vendor.add_task(content())
    output = only_output(source)
    link = source.link(output)
    vendor.now.advance(timedelta(minutes=11))
    assert isinstance(refusal(source, output, link), LinkExpiredError)
    assert fetch(source.link(output))


def test_credentials_that_lapse_before_the_link_cost_a_new_link(vendor: demo.Spaaza, source: Spaaza) -> None:
    vendor.switches.credential_seconds = 300
    vendor.add_task(content())
    output = only_output(source)
    link = source.link(output)
    vendor.now.advance(timedelta(minutes=6))
    assert isinstance(refusal(source, output, link), LinkExpiredError)
    assert fetch(source.link(output))


def test_a_link_that_was_good_for_one_request_costs_a_new_link(vendor: demo.Spaaza, source: Spaaza) -> None:
    vendor.switches.one_time_links = True
    vendor.add_task(content())
    output = only_output(source)
    link = source.link(output)
    assert fetch(link)
    assert isinstance(refusal(source, output, link), LinkExpiredError)
    assert fetch(source.link(output))


def test_a_purged_file_is_gone(vendor: demo.Spaaza, source: Spaaza) -> None:
    vendor.switches.purge_after, vendor.switches.purged_answer = HOUR, "missing"
    vendor.add_task(content())
    output = only_output(source)
    vendor.now.advance(2 * HOUR)
    assert isinstance(refusal(source, output, source.link(output)), OutputGoneError)
    vendor.switches.purged_answer = "invalid"
    with pytest.raises(OutputGoneError) as gone:
        source.link(output)
    assert gone.value.reason == "invalid-result"


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (403, "AccessDenied", "Request has expired", LinkExpiredError),
        (403, "AccessDenied", "Access Denied", LinkExpiredError),
        (403, "RequestTimeTooSkewed", "The difference is too large", LinkExpiredError),
        (400, "ExpiredToken", "Invalid argument.", LinkExpiredError),
        (403, "SignatureDoesNotMatch", "The request signature we calculated does not match", HeldError),
        (400, "InvalidArgument", "Only one auth mechanism allowed", HeldError),
        (404, "NoSuchKey", "The specified key does not exist.", OutputGoneError),
        (404, "NoSuchBucket", "The specified bucket does not exist", HeldError),
        (503, "SlowDown", "Please reduce your request rate.", VendorUnavailableError),
        (500, "InternalError", "We encountered an internal error.", VendorUnavailableError),
        (429, "TooManyRequests", "slow", VendorUnavailableError),
        (400, "EntityTooLarge", "no", HeldError),
        (416, "InvalidRange", "no", VendorReplyError),
        (410, "Gone", "used", LinkExpiredError),
        (200, "AccessDenied", "Request has expired", LinkExpiredError),
        (200, "Html", "hello", VendorReplyError),
    ],
)
def test_what_the_storage_answers(
    vendor: demo.Spaaza, source: Spaaza, status: int, code: str, message: str, kind: type[LastcallError]
) -> None:
    vendor.add_task(content())
    output = only_output(source)
    body = demo._xml(code, message).encode()
    error = source.refused(output, RefusedError(status, "", {"content-type": "application/xml"}, body))
    assert type(error) is kind
    assert output.id.job_id in str(error)


def test_a_busy_storage_names_its_time(vendor: demo.Spaaza, source: Spaaza) -> None:
    vendor.add_task(content())
    error = source.refused(only_output(source), RefusedError(503, "", {"retry-after": "90"}))
    assert isinstance(error, VendorUnavailableError)
    assert error.not_before is not None
    assert error.not_before > datetime.now(UTC) + timedelta(seconds=80)


def test_no_message_carries_a_link_or_a_token(vendor: demo.Spaaza, source: Spaaza) -> None:
    vendor.add_task(content())
    output = only_output(source)
    link = source.link(output)
    vendor.fail("storage", demo.storage_refusal(403, "AccessDenied", link.url))
    texts = [repr(link), str(refusal(source, output, link))]
    vendor.fail("mint", Fault.answer(500, link.url))
    with pytest.raises(VendorUnavailableError) as failed:
        source.link(output)
    for text in [*texts, str(failed.value)]:
        assert "://" not in text
        assert urlsplit(link.url).query not in text
        assert vendor.token_secret not in text
