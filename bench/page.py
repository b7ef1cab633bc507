"""What benchmarks print and what docs/ shows: tables, one kind of plot, and sections of docs/benchmarks.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
_COLOURS = ("#8a8f98", "#d08a1e", "#7a6bd1", "#1b7f5c")
_HEAD = """# Benchmarks

`make bench` measures all of this anew and writes it here; `make bench ARGS="scheduling"` does one part.
Figures are of the machine that they were made on: believe ratios more than absolutes. What must not get worse stands in
[bench/floors.toml](../bench/floors.toml), and what is aimed at: `make bench` compares, says what is not reached, and ends
with 1 when something fell.
"""


@dataclass(frozen=True, slots=True)
class Section:
    """One section of docs/benchmarks.md, in Markdown, and the plots that it shows: file name → SVG.

    `ratios`: what must not fall below its floor in ``floors.toml``, by name.
    """

    title: str
    text: str
    plots: Mapping[str, str]
    ratios: Mapping[str, float] = field(default_factory=dict)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Give a Markdown table that reads well in a terminal too; all but the first column are numbers."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in [list(columns), *cells]) for index in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        return "| " + " | ".join([row[0].ljust(widths[0]) if first else "", *rest]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if index else "-") for index, width in enumerate(widths)) + "|"
    return "\n".join([line(columns), rule, *map(line, cells)])


def bars(title: str, groups: Sequence[str], series: Mapping[str, Sequence[float]], unit: str) -> str:
    """Give an SVG of grouped bars, each with its number on it. `series`: name → one value for each group."""
    width, height, left, top, bottom = 760, 340, 56, 64, 44
    most = max([1.0, *(value for values in series.values() for value in values)])
    group_width = (width - left - 16) / len(groups)
    bar = group_width * 0.8 / len(series)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"',
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for index, name in enumerate(series):
        at = left + index * 170
        parts.append(f'<rect x="{at}" y="34" width="11" height="11" fill="{_COLOURS[index % len(_COLOURS)]}"/>')
        parts.append(f'<text x="{at + 16}" y="44">{escape(name)}</text>')
    base, scale = height - bottom, (height - top - bottom) / most
    for step in range(5):
        value = most * step / 4
        y = base - value * scale
        parts.append(f'<line x1="{left}" x2="{width - 16}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e5e8"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value:.0f}{unit}</text>')
    for place, group in enumerate(groups):
        x0 = left + place * group_width + group_width * 0.1
        for index, values in enumerate(series.values()):
            x, tall = x0 + index * bar, values[place] * scale
            colour = _COLOURS[index % len(_COLOURS)]
            parts.append(f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{bar - 2:.1f}" height="{tall:.1f}" fill="{colour}"/>')
            middle = x + (bar - 2) / 2
            label = f"{values[place]:.0f}"
            parts.append(f'<text x="{middle:.1f}" y="{base - tall - 3:.1f}" text-anchor="middle" font-size="10">{label}</text>')
        middle = left + (place + 0.5) * group_width
        parts.append(f'<text x="{middle:.1f}" y="{base + 18}" text-anchor="middle">{escape(group)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def write(name: str, section: Section) -> None:
    """Put a section into docs/benchmarks.md, in place of what stood there of this benchmark."""
    page = DOCS / "benchmarks.md"
    standing = page.read_text(encoding="utf-8") if page.exists() else _HEAD
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = f"{begin}\n## {section.title}\n\n{section.text.strip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    standing = pattern.sub(lambda _: text, standing) if pattern.search(standing) else f"{standing.rstrip()}\n\n{text}\n"
    page.write_text(standing, encoding="utf-8")
    for file, svg in section.plots.items():
        (DOCS / "images" / file).write_text(svg, encoding="utf-8")
