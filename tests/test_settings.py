"""The configuration: what is read, what is refused, and in which words."""

from __future__ import annotations

import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import settings
from worker.errors import ConfigurationError

EXAMPLE = Path(__file__).parent.parent / "config" / "example.toml"
MINIMAL = '[archive]\nbucket = "exports"\n'
VENDORS = {
    "sellercloud": 'vendor = "sellercloud"\nbase_url = "https://tt.example.com/rest"\nusername = "u"\npassword = "p"\n',
    "api2convert": 'vendor = "api2convert"\napi_key = "k"\n',
    "spaaza": 'vendor = "spaaza"\nbase_url = "https://s.example.com"\naccess_token_id = "i"\naccess_token_secret = "s"\n',
    "crayon": 'vendor = "crayon"\nclient_id = "i"\nclient_secret = "s"\nusername = "u"\npassword = "p"\n',
}


def parse(text: str) -> settings.Settings:
    return settings.parse(tomllib.loads(text))


def parse_source(vendor: str, keys: str = "") -> Any:
    return parse(f"{MINIMAL}[sources.acme]\n{VENDORS[vendor]}{keys}\n").sources["acme"]


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    return caught.value.problems


def problem(keys: str, vendor: str = "sellercloud") -> str:
    """Give the one problem of a source with `keys` in its table."""
    (only,) = problems(f"{MINIMAL}[sources.acme]\n{VENDORS[vendor]}{keys}\n")
    return only


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_smallest_file_needs_a_bucket_only() -> None:
    read = parse(MINIMAL)
    assert read.archive.bucket == "exports"
    assert read.redis_url.reveal() == "redis://127.0.0.1:6379/0"
    assert read.sources == {}


def test_a_source_knows_its_name() -> None:
    assert parse_source("crayon").name == "acme"


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_vendor_needs_little_more_than_its_credentials(vendor: str) -> None:
    source = parse_source(vendor)
    assert source.vendor == vendor
    assert source.poll_every == timedelta(seconds=60)
    assert {secret.reveal() for secret in source.secrets().values()} <= {"u", "p", "k", "i", "s"}


def test_all_problems_are_reported_at_once_each_with_its_path() -> None:
    assert problems("""
        wat = 1
        redis_url = "http://127.0.0.1"
        [archive]
        bucket = "a/b"
        access_key_id = "only one"
        [worker]
        lease = "1s"
        concurrency = "many"
        spool_bytes = true
        [web]
        listen = "0.0.0.0:80"
        colour = "red"
        [alerts]
        urls = "mailto://x"
        [sources.one]
        vendor = "api2convert"
        api_key = "k"
        reserve_downloads = 10
        requests_per_second = nan
        enabled = "perhaps"
        name = "two"
        [sources.two]
        vendor = "fax"
        [sources.three]
        [sources.Four]
        vendor = "crayon"
    """) == [
        "sources.one.name: unknown key",
        "redis_url: expected redis://host:port/0, rediss://host:port/0 or sentinel://host:port,host:port/master",
        "archive.bucket: not the name of a bucket; a path within it belongs into prefix, a host into endpoint_url",
        "archive.secret_access_key: missing; access_key_id and secret_access_key go together",
        "worker.lease: must be at least 2s",
        "worker.concurrency: expected a whole number",
        'worker.spool_bytes: expected a size such as "64MiB" or "5GiB"',
        "web.colour: unknown key",
        "web.password: username and password are required to listen on 0.0.0.0:80; or listen on 127.0.0.1",
        "alerts.urls: expected a list in [ ]",
        "sources.one.requests_per_second: expected a number",
        "sources.one.enabled: expected true or false",
        "sources.one.reserve_downloads: must be smaller than max_downloads, or nothing could ever be downloaded",
        "sources.two.vendor: expected one of sellercloud, api2convert, spaaza, crayon",
        "sources.three.vendor: missing; one of sellercloud, api2convert, spaaza, crayon",
        "sources.Four: part of every key, so: lower-case letters, digits and -, at most 63, not beginning with -",
        "sources.Four.client_id: missing",
        "sources.Four.client_secret: missing",
        "sources.Four.username: missing",
        "sources.Four.password: missing",
        "wat: unknown key",
    ]


