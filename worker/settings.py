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
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from worker.errors import ConfigurationError

DEFAULT_PATH = Path("config/lastcall.toml")

_FOREIGN = re.compile(r"(AWS_|LASTCALL_|(https?|all|no|ftp)_proxy$)", re.IGNORECASE)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def _duration(value: object) -> object:
    """Read ``"90s" "15m" "24h" "7d"``. Numbers without a unit are refused: nobody remembers which unit they had."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError('expected a duration such as "90s", "15m", "24h" or "7d"')
    return timedelta(seconds=float(match[1]) * _UNITS[match[2]])


def _size(value: object) -> object:
    """Refuse bare numbers and negative sizes; `ByteSize` reads the rest (``"64MiB" "5GiB"``)."""
    if isinstance(value, int):
        return value
    if not isinstance(value, str) or not re.fullmatch(r"\d+(\.\d+)?\s*[kKMGTP]?i?B", value.strip()):
        raise ValueError('expected a size such as "64MiB" or "5GiB"')
    return value


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected an absolute http:// or https:// URL")
    if parts.username or parts.password:
        raise ValueError("a URL must not carry credentials; use the source's own keys")
    if parts.query or parts.fragment:
        raise ValueError("a base URL has no query and no fragment")
    return value.rstrip("/")


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ValueError(f"{value!r} is not a time zone; expected a name such as Europe/Oslo") from exc
    return value


def _listen(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError('expected host:port, such as "127.0.0.1:8080"')
    return value


Duration: TypeAlias = Annotated[timedelta, BeforeValidator(_duration)]
Size: TypeAlias = Annotated[ByteSize, BeforeValidator(_size)]
BaseUrl: TypeAlias = Annotated[str, AfterValidator(_base_url)]
TimeZone: TypeAlias = Annotated[str, AfterValidator(_zone)]
Listen: TypeAlias = Annotated[str, AfterValidator(_listen)]
SourceName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class _Table(BaseModel):
    """One TOML table: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, str_max_length=10_000)


class Secret(_Table):
    """A value that must not be seen: `{ env = "NAME" }`, `{ file = "PATH" }`, or a literal string (`check` warns about it)."""

    env: str | None = None
    file: Path | None = None
    literal: str | None = Field(default=None, repr=False)

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
        if self.file is not None and self.file.exists() and self.file.stat().st_mode & stat.S_IROTH:
            return f"{self.file} is readable by all; chmod 600"
        return None

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


class ArchiveSettings(_Table):
    """``[archive]``: the bucket."""

    bucket: str = Field(min_length=1)
    prefix: Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*)?$")] = ""
    endpoint_url: BaseUrl | None = None
    region: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    storage_class: str | None = None
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None
    object_lock_mode: Literal["GOVERNANCE", "COMPLIANCE"] | None = None
    object_lock_days: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _pairs(self) -> ArchiveSettings:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key go together; give both or neither")
        if (self.object_lock_mode is None) != (self.object_lock_days is None):
            raise ValueError("object_lock_mode and object_lock_days go together; give both or neither")
        if self.kms_key_id and self.sse not in {"aws:kms", "aws:kms:dsse"}:
            raise ValueError('kms_key_id needs sse = "aws:kms"')
        return self


class WorkerSettings(_Table):
    """``[worker]``: limits of one worker process."""

    max_output_bytes: Size = ByteSize(100 * 2**30)
    lease: Annotated[Duration, Field(ge=timedelta(seconds=2))] = timedelta(seconds=60)
    at_risk: Duration = timedelta(minutes=15)
    concurrency: int = Field(default=16, ge=1, le=1024)
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
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @model_validator(mode="after")
    def _password(self) -> _Listening:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together; give both or neither")
        if self.password is None and not self.on_loopback:
            raise ValueError(f"username and password are required to listen on {self.listen}; or listen on 127.0.0.1")
        return self


class WebSettings(_Listening):
    """``[web]``: board, ``/metrics``, ``/healthz``."""

    listen: Listen = "127.0.0.1:8080"


class FlowerSettings(_Listening):
    """``[flower]``."""

    listen: Listen = "127.0.0.1:5555"


class AlertSettings(_Table):
    """``[alerts]``: Apprise URLs; each usually carries a token, so each is a secret."""

    urls: tuple[Secret, ...] = ()


class _SourceTable(_Table):
    """Keys that every source has."""

    name: str = ""
    base_url: BaseUrl
    poll_every: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(seconds=60)
    retention: Annotated[Duration, Field(gt=timedelta(0))]
    requests_per_second: float = Field(gt=0, le=10_000)
    max_concurrent_downloads: int = Field(default=4, ge=1, le=1000)
    connect_timeout: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=10)
    read_timeout: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=60)
    min_throughput: Size = ByteSize(1024)  # bytes per second, over a minute; 0B turns it off
    timezone: TimeZone | None = None
    deadline_margin: Duration | None = None
    allow_private_hosts: bool = False
    download_hosts: tuple[str, ...] = ()
    ca_bundle: Path | None = None
    proxy: BaseUrl | None = None
    enabled: bool = True

    default_margin: ClassVar[timedelta] = timedelta(0)
    secret_keys: ClassVar[tuple[str, ...]] = ()

    @property
    def zone(self) -> ZoneInfo:
        """The zone of vendor times that carry none."""
        return ZoneInfo(self.timezone or "UTC")

    def margin(self, *, zoned: bool) -> timedelta:
        """Give what to take off a deadline. `zoned`: the vendor's time carried a zone, so there is nothing to be unsure of."""
        if self.deadline_margin is not None:
            return self.deadline_margin
        if zoned or self.timezone is not None:
            return timedelta(0)
        return min(self.default_margin, self.retention / 8)

    def secrets(self) -> dict[str, Secret]:
        """Give this source's secrets by key; those that are not set are left out."""
        return {key: value for key in self.secret_keys if (value := getattr(self, key)) is not None}


