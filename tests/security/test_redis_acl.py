"""deploy/redis/users.acl: what the daemon's user may not do. That all it does is allowed, test_secrets.py shows."""

from __future__ import annotations

import pytest
import redis

REFUSED = [
    *(
        "FLUSHALL",
        "FLUSHDB",
        "CONFIG GET *",
        "CONFIG SET dir /tmp",
        "SHUTDOWN",
        "DEBUG SLEEP 0",
        "SAVE",
        "BGSAVE",
        "BGREWRITEAOF",
    ),
    *(
        "REPLICAOF NO ONE",
        "SLAVEOF NO ONE",
        "MODULE LIST",
        "MODULE LOAD /tmp/x.so",
        "MONITOR",
        "SLOWLOG GET",
        "INFO",
        "INFO clients",
        "ROLE",
    ),
    *("CLIENT LIST", "CLIENT KILL ID 1", "ACL LIST", "ACL SETUSER lastcall +@all", "ACL WHOAMI", "SCRIPT FLUSH", "SCRIPT KILL"),
    *("SCAN 0", "RANDOMKEY", "DBSIZE", "SWAPDB 0 1", "MOVE lastcall:x 1", "LASTSAVE", "LATENCY DOCTOR", "MEMORY STATS"),
    *("MIGRATE 127.0.0.1 1 lastcall:x 0 1", "DUMP lastcall:x", "RESTORE lastcall:x 0 x", "RENAME lastcall:x lastcall:y"),
    *("SORT lastcall:x", "OBJECT ENCODING lastcall:x", "EVAL 1 0", "COPY lastcall:x lastcall:y"),
    *(
        "GET another",
        "SET another 1",
        "DEL another",
        "LPUSH celery x",
        "HGETALL session:1",
        "BRPOP another 1",
        "ZADD another 1 a",
    ),
    *(
        "PUBLISH another x",
        "SUBSCRIBE another",
        "PSUBSCRIBE *",
        "PUBLISH /1.celery.pidbox x",
        "SUBSCRIBE __keyspace@0__:lastcall:x",
    ),
]


@pytest.mark.parametrize("command", REFUSED)
def test_what_the_daemon_does_not_need_is_refused(guarded_redis, command):
    with (
        redis.Redis.from_url(guarded_redis.url) as client,
        pytest.raises((redis.exceptions.NoPermissionError, redis.ResponseError)) as refused,
    ):
        client.execute_command(*command.split())
    assert "permission" in str(refused.value), refused.value


def test_a_script_may_do_no_more_than_its_user(guarded_redis):
    with redis.Redis.from_url(guarded_redis.url) as client:
        for body in (
            "return redis.call('FLUSHALL')",
            "return redis.call('GET', 'another')",
            "return redis.call('CONFIG', 'GET', '*')",
        ):
            with pytest.raises(redis.ResponseError):
                client.evalsha(client.script_load(body), 0)


def test_nobody_gets_in_without_the_password(guarded_redis):
    for url in (f"redis://127.0.0.1:{guarded_redis.port}/0", f"redis://lastcall:wrong@127.0.0.1:{guarded_redis.port}/0"):
        with redis.Redis.from_url(url) as client, pytest.raises(redis.AuthenticationError):
            client.get("lastcall:epoch")