def test_what_is_missing_or_no_table_is_named() -> None:
    assert problems("worker = 3") == ["archive: missing", "worker: expected a table"]
    assert problems(f"{MINIMAL}[sources]\nacme = 3") == ["sources.acme: expected a table"]
    assert problems(f"sources = 3\n{MINIMAL}") == ["sources: expected a table"]
    assert problems(f'path = "x"\n{MINIMAL}') == ["path: unknown key"]


def test_the_messages_are_for_an_operator_not_for_a_pydantic_user() -> None:
    text = f'{MINIMAL}region = 3\nsse = "rot13"\nobject_lock_days = 0\nobject_lock_mode = "GOVERNANCE"\naccess_key_id = ""\n'
    assert problems(text) == [
        "archive.region: expected text in quotes",
        "archive.access_key_id: must not be empty",
        "archive.sse: expected 'AES256', 'aws:kms' or 'aws:kms:dsse'",
        "archive.object_lock_days: must be at least 1",
    ]


# --- where it is found -----------------------------------------------------------------------------------------------


def test_the_path_wins_over_the_variable_and_the_variable_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.find() == Path("config/lastcall.toml")
    monkeypatch.setenv("LASTCALL_CONFIG", str(tmp_path / "named.toml"))
    assert settings.find() == tmp_path / "named.toml"
    assert settings.find(tmp_path / "given.toml") == tmp_path / "given.toml"


