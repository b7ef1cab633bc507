"""What all tests share: a real Redis, an S3 server, and an environment that knows nothing of the machine.

`redis_url`, `bucket` and `archive_settings` are what most tests want: quick, and empty at the start of each test.
`redis_server` and `s3_server` are servers of the test's own, to be killed, restarted and paused.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis

from tests.browser import CHROMIUM, Chromium, Page
from tests.receiver import Receiver
from worker.demo.embedded import RedisServer, S3Server, redis_executable, wait_until
from worker.errors import ConfigurationError
from worker.settings import ArchiveSettings

_buckets = itertools.count(1)


def pytest_configure() -> None:
    """Take the machine's AWS settings, proxies and our own variables out of the environment, before anything runs."""
    for name in list(os.environ):
        if re.match(r"(AWS_|LASTCALL_|(https?|all|no|ftp)_proxy$)", name, re.IGNORECASE):
            del os.environ[name]
    os.environ |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    # A slow example on a busy machine is no failure.
    hypothesis.settings.register_profile(
        "steady", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
    )
    hypothesis.settings.load_profile("steady")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Say how many processes run the tests of `make test`: they mostly wait, so one more than there are cores.

    More would make the whole daemons that some tests start late. A part that is named runs in this process (0): it begins at
    once, and a debugger can be used.
    """
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return min(8, 1 + len(os.sched_getaffinity(0)))


@pytest.fixture(scope="session")
def _redis_here() -> None:
    try:
        redis_executable()
    except ConfigurationError as exc:
        pytest.skip(f"{exc}; or `make tools`")


@pytest.fixture(scope="session")
def _shared_redis(_redis_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def _shared_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def redis_url(_shared_redis: RedisServer) -> str:
    """Give the URL of a real Redis, empty. It is shared by all tests: don't stop it (see `redis_server`)."""
    with redis.Redis.from_url(_shared_redis.url) as client:
        client.flushall()
        client.config_resetstat()
    return _shared_redis.url


@pytest.fixture
def redis_server(_redis_here: None, tmp_path: Path) -> Iterator[RedisServer]:
    """Give a Redis of this test's own (`url`, `kill`, `start`, `pause`, `resume`). It forgets everything when it is killed;
    for one that does not, make a ``RedisServer(folder, durable=True)``.
    """
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def s3_url(_shared_s3: S3Server) -> str:
    """Give the URL of an S3 server that is shared by all tests: don't stop it (see `s3_server`)."""
    return _shared_s3.url


@pytest.fixture
def bucket(_shared_s3: S3Server) -> str:
    """Give the name of an empty bucket at `s3_url`, another one in each test."""
    name = f"exports-{next(_buckets)}"
    _shared_s3.create_bucket(name)
    return name


@pytest.fixture
def s3_server(tmp_path: Path) -> Iterator[S3Server]:
    """Give an S3 server of this test's own (`url`, `create_bucket`, `kill`, `start`, `pause`, `resume`)."""
    with S3Server(tmp_path / "s3") as server:
        yield server


@pytest.fixture
def archive_settings(s3_url: str, bucket: str) -> ArchiveSettings:
    """Give the ``[archive]`` table for `bucket`, with dummy credentials and the prefix ``archive``."""
    return ArchiveSettings.model_validate(
        {
            "bucket": bucket,
            "prefix": "archive",
            "endpoint_url": s3_url,
            "region": "eu-west-1",
            "access_key_id": "dummy",
            "secret_access_key": "dummy",
        }
    )


@pytest.fixture(scope="session")
def _shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; `make tools` installs it")
    with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(_shared_browser: Chromium) -> Iterator[Page]:
    """Give a tab of a real browser with nothing in it: no cookie, no history."""
    with _shared_browser.page() as page:
        yield page


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give somebody who is told: of alerts, and that all is well."""
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Give ``eventually(condition, within_seconds, what)``: it returns as soon as the condition holds. Never sleep for luck."""
    return wait_until
