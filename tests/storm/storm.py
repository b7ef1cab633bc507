"""The storm: the whole daemon under random faults, and the proof that nothing was lost and nothing stored twice.

``make storm MINUTES=5 SEED=7 OUTPUTS=1500``, or ``python -m tests.storm.storm --help``. Exit 0: all holds; 1: it does not, each
exception is listed and the logs are kept. The same arguments give the same schedule.
"""

# ruff: noqa: T201 - what it prints is its answer
from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.storm import verdict
from tests.storm.plan import BLOWS, Plan
from tests.storm.stage import Stage

STEP_SECONDS = 0.05
SETTLE_SECONDS = 600.0
MOST_LINES = 40


def main() -> int:
    """Run one storm."""
    options = _options()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    print(f"storm: SEED={seed} MINUTES={options.minutes:g} OUTPUTS={options.outputs} GAP={options.gap:g}", flush=True)
    plan = Plan(seed, options.minutes * 60, options.outputs, options.gap)
    folder = Path(tempfile.mkdtemp(prefix="lastcall-storm-"))
    with Stage(folder, workers=options.workers, beats=2, lease=options.lease, poll_every=options.poll_every) as stage:
        wrong = _storm(plan, stage, options)
    if wrong:
        print(f"\nstorm: {len(wrong)} exception(s), SEED={seed}; logs are in {folder}")
        for line in wrong[:MOST_LINES]:
            print(f"  {line}")
        return 1
    if options.keep:
        print(f"logs are in {folder}")
    else:
        shutil.rmtree(folder)
    print("storm: nothing is lost, nothing is stored twice")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long faults strike")
    parser.add_argument("--seed", type=int, help="of the schedule (default: another one each time)")
    parser.add_argument("--outputs", type=int, default=1500, help="at least so many outputs")
    parser.add_argument("--gap", type=float, default=1.8, help="seconds between faults; each kind comes at least once")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--lease", type=float, default=2.0, help="seconds")
    parser.add_argument("--poll-every", type=float, default=1.0, help="seconds")
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS, help="how long the calm may take, in seconds")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a good run, too")
    return parser.parse_args()


def _storm(plan: Plan, stage: Stage, options: argparse.Namespace) -> list[str]:
    stage.began = time.time()
    began = time.monotonic()
    additions, blows = list(reversed(plan.additions)), list(reversed(plan.blows))
    schedule = (stage.folder / "storm.txt").open("w")
    while (now := time.monotonic() - began) < plan.seconds:
        while additions and additions[-1].at <= now:
            stage.add(additions.pop())
        while blows and blows[-1].at <= now:
            blow = blows.pop()
            print(f"{time.strftime('%H:%M:%S', time.gmtime())} {now:7.2f} {blow}", file=schedule, flush=True)
            stage.strike(blow)
        stage.tend()
        time.sleep(STEP_SECONDS)
    for addition in reversed(additions):
        stage.add(addition)
    stage.end_faults()
    print(f"{time.strftime('%H:%M:%S', time.gmtime())} calm", file=schedule, flush=True)
    waiting, settled = _settle(stage, options.settle)
    print(f"storm: settled after {settled:.1f} s of calm; looking", flush=True)
    stage.proxy.latency_seconds = (0.0, 0.0)
    found = verdict.gather(stage)
    wrong = stage.wrong
    wrong += [f"not settled after {settled:.0f} s: {line}" for line in waiting]
    for check in (
        verdict.nothing_missing,
        verdict.nothing_invented,
        verdict.every_byte,
        verdict.budgets_kept,
        verdict.never_twice,
        verdict.counts_agree,
        verdict.audit_agrees,
        verdict.proofs_agree,
        verdict.rebuild_changes_nothing,
    ):
        wrong += [f"{check.__name__}: {line}" for line in check(stage, found)]
        stage.tend()
    wrong += [f"nobody_left: {line}" for line in verdict.nobody_left(stage)]
    wrong += [f"nothing_left: {line}" for line in verdict.nothing_left(stage, found)]
    _print_figures(stage, found, settled)
    schedule.close()
    return wrong


def _settle(stage: Stage, most_seconds: float) -> tuple[list[str], float]:
    """Wait until everything is archived or reported; gives what is not, and how long the calm took."""
    began, waiting = time.monotonic(), ["?"]
    while waiting and time.monotonic() - began < most_seconds:
        for _ in range(20):
            stage.tend()
            time.sleep(STEP_SECONDS)
        waiting = verdict.unsettled(stage)
        if not waiting and not stage.produced_all:
            waiting = ["vendors will still delete something"]
    return waiting, time.monotonic() - began


def _print_figures(stage: Stage, found: verdict.Evidence, settled: float) -> None:
    states = Counter(found.state(output) for output in found.truth)
    print(f"outputs        {len(found.truth)}: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    ends = Counter((stage.fates.get(output, "other"), found.state(output)) for output, true in found.truth.items() if true.gone)
    print("gone by now    " + ", ".join(f"{count} {fate} {state}" for (fate, state), count in sorted(ends.items())))
    print(f"other jobs     {len(stage.never['empty'])} produced nothing, {len(stage.never['invalid'])} an invalid result")
    print(f"bytes          {sum(size for size, _, _ in found.objects.values()):,} in {len(found.objects)} objects")
    print("faults         " + ", ".join(f"{stage.counts[kind]} {kind}" for kind in BLOWS))
    gets = {output: [ranged for _, _, ranged in found.gets.get(output, ())] for output in found.truth}
    begun = Counter(ranged.count(False) for output, ranged in gets.items() if output in found.receipts)
    print(f"downloads      {sum(n * count for n, count in begun.items())} of {len(found.receipts)} archived outputs: ", end="")
    print(", ".join(f"{count} {number}×" for number, count in sorted(begun.items())))
    print(f"resumed        {sum(ranged.count(True) for ranged in gets.values())} times, after a cut, within one download")
    print(f"takeovers      {stage.counts['takeovers']} at least (Redis forgets)")
    print(f"S3 requests    {stage.proxy.requests}")
    stops = sorted(stage.stop_seconds)
    print(f"warm stops     {len(stops)}, slowest {max(stops, default=0):.1f} s")
    print(f"settled after  {settled:.1f} s of calm")


if __name__ == "__main__":
    sys.exit(main())