def test_the_redis_url_of_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lastcall.toml"
    path.write_text(f'redis_url = "redis://file:6379/0"\n{MINIMAL}')
    assert settings.load(path).redis_url.reveal() == "redis://file:6379/0"
    monkeypatch.setenv("LASTCALL_REDIS_URL", "rediss://variable:6380/1")
    assert settings.load(path).redis_url.reveal() == "rediss://variable:6380/1"
    assert settings.load(path).path == path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; `lastcall init` writes one"),
        (b"\xff\xfe", "cannot be read (UnicodeDecodeError)"),
        (b"[archive", "not TOML: Expected"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_configuration_error(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lastcall.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        settings.load(path)
    (only,) = caught.value.problems
    assert only.startswith(f"{path}: {message}")


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("90s", 90), ("15m", 900), ("24h", 86400), ("7d", 604800), ("1.5h", 5400)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_source("spaaza", f'link_lifetime = "{text}"').link_lifetime == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["90", '"90"', '"-1s"', '"1w"', '"s"', '""', '"1 h 5 m"', "true", '"９s"'])
def test_what_is_no_duration_is_refused(text: str) -> None:
    assert problem(f"read_timeout = {text}") == (
        'sources.acme.read_timeout: expected a duration such as "90s", "15m", "24h" or "7d"'
    )


def test_durations_have_sensible_limits() -> None:
    assert problem('poll_every = "999ms"') == "sources.acme.poll_every: must be at least 1s"
    assert problem('retention = "0s"') == "sources.acme.retention: must be at least 0.001s"
    assert problem('retention = "999999999d"') == "sources.acme.retention: longer than a hundred years"
    for wrong in ("999ms", "1ms"):
        found = problems(f'[archive]\nbucket = "exports"\n[audit]\nevery = "{wrong}"')
        assert found == ["audit.every: must be 0s, which is never, or at least 1s"]


@pytest.mark.parametrize(
    ("text", "size"), [('"64MiB"', 64 * 2**20), ('"5GiB"', 5 * 2**30), ('"1KB"', 1000), ('"0B"', 0), ("4096", 4096)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse(f"{MINIMAL}[worker]\nspool_bytes = {text}").worker.spool_bytes == size


@pytest.mark.parametrize("text", ['"64"', '"-1MiB"', "-1", "true", "1.5", '"1XB"', '""', f'"{"9" * 400}GiB"'])
def test_what_is_no_size_is_refused(text: str) -> None:
    assert problems(f"{MINIMAL}[worker]\nspool_bytes = {text}") == [
        'worker.spool_bytes: expected a size such as "64MiB" or "5GiB"'
    ]


def test_an_archive_of_nothing_is_refused() -> None:
    assert problems(f'{MINIMAL}[worker]\nmax_output_bytes = "0B"') == ["worker.max_output_bytes: must be more than 0"]


@given(st.text(max_size=20))
def test_no_text_makes_a_reader_fail_in_any_other_way(text: str) -> None:
    """Whatever stands in the file ends in a value or in problems with paths."""
    document = {
        "redis_url": text,
        "archive": {"bucket": text, "prefix": text, "endpoint_url": "http://" + text},
        "worker": {"lease": text, "spool_bytes": text},
        "web": {"listen": text},
        "sources": {
            text: {"vendor": text},
            "a": {"vendor": "crayon", "timezone": text, "download_hosts": [text], "proxy": text},
        },
    }
    with pytest.raises(ConfigurationError) as caught:
        settings.parse(document)
    assert all(": " in line for line in caught.value.problems)


@pytest.mark.parametrize("name", ["a", "0", "acme-exports", "a" * 63])
def test_names_of_sources_are_what_keys_can_carry(name: str) -> None:
    assert name in parse(f"{MINIMAL}[sources.{name}]\n{VENDORS['crayon']}").sources


@pytest.mark.parametrize("name", ["-a", "A", "a_b", '"a.b"', '"a/b"', '""', "a" * 64, '"ä"', '"a\\n"'])
def test_other_names_of_sources_are_refused(name: str) -> None:
    (only,) = problems(f"{MINIMAL}[sources.{name}]\n{VENDORS['crayon']}")
    assert "part of every key" in only


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("https://tt.api.example.com/rest", "https://tt.api.example.com/rest"),
        ("https://tt.api.example.com/rest/", "https://tt.api.example.com/rest"),
        ("http://127.0.0.1:8081", "http://127.0.0.1:8081"),
        ("http://[::1]:8081/", "http://[::1]:8081"),
    ],
)
def test_base_urls_are_read_without_a_slash_at_their_end(given: str, read: str) -> None:
    assert parse_source("crayon", f'base_url = "{given}"').base_url == read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tt.api.example.com", "expected an absolute http:// or https:// URL"),
        ("ftp://example.com", "expected an absolute http:// or https:// URL"),
        ("https://", "expected an absolute http:// or https:// URL"),
        ("https://example.com:99999", "expected an absolute http:// or https:// URL"),
        ("https://[::1", "expected an absolute http:// or https:// URL"),
        ("https://exa mple.com", "expected an absolute http:// or https:// URL"),
        ("https://me:secret@example.com", "a URL must not carry credentials; use the keys that are made for them"),
        ("https://example.com/?a=b", "a base URL has no query and no fragment"),
    ],
)
def test_what_is_no_base_url_is_refused_without_repeating_it(text: str, message: str) -> None:
    assert problem(f'base_url = "{text}"', "crayon") == f"sources.acme.base_url: {message}"


@pytest.mark.parametrize("text", ["socks5://proxy:1080", "proxy:3128", "http://me:secret@proxy:3128"])
def test_a_proxy_is_an_http_one(text: str) -> None:
    assert "secret" not in problem(f'proxy = "{text}"')
    assert parse_source("crayon", 'proxy = "http://proxy.example.com:3128/"').proxy == "http://proxy.example.com:3128"
    assert "without a path" in problem('proxy = "http://proxy.example.com/path"')


