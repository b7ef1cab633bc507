"""Several processes as one: whatever happens to one of them, the others learn of it, and whoever started them too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.demo.embedded import wait_until

WORK = """
def told(number, _):
    os.write(1, b"goodbye\\n")
    os._exit(0)

signal.signal(signal.SIGTERM, told)
os.write(1, b"works\\n")
while True:
    time.sleep(60)
"""

# Each process is begun some time after the one before it, and `first` is true in the first one of them.
SLOWLY = """
begun, fork = [], os.fork
first = False

def forks():
    global first
    pid = fork()
    first = not pid and not begun
    begun.append(pid)
    time.sleep(0.2 if pid else 0)
    return pid

os.fork = forks
"""


class Group:
    """A process that becomes some, each of which does `work`."""

    def __init__(self, log: Path, count: int, work: str = WORK, *, before: str = "") -> None:
        self.log = log
        script = f"import os, signal, time\nfrom worker import siblings\n{before}\nsiblings.become({count})\n{work}"
        with log.open("wb") as output:
            self.process = subprocess.Popen([sys.executable, "-c", script], stdout=output, stderr=subprocess.STDOUT)

    def said(self, word: str) -> int:
        return self.log.read_text().split().count(word)

    def children(self) -> list[int]:
        pid = self.process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def begun(self, count: int) -> list[int]:
        wait_until(lambda: self.said("works") == count, 20, "all work")
        return self.children()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Callable[..., Group]]:
    """Start groups; none is left at the end."""
    begun: list[Group] = []

    def start(*arguments: Any, **options: Any) -> Group:
        begun.append(Group(tmp_path / "log", *arguments, **options))
        return begun[-1]

    yield start
    for one in begun:
        for pid in one.children():
            os.kill(pid, signal.SIGKILL)
        one.process.kill()
        one.process.wait()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_what_asks_to_stop_is_passed_on_as_sigterm(group, number):
    one = group(3)
    children = one.begun(3)
    one.process.send_signal(number)
    assert one.process.wait(10) == os.EX_OK
    assert one.said("goodbye") == 3
    assert not any(map(runs, children))


@pytest.mark.parametrize("how", ["os._exit(3)", "1 / 0", "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_one_that_ends_at_once_ends_all(group, how):
    """The first of four, while the others are being begun; nobody waits for it yet."""
    one = group(4, WORK.replace("while True", f"{how} if first else None\nwhile True"), before=SLOWLY)
    assert one.process.wait(20) == os.EX_SOFTWARE
    assert "ended by itself, or not well" in one.log.read_text()


def test_one_that_dies_later_ends_all(group):
    one = group(3)
    children = one.begun(3)
    os.kill(children[1], signal.SIGKILL)
    assert one.process.wait(10) == os.EX_SOFTWARE
    assert one.said("goodbye") == 2
    assert not any(map(runs, children))


def test_one_that_cannot_be_begun_ends_those_that_were(group):
    before = (
        "fork, forks = os.fork, []\ndef fail():\n    forks.append(1)\n    if len(forks) == 2: raise BlockingIOError(11, 'no')\n"
    )
    one = group(3, before=before + "    return fork()\nos.fork = fail\n")
    assert one.process.wait(10) == os.EX_SOFTWARE
    assert "cannot be begun" in one.log.read_text()


def test_one_that_does_not_stop_in_time_is_killed(group):
    deaf = WORK.replace("signal.SIGTERM, told", "signal.SIGTERM, signal.SIG_IGN")
    one = group(2, deaf, before="siblings.STOP_SECONDS = 1.0")
    children = one.begun(2)
    one.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(10) == os.EX_SOFTWARE
    assert "did not end in time" in one.log.read_text()
    assert not any(map(runs, children))


def test_when_the_first_process_is_killed_the_others_are_told(group):
    one = group(3)
    children = one.begun(3)
    one.process.kill()
    one.process.wait()
    wait_until(lambda: not any(map(runs, children)), 10, "all to end")
    assert one.said("goodbye") == 3


def test_a_stopped_one_keeps_no_other_from_hearing_that_the_first_was_killed(group):
    one = group(3)
    *others, last = one.begun(3)
    os.kill(last, signal.SIGSTOP)
    try:
        one.process.kill()
        one.process.wait()
        wait_until(lambda: not any(map(runs, others)), 10, "the others to end")
    finally:
        os.kill(last, signal.SIGKILL)


def test_it_hears_of_their_end_though_who_started_it_ignores_such_news(group):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # inherited over exec
    try:
        one = group(2)
    finally:
        signal.signal(signal.SIGCHLD, before)
    one.begun(2)
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(10) == os.EX_OK
