"""``python -m bench [NAME…]``: runs benchmarks, prints their tables, and writes them into docs/benchmarks.md.

A benchmark is a module of this package with ``run() -> Section``; it is named in `BENCHMARKS`, in the order of the page.
"""

from __future__ import annotations

import signal
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

from bench import page

BENCHMARKS = ("scheduling", "ledger", "polling", "fairness", "large", "small", "scale", "idle")


FLOORS = Path(__file__).with_name("floors.toml")


def main(names: list[str]) -> int:
    """Run the benchmarks of these names, or all. Gives 1 when something fell below its floor."""
    given: dict[str, dict[str, float]] = tomllib.loads(FLOORS.read_text(encoding="utf-8"))
    floors, marks = given["floors"], given["marks"]
    below: list[str] = []
    for name in names:
        if name not in BENCHMARKS:
            sys.stderr.write(f"no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}\n")
            return 2
    for name in names or BENCHMARKS:
        began = time.monotonic()
        section = import_module(f"bench.{name}").run()
        page.write(name, section)
        sys.stdout.write(f"\n{section.title}\n\n{section.text}\n")
        for what, ratio in section.ratios.items():
            fell = ratio < floors[what]
            mark = marks.get(what)
            aim = "" if mark is None else f", mark {mark:g}{'' if ratio >= mark else ' not reached'}"
            sys.stdout.write(f"{'BELOW ITS FLOOR' if fell else 'ok':>15}  {what}: {ratio:.2f} (floor {floors[what]:g}{aim})\n")
            if fell:
                below.append(what)
        sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")
    if below:
        sys.stderr.write(f"\nBELOW THE FLOOR (bench/floors.toml): {'; '.join(below)}\n")
    return 1 if below else 0


if __name__ == "__main__":
    # Leave as by Ctrl-C: servers, namespaces and folders in memory are put away.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
