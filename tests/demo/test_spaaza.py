"""The simulated Spaaza answers as its sheet says, its storage as S3 and Google Cloud Storage do, and has every nasty habit."""

from __future__ import annotations

import gzip
import hashlib
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree as ET

import pytest
import requests

from worker.demo.server import Content, Fault
from worker.demo.spaaza import INVALID_RESULT, NO_TASK, NOT_DONE, NOT_EXPORT, Spaaza, Task, storage_refusal, throttled

HOUR = timedelta(hours=1)
CONTENT = Content("ledger", 5000)
DATA = b"".join(CONTENT.read())


@pytest.fixture
def vendor():
    with Spaaza() as vendor:
        yield vendor
        assert vendor.crashes == []


def call(vendor: Spaaza, path: str, method: str = "GET", **how) -> requests.Response:
    headers = {"Authorization": f"Bearer {vendor.token_id}:{vendor.token_secret}"}
    return requests.request(method, vendor.base_url + path, headers=headers, timeout=5, **how)


def mint(vendor: Spaaza, task: Task) -> requests.Response:
    return call(vendor, f"/tasks/{task.id}/download_url")


def link(vendor: Spaaza, task: Task) -> str:
    return mint(vendor, task).json()["url"]


def fetch(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers={"Accept-Encoding": "identity", **headers}, timeout=5)


def state(vendor: Spaaza, task: Task) -> str:
    return call(vendor, f"/tasks/{task.id}").json()["state"]["code"]


def refusal(answer: requests.Response) -> tuple[int, str, str]:
    assert answer.headers["Content-Type"] == "application/xml"
    error = ET.fromstring(answer.content)
    return answer.status_code, error.findtext("Code"), error.findtext("Message")


