"""Redis fails over, with real sentinels: everything goes on by itself, and what is in hand is not fetched twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from worker.demo.embedded import Child, RedisServer, free_port, redis_executable, wait_until

RETURN_SECONDS = 10  # within which everything goes on once a replica was promoted
DOWN_AFTER_SECONDS = 1  # then sentinels call a master down


class Sentinels:
    """Three sentinels over a master and a replica. `url` is for `redis_url`."""

    def __init__(self, master: RedisServer, replica: RedisServer, folder: Path, stack: ExitStack) -> None:
        self.servers = {server.port: server for server in (master, replica)}
        _follow(replica, master)
        ports = [free_port() for _ in range(3)]
        for number, port in enumerate(ports):
            configuration = folder / f"sentinel-{number}.conf"
            configuration.write_text(
                f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master.port} 2\n"
                f"sentinel down-after-milliseconds main {DOWN_AFTER_SECONDS * 1000}\nsentinel failover-timeout main 4000\n"
            )
            stack.enter_context(Child(f"sentinel-{number}", [redis_executable(), str(configuration), "--sentinel"], folder))
        self.url = f"sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/main"
        self._clients = [stack.enter_context(redis.Redis(port=port, decode_responses=True)) for port in ports]
        wait_until(self._know_each_other, 30, "the sentinels to know each other and the replica")

    def _know_each_other(self) -> bool:
        try:
            return all(
                (state["num-other-sentinels"], state["num-slaves"]) == (2, 1)
                for state in (client.sentinel_master("main") for client in self._clients)
            )
        except redis.RedisError:
            return False

    def master(self) -> RedisServer:
        """The present master, as the first sentinel says."""
        return self.servers[int(self._clients[0].sentinel_get_master_addr_by_name("main")[1])]

    def fail_over(self) -> None:
        """Let the replica be promoted; the master lives, keeps its connections, and takes no writes any more."""
        before = self.master()

        def begun() -> bool:
            try:
                return bool(self._clients[0].sentinel_failover("main"))
            except redis.ResponseError:  # it does not know yet that the replica is in step
                return False

        wait_until(begun, 20, "the sentinel to begin")
        self.wait_for_promotion(before)

    def wait_for_promotion(self, before: RedisServer) -> None:
        """Return when another server than `before` is the master, for itself and for the sentinels."""

        def promoted() -> bool:
            if (after := self.master()) is before:
                return False
            with redis.Redis(port=after.port) as client:
                return bool(client.info("replication")["role"] == "master")

        wait_until(promoted, 30, "the replica to be promoted")


def _follow(replica: RedisServer, master: RedisServer) -> None:
    with redis.Redis(port=replica.port) as client:
        client.replicaof("127.0.0.1", master.port)
        wait_until(lambda: _in_step(client), 20, "the replica to have everything")


def _in_step(client: redis.Redis) -> bool:
    state = client.info("replication")
    return state["role"] == "slave" and state["master_link_status"] == "up"


@pytest.fixture
def sentinels(stage, tmp_path: Path) -> Iterator[Sentinels]:
    """Let the stage's Redis be the master, known to the daemon through its sentinels alone."""
    with ExitStack() as stack:
        replica = stack.enter_context(RedisServer(tmp_path / "replica"))
        made = Sentinels(stage.redis, replica, tmp_path, stack)
        stage.redis_url = made.url
        yield made


def goes_on(stage) -> None:
    """A new output is archived soon."""
    late = stage.sellercloud.add_job()
    began = time.monotonic()
    wait_until(lambda: f"sellercloud/{late.id}/{late.id}" in stage.receipts(), 30, "a new output to be archived")
    assert time.monotonic() - began < RETURN_SECONDS


def test_a_fail_over_loses_nothing(stage, sentinels, make_in_flight):
    """First the replica is made master by hand; then that master dies, and the first one takes over again."""
    in_flight = make_in_flight()
    stage.workers(1)
    first = sentinels.master()
    sentinels.fail_over()
    goes_on(stage)

    in_flight.once.discard("asks for its link")  # it has its link by now, or soon: the second fail-over may meet its download
    second = sentinels.master()
    with redis.Redis(port=first.port) as client:
        wait_until(lambda: _in_step(client), 30, "the old master to follow the new one")
    second.kill()
    sentinels.wait_for_promotion(second)
    assert sentinels.master() is first
    goes_on(stage)

    in_flight.go_on()
    in_flight.assert_whole(further=1)  # a master that is demoted takes writes for a moment more, and they are lost
    assert in_flight.worker.poll() is None
