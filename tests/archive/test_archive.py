"""What stands in the bucket besides the files: keys, receipts, events, and the proof that the bucket can be used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from urllib.request import urlopen

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.archive import Archive
from worker.archive.keys import Layout
from worker.errors import ArchiveRefusedError, ArchiveUnavailableError, HeldError, StoppedError
from worker.model import Output, OutputId, Receipt, encode_id

NOW = datetime(2026, 3, 26, 12, 55, 40, 123456, tzinfo=UTC)


def an_output(job_id="1", output_id="1", completed_at=NOW):
    return Output(id=OutputId("acme", job_id, output_id), completed_at=completed_at, deadline=NOW)


def a_receipt(output, **changes):
    receipt = Receipt(
        id=output.id,
        vendor="sellercloud",
        filename="Übersicht.csv",
        key="archive/x",
        bucket="exports",
        version_id=None,
        etag="abc",
        content_type="text/csv",
        size=3,
        sha256="00",
        wrapping="none",
        vendor_size=None,
        vendor_checksum=None,
        proof=("content-length",),
        completed_at=NOW.replace(microsecond=0),
        deadline=NOW.replace(microsecond=0),
        archived_at=NOW.replace(microsecond=0),
        downloads=1,
        job={"Name": "表"},
    )
    return dataclasses.replace(receipt, **changes)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_key_has_the_vendors_date_in_utc_and_encoded_ids():
    late = datetime(2026, 3, 26, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    assert Layout("a/b").object(an_output("job/1", "..", late), "f.csv") == "a/b/acme/2026/03/27/job%2F1/%2E%2E/f.csv"
    assert Layout("").object(an_output(), "f.csv") == "acme/2026/03/26/1/1/f.csv"
    assert Layout("").receipt(an_output("a b").id) == "_receipts/acme/a%20b/1.json"


@example(job_id="1", output_id="İ" * 170, filename="f.csv")  # just too long
@example(job_id="1", output_id="İ" * 160, filename="f.csv")  # just short enough
@given(
    job_id=st.text(min_size=1, max_size=400),
    output_id=st.text(min_size=1, max_size=400),
    filename=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=300),
)
def test_key_fits_or_the_output_is_held(job_id, output_id, filename):
    output = an_output(job_id.encode("utf-8", "replace").decode(), output_id.encode("utf-8", "replace").decode())
    layout = Layout("archive")
    try:
        key = layout.object(output, filename)
    except HeldError:
        assert len(f"archive/acme/2026/03/26/{encode_id(output.id.job_id)}/{encode_id(output.id.output_id)}/") > 1_024 - 16
        return
    assert len(key.encode()) <= 1_024
    assert key == layout.object(output, filename)
    assert key.startswith(layout.folder(output))


def test_long_names_are_shortened_in_the_same_way_and_stay_different():
    layout, output = Layout("archive"), an_output("9" * 800)
    names = ["ü" * 200 + f"{number}.tar.csv" for number in range(2)]
    keys = [layout.object(output, name) for name in names]
    assert keys[0] != keys[1]
    assert all(key.endswith(".csv") and len(key.encode()) <= 1_024 for key in keys)


def test_ids_too_long_for_a_receipt_or_an_event_are_held(world):
    archive, output = world.archive(), an_output("9" * 1_100).id
    with pytest.raises(HeldError, match="more than"):
        archive.receipt(output)
    with pytest.raises(HeldError):
        archive.write_event("lost", ("acme", output.job_id, "1"), {}, NOW)
    with pytest.raises(HeldError):
        archive.spend(output, 0, NOW)


# --- receipts --------------------------------------------------------------------------------------------------------


def test_first_receipt_wins(world):
    archive, output = world.archive(), an_output("job/1", "out 1")
    assert archive.receipt(output.id) is None
    first = a_receipt(output)
    assert archive.write_receipt(first) == first
    assert archive.write_receipt(a_receipt(output, size=4)) == first
    assert archive.receipt(output.id) == first
    assert list(archive.receipts("acme")) == [output.id]
    assert list(archive.receipts("acm")) == []
    assert json.loads(world.read("archive/_receipts/acme/job%2F1/out%201.json")) == first.to_json()


def test_receipt_whose_answer_was_lost_is_written_once(world, faults):
    archive, receipt = world.archive(), a_receipt(an_output())
    world.proxy.fault("PUT", "_receipts", faults.lose_answer)
    assert archive.write_receipt(receipt) == receipt
    assert world.proxy.count("PUT .*_receipts") == 2


def test_receipt_that_cannot_be_read_is_held(world):
    world.put("archive/_receipts/acme/1/1.json", b"{}")
    with pytest.raises(HeldError, match="acme/1/1"):
        world.archive().receipt(an_output().id)


@pytest.mark.parametrize("page", [1000, 10, 1])
def test_one_listing_tells_which_of_many_outputs_may_have_a_receipt(world, page):
    """Those that its one page does not reach may have one; what stands before, between or after them changes nothing."""
    archive = world.archive()
    asked = [an_output(str(number)).id for number in range(100, 130)]
    standing = asked[3:25:7]
    others = [an_output(name).id for name in ("1", "0999", "1005", "1115", "99", "zz")]
    for output in (*standing, *others):
        world.put(f"archive/_receipts/{output}.json", b"{}")
    world.put("archive/_receipts/other/110/110.json", b"{}")
    too_long = OutputId("acme", "x" * 900, "x" * 900)
    ask = archive._bucket.ask
    archive._bucket.ask = lambda operation, **params: ask(operation, **(params | {"MaxKeys": page}))
    reached = {1000: asked[-1], 10: asked[-1], 1: asked[0]}[page]
    expected = {output for output in asked if output in standing or str(output) > str(reached)} | {too_long}
    assert archive.may_have_receipts([*asked, too_long]) == expected
    assert world.proxy.count("GET .*list-type=2") == 1
    assert archive.may_have_receipts(asked[:3]) == set(asked[:3])
    assert world.proxy.count("GET .*list-type=2") == 1


def test_receipts_are_listed_over_many_pages(world):
    archive = world.archive()
    outputs = [an_output(str(number)).id for number in range(25)]
    for output in outputs:
        world.put(f"archive/_receipts/{output}.json", b"{}")
    ask = archive._bucket.ask
    archive._bucket.ask = lambda operation, **params: ask(operation, **(params | {"MaxKeys": 10}))
    assert sorted(archive.receipts("acme")) == sorted(outputs)


# --- events ----------------------------------------------------------------------------------------------------------


def test_newest_event_of_each_identity_wins(world):
    archive = world.archive()
    for seconds, job in ((0, "1"), (2, "1"), (1, "1"), (0, "2/3")):
        at = NOW + timedelta(seconds=seconds)
        archive.write_event("lost", ("acme", job, "1"), {"reason": f"gone {seconds}"}, at)
    archive.write_event("lost", ("acme-2", "1", "1"), {}, NOW)
    archive.write_event("watch", ("acme", "7"), {}, NOW)
    world.put("archive/_state/lost/acme/1/1/strange.json", b"{}")
    found = {event.identity: (event.at, event.document["reason"]) for event in archive.events("lost", "acme")}
    assert found == {
        ("acme", "1", "1"): (NOW + timedelta(seconds=2), "gone 2"),
        ("acme", "2/3", "1"): (NOW, "gone 0"),
    }
    (watch,) = archive.events("watch", "acme")
    assert watch.document == {
        "schema": 1,
        "kind": "watch",
        "source": "acme",
        "job_id": "7",
        "at": "2026-03-26T12:55:40.123456Z",
    }


def test_spent_downloads_are_numbered_without_gaps_or_doubles(world):
    """Ten threads in two processes' worth of archives: each number once."""
    archives, output = [world.archive(), world.archive()], an_output("j/1").id
    assert archives[0].spent(output) == 0
    with ThreadPoolExecutor(10) as pool:
        numbers = list(pool.map(lambda turn: archives[turn % 2].spend(output, 0, NOW), range(20)))
    assert sorted(numbers) == list(range(1, 21))
    assert archives[0].spent(output) == 20
    assert archives[0].spend(output, 30, NOW) == 31
    assert world.keys()[-1] == "archive/_state/spent/acme/j%2F1/1/0031.json"


