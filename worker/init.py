"""`lastcall init`: the first configuration file, from a few answers. It holds no secret, only where each is found."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from worker.errors import ConfigurationError
from worker.settings import VENDORS, Secret, needs_base_url, parse, required_secrets

_ABOUT = {
    "sellercloud": "an employee account of its own, without two-factor log-in, that may read queued jobs",
    "api2convert": "the API key of the account",
    "spaaza": "an access token of the chain: its id and its secret",
    "crayon": "an API client of Cloud-iQ, and a user",
}
BASE_URL_OF = {
    "sellercloud": "https://{server}.api.sellercloud.com/rest",
    "spaaza": "https://{the host of the Services API}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the first configuration is made of. `secrets`: ``env``, or the folder that holds the files."""

    vendor: str
    name: str
    bucket: str
    base_url: str = ""
    prefix: str = "archive"
    region: str = ""
    endpoint_url: str = ""
    redis_url: str = "redis://127.0.0.1:6379/0"
    secrets: str = "env"

    def secret(self, name: str) -> str:
        """Say where the secret `name` is found, as TOML."""
        if self.secrets == "env":
            return f'{{ env = "{re.sub(r"[^A-Z0-9]", "_", name.upper())}" }}'
        return f"{{ file = {_quoted(str(Path(self.secrets).absolute() / name))} }}"


def default_name(vendor: str) -> str:
    """Name a source after its vendor."""
    return f"{vendor}-exports"


def text(answers: Answers) -> str:
    """Give the configuration file."""
    aws = not answers.endpoint_url
    lines = [
        "# Written by `lastcall init`. Every key and its default: config/example.toml. Try a change with `lastcall check`.",
        "",
        f"redis_url = {_quoted(answers.redis_url)}",
        "",
        "[archive]                                       # the bucket; lastcall needs no right to delete in it",
        f"bucket = {_quoted(answers.bucket)}",
        f"prefix = {_quoted(answers.prefix)}",
        *([f"region = {_quoted(answers.region)}"] if answers.region else []),
        *(["# The credentials come from the standard AWS chain: environment, ~/.aws, instance role."] if aws else []),
        *([] if aws else [f"endpoint_url = {_quoted(answers.endpoint_url)}"]),
        *([] if aws else [f"{key} = {answers.secret('s3-' + key.replace('_', '-'))}" for key in _S3_KEYS]),
        "",
        "# [alerts]                                      # who is told of losses and near deadlines (Apprise URLs)",
        '# urls = [{ env = "ALERT_URL" }]',
        "",
        f"# {answers.vendor}: {_ABOUT[answers.vendor]}.",
        "# The name is part of every key in the bucket: don't change it later.",
        f"[sources.{answers.name}]",
        f"vendor = {_quoted(answers.vendor)}",
        *([f"base_url = {_quoted(answers.base_url)}"] if answers.base_url else []),
        *(f"{key} = {answers.secret(f'{answers.name}-{key}'.replace('_', '-'))}" for key in required_secrets(answers.vendor)),
        'poll_every = "60s"                              # a listing costs one or a few calls',
        "",
    ]
    return "\n".join(lines)


_S3_KEYS = ("access_key_id", "secret_access_key")


def write(answers: Answers, path: Path) -> list[Secret]:
    """Write the file, mode 0600, unless one stands there. Gives the secrets that it refers to.

    Raises `ConfigurationError` with what is wrong with the answers; then nothing was written.
    """
    if path.exists():
        raise ConfigurationError([f"{path}: stands already, and is not overwritten; name another file with --config"])
    if answers.vendor not in VENDORS:
        raise ConfigurationError([f"vendor: expected one of {', '.join(VENDORS)}"])
    if needs_base_url(answers.vendor) and not answers.base_url:
        raise ConfigurationError([f"base_url: {answers.vendor} has no default; it looks like {BASE_URL_OF[answers.vendor]}"])
    content = text(answers)
    try:
        document = tomllib.loads(content)
    except tomllib.TOMLDecodeError as exc:  # a name of a source that is none
        raise ConfigurationError([f"sources.{answers.name}: not the name of a source (a-z, 0-9 and -)"]) from exc
    settings = parse(document, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(content)
    except OSError as exc:
        raise ConfigurationError([f"{path}: cannot be written ({type(exc).__name__})"]) from exc
    return [secret for secret in settings.secrets().values() if secret.literal is None]


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
