"""How an object gets into the bucket: nothing before all of it, everything after, and never over another one."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import stat
import tempfile
import threading
import time

import pytest

from worker.archive import upload as upload_module
from worker.archive.digest import Digest
from worker.archive.spool import BLOCK_BYTES, Spool
from worker.archive.threads import Threads
from worker.archive.upload import blocks_of_part
from worker.errors import (
    ArchiveRefusedError,
    ArchiveUnavailableError,
    KeyConflictError,
    LeaseLostError,
    StoppedError,
    TooLargeError,
)
from worker.model import timestamp

MIB = 2**20
PATTERN = random.Random(1).randbytes(3 * MIB + 17)


def content(size):
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def feed(upload, data, piece=MIB):
    for begin in range(0, len(data), piece):
        upload.write(data[begin : begin + piece])


def begin(archive, output, lease, *, keep=False, algorithm=None, name="a.csv"):
    upload = archive.open_upload(output, lease, keep=keep, algorithm=algorithm)
    upload.start(archive.key(output, name), filename=name, wrapping="base64", content_type="text/csv")
    return upload


@pytest.mark.parametrize(
    "size",
    [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES + 5],
    ids=["0", "1", "8M-1", "8M", "8M+1", "16M", "24M+5"],
)
@pytest.mark.parametrize("keep", [False, True], ids=["", "keep"])
def test_every_size_arrives_byte_for_byte(world, output, lease, size, keep):
    """Sizes around the edges of a part; one PUT up to a part, a multipart upload beyond."""
    archive, data = world.archive(), content(size)
    upload = begin(archive, output, lease, keep=keep, algorithm="md5")
    feed(upload, data)
    assert upload.size == size
    stored = upload.complete()
    assert world.keys() == [stored.key]
    assert world.read(stored.key) == data
    assert upload.digest("sha256") == hashlib.sha256(data).hexdigest()
    assert upload.digest("md5") == hashlib.md5(data).hexdigest()
    assert (stored.size, stored.marked, stored.wrapping, stored.filename) == (size, True, "base64", "a.csv")
    assert archive.objects(output) == [stored]
    assert world.proxy.count("partNumber=") == (-(-size // BLOCK_BYTES) if size > BLOCK_BYTES else 0)
    assert archive._means.spool._used == set()
    assert archive._means.spool._in_memory == 0
    upload.abort()
    assert world.keys() == [stored.key]


def test_nothing_is_visible_before_complete(world, output, lease, eventually):
    archive = world.archive()
    upload = begin(archive, output, lease)
    feed(upload, content(3 * BLOCK_BYTES))
    eventually(lambda: world.proxy.count("partNumber=2") == 1, 20, "the second part is sent")
    assert world.keys() == []
    assert archive.objects(output) == []
    upload.complete()
    assert len(world.keys()) == 1


@pytest.mark.parametrize("parts", [0, 3])
def test_abort_leaves_nothing(world, output, lease, parts, eventually):
    archive = world.archive()
    upload = begin(archive, output, lease, keep=True)
    feed(upload, content(parts * BLOCK_BYTES + 9))
    if parts:
        eventually(lambda: world.proxy.count("partNumber=1") == 1, 20, "the first part is sent")
    upload.abort()
    upload.abort()
    assert world.keys() == []
    assert world.unfinished() == []
    assert archive._means.spool._used == set()
    assert archive._means.spool._in_memory == 0


def test_dropped_upload_leaves_no_object_and_gives_its_room_back(world, output, lease, eventually):
    """As after an exception that nobody handled; what S3 still holds is swept later."""
    archive = world.archive()
    upload = begin(archive, output, lease, keep=True)
    feed(upload, content(2 * BLOCK_BYTES + 9))
    eventually(lambda: world.proxy.count("partNumber=1") == 1, 20, "the first part is sent")
    del upload
    eventually(lambda: bool(gc.collect() >= 0 and archive._means.spool._used == set()), 20, "the spool is free again")
    assert world.keys() == []


def test_attributes_are_set_at_creation(world, output, lease):
    """File names in any script reach the metadata, and a vendor's content type can break nothing."""
    archive = world.archive()
    for number, size in enumerate((5, BLOCK_BYTES + 5)):
        name = f"Übersicht 表 – {number}.csv"
        upload = archive.open_upload(output, lease, keep=False, algorithm=None)
        upload.start(archive.key(output, name), filename=name, wrapping="none", content_type="text/csv\r\nX-Evil: 1")
        feed(upload, content(size))
        stored = upload.complete()
        head = world.client.head_object(Bucket=world.settings.bucket, Key=stored.key)
        assert head["Metadata"] == {
            "lastcall-output": "acme-exports/28142/out%2F1",
            "lastcall-wrapping": "none",
            "lastcall-filename": f"%C3%9Cbersicht%20%E8%A1%A8%20%E2%80%93%20{number}.csv",
            "lastcall-completed-at": timestamp(output.completed_at),
            "lastcall-deadline": timestamp(output.deadline),
        }
        assert head["ContentType"] == "application/octet-stream"
        assert stored.filename == name
    assert [stored.filename[-5:] for stored in archive.objects(output)] == ["0.csv", "1.csv"]