def test_spent_download_whose_answer_was_lost_counts_once(world, faults):
    world.proxy.fault("PUT", "spent", faults.lose_answer)
    archive, output = world.archive(), an_output().id
    assert archive.spend(output, 0, NOW) == 1
    assert archive.spend(output, 0, NOW) == 2


def test_only_the_first_ledger_is_the_first(world):
    archive = world.archive()
    assert archive.begin_epoch("aaaa", NOW)
    assert archive.begin_epoch("aaaa", NOW + timedelta(hours=1))
    assert not archive.begin_epoch("bbbb", NOW - timedelta(hours=1))
    assert not archive.begin_epoch("aaaa", NOW)
    assert len(world.keys()) == 2


# --- reading, listing, sweeping ----------------------------------------------------------------------------------------


def test_objects_are_marked_only_for_the_output_they_stand_at(world):
    archive, output = world.archive(), an_output()
    folder = "archive/acme/2026/03/26/1/1/"
    world.put(folder + "bare.csv", b"1")
    world.put(folder + "other.csv", b"22", Metadata={"lastcall-output": "acme/1/2"})
    world.put(folder + "ours.csv", b"333", Metadata={"lastcall-output": "acme/1/1", "lastcall-filename": "%C3%BC.csv"})
    world.put("archive/acme/2026/03/26/1/11/no.csv", b"1")
    found = {stored.key.removeprefix(folder): (stored.size, stored.marked) for stored in archive.objects(output)}
    assert found == {"bare.csv": (1, False), "other.csv": (2, False), "ours.csv": (3, True)}
    assert [stored.filename for stored in archive.objects(output)] == ["bare.csv", "other.csv", "ü.csv"]
    assert [(key[-6:], size, etag) for key, size, etag in archive.inventory("acme") if size == 3] == [
        ("rs.csv", 3, hashlib.md5(b"333").hexdigest())
    ]


