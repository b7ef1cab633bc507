"""Celery takes any option name, so a typo passes silently: each of ours is one that it, or its transport, knows."""

from __future__ import annotations

import pytest
from celery.app.defaults import NAMESPACES, flatten
from kombu.transport.redis import Channel, SentinelChannel

from worker import app as processes
from worker import settings as configuration


@pytest.mark.parametrize("url", ["redis://host/0", "rediss://host/0", "sentinel://one,two/main?ssl=true&sentinel_password=x"])
def test_every_setting_is_one_that_celery_and_its_transport_know(url: str) -> None:
    given = processes.celery_settings(configuration.parse({"archive": {"bucket": "exports"}, "redis_url": url}))
    assert given.keys() <= {name for name, _ in flatten(NAMESPACES)}
    channel = SentinelChannel if url.startswith("sentinel") else Channel
    known = {name if isinstance(name, str) else name[0] for name in channel.from_transport_options}
    assert given["broker_transport_options"].keys() <= known
