"""One `redis_url` leads the ledger, Celery and Flower to one Redis: with passwords, TLS and sentinels, all of them real."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import ipaddress
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import flower.utils.broker
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from daemon.conftest import World

from worker import app as processes
from worker import redis_address
from worker import settings as configuration
from worker.demo.embedded import Child, free_port, redis_executable, wait_until
from worker.demo.server import Content
from worker.errors import ConfigurationError, LedgerUnavailableError
from worker.ledger import Ledger

DAEMON = "Zq9daemon/pass@word"  # what must be percent-encoded in a URL
QUOTED = "Zq9daemon%2Fpass%40word"
ASKER = "Zq9asker"
USERS = Path(__file__).parents[1] / "deploy/redis/users.acl"
SENTINEL_USER = Path(__file__).parents[1] / "deploy/redis/sentinel-users.acl"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_every_part_is_read(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    read = redis_address.read(
        f"sentinel://me:p%40ss@one,two:1,[::1]/main/3?ssl_ca_certs={tmp_path}/ca.pem&sentinel_username=asker&sentinel_password=a%26b"
    )
    assert read.hosts == (("one", 26379), ("two", 1), ("::1", 26379))
    assert (read.master, read.database, read.username, read.password) == ("main", 3, "me", "p@ss")
    assert read.tls == {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": f"{tmp_path}/ca.pem"}
    assert read.sentinel_log_in == {"username": "asker", "password": "a&b"}
    assert read.broker_urls() == (
        "sentinel://me:p%40ss@one:26379/3;sentinel://me:p%40ss@two:1/3;sentinel://me:p%40ss@[::1]:26379/3"
    )
    assert "p@ss" not in repr(read)
    assert "a&b" not in repr(read)


def test_certificates_are_checked_unless_the_url_says_that_they_are_not() -> None:
    assert redis_address.read("redis://host").tls == {}
    assert redis_address.read("sentinel://host/main").tls == {}
    for url in ("rediss://host", "sentinel://host/main?ssl=true"):
        assert redis_address.read(url).tls == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    assert redis_address.read("rediss://host?ssl_cert_reqs=none").tls == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    assert redis_address.read("rediss://host?ssl_check_hostname=false").tls["ssl_cert_reqs"] == "required"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("rediss://:secret@host/0?ssl_ca_cert=/x", "an option of a Redis URL is one of ssl_ca_certs, "),
        ("rediss://:secret@host/0?sentinel_password=secret", "an option of a Redis URL is one of ssl_ca_certs, "),
        ("rediss://:secret@host/0?ssl_ca_certs=/none", "ssl_ca_certs: no such file: /none"),
        ("rediss://:secret@host/0?ssl_cert_reqs=secret", "ssl_cert_reqs is one of required, optional, none"),
        ("rediss://:secret@host/0?ssl=false", "ssl=false contradicts the rest of the Redis URL"),
        ("redis://:secret@one,two/0", "expected redis://host:port/0, "),
        ("redis://:secret@host/0#x", "expected redis://host:port/0, "),
    ],
)
def test_what_is_wrong_is_told_without_the_url(url: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)) as found:
        redis_address.read(url)
    assert "secret" not in str(found.value)


# --- real ones -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with ca.pem, and 127.0.0.1's server.pem and server.key, which that authority signed."""
    folder = tmp_path_factory.mktemp("tls")
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"lastcall test {name}")]) for name in keys}
    now = datetime.now(UTC)
    for name, key in keys.items():
        made = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
            .sign(keys["ca"], hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (folder / f"{name}.key").write_bytes(key.private_bytes(pem, pkcs8, plain))
    return folder


def executables() -> Iterator[str]:
    """Give each Redis that may run here: the embedded one knows no TLS."""
    for folder in os.get_exec_path():
        for name in ("redis-server", "valkey-server"):
            if found := shutil.which(name, path=folder):
                yield found


class Server(Child):
    """A Redis, or a sentinel, that speaks TLS alone if `tls` names a folder with certificates."""

    def __init__(self, name: str, folder: Path, executable: str, lines: list[str], tls: Path | None, *more: str) -> None:
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        ports = [f"port {self.port}"]
        if tls is not None:
            ports = ["port 0", f"tls-port {self.port}", "tls-auth-clients no", "tls-replication yes"]
            ports += [f"tls-cert-file {tls}/server.pem", f"tls-key-file {tls}/server.key", f"tls-ca-cert-file {tls}/ca.pem"]
        configuration = folder / f"{name}.conf"
        configuration.write_text("\n".join(["bind 127.0.0.1", f"dir {folder}", *ports, *lines]) + "\n")
        super().__init__(name, [executable, str(configuration), *more], folder)

    def ready(self) -> bool:
        return bool(re.search("Ready to accept connections|Sentinel ID is", self.log.read_text()))


@pytest.fixture(scope="module")
def tls_executable(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    for number, executable in enumerate(executables()):
        try:
            with Server("probe", tmp_path_factory.mktemp(f"probe{number}"), executable, [], authority):
                return executable
        except ConfigurationError:
            continue
    pytest.skip("no redis-server on PATH knows TLS; `make tools` installs one")


def acl(path: Path, *secrets: str) -> list[str]:
    """Give the lines of one of deploy/redis' files as they stand in a configuration, with the digests of these passwords."""
    lines = path.read_text().splitlines()
    for secret in secrets:
        digest = hashlib.sha256(secret.encode()).hexdigest()
        lines = [re.sub(r"#0{64}", f"#{digest}", line) for line in lines]
    return lines


@pytest.fixture(params=["plain", "tls"])
def transport(request: pytest.FixtureRequest, _redis_here: None) -> tuple[str, Path | None]:
    """Give an executable, and the folder of certificates where it is to speak TLS."""
    if request.param == "plain":
        return redis_executable(), None
    return request.getfixturevalue("tls_executable"), request.getfixturevalue("authority")


@pytest.fixture
def one_server(transport, tmp_path: Path) -> Iterator[str]:
    """Give the URL of a server with deploy/redis' users."""
    executable, tls = transport
    with Server("redis", tmp_path, executable, acl(USERS, DAEMON), tls) as server:
        scheme, query = ("rediss", f"?ssl_ca_certs={tls}/ca.pem") if tls else ("redis", "")
        yield f"{scheme}://lastcall:{QUOTED}@127.0.0.1:{server.port}/0{query}"


@pytest.fixture
def three_sentinels(transport, tmp_path: Path) -> Iterator[str]:
    """Give the URL of a master that two sentinels know, each with users of its own."""
    executable, tls = transport
    guard = "user guard on >Zq9guard ~* &* +@all\nmasteruser guard\nmasterauth Zq9guard".splitlines()
    with Server("redis", tmp_path, executable, [*acl(USERS, DAEMON), *guard], tls) as master:
        lines = [
            f"sentinel monitor main 127.0.0.1 {master.port} 1",
            "sentinel auth-user main guard",
            "sentinel auth-pass main Zq9guard",
            *acl(SENTINEL_USER, ASKER),
        ]
        sentinels = [Server(f"sentinel{number}", tmp_path, executable, lines, tls, "--sentinel") for number in range(2)]
        try:
            for sentinel in sentinels:
                sentinel.start()
            hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
            query = f"sentinel_username=lastcall&sentinel_password={ASKER}" + (f"&ssl_ca_certs={tls}/ca.pem" if tls else "")
            yield f"sentinel://lastcall:{QUOTED}@{hosts},127.0.0.1:{free_port()}/main/0?{query}"
        finally:
            for sentinel in sentinels:
                sentinel.stop()


def celery_of(url: str) -> processes.Celery:
    """Give Celery with the settings of a worker whose `redis_url` is `url`."""
    app = processes.Celery("asked", amqp=processes._Amqp, set_as_current=False)
    app.conf.update(processes.celery_settings(configuration.parse({"archive": {"bucket": "exports"}, "redis_url": url})))
    return app


def all_three_get_in(url: str) -> None:
    """Assert that the ledger, Celery and Flower each reach the Redis of `url`, and the same one."""
    ledger = Ledger(url, lease=timedelta(seconds=60), worker="w1")

    def answers() -> bool:
        try:
            ledger.ping()
        except LedgerUnavailableError:
            return False
        return True

    wait_until(answers, 10, "the ledger to get in")
    ledger.stamp_beat()
    app = celery_of(url)
    with app.connection_for_write() as connection:
        assert connection.default_channel.client.get("lastcall:beat"), "another Redis"
        queue = connection.SimpleQueue(processes.POLL)
        queue.put({"wake": "up"})
        shown = connection.info()
        shown.pop("password")
        assert ASKER not in str(shown)
        assert "Zq9daemon" not in str(shown)
        looking = flower.utils.broker.Broker(
            connection.as_uri(include_password=True),
            broker_options=app.conf.broker_transport_options,
            broker_use_ssl=app.conf.broker_use_ssl,
        )
        assert asyncio.run(looking.queues([processes.POLL])) == [{"name": processes.POLL, "messages": 1}]
        del looking
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            gc.collect()  # Flower leaves its connections to sentinels to the garbage collector
        assert queue.get(timeout=5).payload == {"wake": "up"}
    table = str(app.conf.table(with_defaults=True, censored=True))
    assert ASKER not in table
    assert "Zq9daemon" not in table


def test_all_get_into_one_server(one_server: str) -> None:
    all_three_get_in(one_server)


def test_all_find_the_master_through_sentinels_that_want_a_log_in(three_sentinels: str) -> None:
    all_three_get_in(three_sentinels)


def test_a_sentinel_that_is_away_delays_nobody(three_sentinels: str) -> None:
    """The first one of the URL is; each connection asks the next one at once."""
    sentinels, _, rest = three_sentinels.partition("/main/")
    first, second, away = sentinels.partition("@")[2].split(",")
    url = f"sentinel://lastcall:{QUOTED}@{away},{second},{first}/main/{rest}"
    began = time.monotonic()
    ledger = Ledger(url, lease=timedelta(seconds=60), worker="w1")
    for _ in range(3):
        ledger.ping()
    app = celery_of(url)
    with app.connection_for_write() as connection:
        assert connection.default_channel.client.ping()
    assert time.monotonic() - began < 5


def test_nobody_trusts_a_certificate_of_an_unknown_authority(tls_executable, authority, tmp_path) -> None:
    with Server("redis", tmp_path, tls_executable, [], authority) as server:
        url = f"rediss://127.0.0.1:{server.port}/0"
        with pytest.raises(LedgerUnavailableError, match="its certificate is not trusted"):
            Ledger(url, lease=timedelta(seconds=60), worker="w1").ping()
        app = celery_of(url)
        app.conf.broker_transport_options["max_retries"] = 0
        with app.connection_for_write() as connection, pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
            connection.default_channel.client.ping()
        all_three_get_in(f"{url}?ssl_cert_reqs=none")


def test_the_whole_daemon_works_over_tls(
    tls_executable: str, authority: Path, tmp_path: Path, s3_url: str, bucket: str, eventually: Callable[..., None]
) -> None:
    with Server("redis", tmp_path / "redis", tls_executable, acl(USERS, DAEMON), authority) as server:
        url = f"rediss://lastcall:{QUOTED}@127.0.0.1:{server.port}/0?ssl_ca_certs={authority}/ca.pem"
        world = World(tmp_path, url, s3_url, bucket)
        try:
            world.only("sellercloud")
            world.sellercloud.add_job(Content("s1", 5000))
            world.start("beat")
            world.start("worker")
            world.wait_archived()
            world.assert_archived_once()
            assert world.json("status")["totals"]["archived"] == 1
        finally:
            world.close()