def test_read_back_goes_on_where_it_was_cut(world, lease, faults):
    data = random.Random(2).randbytes(5 * 2**20)
    world.put("archive/acme/x", data)
    cut = world.proxy.fault("GET", "acme/x", faults.cut_download, times=2)
    size, digests = world.archive().read_back("archive/acme/x", ("sha256", "md5"), lease)
    assert size == len(data)
    assert digests == {"sha256": hashlib.sha256(data).hexdigest(), "md5": hashlib.md5(data).hexdigest()}
    assert cut.seen == 2


def test_read_back_of_nothing_is_held_and_a_stop_ends_it(world, lease):
    archive = world.archive()
    with pytest.raises(HeldError):
        archive.read_back("archive/acme/none", ("sha256",), lease)
    world.put("archive/acme/empty", b"")
    assert archive.read_back("archive/acme/empty", ("md5",), lease) == (0, {"md5": hashlib.md5(b"").hexdigest()})
    world.put("archive/acme/x", b"1")
    lease.end(StoppedError("stopping"))
    with pytest.raises(StoppedError):
        archive.read_back("archive/acme/x", ("sha256",), lease)


def test_sweep_takes_old_uploads_of_ours_alone(world):
    ours = "archive/acme/2026/03/26/1/1/a.csv"
    keys = [ours, "archive/notes/a.csv", "elsewhere/acme/2026/03/26/1/1/a.csv", "archive/_receipts/acme/1/1.json"]
    for key in keys:
        world.client.create_multipart_upload(Bucket=world.settings.bucket, Key=key)
    archive = world.archive()
    if world.verifies:  # the embedded S3 says of every upload that it began in 2010
        assert archive.sweep_uploads(timedelta(hours=1), lambda _: False) == 0
    assert archive.sweep_uploads(timedelta(seconds=-5), lambda output: output == OutputId("acme", "1", "1")) == 0
    assert archive.sweep_uploads(timedelta(seconds=-5), lambda _: False) == 1
    assert sorted(world.unfinished()) == sorted(set(keys) - {ours})


def test_presigned_url_gives_the_object(world):
    world.put("archive/acme/x", b"123")
    with urlopen(world.archive().presign("archive/acme/x", timedelta(days=30))) as reply:
        assert reply.read() == b"123"


# --- the whole bucket ------------------------------------------------------------------------------------------------


def test_check_leaves_one_object_and_no_upload(world):
    archive = world.archive()
    archive.check()
    archive.check()
    assert world.keys() == ["archive/_state/check/check.json"]
    assert world.unfinished() == []


def test_check_refuses_a_service_that_would_overwrite(world):
    def forget_condition(handler):
        del handler.headers["If-None-Match"]
        handler.forward()

    if world.verifies:
        pytest.skip("the header is signed")
    world.proxy.fault("PUT", "check", forget_condition, times=99)
    with pytest.raises(ArchiveRefusedError, match="If-None-Match"):
        world.archive().check()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "InvalidAccessKeyId", "renew"),
        (403, "AccessDenied", "s3:ListBucket"),
        (403, "RequestTimeTooSkewed", "clock"),
        (404, "NoSuchBucket", "does not exist"),
        (301, "PermanentRedirect", "region"),
    ],
)
def test_refusals_say_what_to_do_and_name_no_url(world, faults, status, code, says):
    world.proxy.fault("GET", "list-type", faults.answer(status, code), times=99)
    with pytest.raises(ArchiveRefusedError, match=says) as refusal:
        world.archive().check()
    assert "http" not in str(refusal.value)