class SellercloudSettings(_SourceTable):
    """A Sellercloud account."""

    vendor: Literal["sellercloud"]
    username: Secret
    password: Secret
    retention: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=10)
    requests_per_second: float = Field(default=2.5, gt=0, le=10_000)  # 10,800 an hour and address is 3
    job_types: tuple[int, ...] = ()

    default_margin = timedelta(hours=24)
    secret_keys = ("username", "password")


class Api2convertSettings(_SourceTable):
    """An API2Convert account."""

    vendor: Literal["api2convert"]
    base_url: BaseUrl = "https://api.api2convert.com/v2"
    api_key: Secret
    retention: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(hours=24)
    requests_per_second: float = Field(default=2.0, gt=0, le=10_000)
    download_hosts: tuple[str, ...] = ("*.api2convert.com", "*.online-convert.com")
    max_downloads: int = Field(default=10, ge=1)
    reserve_downloads: int = Field(default=1, ge=0)
    download_password: Secret | None = None

    default_margin = timedelta(hours=3)
    secret_keys = ("api_key", "download_password")

    @model_validator(mode="after")
    def _reserve(self) -> Api2convertSettings:
        if self.reserve_downloads >= self.max_downloads:
            raise ValueError("reserve_downloads must be smaller than max_downloads, or nothing could ever be downloaded")
        return self


class SpaazaSettings(_SourceTable):
    """A Spaaza chain."""

    vendor: Literal["spaaza"]
    access_token_id: Secret
    access_token_secret: Secret
    link_lifetime: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(hours=1)
    retention: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(hours=1)
    requests_per_second: float = Field(default=5.0, gt=0, le=10_000)
    download_hosts: tuple[str, ...] = ("*.amazonaws.com", "storage.googleapis.com", "*.storage.googleapis.com")

    secret_keys = ("access_token_id", "access_token_secret")


class CrayonSettings(_SourceTable):
    """A Crayon Cloud-iQ account."""

    vendor: Literal["crayon"]
    base_url: BaseUrl = "https://api.crayon.com"
    client_id: Secret
    client_secret: Secret
    username: Secret
    password: Secret
    retention: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(days=7)
    requests_per_second: float = Field(default=1.0, gt=0, le=10_000)

    default_margin = timedelta(hours=6)
    secret_keys = ("client_id", "client_secret", "username", "password")


SourceSettings: TypeAlias = SellercloudSettings | Api2convertSettings | SpaazaSettings | CrayonSettings
VENDORS = ("sellercloud", "api2convert", "spaaza", "crayon")


class Settings(_Table):
    """The whole configuration. `path` is the file it came from."""

    path: Path = DEFAULT_PATH
    redis_url: Secret = Field(default_factory=lambda: Secret.model_validate("redis://127.0.0.1:6379/0"))
    archive: ArchiveSettings
    worker: WorkerSettings = WorkerSettings()
    web: WebSettings = WebSettings()
    flower: FlowerSettings = FlowerSettings()
    alerts: AlertSettings = AlertSettings()
    sources: dict[SourceName, Annotated[SourceSettings, Field(discriminator="vendor")]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _name_sources(self) -> Settings:
        named = {name: source.model_copy(update={"name": name}) for name, source in self.sources.items()}
        object.__setattr__(self, "sources", named)
        return self

    def secrets(self) -> dict[str, Secret]:
        """Give every secret by its path in the file."""
        found = {"redis_url": self.redis_url}
        for table in ("archive", "web", "flower"):
            for key in ("access_key_id", "secret_access_key", "username", "password"):
                if (value := getattr(getattr(self, table), key, None)) is not None:
                    found[f"{table}.{key}"] = value
        found |= {f"alerts.urls.{index}": url for index, url in enumerate(self.alerts.urls)}
        for name, source in self.sources.items():
            found |= {f"sources.{name}.{key}": secret for key, secret in source.secrets().items()}
        return found

    def secret_problems(self) -> list[str]:
        """List the secrets that cannot be read now, each with its path."""
        return [f"{path}: {why}" for path, secret in self.secrets().items() if (why := secret.problem())]

    def secret_warnings(self) -> list[str]:
        """List the secrets that are kept unwisely, each with its path. The Redis URL may be plain where it has no password."""
        return [
            f"{path}: {why}"
            for path, secret in self.secrets().items()
            if (why := secret.warning()) and not (path == "redis_url" and "@" not in secret.reveal())
        ]


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
            [f"{path}: no such file; copy config/example.toml, or name yours with --config or $LASTCALL_CONFIG"]
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


def _problem(error: Any) -> str:
    """Turn one pydantic error into ``path: what is wrong``. The vendor's tag is not a key of the file, so it is left out."""
    location = [str(part) for part in error["loc"] if part != "[key]"]
    if len(location) > 2 and location[0] == "sources" and location[2] in VENDORS:
        del location[2]
    match error["type"]:
        case "extra_forbidden":
            what = "unknown key"
        case "missing":
            what = "missing"
        case "union_tag_invalid":
            location.append("vendor")
            what = f"expected one of {', '.join(VENDORS)}"
        case "union_tag_not_found":
            location.append("vendor")
            what = f"missing; one of {', '.join(VENDORS)}"
        case "string_pattern_mismatch" if location[:1] == ["sources"]:
            what = "a source's name is part of every key: lower-case letters, digits and -, at most 63, not beginning with -"
        case _:
            what = error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(location)}: {what}"