def test_an_export_from_the_list_to_the_bytes(vendor):
    task = vendor.add_task(CONTENT)
    (document,) = call(vendor, "/tasks?status=DONE&action=export&limit=50&offset=0").json()
    assert document["target"] == {"action": "export", "export_index": "wallet-ledger", "export_format": "csv"}
    assert set(document) == {"id", "chain", "desc", "state", "trigger", "target"}
    url = link(vendor, task)
    assert urlsplit(url).path.endswith(f"/Wallet_Export-{task.id}.csv")
    answer = fetch(url)
    assert answer.content == DATA
    assert answer.headers["ETag"] == f'"{hashlib.md5(DATA).hexdigest()}"'
    (truth,) = vendor.truth()
    ran = datetime.strptime(document["state"]["last_run_date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert (truth.job_id, truth.output_id) == (str(task.id), ran.strftime("%Y%m%dT%H%M%SZ"))
    assert (truth.completed_at, truth.filename) == (ran, task.filename)
    assert (truth.size, truth.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert (truth.full_downloads, truth.partial_downloads, truth.gone) == (1, 0, False)


def test_names_of_every_index(vendor):
    indexes = ("transactions", "users", "vouchers", "wallet-ledger", "products", "product-variants")
    names = [vendor.add_task(CONTENT, id=7, export_index=index, export_format="json").filename for index in indexes]
    words = ("Transaction", "User", "Voucher", "Wallet", "Product", "ProductVariant")
    assert names == [f"{word}_Export-7.json" for word in words]


# --- 1, 2. log-in and error bodies ---


def test_log_in_that_is_refused(vendor):
    vendor.add_task(CONTENT)
    assert requests.get(vendor.base_url + "/tasks", headers={"Authorization": "Bearer x:y"}, timeout=5).status_code == 401
    for kind, status in {"unknown": 401, "inactive": 401, "scope": 403, "session": 401, "hidden": 500, "good": 200}.items():
        vendor.switches.log_in = kind
        answer = call(vendor, "/tasks")
        assert answer.status_code == status
        assert answer.json() if kind == "good" else "error" in answer.json()
        if kind in {"session", "hidden"}:
            assert answer.json()["error"]["code"] == {"session": 6, "hidden": 68}[kind]
    vendor.switches.log_in, vendor.switches.refused_status = "inactive", 403
    assert call(vendor, "/tasks").status_code == 403


def test_a_token_is_revoked_in_mid_run(vendor):
    task = vendor.add_task(CONTENT)
    vendor.switches.revoked_after = 2
    assert [call(vendor, f"/tasks/{task.id}").status_code for _ in range(4)] == [200, 200, 401, 401]
    vendor.switches.revoked_after = None
    assert state(vendor, task) == "DONE"


def test_bodies_of_refusals(vendor):
    task = vendor.add_task(CONTENT, lasts=HOUR)
    assert mint(vendor, task).json() == {"error": NOT_DONE}
    vendor.switches.error_body = "message"
    assert mint(vendor, task).json() == {"message": NOT_DONE}
    vendor.switches.error_body = "text"
    assert mint(vendor, task).text == NOT_DONE
    vendor.switches.error_body = "envelope"
    assert mint(vendor, task).json()["error"]["description"] == NOT_DONE
    vendor.switches.error_body = "empty"
    assert (mint(vendor, task).status_code, mint(vendor, task).content) == (400, b"")


# --- 3, 4. lists and states ---


def ids(answer: requests.Response) -> list[int]:
    return [document["id"] for document in answer.json()]


def test_pages_and_orders(vendor):
    tasks = [vendor.add_task(CONTENT).id for _ in range(120)]
    vendor.add_task(CONTENT, chain=9)
    assert ids(call(vendor, "/tasks")) == tasks[:-51:-1]
    assert len(ids(call(vendor, "/tasks?limit=1000"))) == 100
    assert ids(call(vendor, "/tasks?limit=50&offset=100")) == tasks[19::-1]
    assert ids(call(vendor, "/tasks?offset=120")) == []
    vendor.switches.order = "oldest"
    assert ids(call(vendor, "/tasks")) == tasks[:50]
    vendor.switches.order, vendor.switches.limit_cap = "none", 60
    unordered = ids(call(vendor, "/tasks?limit=100")) + ids(call(vendor, "/tasks?limit=100&offset=60"))
    assert len(unordered) == 120
    assert sorted(unordered) == tasks != unordered


def test_rows_shift_and_come_twice(vendor):
    tasks = [vendor.add_task(CONTENT).id for _ in range(60)]
    vendor.switches.arriving = [2]
    first, second = (ids(call(vendor, f"/tasks?limit=50&offset={offset}")) for offset in (0, 50))
    assert second[:2] == first[-2:]
    vendor.switches.duplicate_rows = True
    rows = ids(call(vendor, "/tasks?limit=100"))
    assert len(rows) == 68
    assert set(tasks) < set(rows)


def test_states_follow_the_clock(vendor):
    task = vendor.add_task(CONTENT, after=HOUR, lasts=HOUR)
    seen = []
    for _ in range(3):
        seen.append(state(vendor, task))
        vendor.now.advance(HOUR)
    assert seen == ["READY", "INPROGRESS", "DONE"]
    bad, endless, odd = vendor.add_task(ends="ERROR"), vendor.add_task(lasts=None), vendor.add_task(ends="PAUSED")
    vendor.now.advance(1000 * HOUR)
    assert [state(vendor, task) for task in (bad, endless, odd)] == ["ERROR", "INPROGRESS", "PAUSED"]
    assert ids(call(vendor, "/tasks?status=ERROR")) == [bad.id]
    assert "last_run_date" not in call(vendor, f"/tasks/{vendor.add_task(after=None).id}").json()["state"]
    vendor.switches.lower_case = True
    assert state(vendor, task) == "done"


def test_documents_without_a_state_and_times_of_every_form(vendor):
    task = vendor.add_task(CONTENT, has_state=False)
    assert "state" not in call(vendor, f"/tasks/{task.id}").json()
    task.has_state = True
    for form, end in {"whole": "Z", "fraction": ".000Z", "offset": "+00:00"}.items():
        vendor.switches.times = form
        text = call(vendor, f"/tasks/{task.id}").json()["state"]["last_run_date"]
        assert text.endswith(end)
        assert datetime.fromisoformat(text) == task.runs[0].named_at


def test_logs_of_one_task_are_paged(vendor):
    task = vendor.add_task(CONTENT)
    for _ in range(11):
        vendor.rerun(task, CONTENT)
    logs = call(vendor, f"/tasks/{task.id}").json()["logs"]
    assert (len(logs), logs[0]["message"]) == (10, "run 12")
    assert len(call(vendor, f"/tasks/{task.id}?log_limit=5&offset=10").json()["logs"]) == 2


def test_tasks_are_created_and_executed(vendor):
    wanted = {"chain": 1764, "desc": "d", "target": {"action": "export", "export_index": "users"}, "trigger": {"once": "now"}}
    made = call(vendor, "/tasks", "POST", json=wanted).json()
    before = made["state"]["last_run_date"]
    after = call(vendor, f"/tasks/{made['id']}/execute", "POST").json()
    assert after["code"] == "DONE"
    assert after["last_run_date"] > before
    assert call(vendor, "/tasks", "POST", json={}).status_code == 400


# --- 5. runs ---


def test_a_rerun_replaces_the_file_under_its_name(vendor):
    task = vendor.add_task(CONTENT)
    early = link(vendor, task)
    vendor.rerun(task, Content("new", 100), lasts=HOUR)
    assert state(vendor, task) == "INPROGRESS"
    assert mint(vendor, task).status_code == 400
    assert fetch(early).content == DATA
    assert [truth.gone for truth in vendor.truth()] == [True]
    vendor.now.advance(HOUR)
    assert fetch(link(vendor, task)).content == b"".join(Content("new", 100).read())
    old, new = vendor.truth()
    assert (old.filename, old.gone, new.gone) == (new.filename, True, False)
    assert old.output_id < new.output_id


def test_a_rerun_during_a_download(vendor):
    task = vendor.add_task(CONTENT)
    vendor.switches.reruns_during_download = 1
    assert fetch(link(vendor, task)).content == DATA
    old, new = vendor.truth()
    assert (old.full_downloads, old.gone, new.full_downloads, new.gone) == (1, True, 0, False)
    fetch(link(vendor, task))
    assert len(vendor.truth()) == 2


# --- 6, 10. minting ---


def test_refusals_at_the_mint(vendor):
    vendor.switches.error_body = "text"
    running, other = vendor.add_task(CONTENT, lasts=None), vendor.add_task(CONTENT, action="segment")
    foreign, empty = vendor.add_task(CONTENT, chain=9), vendor.add_task()
    unknown = vendor.add_task(CONTENT)
    vendor.remove(unknown)
    expected = {other.id: (400, NOT_EXPORT), running.id: (400, NOT_DONE), empty.id: (500, INVALID_RESULT)}
    expected |= {foreign.id: (404, NO_TASK), unknown.id: (404, NO_TASK)}
    for task in (other, running, empty, foreign, unknown):
        answer = mint(vendor, task)
        assert (answer.status_code, answer.text) == expected[task.id]
    vendor.switches.not_done_status, vendor.switches.invalid_status, vendor.switches.unknown_status = 409, 400, 500
    assert [mint(vendor, task).status_code for task in (running, empty, unknown)] == [409, 400, 500]
    assert mint(vendor, unknown).json()["error"]["code"] == 68
    assert other.id in ids(call(vendor, "/tasks"))
    assert [truth.job_id for truth in vendor.truth()] == [str(foreign.id)]


def test_an_invalid_result_heals(vendor):
    task = vendor.add_task(CONTENT, invalid_mints=2)
    assert [mint(vendor, task).status_code for _ in range(3)] == [500, 500, 200]


def test_results_are_purged(vendor):
    task = vendor.add_task(CONTENT)
    vendor.switches.purge_after = 2 * HOUR
    assert fetch(link(vendor, task)).status_code == 200
    vendor.now.advance(2 * HOUR)
    assert INVALID_RESULT in mint(vendor, task).text
    vendor.switches.purged_answer = "missing"
    assert refusal(fetch(link(vendor, task))) == (404, "NoSuchKey", "The specified key does not exist.")
    assert vendor.truth()[0].gone


# --- 7, 8. links ---


@pytest.mark.parametrize(("storage", "life"), [("s3", "X-Amz-Expires"), ("gcs", "X-Goog-Expires"), ("s3-old", "Expires")])
def test_links_lapse_and_are_minted_anew(vendor, storage, life):
    task = vendor.add_task(CONTENT)
    vendor.switches.storage = storage
    url, another = link(vendor, task), link(vendor, task)
    assert url != another
    assert life in parse_qs(urlsplit(url).query)
    assert fetch(url).content == fetch(another).content == DATA
    vendor.now.advance(HOUR)
    assert refusal(fetch(url)) == (403, "AccessDenied", "Request has expired")
    for answer, expected in {
        "s3-400": (400, "ExpiredToken", "The provided token has expired."),
        "gcs-400": (400, "ExpiredToken", "Invalid argument."),
        "plain-403": (403, "AccessDenied", "Access Denied"),
    }.items():
        vendor.switches.lapsed_answer = answer
        assert refusal(fetch(url)) == expected
    assert fetch(link(vendor, task)).content == DATA


def test_links_that_live_shorter(vendor):
    task = vendor.add_task(CONTENT)
    vendor.switches.link_seconds = 60
    url = link(vendor, task)
    vendor.now.advance(timedelta(seconds=61))
    assert fetch(url).status_code == 403
    vendor.switches.link_seconds, vendor.switches.credential_seconds = 3600, 60
    url = link(vendor, task)
    assert fetch(url).status_code == 200
    vendor.now.advance(timedelta(seconds=61))
    assert refusal(fetch(url)) == (400, "ExpiredToken", "The provided token has expired.")
    vendor.switches.credential_seconds, vendor.switches.lapsed_links = None, 1
    assert [fetch(link(vendor, task)).status_code for _ in range(2)] == [403, 200]
    vendor.switches.one_time_links = True
    url = link(vendor, task)
    assert [fetch(url).status_code for _ in range(2)] == [200, 403]


def test_storage_refuses_what_is_not_a_plain_get_of_its_link(vendor):
    url = link(vendor, vendor.add_task(CONTENT))
    assert refusal(fetch(url, Authorization="Bearer x:y"))[:2] == (400, "InvalidArgument")
    assert requests.head(url, timeout=5).status_code == 403
    assert refusal(fetch(url.replace("Expires=3600", "Expires=9999")))[:2] == (403, "SignatureDoesNotMatch")
    assert refusal(fetch(url.partition("?")[0]))[:2] == (403, "SignatureDoesNotMatch")
    assert vendor.truth()[0].full_downloads == 0
    assert fetch(url).content == DATA


# --- 9, 11. bytes and faults ---


def test_gzip_announced_or_hidden(vendor):
    task = vendor.add_task(CONTENT)
    for encoding in ("gzip", "hidden-gzip"):
        vendor.switches.encoding = encoding
        with requests.get(link(vendor, task), stream=True, timeout=5) as answer:
            body = answer.raw.read()
        assert gzip.decompress(body) == DATA
        assert answer.headers.get("Content-Encoding") == ("gzip" if encoding == "gzip" else None)
        assert vendor.truth()[0].sha256 == hashlib.sha256(body).hexdigest()


def test_lengths_etags_and_ranges(vendor):
    url = link(vendor, vendor.add_task(CONTENT))
    etag = fetch(url).headers["ETag"]
    assert fetch(url, Range="bytes=10-", **{"If-Range": etag}).content == DATA[10:]
    assert fetch(url, Range="bytes=10-", **{"If-Range": '"other"'}).content == DATA
    vendor.switches.ranges = False
    assert fetch(url, Range="bytes=10-").status_code == 200
    vendor.switches.framing, vendor.switches.etag = "chunked", "multipart"
    answer = fetch(url)
    assert answer.content == DATA
    assert "Content-Length" not in answer.headers
    assert answer.headers["ETag"].endswith('-3"')
    vendor.switches.etag = "absent"
    assert "ETag" not in fetch(url).headers


def test_sizes_from_nothing_up(vendor):
    tasks = [vendor.add_task(Content("any", size)) for size in (0, 19, 100_000)]
    assert [len(fetch(link(vendor, task)).content) for task in tasks] == [0, 19, 100_000]


def test_wire_faults_pass(vendor):
    task = vendor.add_task(CONTENT)
    url = link(vendor, task)
    vendor.fail("tasks", throttled(), throttled("7"), Fault.answer(502))
    answers = [call(vendor, "/tasks") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [429, 429, 502, 200]
    assert [answer.headers.get("Retry-After") for answer in answers[:2]] == [None, "7"]
    vendor.fail("storage", storage_refusal(503, "SlowDown", "Please reduce your request rate."), Fault(cut_after=100))
    assert refusal(fetch(url))[:2] == (503, "SlowDown")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        fetch(url)
    vendor.fail("storage", Fault(framing="close", cut_after=100))
    assert fetch(url).content == DATA[:100]
    assert fetch(url).content == DATA
    assert (vendor.truth()[0].full_downloads, vendor.truth()[0].partial_downloads) == (1, 2)