def test_missing_key_without_the_right_to_list_is_told_apart(world, faults):
    """403 on a missing key: with the listing refused as well it names s3:ListBucket; with the listing allowed it is missing."""
    archive = world.archive()
    world.proxy.fault("GET", "^[^?]*_receipts", faults.answer(403, "AccessDenied"), times=99)
    assert archive.receipt(an_output().id) is None
    world.put("archive/_receipts/acme/1/1.json", json.dumps(a_receipt(an_output()).to_json()).encode())
    with pytest.raises(ArchiveRefusedError, match="s3:GetObject"):
        archive.receipt(an_output().id)
    world.proxy.fault("GET", "list-type", faults.answer(403, "AccessDenied"), times=99)
    with pytest.raises(ArchiveRefusedError, match="s3:ListBucket"):
        archive.receipt(an_output("2").id)


def test_s3_that_is_down_is_unavailable_after_some_tries(world, faults, monkeypatch):
    monkeypatch.setattr("worker.archive.s3.PATIENCE_SECONDS", 1)
    archive = world.archive()
    trouble = world.proxy.fault("GET", "", faults.answer(503, "SlowDown", Retry_After="60"), times=99)
    with pytest.raises(ArchiveUnavailableError) as unavailable:
        archive.receipt(an_output().id)
    assert unavailable.value.not_before > datetime.now(UTC) + timedelta(seconds=50)
    trouble.times = 0
    assert archive.receipt(an_output().id) is None
    closed = Archive(world.settings.model_copy(update={"endpoint_url": "http://127.0.0.1:1"}), spool_bytes=0)
    with pytest.raises(ArchiveUnavailableError):
        closed.receipt(an_output().id)


def test_patience_counts_from_the_first_try(world, faults, monkeypatch):
    """An S3 that hangs keeps nobody for twice as long as a request may take."""
    monkeypatch.setattr("worker.archive.s3.PATIENCE_SECONDS", 1)
    monkeypatch.setattr("worker.archive.s3.READ_SECONDS", 1.2)
    gate = threading.Event()
    hangs = world.proxy.fault("GET", "", faults.hold(gate), times=99)
    with pytest.raises(ArchiveUnavailableError):
        world.archive().receipt(an_output().id)
    gate.set()
    assert hangs.seen == 1


def test_secret_that_cannot_be_read_is_a_refusal(world, tmp_path):
    secret = type(world.settings.secret_access_key).model_validate({"file": str(tmp_path / "none")})
    with pytest.raises(ArchiveRefusedError, match="cannot be read"):
        world.archive(secret_access_key=secret).check()


def test_one_archive_serves_many_threads(world):
    archive, failures = world.archive(), []

    def work(number):
        output = an_output(str(number))
        try:
            archive.write_receipt(a_receipt(output))
            assert archive.receipt(output.id).id == output.id
        except BaseException as exc:  # noqa: BLE001
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list(archive.receipts("acme"))) == 20


def test_settings_of_keeping_reach_objects_and_receipts(world, lease, faults):
    """Storage class, encryption and lock on the object; a receipt is never in cold storage."""
    seen = []

    def look(handler):
        seen.append((handler.path, dict(handler.headers.items())))
        handler.forward()

    if world.verifies:
        pytest.skip("Swift has none of these")
    world.proxy.fault("PUT", "", look, times=99)
    archive = world.archive(storage_class="GLACIER", sse="AES256")
    upload = archive.open_upload(an_output(), lease, keep=False, algorithm=None)
    upload.start("archive/acme/x", filename="x", wrapping="none", content_type="text/csv")
    upload.complete()
    archive.write_receipt(a_receipt(an_output()))
    (_, of_object), (_, of_receipt) = seen
    assert of_object["x-amz-storage-class"] == "GLACIER"
    assert "x-amz-storage-class" not in of_receipt
    assert of_object["x-amz-server-side-encryption"] == of_receipt["x-amz-server-side-encryption"] == "AES256"
    assert of_object["x-amz-checksum-crc32"] == "AAAAAA=="


# --- the other server ------------------------------------------------------------------------------------------------


def test_all_of_this_runs_against_swift_as_well():
    if "SWIFT_BIN" not in os.environ:
        pytest.skip(
            "no OpenStack Swift: SWIFT_BIN names no bin folder that has one (`make peers`: .peers/bin); moto alone was asked"
        )
    assert Path(os.environ["SWIFT_BIN"], "swift-proxy-server").exists()
