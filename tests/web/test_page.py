"""The page in a real browser: what a person sees."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.web.story import Web, tell_story
from worker.ledger import Ledger
from worker.settings import child_environment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; `make tools` installs it")


def look(url: str, profile: Path) -> tuple[str, str]:
    """Give the page's DOM after some seconds of its life, and what its console said."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
    flags += " --disable-sync --disable-dev-shm-usage --enable-logging=stderr --virtual-time-budget=5000 --dump-dom"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={profile}", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True, env=child_environment({}))
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@needs_chromium
def test_the_page_shows_what_is_owed_lost_and_held(start_web: Callable[..., Web], ledger: Ledger, tmp_path: Path) -> None:
    """No script and no style but ours runs, and what a vendor names a file stays text."""
    tell_story(ledger)
    dom, console = look(start_web().url, tmp_path / "profile")
    assert console == "", "neither an error nor a violation of the content security policy"
    assert "<script>alert(1)</script>" not in dom
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.csv · acme-exports" in dom
    assert "lastcall retry acme-exports/3/3" in dom
    assert "9 downloads are used and the rest is kept in reserve" in dom
    assert dom.index('data-key="acme-exports/5/5"') < dom.index('data-key="acme-exports/9/9"')
    assert "<title>1 lost · lastcall</title>" in dom
    assert "1 worker alive, beat ticked" in dom
    assert "paused for 59m" in dom
    for word in ("overdue", "at risk", "in time", "being collected"):
        assert f"<b>{word}</b>" in dom, word


@needs_chromium
def test_an_empty_ledger_is_told_in_words(start_web: Callable[..., Web], tmp_path: Path) -> None:
    dom, console = look(start_web().url, tmp_path / "profile")
    assert "No source was listed yet." in dom
    assert "no worker is alive" in dom
    assert console == ""


@needs_chromium
def test_the_page_says_that_redis_is_away(start_web: Callable[..., Web], tmp_path: Path) -> None:
    dom, _ = look(start_web(redis_url="redis://127.0.0.1:1/0").url, tmp_path / "profile")
    assert "The ledger cannot be read: Redis:" in dom