@pytest.mark.parametrize(
    "host",
    ["files.example.com", "*.example.com", "localhost", "127.0.0.1", "::1", "[::1]", "bücher.example", "a_b.example.com"],
)
def test_download_hosts_are_names_wildcards_or_addresses(host: str) -> None:
    assert parse_source("crayon", f'download_hosts = ["{host}"]').download_hosts == (host,)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "*",
        "*.",
        "*.*.com",
        "f*.example.com",
        "https://example.com",
        "example.com:443",
        "a/b",
        "*.10.0.0.1",
        "1.2.3",
        "-a.com",
    ],
)
def test_other_download_hosts_are_refused(host: str) -> None:
    only = problem(f'download_hosts = ["files.example.com", "{host}"]')
    assert only.startswith('sources.acme.download_hosts.1: expected "files.example.com", "*.example.com" or an address')


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1",
        "redis://:secret@redis.example.com:6379/0",
        "rediss://user:secret@redis.example.com:6380/15?ssl_cert_reqs=required",
        "sentinel://one:26379,two:26379,three/main",
        "sentinel://:secret@[::1]:26379/main/2",
    ],
)
def test_redis_urls_are_of_one_server_or_of_sentinels(url: str) -> None:
    assert parse(f'redis_url = "{url}"\n{MINIMAL}').redis_url.reveal() == url


def test_a_heartbeat_url_is_one_and_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://hc.example.com/ping/secret?create=1"
    read = parse(f'{MINIMAL}\n[alerts]\nheartbeat_url = "{url}"')
    assert read.secrets()["alerts.heartbeat_url"].reveal() == url
    assert problems(f'{MINIMAL}\n[alerts]\nheartbeat_url = "secret"') == [
        "alerts.heartbeat_url: expected an absolute http:// or https:// URL"
    ]
    monkeypatch.setenv("PING", "secret")
    read = parse(f'{MINIMAL}\n[alerts]\nheartbeat_url = {{ env = "PING" }}')
    assert read.secret_problems() == ["alerts.heartbeat_url: expected an absolute http:// or https:// URL"]


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:6379",
        "http://:secret@127.0.0.1",
        "unix:///run/redis.sock",
        "redis://:secret@host:port/0",
        "redis://:secret@host/main",
        "redis:///0",
        "sentinel://one:26379,two:26379",
        "sentinel://",
        "",
    ],
)
def test_other_redis_urls_are_refused_without_repeating_them(url: str) -> None:
    (only,) = problems(f'redis_url = "{url}"\n{MINIMAL}')
    assert only.startswith("redis_url: ")
    assert "secret" not in only


def test_a_redis_url_that_comes_from_elsewhere_is_checked_when_secrets_are(monkeypatch: pytest.MonkeyPatch) -> None:
    read = parse(f'redis_url = {{ env = "REDIS" }}\n{MINIMAL}')
    assert read.secret_problems() == ["redis_url: environment variable REDIS is not set"]
    monkeypatch.setenv("REDIS", "http://127.0.0.1")
    assert read.secret_problems()[0].startswith("redis_url: expected redis://host:port/0")
    monkeypatch.setenv("REDIS", "redis://127.0.0.1")
    assert read.secret_problems() == []


@pytest.mark.parametrize("bucket", ["exports", "a.b-c", "Old_Bucket", "arn:aws:s3:eu-west-1:123456789012:accesspoint/mine"])
def test_buckets_of_any_service_are_taken(bucket: str) -> None:
    assert parse(f'[archive]\nbucket = "{bucket}"').archive.bucket == bucket


@pytest.mark.parametrize("bucket", ["", "a", "s3://exports", "exports/archive", "-x", "a b"])
def test_what_is_no_bucket_is_refused(bucket: str) -> None:
    (only,) = problems(f'[archive]\nbucket = "{bucket}"')
    assert only.startswith("archive.bucket: not the name of a bucket")


@pytest.mark.parametrize(
    ("given", "read"), [("", ""), ("archive", "archive"), ("archive/", "archive"), ("team/exports-1.2", "team/exports-1.2")]
)
def test_prefixes_are_segments(given: str, read: str) -> None:
    assert parse(f'{MINIMAL}prefix = "{given}"').archive.prefix == read


@pytest.mark.parametrize("prefix", ["/archive", "a//b", "a b", "..", "a/../b", "a%2Fb", "ä", "a//"])
def test_other_prefixes_are_refused(prefix: str) -> None:
    (only,) = problems(f'{MINIMAL}prefix = "{prefix}"')
    assert only.startswith('archive.prefix: expected ""')


