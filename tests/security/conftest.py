"""A world with a password on everything: a Redis with the users of deploy/, and secrets that can be told apart everywhere."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from daemon.conftest import World, redis_client, world

from worker.demo.embedded import RedisServer

__all__ = ["redis_client", "world"]  # fixtures of the daemon's tests, of use here too

USERS = Path(__file__).parents[2] / "deploy/redis/users.acl"


class GuardedRedis(RedisServer):
    """A Redis with deploy/redis/users.acl, and an `admin` beside it for the tests to look with."""

    def __init__(self, folder: Path, password: str) -> None:
        super().__init__(folder)
        self.password, self.admin_password = password, secrets.token_hex(8)
        line = next(line for line in USERS.read_text().splitlines() if line.startswith("user lastcall "))
        digest = hashlib.sha256(password.encode()).hexdigest()
        line, changed = re.subn(r"#[0-9a-f]{64}", f"#{digest}", line)
        assert changed == 1
        users = folder / "users.acl"
        users.write_text(f"{line}\nuser default off\nuser admin on >{self.admin_password} ~* &* +@all\n")
        self.command += ["--aclfile", str(users)]

    @property
    def url(self) -> str:
        return f"redis://lastcall:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def admin_url(self) -> str:
        return f"redis://admin:{self.admin_password}@127.0.0.1:{self.port}/0"

    def ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"-NOAUTH")
        except OSError:
            return False


class Monitor:
    """Everything that any client says to Redis, while it runs."""

    def __init__(self, server: GuardedRedis) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.sendall(f"AUTH admin {server.admin_password}\r\nMONITOR\r\n".encode())
        self.heard = bytearray()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while data := self._socket.recv(1 << 20):
                self.heard += data
        except OSError:  # closed
            return

    def close(self) -> None:
        self._socket.close()


def forms(secret: str) -> Iterator[bytes]:
    """Give what a secret looks like as it is, in hex, and inside base64 at any offset."""
    data = secret.encode()
    yield data
    yield data.hex().encode()
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + data)
        yield text[4 if offset else 0 : len(text) // 4 * 4 - 4]


def leaks(named: dict[str, str], evidence: bytes) -> list[str]:
    """Name the secrets that occur in `evidence`."""
    return [name for name, secret in named.items() if any(form in evidence for form in forms(secret))]


class GuardedWorld(World):
    """A world whose processes are given secrets in their environment: `env`. Its Redis is one."""

    env: dict[str, str]

    def _env(self, more: dict[str, str]) -> dict[str, str]:
        return super()._env({**self.env, **more})

    @property
    def written_redis_url(self) -> dict[str, str]:
        return {"env": "REDIS_URL"}

    def start_program(self, name: str, program: str) -> subprocess.Popen[bytes]:
        """Start a process of the Procfile inside `program`, which ends with the call of `worker.cli.main`."""
        with (self.folder / f"{name}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", program, name], env=self._env({}), stdout=log, stderr=subprocess.STDOUT
            )
        self._processes.append(process)
        return process


@pytest.fixture
def guarded_redis(_redis_here: None, tmp_path: Path) -> Iterator[GuardedRedis]:
    with GuardedRedis(tmp_path / "redis", f"Zq9redis{secrets.token_hex(8)}") as server:
        yield server


@pytest.fixture
def guarded_world(tmp_path: Path, guarded_redis: GuardedRedis, s3_url: str, bucket: str) -> Iterator[GuardedWorld]:
    made = GuardedWorld(tmp_path, guarded_redis.url, s3_url, bucket)
    made.env = {"REDIS_URL": guarded_redis.url}
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def admin(guarded_redis: GuardedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(guarded_redis.admin_url) as client:
        yield client
