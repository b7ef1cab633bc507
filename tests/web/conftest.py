"""The web process as a child of the test, and a ledger to show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.web.kept import Kept
from tests.web.story import Web, open_ledger
from worker.ledger import Ledger
from worker.settings import ArchiveSettings


@pytest.fixture
def start_web(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., Web]]:
    """Give ``start_web(web="…", redis_url="…")``; it is ended with the test."""
    started: list[Web] = []

    def start(**options: str) -> Web:
        web = Web(tmp_path / f"web{len(started)}", **{"redis_url": redis_url, **options})
        started.append(web)
        web.start()
        return web

    yield start
    for web in started:
        web.stop()


@pytest.fixture
def ledger(redis_url: str) -> Ledger:
    return open_ledger(redis_url)


@pytest.fixture
def kept(archive_settings: ArchiveSettings) -> Kept:
    return Kept(archive_settings)
