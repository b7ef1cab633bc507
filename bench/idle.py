"""What a daemon costs that has nothing to do, and how soon after its start it polls."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.house import House, Store, cpu_seconds, family, memory_mib
from bench.loopback import Server
from bench.page import Section, table

SOURCES = ("one", "two", "three", "four")
PROCESSES = 2  # as in the Procfile
SETTLE_SECONDS = 10
LOOK_SECONDS = 60


def run(look_seconds: int = LOOK_SECONDS) -> Section:
    """Start everything with empty sources, and look on."""
    with (
        tempfile.TemporaryDirectory(prefix="lastcall-bench-") as name,
        Server("vendor", Path(name) / "v", 1024) as vendor,
        Server("sink", Path(name) / "s") as sink,
        House(Path(name) / "h", vendor, Store(name="sink", url=sink.url), processes=PROCESSES, sources=SOURCES) as house,
    ):
        first_poll = house.first_poll()
        time.sleep(SETTLE_SECONDS)
        pids = {"worker": house.children["worker-0"].pid} | {one: house.children[one].pid for one in house.others}
        before = {process: cpu_seconds([pid]) for process, pid in pids.items()}
        began = time.monotonic()
        time.sleep(look_seconds)
        span = time.monotonic() - began
        cpu = {process: 100 * (cpu_seconds([pid]) - before[process]) / span for process, pid in pids.items()}
        memory = {process: sum(memory_mib(one, "Pss") for one in family(pid)) for process, pid in pids.items()}
    rows = [[process, f"{cpu[process]:.2f}", f"{memory[process]:.0f}"] for process in pids]
    rows.append(["together", f"{sum(cpu.values()):.2f}", f"{sum(memory.values()):.0f}"])
    return Section(
        "Nothing to do",
        f"""{table(("process", "% of a core", "MiB"), rows)}

What the Procfile starts, with {len(SOURCES)} sources that list nothing new once a minute, over {span:.0f} s; memory is the
proportional share (PSS). From the start of the first process to the end of every source's first poll: {first_poll:.1f} s.
""",
        {},
        {
            "idle: % of a core to spare below 2": 2 - sum(cpu.values()),
            "idle: MiB to spare below 450": 450 - sum(memory.values()),
            "idle: seconds to spare below 5 to the first poll": 5 - first_poll,
        },
    )