@pytest.mark.parametrize("size", [9, BLOCK_BYTES + 9])
def test_equal_bytes_that_stand_already_are_adopted(world, output, lease, size):
    archive = world.archive()
    for _ in range(2):
        upload = begin(archive, output, lease)
        feed(upload, content(size))
        assert upload.complete().size == size
    assert len(world.keys()) == 1
    assert world.unfinished() == []


@pytest.mark.parametrize("size", [9, BLOCK_BYTES + 9])
@pytest.mark.parametrize("standing", ["shorter", "other"])
def test_other_bytes_are_never_overwritten(world, output, lease, size, standing):
    archive = world.archive()
    key = archive.key(output, "a.csv")
    before = b"x" if standing == "shorter" else bytes(size)
    world.put(key, before)
    upload = begin(archive, output, lease)
    feed(upload, content(size))
    with pytest.raises(KeyConflictError):
        upload.complete()
    upload.abort()
    assert world.read(key) == before
    assert world.unfinished() == []


@pytest.mark.parametrize("size", [9, BLOCK_BYTES + 9])
def test_of_two_uploads_of_one_key_the_first_wins(world, output, lease, size):
    """Completed at the same moment: one stands, the other is a conflict, and what stands is one of them whole."""
    archive = world.archive()
    bodies = [content(size), content(size)[::-1]]
    uploads = [begin(archive, output, lease) for _ in bodies]
    for upload, body in zip(uploads, bodies, strict=True):
        feed(upload, body)
    outcomes = [None, None]
    barrier = threading.Barrier(2)

    def finish(number):
        barrier.wait()
        try:
            uploads[number].complete()
            outcomes[number] = "stored"
        except KeyConflictError:
            outcomes[number] = "conflict"

    threads = [threading.Thread(target=finish, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for upload in uploads:
        upload.abort()
    assert sorted(outcomes) == ["conflict", "stored"]
    assert world.read(world.keys()[0]) == bodies[outcomes.index("stored")]


@pytest.mark.parametrize("keep", [False, True])
def test_name_may_come_last(world, output, lease, keep):
    archive, data = world.archive(spool_bytes=64 * MIB), content(7 * BLOCK_BYTES + 3)
    upload = archive.open_upload(output, lease, keep=keep, algorithm=None)
    feed(upload, data)
    upload.start(archive.key(output, "late.csv"), filename="late.csv", wrapping="json-content", content_type="")
    assert world.read(upload.complete().key) == data


def test_name_that_comes_after_more_than_the_spool_holds_is_held(world, output, lease):
    archive = world.archive(spool_bytes=2 * BLOCK_BYTES)
    upload = archive.open_upload(output, lease, keep=False, algorithm=None)
    with pytest.raises(TooLargeError, match="spool_bytes"):
        feed(upload, content(8 * BLOCK_BYTES))
    upload.abort()
    assert world.proxy.requests == []
    assert archive._means.spool._used == set()


def test_writing_goes_on_while_s3_takes_nothing_and_waits_when_the_spool_is_full(world, output, lease, faults, eventually):
    """Memory, then the spool; then `write` waits, asking its lease; and goes on by itself when S3 takes parts again."""
    gate = threading.Event()
    world.proxy.fault("PUT", "partNumber", faults.hold(gate), times=99)
    archive, data = world.archive(spool_bytes=2 * BLOCK_BYTES), content(8 * BLOCK_BYTES)
    upload = begin(archive, output, lease)
    done = threading.Event()

    def write():
        feed(upload, data)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    # Three blocks in memory, two on disk, and the one that is full has no place.
    eventually(lambda: upload.size == 6 * BLOCK_BYTES + MIB, 20, "memory and spool are full")
    checks = lease.checks
    eventually(lambda: lease.checks > checks + 1, 5, "the lease is asked")
    assert not done.is_set()
    gate.set()
    thread.join(20)
    assert done.is_set()
    assert world.read(upload.complete().key) == data


@pytest.mark.parametrize("end", [LeaseLostError("another worker has it"), StoppedError("stopping")])
def test_end_of_the_lease_ends_a_write_that_waits(world, output, lease, faults, end):
    world.proxy.fault("PUT", "partNumber", faults.answer(503, "SlowDown"), times=10_000)
    upload = begin(world.archive(spool_bytes=0), output, lease)
    threading.Timer(0.5, lease.end, (end,)).start()
    with pytest.raises(type(end)):
        feed(upload, content(6 * BLOCK_BYTES))
    upload.abort()
    assert world.keys() == []


@pytest.mark.parametrize("directly", [False, True])
def test_stop_is_prompt_while_s3_hangs(world, output, lease, faults, directly, monkeypatch):
    """A stopping process has 30 s; S3 may be silent for a minute. The first PUT is the client's, the next ones not."""
    monkeypatch.setattr(upload_module, "SOON_SECONDS", 1)
    gate = threading.Event()
    archive = world.archive()
    for name in ("b.csv", "c.csv") if directly else ():
        begin(archive, output, lease, name=name).complete()
    world.proxy.fault("PUT", "a.csv", faults.hold(gate))
    upload = begin(archive, output, lease)
    upload.write(b"small")
    threading.Timer(0.3, lease.end, (StoppedError("stopping"),)).start()
    before = time.monotonic()
    with pytest.raises(StoppedError):
        upload.complete()
    upload.abort()
    assert time.monotonic() - before < 8
    gate.set()


@pytest.mark.parametrize(
    "fault",
    [("answer", 503, "SlowDown"), ("answer", 409, "OperationAborted"), "reset_midway", "lose_answer"],
    ids=str,
)
@pytest.mark.parametrize(
    "path", ["uploads", "partNumber=2", "^[^?]*[?]uploadId", "^[^?]*$"], ids=["create", "part", "complete", "put"]
)
def test_passing_trouble_costs_nothing_but_time(world, output, lease, faults, fault, path):
    """Trouble at each step, then success: the right bytes, once."""
    act = getattr(faults, fault) if isinstance(fault, str) else faults.answer(*fault[1:])
    seen = world.proxy.fault("PUT|POST", path, act)
    archive, data = world.archive(), content(9 if path == "^[^?]*$" else 2 * BLOCK_BYTES + 9)
    upload = begin(archive, output, lease)
    feed(upload, data)
    stored = upload.complete()
    assert seen.seen == 1
    assert world.keys() == [stored.key]
    assert world.read(stored.key) == data
    assert stored.marked
    assert world.unfinished() == []  # not even the one that was begun without our hearing of it


def test_retry_after_is_honoured(world, output, lease, faults):
    world.proxy.fault("PUT", "a.csv", faults.answer(503, "SlowDown", Retry_After="2"))
    upload = begin(world.archive(), output, lease)
    upload.write(b"small")
    before = time.monotonic()
    upload.complete()
    assert time.monotonic() - before >= 1.9


def test_slow_s3_is_waited_for(world, output, lease, faults):
    world.proxy.fault("PUT", "partNumber=1", faults.slowly(3))
    archive, data = world.archive(), content(2 * BLOCK_BYTES + 9)
    upload = begin(archive, output, lease)
    feed(upload, data)
    assert world.read(upload.complete().key) == data


@pytest.mark.parametrize(
    ("refusal", "size"),
    [((403, "InvalidAccessKeyId"), 9), ((404, "NoSuchBucket"), 9), ((403, "AccessDenied"), 6 * BLOCK_BYTES)],
    ids=["key", "bucket", "permission"],
)
def test_refusal_surfaces_at_once(world, output, lease, faults, refusal, size):
    """From `write` or `complete`, with what to do; nothing stands; and the next output succeeds when it is repaired."""
    fault = world.proxy.fault("PUT|POST", "a.csv", faults.answer(*refusal), times=10_000)
    archive = world.archive(spool_bytes=0)
    upload = begin(archive, output, lease)
    with pytest.raises(ArchiveRefusedError, match=f"bucket {world.settings.bucket}"):  # noqa: PT012 - in either of them
        feed(upload, content(size))
        upload.complete()
    upload.abort()
    assert world.keys() == []
    fault.times = 0
    upload = begin(archive, output, lease)
    feed(upload, content(size))
    assert world.read(upload.complete().key) == content(size)


def test_changed_secret_is_picked_up(world, output, lease, faults, tmp_path):
    """A refusal makes a new client, which reads the secret's file again."""
    file = tmp_path / "secret"
    file.write_text("old")
    archive = world.archive(secret_access_key=type(world.settings.secret_access_key).model_validate({"file": str(file)}))
    if not world.verifies:  # our own signature and the client's, each with what is read first and what is read again
        world.proxy.fault("PUT", "a.csv", faults.answer(403, "SignatureDoesNotMatch"), times=4)
    upload = begin(archive, output, lease)
    upload.write(b"1")
    with pytest.raises(ArchiveRefusedError):
        upload.complete()
    upload.abort()
    file.write_text(world.settings.secret_access_key.reveal())
    upload = begin(archive, output, lease)
    upload.write(b"1")
    upload.complete()
    assert len(world.keys()) == 1


def lose_uploads(world):
    for upload in world.client.list_multipart_uploads(Bucket=world.settings.bucket).get("Uploads", ()):
        world.client.abort_multipart_upload(Bucket=world.settings.bucket, Key=upload["Key"], UploadId=upload["UploadId"])


@pytest.mark.parametrize("when", ["between parts", "before complete"])
def test_upload_that_vanished_is_begun_anew_from_the_copy(world, output, lease, eventually, when):
    archive, data = world.archive(), content(5 * BLOCK_BYTES + 9)
    upload = begin(archive, output, lease, keep=True)
    half = len(data) if when == "before complete" else 3 * BLOCK_BYTES
    feed(upload, data[:half])
    eventually(lambda: upload._unsent == 0, 20, "what was written is sent")
    lose_uploads(world)
    feed(upload, data[half:])
    assert world.read(upload.complete().key) == data
    assert world.unfinished() == []
    assert archive._means.spool._used == set()


def test_upload_that_vanished_without_a_copy_is_tried_later(world, output, lease, eventually):
    archive, data = world.archive(), content(5 * BLOCK_BYTES + 9)
    upload = begin(archive, output, lease)
    feed(upload, data[: 3 * BLOCK_BYTES])
    eventually(lambda: upload._unsent == 0, 20, "what was written is sent")
    lose_uploads(world)
    with pytest.raises(ArchiveUnavailableError):  # noqa: PT012 - in either of them
        feed(upload, data[3 * BLOCK_BYTES :])
        upload.complete()
    upload.abort()
    assert world.keys() == []
    assert archive._means.spool._in_memory == 0


def test_copy_that_does_not_fit_is_given_up_and_the_upload_goes_on(world, output, lease):
    archive, data = world.archive(spool_bytes=2 * BLOCK_BYTES), content(6 * BLOCK_BYTES + 9)
    upload = begin(archive, output, lease, keep=True)
    feed(upload, data)
    assert world.read(upload.complete().key) == data
    assert archive._means.spool._used == set()


def test_many_uploads_at_once_share_a_small_spool(world, lease, output):
    """More uploads than senders, S3 slow now and then: all arrive, and all room is given back."""
    archive = world.archive(spool_bytes=3 * BLOCK_BYTES)
    failures = []

    def one(number):
        data = content(2 * BLOCK_BYTES + number)
        upload = begin(archive, output, lease, keep=bool(number % 2), name=f"{number}.csv")
        try:
            feed(upload, data)
            if world.read(upload.complete().key) != data:
                failures.append(number)
        except Exception as exc:  # noqa: BLE001
            failures.append(exc)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(world.keys()) == 10
    assert archive._means.spool._used == set()
    assert archive._means.spool._in_memory == 0


def test_damage_on_the_way_is_noticed_and_sent_again(world, output, lease):
    """A bit that flips between us and S3 never becomes part of an object (where S3 verifies checksums)."""
    if not world.verifies:
        pytest.skip("the embedded S3 verifies no checksums")
    flip = world.proxy.fault("PUT", "partNumber=1", lambda handler: handler.forward(lambda body: b"!" + body[1:]), times=2)
    archive, data = world.archive(), content(2 * BLOCK_BYTES)
    upload = begin(archive, output, lease)
    feed(upload, data)
    assert world.read(upload.complete().key) == data
    assert flip.seen == 2


def test_small_object_is_waited_for_in_the_background_where_s3_is_slow_all_day(world, output, lease, monkeypatch):
    """The first try is over soon, since the lease is not asked meanwhile; from the second on there is as much time as ever."""
    monkeypatch.setattr(upload_module, "SOON_SECONDS", 0.3)

    def slowly(handler):
        time.sleep(1.5)
        handler.forward()

    archive = world.archive()
    begin(archive, output, lease, name="first.csv").complete()  # the way is open once it was used
    fault = world.proxy.fault("PUT", "slow", slowly, times=100)
    upload = begin(archive, output, lease, name="slow.csv")
    upload.write(b"a,b\n")
    assert world.read(upload.complete().key) == b"a,b\n"
    assert fault.seen == 2


@pytest.mark.parametrize("size", [9, 2 * BLOCK_BYTES])
def test_what_failed_and_then_went_well_leaves_nothing_behind(world, output, lease, faults, size):
    """An error that kept itself by its own trace would keep the bytes that were sent as well, until it is collected."""
    archive = world.archive()
    for name in ("a.csv", "b.csv"):  # from then on a small one is sent past the client
        begin(archive, output, lease, name=name).complete()
    gc.collect()
    gc.disable()
    try:
        world.proxy.fault("PUT", "c.csv", faults.answer(503, "SlowDown"), times=1)
        upload = begin(archive, output, lease, name="c.csv")
        feed(upload, content(size))
        assert upload.complete().size == size
        assert [one for one in gc.get_objects() if type(one) is ArchiveUnavailableError] == []  # no proxy is asked what it is
    finally:
        gc.enable()


class TakesChecksums:
    """S3 as it is: it says which CRC32 it took. `refuse`: how it refuses a body that the signature does not cover."""

    def __init__(self, world, refuse=None) -> None:
        self.signed = []
        self._refuse = refuse
        world.proxy.fault("PUT", ".", self, times=10_000)

    def __call__(self, handler) -> None:
        signed = handler.headers["x-amz-content-sha256"] != "UNSIGNED-PAYLOAD"
        self.signed.append(signed)
        if not signed and self._refuse:
            self._refuse(handler)
        else:
            name = "x-amz-checksum-crc32"
            handler.forward(more={name: handler.headers[name]})


@pytest.mark.parametrize("size", [9, 3 * BLOCK_BYTES])
def test_in_the_clear_a_signature_covers_the_body_until_the_checksum_was_taken(world, output, lease, size):
    service, archive, data = TakesChecksums(world), world.archive(), content(size)
    for name in ("a.csv", "b.csv"):
        before = len(service.signed)
        upload = begin(archive, output, lease, name=name)
        feed(upload, data)
        assert world.read(upload.complete().key) == data
    assert service.signed[0]
    assert len(service.signed) == 2 * before
    assert not any(service.signed[before:])


def test_a_service_that_says_nothing_of_checksums_gets_signed_bodies(world, output, lease, faults):
    """It may well not look at them, and then the signature is all that covers a body on its way."""
    signed = []

    def note(handler):
        signed.append(handler.headers["x-amz-content-sha256"] != "UNSIGNED-PAYLOAD")
        handler.forward()

    world.proxy.fault("PUT", ".", note, times=100)
    archive = world.archive()
    for name in ("a.csv", "b.csv"):
        upload = begin(archive, output, lease, name=name)
        feed(upload, content(2 * BLOCK_BYTES))
        upload.complete()
    assert len(signed) == 4
    assert all(signed)


@pytest.mark.parametrize("size", [9, 2 * BLOCK_BYTES])
@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (400, "InvalidRequest"), (400, "XAmzContentSHA256Mismatch"), (501, "NotImplemented")],
)
def test_a_service_that_wants_signed_bodies_gets_them_for_good(world, output, lease, faults, size, status, code):
    """Some take what stands there instead of a hash for a hash, and say that it is not the body's."""
    service, archive, data = TakesChecksums(world, faults.answer(status, code)), world.archive(), content(size)
    for name in ("a.csv", "b.csv", "c.csv"):
        upload = begin(archive, output, lease, name=name)
        feed(upload, data)
        assert world.read(upload.complete().key) == data
    assert not all(service.signed)
    assert all(service.signed[-2:])


