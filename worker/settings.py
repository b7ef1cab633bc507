"""TOML and environment become one frozen `Settings`. The only reader of `os.environ`.

`load` reports every problem of a file at once, each with its path (``sources.acme.base_url: …``). Secrets stay references
until the moment of use: `Secret.reveal` reads the variable or the file anew each time, so that a changed file is noticed,
and processes that never log in (beat, web) need not see them.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, cast, get_args
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    Strict,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails

from worker import redis_address
from worker.errors import ConfigurationError

DEFAULT_PATH = Path("config/lastcall.toml")

_FOREIGN = re.compile(r"(AWS_|LASTCALL_|(https?|all|no|ftp)_proxy$)", re.IGNORECASE)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h|d)", re.ASCII)
_LONGEST = timedelta(days=36_500)
_SIZE = re.compile(r"\d{1,15}(\.\d{1,6})?\s*[kKMGTP]?i?B", re.ASCII)
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+)"
_LABELS = re.compile(r"(?!-)[\w-]{1,63}(?<!-)(\.(?!-)[\w-]{1,63}(?<!-))*\.?")


def duration(value: object) -> timedelta:
    """Read ``"90s" "15m" "24h" "7d"``. Numbers without a unit are refused: nobody remembers which unit they had."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError('expected a duration such as "90s", "15m", "24h" or "7d"')
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > _LONGEST.total_seconds():
        raise ValueError("longer than a hundred years")
    return timedelta(seconds=seconds)


def _at_least(limit: timedelta) -> Callable[[timedelta], timedelta]:
    def check(value: timedelta) -> timedelta:
        if value < limit:
            raise ValueError(f"must be at least {limit.total_seconds():g}s")
        return value

    return check


def _interval(value: timedelta) -> timedelta:
    if timedelta(0) < value < timedelta(seconds=1):
        raise ValueError("must be 0s, which is never, or at least 1s")
    return value


def _size(value: object) -> object:
    """Let `ByteSize` read ``"64MiB" "5GiB"``, and a whole number as bytes; what it reads too generously is refused."""
    if isinstance(value, str) and _SIZE.fullmatch(value.strip()):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError('expected a size such as "64MiB" or "5GiB"')


def _split(value: str) -> SplitResult | None:
    """Give the parts of a URL that has a host and a port that can be, or None."""
    try:
        parts = urlsplit(value)
        return parts if parts.hostname and parts.port != 0 and value.isprintable() and " " not in value else None
    except ValueError:  # an address in brackets that is none, a port that is none
        return None


def _url(value: str) -> str:
    """Check what is common to every http(s) URL of the file. Messages never repeat it: it may carry a password."""
    parts = _split(value)
    if parts is None or parts.scheme not in {"http", "https"}:
        raise ValueError("expected an absolute http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL must not carry credentials; use the keys that are made for them")
    if parts.query or parts.fragment:
        raise ValueError("a base URL has no query and no fragment")
    return value.rstrip("/")


def _proxy(value: str) -> str:
    if urlsplit(value).path:
        raise ValueError("expected a proxy such as http://proxy.example.com:3128, without a path")
    return value


def _heartbeat_url(value: str) -> str:
    """Check the form of a URL to ask for. Messages never repeat it: it carries a token."""
    parts = _split(value)
    if parts is None or parts.scheme not in {"http", "https"}:
        raise ValueError("expected an absolute http:// or https:// URL")
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ValueError(f"{value!r} is not a time zone; expected a name such as Europe/Oslo") from exc
    return value


def _listen(value: str) -> str:
    match = re.fullmatch(rf"({_HOST}):([0-9]{{1,5}})", value)
    if not match or not 0 < int(match[2]) < 65536 or (match[1].startswith("[") and not _is_address(match[1][1:-1])):
        raise ValueError('expected host:port, such as "127.0.0.1:8080" or "[::1]:8080"')
    return value


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _download_host(value: str) -> str:
    name = value.removeprefix("*.")
    named = _LABELS.fullmatch(name) and not re.fullmatch(r"[\d.]+", name)
    if not named and not _is_address(value.strip("[]")):
        raise ValueError('expected "files.example.com", "*.example.com" or an address, without scheme, port or path')
    return value.lower()