# --- listening -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["127.0.0.1:8080", "127.1.2.3:80", "localhost:65535", "[::1]:8080"])
@pytest.mark.parametrize("table", ["web", "flower"])
def test_loopback_needs_no_password(table: str, listen: str) -> None:
    read = getattr(parse(f'{MINIMAL}[{table}]\nlisten = "{listen}"'), table)
    assert read.on_loopback
    assert (f"[{read.host}]" if ":" in read.host else read.host) + f":{read.port}" == listen


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", "[::]:8080", "192.168.1.2:8080", "board.example.com:80"])
@pytest.mark.parametrize("table", ["web", "flower"])
def test_anywhere_else_needs_one(table: str, listen: str) -> None:
    open_to_all = f'{MINIMAL}[{table}]\nlisten = "{listen}"\n'
    assert problems(open_to_all) == [
        f"{table}.password: username and password are required to listen on {listen}; or listen on 127.0.0.1"
    ]
    assert problems(open_to_all + 'username = "u"') == [f"{table}.password: missing; username and password go together"]
    assert problems(open_to_all + 'password = "p"') == [f"{table}.username: missing; username and password go together"]
    assert not getattr(parse(open_to_all + 'username = "u"\npassword = "p"'), table).on_loopback


@pytest.mark.parametrize("listen", ["8080", ":8080", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:80", "[x]:80", "a:²"])
def test_what_is_no_listening_address_is_refused(listen: str) -> None:
    (only,) = problems(f'{MINIMAL}[web]\nlisten = "{listen}"')
    assert only == 'web.listen: expected host:port, such as "127.0.0.1:8080" or "[::1]:8080"'


# --- keys that go together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('access_key_id = "a"', "archive.secret_access_key: missing; access_key_id and secret_access_key go together"),
        ('secret_access_key = "a"', "archive.access_key_id: missing; access_key_id and secret_access_key go together"),
        ("object_lock_days = 3", "archive.object_lock_mode: missing; object_lock_mode and object_lock_days go together"),
        ('kms_key_id = "a"\nsse = "AES256"', 'archive.kms_key_id: needs sse = "aws:kms" or "aws:kms:dsse"'),
    ],
)
def test_pairs_of_the_archive(keys: str, message: str) -> None:
    assert problems(MINIMAL + keys) == [message]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('enabled = "yes"', "expected true or false"),
        ("allow_private_hosts = 1", "expected true or false"),
        ("max_downloads = true", "expected a whole number"),
        ('max_downloads = "20"', "expected a whole number"),
        ("max_concurrent_downloads = 2.0", "expected a whole number"),
        ('requests_per_second = "2"', "expected a number"),
        ("requests_per_second = true", "expected a number"),
    ],
)
def test_numbers_and_truths_are_what_toml_calls_so(keys: str, message: str) -> None:
    assert problem(keys, "api2convert") == f"sources.acme.{keys.partition(' ')[0]}: {message}"
    assert parse_source("api2convert", "requests_per_second = 3").requests_per_second == 3.0


@pytest.mark.parametrize("keys", ["reserve_downloads = 10", "max_downloads = 1", "max_downloads = 3\nreserve_downloads = 4"])
def test_the_reserve_leaves_something_of_the_downloads(keys: str) -> None:
    assert problem(keys, "api2convert").startswith("sources.acme.reserve_downloads: must be smaller than max_downloads")


def test_the_reserve_is_taken_off_what_lastcall_may_use() -> None:
    assert parse_source("api2convert").download_limit == 9
    assert parse_source("api2convert", "reserve_downloads = 0").download_limit == 10
    assert parse_source("crayon").download_limit is None


def test_a_ca_bundle_exists(tmp_path: Path) -> None:
    assert problem(f'ca_bundle = "{tmp_path}/none.pem"') == f"sources.acme.ca_bundle: no such file: {tmp_path}/none.pem"
    (tmp_path / "ca.pem").touch()
    assert parse_source("crayon", f'ca_bundle = "{tmp_path}/ca.pem"').ca_bundle == tmp_path / "ca.pem"