@pytest.mark.parametrize("pieces", [[], [0, 1], [MIB - 1, 1, MIB + 1, 5], [300_000] * 23, [3 * MIB + 2]])
def test_digest_is_that_of_all_that_was_fed_in_order(pieces):
    """However the pieces lie to the batches, and asked for in between as well."""
    digests = [Digest(name, Threads("hasher", 4)) for name in ("sha256", "md5")]
    done = b""
    for size in pieces:
        piece = content(len(done) + size)[len(done) :]
        done += piece
        for digest in digests:
            digest.update(piece)
    for _ in range(2):
        assert [digest.hexdigest() for digest in digests] == [hashlib.sha256(done).hexdigest(), hashlib.md5(done).hexdigest()]
        digests[0].update(b"more"), digests[1].update(b"more")
        done += b"more"


def test_a_thread_that_cannot_be_begun_is_no_thread_for_good(monkeypatch):
    """A machine out of threads or memory for a while; afterwards there are as many as before."""
    begin_thread, refusals = threading.Thread.start, iter(range(3))

    def start(thread):
        if next(refusals, None) is not None:
            raise RuntimeError("can't start new thread")
        begin_thread(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    threads = Threads("hasher", 2)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            threads.submit(lambda: 1)
    assert threads.submit(lambda: 2).result(10) == 2


def feed_digest(digest, times):
    for _ in range(times):
        digest.update(bytes(MIB))


def test_digest_that_cannot_go_on_says_so_to_whoever_feeds_it_and_asks(monkeypatch):
    digest = Digest("sha256", Threads("hasher", 4))

    class Broken:
        def update(self, _):
            raise MemoryError

    monkeypatch.setattr(digest, "_hash", Broken())
    with pytest.raises(MemoryError):
        feed_digest(digest, 100)
    with pytest.raises(MemoryError):
        digest.hexdigest()


def test_ten_thousand_parts_hold_a_thousand_gibibytes_and_the_first_are_equal():
    blocks = [blocks_of_part(number) for number in range(1, 10_001)]
    assert set(blocks[:3_999]) == {1}
    assert sum(blocks) * BLOCK_BYTES > 1_000 * 2**30
    assert max(blocks) * BLOCK_BYTES <= 5 * 2**30


def test_parts_of_several_blocks(world, output, lease, monkeypatch):
    """What happens beyond 31 GiB, brought near: parts of two blocks from the second one on."""
    monkeypatch.setattr("worker.archive.upload.blocks_of_part", lambda number: 1 if number == 1 else 2)
    for spool_bytes in (0, 64 * MIB):
        archive, data = world.archive(spool_bytes=spool_bytes), content(6 * BLOCK_BYTES + 9)
        upload = begin(archive, output, lease, name=f"{spool_bytes}.bin", keep=bool(spool_bytes))
        feed(upload, data)
        assert world.read(upload.complete().key) == data
    assert world.proxy.count("partNumber=4") == 2
    assert world.proxy.count("partNumber=5") == 0


def test_what_waits_on_disk_has_no_name_and_is_nobody_elses(tmp_path, monkeypatch):
    """A file without a name can be found, followed as a link or read by nobody, and is gone with the process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = Spool(2 * BLOCK_BYTES)
    buffer = spool.buffer()
    buffer[:6] = b"secret"
    block = spool.on_disk(buffer, 6)
    assert bytes(spool.read(block, 0, 6)) == b"secret"
    status = os.fstat(spool._file.fileno())
    assert (status.st_nlink, stat.S_IMODE(status.st_mode) & 0o077) == (0, 0)
    assert list(tmp_path.iterdir()) == []
    assert not os.get_inheritable(spool._file.fileno())
