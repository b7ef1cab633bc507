"""What commands share of their usage: options, completion, and how arguments are read; what is wrong is wrong usage."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from worker import settings as configuration
from worker.errors import ConfigurationError
from worker.model import OutputId
from worker.settings import Settings

BAD_NEWS, WRONG_USAGE = 1, 2  # exit codes

config_file = click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration file.", metavar="PATH"
)


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Take ``--config`` behind the command as well, and hand on the loaded settings."""

    @config_file
    @click.pass_context
    @functools.wraps(command)
    def wrapped(ctx: click.Context, /, *arguments: Any, config: Path | None, **options: Any) -> Any:
        return command(configuration.load(config or ctx.obj), *arguments, **options)

    return wrapped


def complete_source(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a source; a configuration that cannot be read completes nothing."""
    try:
        settings = configuration.load(ctx.params.get("config") or ctx.find_root().params.get("config"))
    except ConfigurationError:
        return []
    return [CompletionItem(name, help=one.vendor) for name, one in settings.sources.items() if name.startswith(incomplete)]


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def source_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Take ``--source``, where `what` says what for."""
    return click.option("--source", metavar="NAME", help=what, shell_complete=complete_source)


def known_sources(settings: Settings, names: Iterable[str | None], *, enabled: bool = True) -> list[str]:
    """Give `names`, or all sources; the enabled ones where they are to be called. An unknown one is wrong usage."""
    wanted = [name for name in names if name is not None]
    for name in wanted:
        if name not in settings.sources:
            wrong_usage(f"no source {name!r}; there are: {', '.join(settings.sources) or 'none'}")
        if enabled and not settings.sources[name].enabled:
            wrong_usage(f"source {name!r} is not enabled; set enabled = true in [sources.{name}]")
    return wanted or [name for name, source in settings.sources.items() if source.enabled or not enabled]


def wrong_usage(message: str) -> NoReturn:
    """End with exit code 2 and this message."""
    raise click.UsageError(message)


def known_output(settings: Settings, text: str) -> OutputId:
    """Read the id of an output; what is none, or of an unknown source, is wrong usage."""
    try:
        output = OutputId.parse(text)
    except ValueError as exc:
        wrong_usage(str(exc))
    known_sources(settings, [output.source])
    return output


class Moment(click.ParamType[datetime]):
    """A date or a time; without a zone it is UTC."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        try:
            at = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time; write 2026-03-26 or 2026-03-26T12:00:00Z", param, ctx)
        return at.replace(tzinfo=at.tzinfo or UTC)


class Span(click.ParamType[timedelta]):
    """A duration, as in the configuration."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        try:
            return configuration.duration(value)
        except ValueError as exc:
            self.fail(f"{value!r}: {exc}", param, ctx)