def test_time_zones_are_names_and_utc_when_left_out() -> None:
    assert problem('timezone = "Mars/Base"').endswith("'Mars/Base' is not a time zone; expected a name such as Europe/Oslo")
    assert parse_source("crayon", 'timezone = "Europe/Oslo"').zone.key == "Europe/Oslo"
    assert parse_source("crayon").zone.key == "UTC"


# --- the margin of a deadline ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "keys", "margin"),
    [
        ("sellercloud", "", timedelta(hours=24)),
        ("api2convert", "", timedelta(hours=3)),
        ("crayon", "", timedelta(hours=6)),
        ("spaaza", "", timedelta(0)),
        ("sellercloud", 'retention = "8d"', timedelta(hours=24)),
        ("sellercloud", 'retention = "4d"', timedelta(hours=12)),
        ("api2convert", 'retention = "80s"', timedelta(seconds=10)),
        ("crayon", 'timezone = "Europe/Oslo"', timedelta(0)),
        ("crayon", 'timezone = "UTC"', timedelta(0)),
        ("crayon", 'deadline_margin = "0s"', timedelta(0)),
        ("spaaza", 'deadline_margin = "5m"', timedelta(minutes=5)),
        ("crayon", 'timezone = "Europe/Oslo"\ndeadline_margin = "2d"', timedelta(days=2)),
    ],
)
def test_the_margin_for_unclear_clocks(vendor: str, keys: str, margin: timedelta) -> None:
    """The vendor's default, never over an eighth of the retention, nothing where the zone is known; what is set is set."""
    assert parse_source(vendor, keys).margin(zoned=False) == margin


def test_a_time_with_a_zone_needs_no_margin_but_the_one_that_is_set() -> None:
    assert parse_source("sellercloud").margin(zoned=True) == timedelta(0)
    assert parse_source("sellercloud", 'deadline_margin = "1h"').margin(zoned=True) == timedelta(hours=1)


def test_a_margin_leaves_something_of_the_retention() -> None:
    assert problem('deadline_margin = "10d"').startswith("sources.acme.deadline_margin: must be shorter than retention")


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_a_secret_of_a_variable_is_read_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = settings.Secret.model_validate({"env": "TOKEN"})
    assert secret.problem() == "environment variable TOKEN is not set"
    for value in ("one", "two"):
        monkeypatch.setenv("TOKEN", value)
        assert secret.reveal() == value
    assert secret.problem() is None
    assert secret.warning() is None


def test_a_secret_of_a_file_is_read_anew_each_time_without_blanks_around_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    secret = settings.Secret.model_validate({"file": str(path)})
    assert secret.problem() == f"secret file {path} cannot be read (FileNotFoundError)"
    assert secret.warning() is None
    path.write_text(" \n")
    assert secret.problem() == f"secret file {path} is empty"
    for value in ("one", "two"):
        path.write_text(value + "\n")
        assert secret.reveal() == value


def test_a_secret_file_that_all_can_read_is_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("value")
    secret = settings.Secret.model_validate({"file": str(path)})
    path.chmod(0o644)
    assert secret.warning() == f"{path} is readable by all; chmod 600"
    path.chmod(0o600)
    assert secret.warning() is None


def test_polls_that_are_rare_beside_the_life_of_a_file_are_warned_about() -> None:
    """Spaaza's files are promised for an hour."""
    source = (
        '[sources.chain]\nvendor = "spaaza"\nbase_url = "https://x.example"\naccess_token_id = "i"\naccess_token_secret = "s"\n'
    )
    assert parse(f'{MINIMAL}{source}poll_every = "15m"').polling_warnings() == []
    (warning,) = parse(f'{MINIMAL}{source}poll_every = "20m"').polling_warnings()
    assert warning.startswith("sources.chain.poll_every: a listing may come 0:40:00 after the last one")
    assert parse(f'{MINIMAL}{source}poll_every = "20m"\nenabled = false').polling_warnings() == []


