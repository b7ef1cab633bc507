"""``python -m bench [NAME…]``: runs benchmarks, prints their tables, and writes them into docs/benchmarks.md.

A benchmark is a module of this package with ``run() -> Section``; it is named in `BENCHMARKS`, in the order of the page.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module

from bench import page

BENCHMARKS = ("scheduling", "ledger", "polling", "fairness")


def main(names: list[str]) -> int:
    """Run the benchmarks of these names, or all."""
    for name in names:
        if name not in BENCHMARKS:
            sys.stderr.write(f"no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}\n")
            return 2
    for name in names or BENCHMARKS:
        began = time.monotonic()
        section = import_module(f"bench.{name}").run()
        page.write(name, section)
        sys.stdout.write(f"\n{section.title}\n\n{section.text}\n")
        sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
