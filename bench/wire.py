"""The way between a host and everything else: a TCP proxy in a process of its own that adds latency, and cuts.

``python -m bench.wire ADDRESS DELAY_MS CUT PORT…`` listens at ADDRESS for each port and leads to the same port of 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from worker.demo.embedded import Child

CUT_EVERY_SECONDS, CUT_FOR_SECONDS = 18.0, 2.0
_PIECE_BYTES = 2**16


class Wire(Child):
    """A way as a child process."""

    def __init__(self, folder: Path, address: str, ports: Sequence[int], delay_ms: float, *, cut: bool) -> None:
        """`delay_ms` in each direction; `cut`: all connections break now and then, and none is made for a moment."""
        self._there = (address, ports[0])
        command = [sys.executable, "-m", "bench.wire", address, str(delay_ms), str(int(cut)), *map(str, ports)]
        super().__init__(f"wire-{address}", command, folder)

    def ready(self) -> bool:
        """Whether it listens."""
        try:
            socket.create_connection(self._there, timeout=1).close()
        except OSError:
            return False
        return True


class _Way:
    def __init__(self, delay_seconds: float) -> None:
        self.delay_seconds = delay_seconds
        self.is_cut = False
        self.open: set[asyncio.StreamWriter] = set()

    async def connect(self, near: asyncio.StreamReader, near_writer: asyncio.StreamWriter, port: int) -> None:
        """Lead one connection there and back until either side, or a cut, ends it."""
        if self.is_cut:
            near_writer.transport.abort()
            return
        try:
            far, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            near_writer.transport.abort()
            return
        self.open |= {near_writer, far_writer}
        await asyncio.gather(self._carry(near, far_writer), self._carry(far, near_writer))
        self.open -= {near_writer, far_writer}

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Hand on each piece after the delay, in order; many may be under way at once."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def arrive() -> None:
            while True:
                due, piece = await under_way.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not piece:
                    target.close()
                    return
                target.write(piece)
                await target.drain()

        arriving = asyncio.ensure_future(arrive())
        piece = b"-"
        while piece:
            try:
                piece = await source.read(_PIECE_BYTES)
            except OSError:
                piece = b""
            under_way.put_nowait((loop.time() + self.delay_seconds, piece))
        with suppress(OSError):
            await arriving

    async def cut(self) -> None:
        """Break everything now and then."""
        while True:
            await asyncio.sleep(CUT_EVERY_SECONDS)
            self.is_cut = True
            for writer in self.open:
                writer.transport.abort()
            await asyncio.sleep(CUT_FOR_SECONDS)
            self.is_cut = False


async def _serve(address: str, delay_ms: float, ports: Sequence[int], *, cut: bool) -> None:
    way = _Way(delay_ms / 1000)
    for port in ports:
        await asyncio.start_server(lambda reader, writer, port=port: way.connect(reader, writer, port), address, port)  # type: ignore[misc]
    await (way.cut() if cut else asyncio.Event().wait())


if __name__ == "__main__":
    _, address, delay, cut, *rest = sys.argv
    asyncio.run(_serve(address, float(delay), list(map(int, rest)), cut=cut == "1"))
