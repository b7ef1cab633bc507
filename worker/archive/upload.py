"""One object on its way to S3: bytes become blocks, blocks become parts, and the object appears only when all of them are in.

A file that fits one block is one conditional PUT. Anything longer is a multipart upload, whose parts are sent, and
whose hashes are reckoned, beside the caller, which goes on writing. What S3 has not taken yet waits in the `Spool`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import structlog
from isal.isal_zlib import crc32

from worker.archive.digest import Digest
from worker.archive.s3 import LOOK_SECONDS, Bucket, StandsError, VanishedError, answered
from worker.archive.spool import BLOCK_BYTES, Block, Body, Spool
from worker.archive.stored import StoredObject, attributes, crc32_header, read_back, stored_object
from worker.archive.threads import Threads
from worker.errors import (
    ArchiveRefusedError,
    ArchiveUnavailableError,
    KeyConflictError,
    LastcallError,
    StoppedError,
    TooLargeError,
)
from worker.model import JsonObject, Lease, Output

log = structlog.get_logger(__name__)
T = TypeVar("T")

# Requests in flight at once: more than one core can sign and send, few enough for any service.
_SENDERS = 16
_HASHERS = 64  # each batch waits for a core, and for nothing else
MAX_PARTS = 10_000  # S3's own limit
# Blocks of one upload that wait in memory: one on its way, one ready, one to spare.
MEMORY_BLOCKS_EACH = 3
# While S3 takes parts at least this often, a full memory only slows the writer down, as any pipe does; a disk would be slower.
# A longer silence is S3's trouble, and the spool is for that: the vendor's connection must not starve.
SILENCE_SECONDS = 2
# A body up to this size is sent as one bytes object, within `CONNECT_SECONDS` where nothing is encrypted; a longer one as a
# stream, whose time limit holds per piece. So a line of 50 KB/s for each of the uploads is fast enough.
_AT_ONCE_BYTES = 2**18
# In which a first try to write a small object is answered. Whoever waits for it does not ask its lease meanwhile.
SOON_SECONDS = 5
# How long an upload whose bytes can be fetched again waits, slot and all, for credentials to be put right.
REFUSED_SECONDS_AT_MOST = 600.0
ABORT_SECONDS = 5  # how long `abort` waits for S3; what it could not clean up is swept later


def blocks_of_part(number: int) -> int:
    """Give how many blocks the part `number` has.

    One, for the first 4,000 parts (31 GiB), so that all parts have the same size (some services insist) and memory stays
    flat; then ever more, so that S3's 10,000 parts hold 1,000 GiB.
    """
    return 1 << max(0, (number - 3_000) // 1_000)


@dataclass(slots=True, eq=False)
class _Part:
    number: int
    blocks: list[Block] = field(default_factory=list)
    crc: int = 0
    etag: str | None = None

    @property
    def checksum(self) -> str:
        return crc32_header(self.crc)


@dataclass(frozen=True, slots=True)
class Means:
    """What all uploads of a process share."""

    bucket: Bucket
    spool: Spool
    senders: Threads = field(default_factory=lambda: Threads("s3-sender", _SENDERS))
    hashers: Threads = field(default_factory=lambda: Threads("hasher", _HASHERS))


class Upload:
    """One object on its way: nothing is visible before `complete`. Bytes wait in memory while S3 keeps up, on disk when not.

    One thread writes; `abort` may be called from any. The lease is asked by the senders too, so its `check` must be
    thread-safe. An upload that is dropped leaves no object, only parts that are swept later.
    """

    def __init__(
        self,
        means: Means,
        output: Output,
        lease: Lease,
        *,
        keep: bool,
        algorithm: str | None,
        refused: Callable[[ArchiveRefusedError], None] | None,
    ) -> None:
        self._bucket, self._spool, self._senders = means.bucket, means.spool, means.senders
        self._output, self._lease, self._keep = output, lease, keep
        self._when_refused = refused
        self._refused_seconds = float("inf") if keep else REFUSED_SECONDS_AT_MOST
        self._refused_since: float | None = None
        self._log = log.bind(source=output.id.source, job=output.id.job_id, output=output.id.output_id)
        self._digests = {name: Digest(name, means.hashers) for name in {"sha256", algorithm or "sha256"}}
        self._size = 0
        self._buffer: memoryview | None = None
        self._fill = 0
        self._crc = 0
        self._attributes: JsonObject | None = None  # the parameters of the request that makes the object; set by `start`

        # All below is guarded by this one condition, which the spool notifies too.
        self._changed = means.spool.changed
        self._parts: list[_Part] = []
        self._unsent = 0  # parts handed to the senders and not taken by S3 yet
        self._taken_at = 0.0  # when S3 last took a part, or began to have one to take
        self._sending = 0  # senders at work for this upload
        self._upload_id: str | None = None
        self._generation = 0  # how often the multipart upload was begun anew
        self._failure: Exception | None = None
        self._ended = False
        self._completed = False
        self._may_have_twins = False
        self._beginning = threading.Lock()

    # --- the caller's side -------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Take the next bytes of the file. Hashes them (sha256, and the vendor's algorithm) beside the upload.

        Blocks only when S3 does not take parts and neither memory nor spool has room left, asking the lease all the while.
        Raises what ended the upload: `ArchiveRefusedError`, `ArchiveUnavailableError` (the unfinished upload vanished and
        no copy is left), `TooLargeError`, `LeaseLostError`, `StoppedError`.
        """
        for digest in self._digests.values():
            digest.update(data)
        with memoryview(data) as view:
            self._size += len(view)
            taken = 0
            while taken < len(view):
                if self._fill == BLOCK_BYTES:
                    self._hand_over()
                if self._buffer is None:
                    self._buffer = self._spool.buffer()
                piece = view[taken : taken + BLOCK_BYTES - self._fill]
                self._buffer[self._fill : self._fill + len(piece)] = piece
                self._fill += len(piece)
                taken += len(piece)

    def start(self, key: str, *, filename: str, wrapping: str, content_type: str) -> None:
        """Say where it goes; may come after the first bytes (a name can be told last). Once."""
        if self._attributes is not None:
            raise ValueError("an upload is started once")
        with self._changed:
            self._attributes = attributes(
                self._bucket.settings, self._output, key, filename=filename, wrapping=wrapping, content_type=content_type
            )
            waiting = [part for part in self._parts if self._is_whole(part)]
            for part in waiting:
                self._submit(part)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def digest(self, algorithm: str) -> str:
        """Hex digest of all bytes written: sha256, or the algorithm asked for when the upload was opened."""
        return self._digests[algorithm].hexdigest()

    def complete(self) -> StoredObject:
        """Make the object visible, create-only. An object that stands there already is read back: equal bytes are adopted,
        others raise `KeyConflictError`. Raises what `write` raises, too.
        """
        if self._attributes is None:
            raise ValueError("an upload is started before it is completed")
        stored = self._complete_parts() if self._parts else self._put()
        self._completed = True
        self.abort()  # nothing is left to abort but what the object did not need
        return stored

    def abort(self) -> None:
        """Leave nothing behind. Never raises; safe to call at any time, and after `complete` it does nothing."""
        with self._changed:
            if self._ended:
                return
            self._ended = True
            self._changed.notify_all()
            busy = self._sending or self._upload_id or self._may_have_twins
        if not busy:
            self._release()
            return
        future = self._senders.submit(self._clean_up)
        if not wait([future], timeout=ABORT_SECONDS).done:
            self._log.warning("upload-abort-slow", hint="S3 does not answer; what is left is swept later")

    def check(self) -> None:
        """The lease as the senders ask it: it ends with the upload, too."""
        if self._ended:
            raise StoppedError("this upload was aborted")
        self._lease.check()

    def goes_on_refused(self, exc: ArchiveRefusedError) -> bool:
        """Say that S3 refuses us, once, and keep the bytes: what was refused is asked again now and then."""
        if self._when_refused is None:
            return False
        with self._changed:
            first = self._refused_since is None
            since = self._refused_since = self._refused_since or time.monotonic()
        if first:
            self._when_refused(exc)
        return time.monotonic() - since < self._refused_seconds

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self._release()

    # --- bytes become blocks, blocks become parts --------------------------------------------------------------------

    def _hand_over(self) -> None:
        """The filled buffer joins the part that is being gathered; a part that is whole goes to the senders."""
        with self._changed:
            part = self._parts[-1] if self._parts and not self._is_whole(self._parts[-1]) else None
            if part is None:
                if len(self._parts) == MAX_PARTS:
                    raise TooLargeError(f"{self._output.id}: more than {MAX_PARTS} parts; S3 takes no more")
                part = _Part(len(self._parts) + 1)
        buffer, size = self._buffer, self._fill
        assert buffer is not None  # noqa: S101 - only a filled buffer is handed over
        crc = crc32(buffer[:size], part.crc)
        block = self._make_room(buffer, size)
        self._buffer, self._fill = None, 0
        with self._changed:
            part.blocks.append(block)
            part.crc = crc
            if part not in self._parts[-1:]:
                self._parts.append(part)
            if self._attributes is not None and self._is_whole(part):
                self._submit(part)

    @staticmethod
    def _is_whole(part: _Part) -> bool:
        return len(part.blocks) == blocks_of_part(part.number)

    def _make_room(self, buffer: memoryview, size: int) -> Block:
        """Find a place for a filled buffer: memory, else the spool, else wait for S3. A copy that is kept lies in the spool."""
        while True:
            if self._keep:
                if block := self._spool.on_disk(buffer, size):
                    return block
                self._stop_keeping()
            with self._changed:
                self._raise_failure()
                if self._own(lambda block: block.buffer) < MEMORY_BLOCKS_EACH and (
                    block := self._spool.in_memory(buffer, size)
                ):
                    return block
                if keeps_up := self._s3_keeps_up():
                    self._changed.wait(LOOK_SECONDS)
            if not keeps_up:
                if block := self._spool.on_disk(buffer, size):
                    return block
                if self._attributes is None:
                    self._raise_unnamed()
                with self._changed:
                    if not self._unsent and (block := self._spool.in_memory(buffer, size, at_any_cost=True)):
                        return block  # a part must be whole before it can go, so memory gives way last
                    self._changed.wait(LOOK_SECONDS)
            self._lease.check()

    def _s3_keeps_up(self) -> bool:
        return self._unsent > 0 and time.monotonic() - self._taken_at < SILENCE_SECONDS

    def _raise_unnamed(self) -> None:
        """No room is left, and no part may go before it has a key: waiting would be for ourselves."""
        if self._own(lambda block: block.slot is not None) >= self._spool.slots:
            raise TooLargeError(
                f"{self._output.id}: its name comes after {self._size} bytes, more than worker.spool_bytes can hold;"
                " raise that, restart the workers, then `lastcall retry`"
            )
        raise ArchiveUnavailableError("the spool is full of other outputs, and this one has no name yet")

    def _own(self, counted: Callable[[Block], object]) -> int:
        with self._changed:
            return sum(1 for part in self._parts for block in part.blocks if counted(block))

    def _stop_keeping(self) -> None:
        """The spool cannot hold all of it: go on without the copy, as for bytes that may be fetched twice."""
        self._log.warning("spool-too-small", size=self._size, hint="if S3 loses the upload, this is downloaded again")
        with self._changed:
            self._keep = False
            for part in self._parts:
                if part.etag is not None:
                    self._let_go(part)

    def _let_go(self, part: _Part) -> None:
        for block in part.blocks:
            self._spool.release(block)

    # --- the senders' side -------------------------------------------------------------------------------------------

    def _submit(self, part: _Part) -> None:
        if not self._unsent:
            self._taken_at = time.monotonic()
        self._unsent += 1
        self._senders.submit(lambda: self._at_work(lambda: self._send(part)))

    def _send(self, part: _Part) -> None:
        """Send one part until S3 has it, or the upload ends."""
        try:
            while True:
                self.check()
                upload_id, generation = self._begin()
                try:
                    etag = self._bucket.patiently(self, partial(self._send_once, upload_id, part))
                except VanishedError as exc:
                    self._begin_anew(generation, exc)
                    continue
                with self._changed:
                    if generation == self._generation:
                        part.etag = etag
                        self._unsent -= 1
                        self._taken_at = time.monotonic()
                        if not self._keep:
                            self._let_go(part)
                        self._changed.notify_all()
                        return
        except Exception as exc:  # noqa: BLE001 - raised again by the next `write` or `complete`
            with self._changed:
                self._failure = self._failure or exc
                self._unsent -= 1
                self._changed.notify_all()

    def _send_once(self, upload_id: str, part: _Part) -> str:
        try:
            answer = self._bucket.ask(
                "upload_part",
                Key=self._key,
                UploadId=upload_id,
                PartNumber=part.number,
                Body=Body(self._spool, part.blocks),
                ChecksumCRC32=part.checksum,
            )
        except ArchiveUnavailableError as exc:
            if answered(exc):
                self._ask_whether_it_vanished(upload_id)
            raise
        return str(answer["ETag"])

    def _ask_whether_it_vanished(self, upload_id: str) -> None:
        """Some services know the unfinished upload no more and answer a part of it with 500, which would be tried for ever."""
        with suppress(ArchiveUnavailableError, ArchiveRefusedError):  # then the first answer counts
            self._bucket.ask("list_parts", Key=self._key, UploadId=upload_id, MaxParts=1)

    def _begin(self) -> tuple[str, int]:
        """Give the multipart upload, begun by whichever sender comes first. S3 insists on hearing the checksum's kind now."""
        with self._beginning:
            self.check()
            if self._upload_id is None:
                answer = self._bucket.patiently(self, self._begin_once)
                with self._changed:
                    self._upload_id = str(answer["UploadId"])
            return self._upload_id, self._generation

    def _begin_once(self) -> JsonObject:
        try:
            return dict(self._bucket.ask("create_multipart_upload", ChecksumAlgorithm="CRC32", **(self._attributes or {})))
        except ArchiveUnavailableError:
            self._may_have_twins = True  # S3 may have begun one, and only its answer was lost
            raise

    def _begin_anew(self, generation: int, exc: Exception) -> None:
        """The unfinished upload vanished: send everything again from the copy, or give up when there is none."""
        with self._beginning, self._changed:
            if generation != self._generation:
                return
            if any(part.etag is not None and not all(map(_held, part.blocks)) for part in self._parts):
                raise ArchiveUnavailableError("S3 lost the unfinished upload, and no copy of its bytes is left") from exc
            self._log.warning("upload-begun-anew", size=self._size)
            self._generation += 1
            self._upload_id = None
            for part in self._parts:
                if part.etag is not None:
                    part.etag = None
                    self._submit(part)

    def _complete_parts(self) -> StoredObject:
        if self._fill:
            self._hand_over()
        with self._changed:
            last = self._parts[-1]
            if not self._is_whole(last):
                self._submit(last)
        while True:
            with self._changed:
                while self._unsent and self._failure is None:
                    self._changed.wait(LOOK_SECONDS)
                    self._lease.check()
                self._raise_failure()
            stored = self._in_background(self._finish)
            if stored is not None:
                return stored

    def _finish(self) -> StoredObject | None:
        """Complete the upload. None: it had to be begun anew, and its parts are on their way again."""
        generation = self._generation
        parts = [{"PartNumber": part.number, "ETag": part.etag, "ChecksumCRC32": part.checksum} for part in self._parts]
        try:
            self._bucket.call(
                "complete_multipart_upload",
                self,
                Key=self._key,
                UploadId=self._upload_id,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
        except StandsError:
            return self._adopt()
        except VanishedError as exc:
            # Perhaps it was completed, and only the answer was lost.
            if self._bucket.head(self._key, self) is not None:
                return self._adopt()
            self._begin_anew(generation, exc)
            return None
        self._upload_id = None
        answer = self._bucket.head(self._key, self)
        if answer is None or answer["ContentLength"] != self._size:
            raise KeyConflictError(f"{self._output.id}: S3 says that it is complete, but what stands there has another size")
        return stored_object(self._key, answer, self._output.id)

    def _put(self) -> StoredObject:
        """The whole file in one conditional PUT. A lost answer is asked again: 412 then, and our own bytes are adopted."""
        content: Any = b""
        if self._buffer is not None:
            content = self._buffer[: self._fill]
        block = Block(len(content), buffer=content)
        at_once = len(content) <= _AT_ONCE_BYTES
        params = {**(self._attributes or {}), "ChecksumCRC32": crc32_header(crc32(content)), "IfNoneMatch": "*"}

        def attempt(**how: Any) -> JsonObject:
            body = bytes(content) if at_once else Body(self._spool, [block])
            return dict(self._bucket.ask("put_object", Body=body, **params, **how))

        try:
            answer = (
                self._here(attempt)
                if at_once and self._bucket.puts_directly
                else self._in_background(lambda: self._bucket.patiently(self, attempt))
            )
        except StandsError:
            return self._in_background(self._adopt)
        return stored_object(self._key, {**params, "ContentLength": self._size, **answer}, self._output.id)

    def _adopt(self) -> StoredObject:
        """An object stands there: if it has our bytes it is ours, whoever wrote it."""
        answer = self._bucket.head(self._key, self)
        if answer is None:
            raise ArchiveUnavailableError("an object that stood in the way is gone again")
        if answer["ContentLength"] == self._size:
            _, digests = read_back(self._bucket, self._key, ("sha256",), self)
            if digests["sha256"] == self.digest("sha256"):
                self._log.info("upload-adopted", size=self._size)
                return stored_object(self._key, answer, self._output.id)
        raise KeyConflictError(
            f"{self._output.id}: an object with other bytes stands at its key "
            f"({answer['ContentLength']} bytes, ours has {self._size})"
        )

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def _key(self) -> str:
        return str((self._attributes or {})["Key"])

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _in_background(self, work: Callable[[], T]) -> T:
        """Let a sender do `work` while we ask the lease: S3 may take a minute to answer, a stopping process has less."""
        future: Future[T] = self._senders.submit(lambda: self._at_work(work))
        while True:
            try:
                return future.result(LOOK_SECONDS)
            except TimeoutError:
                if future.done():  # then it is what `work` raised
                    raise
            self._lease.check()

    def _here(self, attempt: Callable[..., T]) -> T:
        """Make a first try, which is over within seconds, in this thread; whatever it takes after that, in the background."""
        failed: list[LastcallError] = []  # taken out again at once, as in `patiently`
        try:
            return self._at_work(lambda: attempt(silence_seconds=SOON_SECONDS))
        except (ArchiveRefusedError, ArchiveUnavailableError) as exc:
            failed.append(exc)

        def go_on() -> T:
            if failed:
                raise failed.pop()
            return attempt()

        return self._in_background(lambda: self._bucket.patiently(self, go_on))

    def _at_work(self, work: Callable[[], T]) -> T:
        """Do `work` and be counted meanwhile, so that no buffer is taken from under a request."""
        with self._changed:
            if self._ended:
                raise StoppedError("this upload was aborted")
            self._sending += 1
        try:
            return work()
        finally:
            with self._changed:
                self._sending -= 1
                self._changed.notify_all()

    def _clean_up(self) -> None:
        """When the last sender has left: abort at S3, and give all room back."""
        with self._changed:
            self._changed.wait_for(lambda: not self._sending)
        self._release()
        try:
            if self._upload_id is not None:
                self._abort_one(self._upload_id)
            # Once the object stands, no upload to its key can come to anything, whoever began it. Before, the next attempt,
            # which may be going on elsewhere, aborts what it finds.
            if self._may_have_twins and self._completed:
                for page in self._bucket.pages("list_multipart_uploads", Prefix=self._key):
                    for upload in page.get("Uploads", ()):
                        if upload["Key"] == self._key:
                            self._abort_one(upload["UploadId"])
        except LastcallError as exc:
            self._log.warning("upload-abort-failed", error=str(exc), hint="what is left is swept later")

    def _abort_one(self, upload_id: str) -> None:
        with suppress(VanishedError):  # it is gone already, which is what we want
            self._bucket.call("abort_multipart_upload", Key=self._key, UploadId=upload_id)

    def _release(self) -> None:
        with self._changed:
            if self._buffer is not None:
                self._spool.give_back(self._buffer)
                self._buffer = None
            for part in self._parts:
                self._let_go(part)


def _held(block: Block) -> bool:
    return block.buffer is not None or block.slot is not None
