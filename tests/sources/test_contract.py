"""What every source promises (`worker.sources.base.Source`), tried on each vendor against a simulator of itself."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from worker.decode import Decoder
from worker.demo import api2convert, crayon, sellercloud, spaaza
from worker.demo.server import Content, Fault, Vendor
from worker.errors import (
    BlockedAddressError,
    LastcallError,
    LogInRefusedError,
    NotReadyError,
    OutputGoneError,
    ThrottledError,
    VendorReplyError,
    VendorUnavailableError,
)
from worker.model import Job, JobState, Output, Shared
from worker.settings import parse
from worker.sources import open_source
from worker.sources.base import Source

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=11)
HTML = "<!DOCTYPE html><html><body>Sorry</body></html>"


@dataclass(frozen=True)
class Case:
    """One vendor: how to make it, how jobs get in, and how it misbehaves.

    `add(vendor, kind)` adds a job that was completed some minutes ago; `kind` is one of ``completed``, ``nothing``,
    ``failed``, ``running`` and ``unknown``. `lose` lets the vendor forget the bytes of all its jobs. `lists` and `downloads`
    are the routes of the list and of the call that a download begins with. `key` is the credential that gets broken.
    """

    name: str
    make: Callable[[], Any]
    add: Callable[[Any, str], object]
    lose: Callable[[Any], object]
    lists: str
    downloads: str
    key: str
    has_log_in: bool = False


def _add_sellercloud(vendor: Any, kind: str) -> object:
    statuses = {"completed": None, "nothing": None, "failed": 4, "running": 1, "unknown": 99}
    return vendor.add_job(status=statuses[kind], output_file="empty" if kind == "nothing" else "named")


def _add_api2convert(vendor: Any, kind: str) -> object:
    outputs = [api2convert.OutputFile(f"report-{n}.csv", Content(("contract", n), 700 + n)) for n in range(2)]
    how: dict[str, Any] = {
        "failed": {"ends": "failed"},
        "running": {"lasts": None},
        "unknown": {"until": "pondering", "lasts": None},
    }.get(kind, {})
    return vendor.add_job(*(outputs if kind == "completed" else ()), created_at=vendor.now() - timedelta(minutes=2), **how)


def _add_spaaza(vendor: Any, kind: str) -> object:
    how: dict[str, Any] = {"failed": {"ends": "ERROR"}, "running": {"lasts": None}, "unknown": {"ends": "PONDERING"}}.get(
        kind, {}
    )
    content = Content(("contract", kind), 800) if kind == "completed" else None
    return vendor.add_task(content, created_at=vendor.now() - timedelta(minutes=2), **how)


def _add_crayon(vendor: Any, kind: str) -> object:
    statuses = {"completed": None, "nothing": None, "failed": 8, "running": 1, "unknown": 6}
    created = vendor.now() - timedelta(hours=3)
    waiting = None if kind == "nothing" else timedelta()
    return vendor.add_job(status=statuses[kind], created_at=created, processed_at=created, downloadable_after=waiting)


def _lose_api2convert(vendor: Any) -> None:
    for _, output in vendor._paths.values():
        output.deleted = True


CASES = [
    Case(
        name="sellercloud",
        make=sellercloud.Sellercloud,
        add=_add_sellercloud,
        lose=lambda vendor: vendor.now.advance(timedelta(days=11)),
        lists="list",
        downloads="download",
        key="password",
        has_log_in=True,
    ),
    Case(
        name="api2convert",
        make=api2convert.Api2convert,
        add=_add_api2convert,
        lose=_lose_api2convert,
        lists="jobs",
        downloads="download",
        key="api_key",
    ),
    Case(
        name="spaaza",
        make=spaaza.Spaaza,
        add=_add_spaaza,
        lose=lambda vendor: setattr(vendor.switches, "purge_after", timedelta()),
        lists="tasks",
        downloads="mint",
        key="access_token_secret",
    ),
    Case(
        name="crayon",
        make=crayon.Crayon,
        add=_add_crayon,
        lose=lambda vendor: vendor.now.advance(timedelta(days=8)),
        lists="list",
        downloads="download",
        key="client_secret",
        has_log_in=True,
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def vendor(case: Case) -> Iterator[Vendor]:
    with case.make() as vendor:
        yield vendor
        assert vendor.crashes == []


@pytest.fixture
def opened(case: Case, vendor: Vendor, shared: Shared) -> Callable[..., Source]:
    """Give a source of the vendor, made from a configuration as a user would write it."""

    def make(**more: Any) -> Source:
        table = {
            "vendor": case.name,
            "base_url": vendor.base_url,
            "allow_private_hosts": True,
            "download_hosts": ["127.0.0.1", "127.0.0.2"],
            **vendor.credentials,
            **more,
        }
        return open_source(parse({"archive": {"bucket": "exports"}, "sources": {"acme": table}}).sources["acme"], shared)

    return make


@pytest.fixture
def source(opened: Callable[..., Source]) -> Source:
    return opened()


def listed(source: Source) -> list[Job]:
    return list(source.jobs(LONG_AGO))


def outputs_of(source: Source) -> list[Output]:
    return [output for job in listed(source) for output in job.outputs]


def unwrapped(source: Source, output: Output, body: bytes) -> bytes:
    decoder = Decoder(source.link(output).wrapping, filename=output.filename)
    return decoder.feed(body) + decoder.finish()


# --- listing ---------------------------------------------------------------------------------------------------------


def test_an_empty_account_has_no_jobs(source: Source) -> None:
    assert listed(source) == []


def test_every_output_that_the_vendor_has_is_listed_once_and_the_same_each_time(
    case: Case, vendor: Vendor, source: Source
) -> None:
    for _ in range(120):
        case.add(vendor, "completed")
    jobs = listed(source)
    assert len({job.id for job in jobs}) == len(jobs) == 120
    found = {(output.id.job_id, output.id.output_id): output for job in jobs for output in job.outputs}
    assert set(found) == {(truth.job_id, truth.output_id) for truth in vendor.truth()}
    assert all(output.id.source == "acme" for output in found.values())
    assert {output.id: output for output in outputs_of(source)} == {output.id: output for output in found.values()}


def test_jobs_are_yielded_while_pages_are_read(case: Case, vendor: Vendor, source: Source) -> None:
    for _ in range(60):
        case.add(vendor, "completed")
    with contextlib.closing(source.jobs(LONG_AGO)) as jobs:
        next(jobs)  # type: ignore[call-overload]
        assert len(vendor.requests(case.lists)) == 1


def test_times_and_deadlines_are_aware_and_never_late(case: Case, vendor: Vendor, source: Source) -> None:
    for kind in ("completed", "nothing"):
        case.add(vendor, kind)
    settings_retention = {"sellercloud": 10 * 24, "api2convert": 24, "spaaza": 1, "crayon": 7 * 24}[case.name]
    for job in listed(source):
        for completed_at, deadline in [
            (job.completed_at, job.deadline),
            *((output.completed_at, output.deadline) for output in job.outputs),
        ]:
            assert completed_at is not None
            assert deadline is not None
            assert completed_at.utcoffset() == deadline.utcoffset() == timedelta(0)
            assert deadline <= completed_at + timedelta(hours=settings_retention)


def test_every_state_is_one_of_ours(case: Case, vendor: Vendor, source: Source) -> None:
    expected = {
        "completed": JobState.COMPLETED,
        "failed": JobState.FAILED,
        "running": JobState.RUNNING,
        "unknown": JobState.RUNNING,
        "nothing": JobState.COMPLETED,
    }
    for kind, state in expected.items():
        before = {job.id for job in listed(source)}
        case.add(vendor, kind)
        (job,) = [job for job in listed(source) if job.id not in before]
        assert job.state is state, kind
        assert bool(job.warnings) == (kind == "unknown")
        if case.name != "spaaza" or kind != "nothing":  # only the mint tells that a Spaaza task has no result
            assert bool(job.outputs) == (kind == "completed")
        again = source.job(job.id)
        assert (again.state, [output.id for output in again.outputs]) == (state, [output.id for output in job.outputs])
        assert [(o.completed_at, o.deadline) for o in again.outputs] == [(o.completed_at, o.deadline) for o in job.outputs]


def test_a_job_that_the_vendor_does_not_know_is_an_answer_of_its_own(source: Source) -> None:
    for job_id in ("987654", "../jobs", "a b?c#d"):
        with pytest.raises((OutputGoneError, NotReadyError)):
            source.job(job_id)


def test_a_receipts_document_holds_no_secret_and_no_link(case: Case, vendor: Vendor, source: Source) -> None:
    case.add(vendor, "completed")
    for output in outputs_of(source):
        text = json.dumps(output.job)
        assert "://" not in text
        assert source.link(output).url not in text
        for secret in vendor.credentials.values():
            assert secret not in text or "@" in secret  # a user name may be that of the person who asked


# --- downloads -------------------------------------------------------------------------------------------------------


def test_the_bytes_behind_a_link_are_the_vendors(case: Case, vendor: Vendor, source: Source, download: Any) -> None:
    for _ in range(3):
        case.add(vendor, "completed")
    found = {}
    for output in outputs_of(source):
        link = source.link(output)
        assert link.url not in repr(link)
        assert not any(value in repr(link) for value in link.headers.values() if len(value) > 20)
        body = unwrapped(source, output, download(source, output))
        found[output.id.job_id, output.id.output_id] = sha256(body).hexdigest()
        source.confirm(output)
    assert found == {(truth.job_id, truth.output_id): truth.sha256 for truth in vendor.truth()}


def test_bytes_that_the_vendor_no_longer_has_are_gone(case: Case, vendor: Vendor, source: Source, download: Any) -> None:
    case.add(vendor, "completed")
    outputs = outputs_of(source)
    case.lose(vendor)
    for output in outputs:
        with pytest.raises(OutputGoneError) as caught:
            download(source, output)
        assert caught.value.answers >= 2
        assert caught.value.reason in {"gone", "expired", "deleted", "superseded", "invalid-result"}


# --- faults: the right error, and success after ---------------------------------------------------------------------

FAULTS: dict[str, tuple[Fault, type[LastcallError]]] = {
    "500": (Fault.answer(500, HTML), VendorUnavailableError),
    "502": (Fault.answer(502, HTML), VendorUnavailableError),
    "html under 200": (Fault.answer(200, HTML), VendorReplyError),
    "html called json": (Fault.answer(200, HTML, "application/json"), VendorReplyError),
    "half an answer": (Fault.answer(200, '[{"id": 1, "Items": [', "application/json"), VendorReplyError),
    "a number": (Fault.answer(200, "7", "application/json"), VendorReplyError),
    "nothing": (Fault.answer(200, "", "application/json"), VendorReplyError),
    "endless nesting": (Fault.answer(200, "[" * 50_000, "application/json"), VendorReplyError),
    "418": (Fault.answer(418, HTML), VendorReplyError),
    "redirect": (Fault.answer(302, Location="http://127.0.0.1:9/"), VendorReplyError),
    "cut": (Fault(cut_after=1), VendorUnavailableError),
    "reset": (Fault(cut_after=0, reset=True), VendorUnavailableError),
    "429": (Fault.answer(429, "{}", "application/json", Retry_After="30"), ThrottledError),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_list_is_named_and_passes(case: Case, vendor: Vendor, source: Source, shared: Any, fault: str) -> None:
    case.add(vendor, "completed")
    listed(source)
    what, error = FAULTS[fault]
    vendor.standing[case.lists] = what
    with pytest.raises(error) as caught:
        listed(source)
    assert type(caught.value) is error
    assert_says_nothing(str(caught.value), case, vendor)
    assert len(vendor.requests(case.lists)) < 12
    vendor.standing.clear()
    if error is ThrottledError:
        with pytest.raises(ThrottledError):
            listed(source)
        shared.forgive()
    assert outputs_of(source)


def test_retry_after_holds_for_every_call_of_the_source(case: Case, vendor: Vendor, source: Source, shared: Any) -> None:
    case.add(vendor, "completed")
    listed(source)
    vendor.fail(case.lists, Fault.answer(429, "{}", Retry_After="30"))
    with pytest.raises(ThrottledError) as caught:
        listed(source)
    assert shared.hushes == [caught.value.not_before]
    assert timedelta(seconds=27) < shared.hushes[0] - datetime.now(UTC) <= timedelta(seconds=30)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_fault_of_the_download_is_tried_later(case: Case, vendor: Vendor, source: Source, download: Any, status: int) -> None:
    case.add(vendor, "completed")
    output = outputs_of(source)[0]
    vendor.standing[case.downloads] = Fault.answer(status, HTML)
    with pytest.raises(VendorUnavailableError) as caught:
        download(source, output)
    assert_says_nothing(str(caught.value), case, vendor)
    vendor.standing.clear()
    assert unwrapped(source, output, download(source, output))


def test_refused_credentials_are_a_refused_log_in_and_new_ones_help(
    case: Case, vendor: Vendor, opened: Callable[..., Source], tmp_path: Path
) -> None:
    case.add(vendor, "completed")
    secret = tmp_path / "secret"
    right = vendor.credentials[case.key]
    source = opened(**{case.key: {"file": str(secret)}})
    for wrong in (None, "wrong-credential"):
        if wrong is not None:
            secret.write_text(wrong)
        with pytest.raises(LogInRefusedError) as caught:
            listed(source)
        assert "wrong-credential" not in str(caught.value)
        assert_says_nothing(str(caught.value).replace(str(secret), ""), case, vendor)
        assert len(vendor.log) == (0 if wrong is None else 1)
    secret.write_text(right)
    assert outputs_of(source)


def test_a_vendor_that_is_down_is_unavailable_and_comes_back(case: Case, vendor: Vendor, source: Source) -> None:
    case.add(vendor, "completed")
    listed(source)
    vendor.stop()
    with pytest.raises(VendorUnavailableError):
        listed(source)
    vendor.start()
    assert outputs_of(source)


def test_a_private_address_is_blocked_unless_allowed(vendor: Vendor, opened: Callable[..., Source]) -> None:
    with pytest.raises(BlockedAddressError):
        listed(opened(allow_private_hosts=False))
    assert vendor.log == []


def test_several_threads_may_use_one_source(case: Case, vendor: Vendor, source: Source, download: Any) -> None:
    for _ in range(8):
        case.add(vendor, "completed")
    outputs = outputs_of(source)[:8]
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda o=output: sizes.append(len(download(source, o)))) for output in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sizes) == 8
    assert all(sizes)
    if case.has_log_in:
        assert len(vendor.requests("token")) == 1


def assert_says_nothing(text: str, case: Case, vendor: Vendor) -> None:
    """No message carries a URL, a credential or a body."""
    assert "://" not in text
    assert vendor.origin().rpartition("/")[2] not in text
    assert "Sorry" not in text
    for secret in vendor.credentials.values():
        assert secret not in text
