"""The shared log-in token is nothing to whoever reads Redis, and nobody who writes to Redis can make us use one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis

from worker import seal
from worker import settings as configuration
from worker.demo.embedded import wait_until
from worker.ledger import Ledger
from worker.seal import SealedShared, digest

TOKEN = "eyJhbGciOi.a-bearer-token.signature"


def source(password: str = "pass-word", name: str = "acme", **more):
    table = {
        "vendor": "sellercloud",
        "base_url": "https://tt.api.example.com/rest",
        "username": "me",
        "password": password,
        **more,
    }
    return configuration.parse({"archive": {"bucket": "exports"}, "sources": {name: table}}).sources[name]


@pytest.fixture
def share(redis_url):
    def share(settings) -> SealedShared:
        ledger = Ledger(redis_url, lease=timedelta(seconds=5), worker="w")
        return SealedShared(settings, ledger.shared("acme", 100, threading.Event()))

    return share


def dump(redis_url: str) -> bytes:
    with redis.Redis.from_url(redis_url) as client:
        return b"\n".join(key + b" " + (client.get(key) or b"") for key in client.scan_iter() if client.type(key) == b"string")


def test_workers_share_a_token_that_redis_does_not_know(share, redis_url):
    share(source()).store_token(TOKEN, 60)
    assert share(source()).token() == TOKEN
    assert b"token:acme" in dump(redis_url)
    assert TOKEN.encode() not in dump(redis_url)
    assert b"bearer" not in dump(redis_url)


def test_the_same_token_never_looks_the_same(share, redis_url):
    share(source()).store_token(TOKEN, 60)
    first = dump(redis_url)
    share(source()).store_token(TOKEN, 60)
    assert dump(redis_url) != first


def test_a_token_that_was_got_with_another_password_counts_as_none(share):
    share(source("old")).store_token(TOKEN, 60)
    assert share(source("new")).token() is None


def test_a_token_of_another_source_cannot_be_slipped_in(share):
    share(source(name="other")).store_token(TOKEN, 60)
    assert share(source()).token() is None


@pytest.mark.parametrize("planted", [b"", b"plain", b"\x00\xff", b"QUJD", b"A" * 100_000, TOKEN.encode()])
def test_what_somebody_wrote_into_redis_is_never_used_as_a_token(share, redis_url, planted):
    with redis.Redis.from_url(redis_url) as client:
        client.set("lastcall:token:acme", planted)
    assert share(source()).token() is None
    share(source()).store_token(TOKEN, 60)  # and it is in nobody's way
    assert share(source()).token() == TOKEN


def test_a_changed_byte_is_noticed(share, redis_url):
    share(source()).store_token(TOKEN, 60)
    with redis.Redis.from_url(redis_url) as client:
        sealed = bytearray(client.get("lastcall:token:acme"))
        sealed[30] = ord("A") if sealed[30] != ord("A") else ord("B")
        client.set("lastcall:token:acme", bytes(sealed))
    assert share(source()).token() is None


def test_only_the_token_that_was_refused_is_dropped(share):
    shared = share(source())
    shared.store_token(TOKEN, 60)
    shared.drop_token("another")
    assert shared.token() == TOKEN
    shared.drop_token(TOKEN)
    assert shared.token() is None


def test_a_token_that_another_worker_renewed_is_taken_once_the_old_one_is_refused_or_half_a_second_is_over(share, redis_url):
    here, there = share(source()), share(source())
    here.store_token(TOKEN, 60)
    assert there.token() == TOKEN
    here.store_token("renewed", 60)
    there.drop_token(TOKEN)
    assert there.token() == here.token() == "renewed"
    here.store_token("renewed again", 60)
    wait_until(lambda: there.token() == "renewed again", 3, "the new token is read")


def test_a_password_that_cannot_be_read_now_opens_nothing(share, monkeypatch):
    monkeypatch.setenv("SC_PASSWORD", "pass-word")
    by_variable = source({"env": "SC_PASSWORD"})
    share(by_variable).store_token(TOKEN, 60)
    monkeypatch.delenv("SC_PASSWORD")
    assert share(by_variable).token() is None


def test_the_digest_changes_with_each_secret_and_each_salt_and_is_slow_to_guess():
    began = time.process_time()
    first = digest(source("one-of-many"), "salt")
    assert time.process_time() - began > 0.02, "guessing passwords from it must cost something"
    assert digest(source("one-of-many"), "salt") == first
    assert digest(source("one-of-few"), "salt") != first
    assert digest(source("one-of-many"), "pepper") != first
    assert b"one-of-many" not in first


def test_threads_that_need_a_key_at_once_have_it_made_once(share):
    """Each making would take 16 MiB and a tenth of a second."""
    shared = share(source())
    shared.store_token(TOKEN, 60)
    seal._stretched.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: shared.token(), range(8))) == {TOKEN}
    assert seal._stretched.cache_info().misses == 1
