"""Where bytes wait for S3, those of all uploads of a process: some blocks in memory, the others in one unlinked file."""

from __future__ import annotations

import io
import mmap
import os
import tempfile
import threading
import weakref
from dataclasses import dataclass
from typing import IO

import structlog

log = structlog.get_logger(__name__)

# 64 MiB parts were slower and cost 190 to 260 MB; S3 takes no part below 5 MiB but the last.
BLOCK_BYTES = 8 * 2**20

# Blocks that wait in memory before the file is used: enough to keep senders busy while S3 keeps up, over all uploads together.
MEMORY_BLOCKS = 16

# Buffers that are kept for the next upload rather than given back to the system.
SPARE_BUFFERS = 16

# One send is one system call, and the socket's time limit holds per send: larger pieces are no faster.
_PIECE_BYTES = 256 * 2**10


@dataclass(slots=True, eq=False)
class Block:
    """Up to `BLOCK_BYTES` of a file, either in a `buffer` or in a `slot` of the file."""

    size: int
    buffer: memoryview | None = None
    slot: int | None = None


class Spool:
    """Room for waiting blocks. Thread-safe.

    `changed` is notified whenever room is given back; uploads use it as their one condition too.
    `slots`: how many blocks the file may hold, so that it never grows over `spool_bytes`.
    """

    def __init__(self, spool_bytes: int) -> None:
        self.changed = threading.Condition()
        self.slots = spool_bytes // BLOCK_BYTES
        self._file: IO[bytes] | None = None
        self._used: set[int] = set()
        self._in_memory = 0
        self._spare: list[memoryview] = []
        self._disk_refused = False

    def buffer(self) -> memoryview:
        """Give an empty buffer of `BLOCK_BYTES`. Pages that were never written cost nothing, so small files stay cheap."""
        with self.changed:
            return self._spare.pop() if self._spare else memoryview(mmap.mmap(-1, BLOCK_BYTES))

    def give_back(self, buffer: memoryview) -> None:
        """Take back what `buffer` gave; nobody may read it any more."""
        with self.changed:
            if len(self._spare) < SPARE_BUFFERS:
                self._spare.append(buffer)

    def in_memory(self, buffer: memoryview, size: int, *, at_any_cost: bool = False) -> Block | None:
        """Let the bytes wait where they are, or None when too many blocks do so already."""
        with self.changed:
            if self._in_memory >= MEMORY_BLOCKS and not at_any_cost:
                return None
            self._in_memory += 1
            return Block(size, buffer=buffer)

    def on_disk(self, buffer: memoryview, size: int) -> Block | None:
        """Copy the bytes into the file and take the buffer back, or None when the file (or the disk) is full."""
        slot = self._take_slot()
        if slot is None or self._file is None:
            return None
        try:
            written = 0
            while written < size:
                written += os.pwrite(self._file.fileno(), buffer[written:size], slot * BLOCK_BYTES + written)
        except OSError as exc:
            self._tell_once(exc)
            self._free(slot)
            return None
        self._disk_refused = False
        self.give_back(buffer)
        return Block(size, slot=slot)

    def read(self, block: Block, offset: int, size: int) -> memoryview | bytes:
        """Give the bytes of `block` from `offset` on, at most `size`; fewer only at its end."""
        size = min(size, block.size - offset)
        if block.buffer is not None:
            return block.buffer[offset : offset + size]
        if block.slot is None or self._file is None:
            raise ValueError("this block was released")
        data = os.pread(self._file.fileno(), size, block.slot * BLOCK_BYTES + offset)
        if len(data) != size:
            raise OSError("the spool file is shorter than what was written to it")
        return data

    def release(self, block: Block) -> None:
        """The bytes are not needed any more. Releasing twice does nothing."""
        with self.changed:
            buffer, slot = block.buffer, block.slot
            block.buffer = block.slot = None
            if buffer is not None:
                self._in_memory -= 1
                self.give_back(buffer)
            if slot is not None:
                self._free(slot)
            self.changed.notify_all()

    def _take_slot(self) -> int | None:
        with self.changed:
            if len(self._used) >= self.slots:
                return None
            # The lowest free one, so that the file stays short.
            slot = next(number for number in range(len(self._used) + 1) if number not in self._used)
            if self._file is None:
                try:
                    self._file = tempfile.TemporaryFile(prefix="lastcall-spool-")  # noqa: SIM115 - lives as long as we do
                    weakref.finalize(self, self._file.close)
                except OSError as exc:
                    self._tell_once(exc)
                    return None
            self._used.add(slot)
            return slot

    def _tell_once(self, exc: OSError) -> None:
        if not self._disk_refused:
            log.warning("spool-disk-refused", error=exc.strerror, hint="the disk for temporary files is full or read-only")
        self._disk_refused = True

    def _free(self, slot: int) -> None:
        with self.changed:
            self._used.discard(slot)
            if not self._used and self._file is not None and not self._file.closed:
                os.ftruncate(self._file.fileno(), 0)  # the disk gets its room back as soon as nothing waits


class Body(io.RawIOBase):
    """Some blocks as one request body, read straight from where they wait."""

    def __init__(self, spool: Spool, blocks: list[Block]) -> None:
        super().__init__()
        self._spool = spool
        self._blocks = blocks
        self._size = sum(block.size for block in blocks)
        self._position = 0

    def __len__(self) -> int:
        return self._size

    def seekable(self) -> bool:  # noqa: D102 - what io says
        return True

    def readable(self) -> bool:  # noqa: D102 - what io says
        return True

    def tell(self) -> int:  # noqa: D102 - what io says
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # noqa: D102 - what io says
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:  # noqa: ARG002 - see below
        """Give the next piece: as much as one send should carry, since urllib3 asks for 16 KiB and sends whatever it gets.

        A memoryview in most cases: nothing is copied before it reaches the socket.
        """
        start = self._position
        for block in self._blocks:
            if start < block.size:
                piece = self._spool.read(block, start, _PIECE_BYTES)
                self._position += len(piece)
                return piece  # type: ignore[return-value]
            start -= block.size
        return b""