def test_a_literal_secret_works_and_is_warned_about() -> None:
    secret = settings.Secret.model_validate("hunter2")
    assert secret.reveal() == "hunter2"
    assert "keeps it out of this file" in str(secret.warning())


@pytest.mark.parametrize(
    "text", ["3", '{ env = "A", file = "/a" }', '{ literal = "a" }', "{}", '{ vault = "a" }', '["a"]', '{ env = "A=B" }', '""']
)
def test_other_forms_of_a_secret_are_refused(text: str) -> None:
    (only,) = problems(f"{MINIMAL}[sources.acme]\n{VENDORS['api2convert'].replace(chr(34) + 'k' + chr(34), text)}")
    assert only.startswith("sources.acme.api_key")


def test_no_representation_shows_a_literal_secret() -> None:
    read = parse(f'redis_url = "redis://:hunter2@127.0.0.1"\n{MINIMAL}[alerts]\nurls = ["json://hunter2"]')
    assert "hunter2" not in repr(read)
    assert "hunter2" not in str(read.alerts.urls[0])


def test_secrets_that_cannot_be_read_are_listed_by_path_those_of_disabled_sources_are_not() -> None:
    table = 'vendor = "api2convert"\napi_key = { env = "NOT_SET" }\n'
    alerts = '[alerts]\nurls = ["json://x", { file = "/none" }]\n'
    read = parse(f"{MINIMAL}{alerts}[sources.on]\n{table}[sources.off]\n{table}enabled = false")
    assert read.secret_problems() == [
        "alerts.urls.1: secret file /none cannot be read (FileNotFoundError)",
        "sources.on.api_key: environment variable NOT_SET is not set",
    ]


def test_secrets_kept_unwisely_are_listed_but_not_a_redis_url_without_a_password() -> None:
    assert [line.partition(":")[0] for line in parse(MINIMAL + '[web]\nusername = "u"\npassword = "p"').secret_warnings()] == [
        "web.username",
        "web.password",
    ]
    assert (
        parse(f'redis_url = "redis://:p@127.0.0.1"\n{MINIMAL}').secret_warnings()[0].startswith("redis_url: a literal secret")
    )


# --- config/example.toml ---------------------------------------------------------------------------------------------


def tables(document: dict[str, Any], read: settings.Settings) -> list[tuple[str, dict[str, Any], Any]]:
    """Pair each table of the file with what was read of it."""
    pairs = [("", {key: value for key, value in document.items() if key != "sources"}, read)]
    pairs += [(name, document[name], getattr(read, name)) for name in ("archive", "worker", "web", "flower", "alerts")]
    return pairs + [(f"sources.{name}", table, read.sources[name]) for name, table in document["sources"].items()]


def test_the_example_shows_every_key_of_every_vendor_and_no_other() -> None:
    """With its commented keys taken in, the example has all keys, and each of its values is valid."""
    document = tomllib.loads(re.sub(r"^# ([a-z_]+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))
    read = settings.parse(document | {"archive": document["archive"]})
    assert {source.vendor for source in read.sources.values()} == set(settings.VENDORS)
    for path, table, model in tables(document, read):
        expected = set(type(model).model_fields) - {"name", "path", "sources"}
        assert set(table) == expected, path


def test_the_example_shows_the_default_of_every_key_that_has_one() -> None:
    """As it stands the example is valid, and says nothing that is not the default, save what has none and is required."""
    document = tomllib.loads(EXAMPLE.read_text())
    read = settings.load(EXAMPLE)
    for path, table, model in tables(document, read):
        for key, field in type(model).model_fields.items():
            if key in {"name", "path", "sources", "archive"}:
                continue
            shown = f"{path}.{key}"
            if field.is_required():
                assert key in table, shown
            elif field.default is None:
                assert key not in table, shown
            elif key not in {"worker", "web", "flower", "alerts"}:
                assert key in table, shown
                assert getattr(model, key) == field.default, shown
