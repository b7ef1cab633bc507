"""How the demo looks: one picture that changes on a terminal, plain lines elsewhere; never wider than 80 columns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.demo.server import MIB

WIDTH = 80
URGENT = 5
_NEWS = 7
_PLAIN_EVERY_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One source. `made`: files that the vendor has made so far."""

    source: str
    vendor: str
    made: int
    owed: int
    claimed: int
    archived: int
    empty: int
    lost: int
    held: int


@dataclass(frozen=True, kw_only=True)
class Urgent:
    """One output that is not in the bucket yet."""

    name: str
    source: str
    state: str
    left: timedelta


@dataclass(frozen=True, kw_only=True)
class View:
    """One moment of the play. `latest` and `trouble` say what was archived last, and how it goes with what met trouble."""

    elapsed_seconds: float
    rows: tuple[Row, ...]
    urgent: tuple[Urgent, ...]
    expected: int
    sent_bytes: int
    bytes_per_second: float
    latest: str
    trouble: str

    @property
    def archived(self) -> int:
        """How many outputs have their receipt."""
        return sum(row.archived for row in self.rows)


class Screen(Protocol):
    """Where the play is shown."""

    def show(self, view: View) -> None:
        """Show this moment."""

    def tell(self, seconds: float, topic: str, text: str, style: str = "") -> None:
        """Say what just happened, or what became of it: the newest text of a topic stands for the others."""

    def note(self, seconds: float, text: str) -> None:
        """Say what only a reader of lines has time for."""

    def end(self) -> None:
        """Show nothing more."""


def span(of: timedelta) -> str:
    """Say a span in its two largest units, or in whole seconds below two minutes: ``3d 4h``, ``95 s``."""
    seconds = int(of.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    for (unit, size), (smaller, small) in ((("d", 86400), ("h", 3600)), (("h", 3600), ("m", 60))):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // small}{smaller}"
    return f"{seconds // 60}m {seconds % 60}s"


def open_screen(console: Console) -> Screen:
    """Give the screen that fits: live on a terminal, plain elsewhere."""
    return LiveScreen(console) if console.is_terminal and not console.is_dumb_terminal else PlainScreen(console)


class PlainScreen:
    """Lines, for logs and pipes: what happens as it happens, and the counts every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_seconds = 0.0

    def show(self, view: View) -> None:
        """Print the counts, when it is time again."""
        if view.elapsed_seconds < self._next_seconds:
            return
        self._next_seconds = view.elapsed_seconds + _PLAIN_EVERY_SECONDS
        owed, claimed = sum(row.owed for row in view.rows), sum(row.claimed for row in view.rows)
        line = f"archived {view.archived} of {view.expected}, {owed} owed, {claimed} in work"
        if view.urgent:
            line += f"; next deadline in {span(view.urgent[0].left)}"
        self.note(view.elapsed_seconds, line)

    def tell(self, seconds: float, topic: str, text: str, style: str = "") -> None:
        """Print it."""
        del topic
        self._console.print(Text(f"{seconds:4.0f} s  ").append(text, style), no_wrap=True, overflow="ellipsis")

    def note(self, seconds: float, text: str) -> None:
        """Print it as well."""
        self.tell(seconds, "", text)

    def end(self) -> None:
        """Nothing is held open."""


class LiveScreen:
    """One picture, drawn anew four times a second."""

    def __init__(self, console: Console) -> None:
        self._news: dict[str, tuple[float, Text]] = {}
        self._view: View | None = None
        self._live = Live(console=console, get_renderable=self._picture, auto_refresh=False, vertical_overflow="crop")
        self._live.start()

    def show(self, view: View) -> None:
        """Draw it."""
        self._view = view
        self._live.refresh()

    def tell(self, seconds: float, topic: str, text: str, style: str = "") -> None:
        """Set the topic's line, below the tables."""
        begun, _ = self._news.get(topic, (seconds, None))
        self._news[topic] = begun, Text(f"{begun:4.0f} s  ", "dim").append(text, style)

    def note(self, seconds: float, text: str) -> None:
        """Say nothing: the counts change before one's eyes."""

    def end(self) -> None:
        """Leave the last picture standing."""
        self._live.refresh()
        self._live.stop()

    def _picture(self) -> RenderableType:
        view = self._view
        if view is None:
            return Text("")
        news = [line for _, line in self._news.values()][-_NEWS:]
        below = [*news, Text(f"        {view.trouble}"), Text(f"        {view.latest}", "green")]
        for line in below:
            line.truncate(WIDTH - 1, overflow="ellipsis")
        return Group(_head(view), _sources(view), _most_urgent(view), *below)


def _head(view: View) -> RenderableType:
    rate = f"{view.sent_bytes / MIB:,.0f} MiB fetched, {view.bytes_per_second / MIB:,.0f} MiB/s"
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        Text(f"{view.elapsed_seconds:3.0f} s", "bold"),
        ProgressBar(total=max(view.expected, 1), completed=view.archived, width=22),
        Text(f"{view.archived} of {view.expected} archived", "bold"),
        Text(rate, "dim"),
    )
    return grid


def _table() -> Table:
    return Table(box=None, pad_edge=False, width=WIDTH - 1, header_style="bold underline")


def _sources(view: View) -> Table:
    table = _table()
    table.add_column("source", no_wrap=True)
    table.add_column("vendor", no_wrap=True)
    for column in ("made", "owed", "in work", "archived", "empty", "lost", "held"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in view.rows:
        table.add_row(
            row.source,
            row.vendor,
            str(row.made),
            str(row.owed),
            str(row.claimed),
            Text(str(row.archived), "green" if row.archived == row.made else ""),
            str(row.empty),
            *(Text(str(count), "bold red" if count else "") for count in (row.lost, row.held)),
        )
    return table


def _most_urgent(view: View) -> Table:
    table = _table()
    table.add_column("most urgent", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("source", no_wrap=True, width=14)
    table.add_column("state", no_wrap=True, width=8)
    table.add_column("deleted in", justify="right", no_wrap=True, width=10)
    rows = view.urgent[:URGENT]
    for urgent in rows:
        seconds = urgent.left.total_seconds()
        style = "bold red" if seconds < 60 else "yellow" if seconds < 900 else ""
        table.add_row(urgent.name, urgent.source, urgent.state, Text(span(urgent.left), style))
    for _ in range(URGENT - len(rows)):
        table.add_row("", "", "", "")  # so that nothing jumps
    return table