def _bucket(value: str) -> str:
    # S3's own names, those of older buckets and of other services, and the ARN of an access point.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}|arn:[\w:/-]+", value):
        raise ValueError("not the name of a bucket; a path within it belongs into prefix, a host into endpoint_url")
    return value


def _source_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value):
        raise ValueError("part of every key, so: lower-case letters, digits and -, at most 63, not beginning with -")
    return value


def _environment_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("not the name of an environment variable")
    return value


def _prefix(value: str) -> str:
    value = value.removesuffix("/")
    if value and not all(re.fullmatch(r"[A-Za-z0-9!_.*'()-]+", part) and part.strip(".") for part in value.split("/")):
        raise ValueError('expected "", or segments such as "archive" or "team/exports", without a leading / or blanks')
    return value


def _readable_by_all(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:  # it is not there, which is another message
        return False


def _existing_file(value: Path) -> Path:
    if not value.is_file():
        raise ValueError(f"no such file: {value}")
    return value


Duration: TypeAlias = Annotated[timedelta, BeforeValidator(duration)]
PositiveDuration: TypeAlias = Annotated[Duration, AfterValidator(_at_least(timedelta(milliseconds=1)))]
Interval: TypeAlias = Annotated[Duration, AfterValidator(_interval)]
Size: TypeAlias = Annotated[ByteSize, BeforeValidator(_size)]
BaseUrl: TypeAlias = Annotated[str, AfterValidator(_url)]
ProxyUrl: TypeAlias = Annotated[BaseUrl, AfterValidator(_proxy)]
TimeZone: TypeAlias = Annotated[str, AfterValidator(_zone)]
Listen: TypeAlias = Annotated[str, AfterValidator(_listen)]
DownloadHost: TypeAlias = Annotated[str, AfterValidator(_download_host)]
Prefix: TypeAlias = Annotated[str, AfterValidator(_prefix)]
ExistingFile: TypeAlias = Annotated[Path, AfterValidator(_existing_file)]
Bucket: TypeAlias = Annotated[str, AfterValidator(_bucket)]
SourceName: TypeAlias = Annotated[str, AfterValidator(_source_name)]
EnvironmentName: TypeAlias = Annotated[str, AfterValidator(_environment_name)]
Rate: TypeAlias = Annotated[float, Strict(), Field(gt=0, le=10_000, allow_inf_nan=False)]
# TOML has types, so "yes", "4" and 1 for true are slips of the pen and not values.
Count: TypeAlias = Annotated[int, Strict()]
Flag: TypeAlias = Annotated[bool, Strict()]


class _Table(BaseModel):
    """One TOML table: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, str_max_length=10_000)

    def rules(self) -> Iterator[tuple[str, str]]:
        """Give what is wrong between keys that are right by themselves, each with the key to name."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _all_problems(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Ask for the `rules` even when single keys are wrong (then without those keys), so that one run reports all."""
        problems: list[InitErrorDetails] = []
        wrong: set[int | str] = set()
        try:
            table = handler(value)
        except ValidationError as exc:
            wrong = {error["loc"][0] for error in exc.errors() if error["loc"]}
            if not wrong or not isinstance(value, dict):
                raise
            problems = [_detail(error["type"], error["loc"], error.get("ctx", {})) for error in exc.errors()]
            table = cls._without({key: item for key, item in value.items() if key not in wrong})
        for key, what in table.rules():
            if key not in wrong:
                problems.append(_detail("value_error", (key,), {"error": ValueError(what)}))
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return table

    @classmethod
    def _without(cls, right: Mapping[str, Any]) -> Self:
        """Give a table of these keys alone, which are right by themselves. No rule is about a key that is required."""
        types = {key: TypeAdapter(info.rebuild_annotation()) for key, info in cls.model_fields.items() if key in right}
        made = cls.model_construct(**{key: known.validate_python(right[key]) for key, known in types.items()})
        return cast("Self", made)


def _detail(kind: str, location: tuple[int | str, ...], context: dict[str, Any]) -> InitErrorDetails:
    return InitErrorDetails(type=kind, loc=location, input=None, ctx=context)


class Secret(_Table):
    """A value that must not be seen: `{ env = "NAME" }`, `{ file = "PATH" }`, or a literal string (`check` warns about it)."""

    env: EnvironmentName | None = None
    file: Path | None = None
    literal: str | None = Field(default=None, min_length=1, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if isinstance(value, str):
            return {"literal": value}
        if isinstance(value, dict) and set(value) in ({"env"}, {"file"}):
            return value
        raise ValueError('expected { env = "NAME" }, { file = "PATH" } or a string')

    def problem(self) -> str | None:
        """Say why `reveal` would fail now, or None."""
        try:
            self.reveal()
        except ConfigurationError as exc:
            return exc.problems[0]
        return None

    def warning(self) -> str | None:
        """Say what is unwise about where this secret is kept, or None."""
        if self.literal is not None:
            return 'a literal secret; { env = "NAME" } or { file = "PATH" } keeps it out of this file'
        return f"{self.file} is readable by all; chmod 600" if self.file is not None and _readable_by_all(self.file) else None

    def reveal(self) -> str:
        """Give the value as it is now. Raises `ConfigurationError` when the variable or the file is not there or empty."""
        if self.literal is not None:
            return self.literal
        if self.env is not None:
            value = os.environ.get(self.env, "")
            if not value:
                raise ConfigurationError([f"environment variable {self.env} is not set"])
            return value
        try:
            value = Path(str(self.file)).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigurationError([f"secret file {self.file} cannot be read ({type(exc).__name__})"]) from exc
        if not value:
            raise ConfigurationError([f"secret file {self.file} is empty"])
        return value


def _literal_redis_url(secret: Secret) -> Secret:
    if secret.literal is not None:
        redis_address.read(secret.literal)
    return secret


def _literal_heartbeat_url(secret: Secret) -> Secret:
    if secret.literal is not None:
        _heartbeat_url(secret.literal)
    return secret


class ArchiveSettings(_Table):
    """``[archive]``: the bucket."""

    bucket: Bucket
    prefix: Prefix = ""
    endpoint_url: BaseUrl | None = None
    region: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    storage_class: str | None = None
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None
    object_lock_mode: Literal["GOVERNANCE", "COMPLIANCE"] | None = None
    object_lock_days: Count | None = Field(default=None, ge=1)

    def rules(self) -> Iterator[tuple[str, str]]:
        """Some keys go together."""
        for one, other in (("access_key_id", "secret_access_key"), ("object_lock_mode", "object_lock_days")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                yield (one if getattr(self, one) is None else other), f"missing; {one} and {other} go together"
        if self.kms_key_id and self.sse not in {"aws:kms", "aws:kms:dsse"}:
            yield "kms_key_id", 'needs sse = "aws:kms" or "aws:kms:dsse"'


class WorkerSettings(_Table):
    """``[worker]``: limits of one worker process."""

    max_output_bytes: Annotated[Size, Field(gt=0)] = ByteSize(100 * 2**30)
    lease: Annotated[Duration, AfterValidator(_at_least(timedelta(seconds=2)))] = timedelta(seconds=60)
    at_risk: Duration = timedelta(minutes=15)
    concurrency: Count = Field(default=16, ge=1, le=1024)
    spool_bytes: Size = ByteSize(2 * 2**30)


class _Listening(_Table):
    """A process that listens: a password is required anywhere but on loopback."""

    listen: Listen
    username: Secret | None = None
    password: Secret | None = None

    @property
    def host(self) -> str:
        """The address without its port, IPv6 brackets removed."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port."""
        return int(self.listen.rpartition(":")[2])

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host == "localhost" or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)

    def rules(self) -> Iterator[tuple[str, str]]:
        """A password is required anywhere but on loopback."""
        if (self.username is None) != (self.password is None):
            yield ("username" if self.username is None else "password"), "missing; username and password go together"
        elif self.password is None and not self.on_loopback:
            yield "password", f"username and password are required to listen on {self.listen}; or listen on 127.0.0.1"


class WebSettings(_Listening):
    """``[web]``: board, ``/metrics``, ``/healthz``."""

    listen: Listen = "127.0.0.1:8080"


class FlowerSettings(_Listening):
    """``[flower]``."""

    listen: Listen = "127.0.0.1:5555"


class AlertSettings(_Table):
    """``[alerts]``: Apprise URLs, and one that is asked for as long as all is well. Each usually carries a token: a secret."""

    urls: tuple[Secret, ...] = ()
    heartbeat_url: Annotated[Secret, AfterValidator(_literal_heartbeat_url)] | None = None


class AuditSettings(_Table):
    """``[audit]``: how often workers prove by themselves that nothing is missing and all is as it was. 0s is never."""

    every: Interval = timedelta(hours=24)
    window: PositiveDuration | None = None
    verify_every: Interval = timedelta(0)
    verify_sample: Count = Field(default=100, ge=0)


class _SourceTable(_Table):
    """Keys that every source has."""

    name: str = ""
    base_url: BaseUrl
    poll_every: Annotated[Duration, AfterValidator(_at_least(timedelta(seconds=1)))] = timedelta(seconds=60)
    retention: PositiveDuration
    requests_per_second: Rate
    max_concurrent_downloads: Count = Field(default=4, ge=1, le=1000)
    connect_timeout: PositiveDuration = timedelta(seconds=10)
    read_timeout: PositiveDuration = timedelta(seconds=60)
    min_throughput: Size = ByteSize(1024)  # bytes per second, over a minute; 0B turns it off
    timezone: TimeZone | None = None
    deadline_margin: Duration | None = None
    allow_private_hosts: Flag = False
    download_hosts: tuple[DownloadHost, ...] = ()
    ca_bundle: ExistingFile | None = None
    proxy: ProxyUrl | None = None
    enabled: Flag = True

    default_margin: ClassVar[timedelta] = timedelta(0)
    secret_keys: ClassVar[tuple[str, ...]] = ()

    @property
    def zone(self) -> ZoneInfo:
        """The zone of vendor times that carry none."""
        return ZoneInfo(self.timezone or "UTC")

    @property
    def download_limit(self) -> int | None:
        """How many downloads of one output lastcall may make by itself; None where the vendor does not count."""
        return None

    def margin(self, *, zoned: bool) -> timedelta:
        """Give what to take off a deadline. `zoned`: the vendor's time carried a zone, so there is nothing to be unsure of."""
        if self.deadline_margin is not None:
            return self.deadline_margin
        if zoned or self.timezone is not None:
            return timedelta(0)
        return min(self.default_margin, self.retention / 8)

    def rules(self) -> Iterator[tuple[str, str]]:
        """The margin leaves something of the retention."""
        if self.deadline_margin is not None and self.deadline_margin >= self.retention:
            yield "deadline_margin", "must be shorter than retention, or every output would be overdue at once"

    def secrets(self) -> dict[str, Secret]:
        """Give this source's secrets by key; those that are not set are left out."""
        return {key: value for key in self.secret_keys if (value := getattr(self, key)) is not None}


class SellercloudSettings(_SourceTable):
    """A Sellercloud account."""

    vendor: Literal["sellercloud"]
    username: Secret
    password: Secret
    retention: PositiveDuration = timedelta(days=10)
    requests_per_second: Rate = 2.5  # 10,800 an hour and address is 3
    job_types: tuple[Count, ...] = ()

    default_margin = timedelta(hours=24)
    secret_keys = ("username", "password")


class Api2convertSettings(_SourceTable):
    """An API2Convert account."""

    vendor: Literal["api2convert"]
    base_url: BaseUrl = "https://api.api2convert.com/v2"
    api_key: Secret
    retention: PositiveDuration = timedelta(hours=24)
    requests_per_second: Rate = 2.0
    download_hosts: tuple[DownloadHost, ...] = ("*.api2convert.com", "*.online-convert.com")
    max_downloads: Count = Field(default=10, ge=1)
    reserve_downloads: Count = Field(default=1, ge=0)
    download_password: Secret | None = None

    default_margin = timedelta(hours=3)
    secret_keys = ("api_key", "download_password")

    def rules(self) -> Iterator[tuple[str, str]]:
        """The reserve leaves something of the downloads."""
        yield from super().rules()
        if self.reserve_downloads >= self.max_downloads:
            yield "reserve_downloads", "must be smaller than max_downloads, or nothing could ever be downloaded"

    @property
    def download_limit(self) -> int | None:
        """The last `reserve_downloads` are left for a person."""
        return self.max_downloads - self.reserve_downloads


class SpaazaSettings(_SourceTable):
    """A Spaaza chain."""

    vendor: Literal["spaaza"]
    access_token_id: Secret
    access_token_secret: Secret
    link_lifetime: PositiveDuration = timedelta(hours=1)
    retention: PositiveDuration = timedelta(hours=1)
    requests_per_second: Rate = 5.0
    download_hosts: tuple[DownloadHost, ...] = ("*.amazonaws.com", "storage.googleapis.com", "*.storage.googleapis.com")

    secret_keys = ("access_token_id", "access_token_secret")


class CrayonSettings(_SourceTable):
    """A Crayon Cloud-iQ account."""

    vendor: Literal["crayon"]
    base_url: BaseUrl = "https://api.crayon.com"
    client_id: Secret
    client_secret: Secret
    username: Secret
    password: Secret
    retention: PositiveDuration = timedelta(days=7)
    requests_per_second: Rate = 1.0

    default_margin = timedelta(hours=6)
    secret_keys = ("client_id", "client_secret", "username", "password")


SourceSettings: TypeAlias = SellercloudSettings | Api2convertSettings | SpaazaSettings | CrayonSettings
_TABLES: dict[str, type[_SourceTable]] = {
    get_args(table.model_fields["vendor"].annotation)[0]: table for table in get_args(SourceSettings)
}
VENDORS = tuple(_TABLES)


def required_secrets(vendor: str) -> list[str]:
    """Name the secrets that an account at `vendor` needs."""
    table = _TABLES[vendor]
    return [key for key in table.secret_keys if table.model_fields[key].is_required()]


def needs_base_url(vendor: str) -> bool:
    """Whether accounts at `vendor` have a base URL of their own."""
    return _TABLES[vendor].model_fields["base_url"].is_required()


class Settings(_Table):
    """The whole configuration. `path` is the file it came from."""

    path: Path = DEFAULT_PATH
    redis_url: Annotated[Secret, AfterValidator(_literal_redis_url)] = Secret.model_validate("redis://127.0.0.1:6379/0")
    archive: ArchiveSettings
    worker: WorkerSettings = WorkerSettings()
    web: WebSettings = WebSettings()
    flower: FlowerSettings = FlowerSettings()
    alerts: AlertSettings = AlertSettings()
    audit: AuditSettings = AuditSettings()
    sources: dict[SourceName, Annotated[SourceSettings, Field(discriminator="vendor")]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _name_sources(self) -> Settings:
        named = {name: source.model_copy(update={"name": name}) for name, source in self.sources.items()}
        object.__setattr__(self, "sources", named)
        return self

    def redis(self) -> str:
        """Give the Redis URL. Raises `ConfigurationError` where it cannot be read now."""
        if why := self.redis_url.problem():
            raise ConfigurationError([f"redis_url: {why}; set it for this process as well, or $LASTCALL_REDIS_URL"])
        return self.redis_url.reveal()

    def secrets(self) -> dict[str, Secret]:
        """Give every secret that is in use by its path in the file: a source that is switched off needs none."""
        found = {"redis_url": self.redis_url}
        for table in ("archive", "web", "flower"):
            for key in ("access_key_id", "secret_access_key", "username", "password"):
                if (value := getattr(getattr(self, table), key, None)) is not None:
                    found[f"{table}.{key}"] = value
        found |= {f"alerts.urls.{index}": url for index, url in enumerate(self.alerts.urls)}
        if self.alerts.heartbeat_url is not None:
            found["alerts.heartbeat_url"] = self.alerts.heartbeat_url
        for name, source in self.sources.items():
            if source.enabled:
                found |= {f"sources.{name}.{key}": secret for key, secret in source.secrets().items()}
        return found

    def secret_problems(self) -> list[str]:
        """List the secrets that cannot be read now, or are read and cannot be right, each with its path."""
        problems = [f"{path}: {why}" for path, secret in self.secrets().items() if (why := secret.problem())]
        for path, secret, check in (
            ("redis_url", self.redis_url, redis_address.read),
            ("alerts.heartbeat_url", self.alerts.heartbeat_url, _heartbeat_url),
        ):
            if secret is not None and not secret.problem():
                try:
                    check(secret.reveal())
                except ValueError as exc:
                    problems.append(f"{path}: {exc}")
        return problems

    def polling_warnings(self) -> list[str]:
        """List the sources whose files may be half way to their end, or past it, before a listing shows them."""
        return [
            f"sources.{name}.poll_every: a listing may come {2 * source.poll_every} after the last one, and files may be "
            f"deleted after {source.retention} (retention); make it shorter"
            for name, source in self.sources.items()
            if source.enabled and 4 * source.poll_every > source.retention
        ]

    def secret_warnings(self) -> list[str]:
        """List the secrets that are kept unwisely, each with its path. The Redis URL may be plain where it has no password."""
        warned = {
            path: why
            for path, secret in self.secrets().items()
            if (why := secret.warning()) and not (path == "redis_url" and "@" not in (secret.literal or "@"))
        }
        warnings = [f"{path}: {why}" for path, why in warned.items()]
        if any(self.secrets()[path].literal is not None for path in warned) and _readable_by_all(self.path):
            warnings.append(f"{self.path}: holds literal secrets and is readable by all; chmod 600")
        return warnings


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Give the environment of a child process on loopback: ours without AWS's, proxies' and our own variables, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    return {**kept, "AWS_EC2_METADATA_DISABLED": "true", **extra}


def find(path: Path | None = None) -> Path:
    """Give the file to read: `path`, else ``$LASTCALL_CONFIG``, else ``config/lastcall.toml``."""
    return path or Path(os.environ.get("LASTCALL_CONFIG") or DEFAULT_PATH)


def load(path: Path | None = None) -> Settings:
    """Read the configuration (see `find`). Raises `ConfigurationError` with every problem of the file at once."""
    path = find(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigurationError(
            [f"{path}: no such file; `lastcall init` writes one, --config or $LASTCALL_CONFIG names another"]
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError([f"{path}: cannot be read ({type(exc).__name__})"]) from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigurationError([f"{path}: not TOML: {exc}"]) from exc
    if redis_url := os.environ.get("LASTCALL_REDIS_URL"):
        document["redis_url"] = redis_url
    return parse(document, path)


def parse(document: dict[str, Any], path: Path = DEFAULT_PATH) -> Settings:
    """Validate a TOML document. Raises `ConfigurationError` with every problem at once."""
    problems = [f"{key}: unknown key" for key in ("path",) if key in document]
    tables = document.get("sources")
    for name, table in tables.items() if isinstance(tables, dict) else ():
        if isinstance(table, dict) and "name" in table:
            problems.append(f"sources.{name}.name: unknown key")
    try:
        settings = Settings.model_validate({**document, "path": path})
    except ValidationError as exc:
        raise ConfigurationError(problems + [_problem(error) for error in exc.errors()]) from None
    if problems:
        raise ConfigurationError(problems)
    return settings


# What an operator reads instead of pydantic's own words; `{…}` are the limits that pydantic names.
_PLAIN_WORDS = {
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "dict_type": "expected a table",
    "extra_forbidden": "unknown key",
    "finite_number": "expected a number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "less_than_equal": "must be at most {le}",
    "literal_error": "expected {expected}",
    "missing": "missing",
    "model_attributes_type": "expected a table",
    "model_type": "expected a table",
    "path_type": "expected text in quotes",
    "string_too_short": "must not be empty",
    "string_type": "expected text in quotes",
    "tuple_type": "expected a list in [ ]",
    "union_tag_invalid": "expected one of " + ", ".join(VENDORS),
    "union_tag_not_found": "missing; one of " + ", ".join(VENDORS),
}


def _problem(error: Any) -> str:
    """Turn one pydantic error into ``path: what is wrong``. The vendor's tag is not a key of the file, so it is left out."""
    location = [str(part) for part in error["loc"] if part != "[key]"]
    if len(location) > 2 and location[0] == "sources" and location[2] in VENDORS:
        del location[2]
    if error["type"].startswith("union_tag"):
        location.append("vendor")
    if location[-1] == "literal":  # not a key of the file either: the string in a secret's place
        location.pop()
    what = _PLAIN_WORDS.get(error["type"], "").format_map(error.get("ctx", {}))
    return f"{'.'.join(location)}: {what or error['msg'].removeprefix('Value error, ')}"
