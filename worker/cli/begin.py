"""The commands to begin with: a first configuration, whether it is right, a demonstration, completion."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from worker import init as first
from worker import printing
from worker import settings as configuration
from worker.cli.options import BAD_NEWS, config_file, config_option, json_option, wrong_usage
from worker.daemon import Daemon, open_daemon
from worker.errors import ConfigurationError, LastcallError, LedgerUnavailableError
from worker.model import JsonObject
from worker.printing import out, plain, print_json
from worker.settings import Settings


@click.command()
@config_file
@click.option("--vendor", type=click.Choice(configuration.VENDORS), help="The first source's vendor.")
@click.option("--name", help="The first source's name: a-z, 0-9 and -. It becomes part of every key.")
@click.option("--base-url", metavar="URL", help="Its base URL, where the vendor has no common one.")
@click.option("--bucket", help="The bucket.")
@click.option("--prefix", default="archive", show_default=True, help="What every key begins with; may be empty.")
@click.option("--region", default="", help="The bucket's region.")
@click.option("--endpoint-url", metavar="URL", default="", help="Another S3-compatible service than AWS.")
@click.option("--redis-url", metavar="URL", default="redis://127.0.0.1:6379/0", show_default=True, help="Redis.")
@click.option(
    "--secrets",
    metavar="env|FOLDER",
    default="env",
    show_default=True,
    help="Where secrets are: in environment variables, or in files of a folder.",
)
@click.pass_context
def init(ctx: click.Context, /, config: Path | None, **answers: str | None) -> None:
    """Write a first configuration.

    Asks for what no option says; without a terminal, --vendor and --bucket
    are required. The file has mode 0600, holds no secret but says where each
    is found, and is never overwritten.

    \b
    Example:
      lastcall init --vendor api2convert --bucket my-exports
    """
    path = configuration.find(config or ctx.obj)
    if path.exists():
        raise ConfigurationError([f"{path}: stands already, and is not overwritten; name another file with --config"])
    if sys.stdin.isatty():
        _ask(ctx, answers)
    elif missing := [f"--{name}" for name in ("vendor", "bucket") if not answers[name]]:
        wrong_usage(f"there is no terminal to ask at: give {' and '.join(missing)}")
    answers["name"] = answers["name"] or first.default_name(answers["vendor"] or "")
    answers["base_url"] = answers["base_url"] or ""
    secrets = first.write(first.Answers(**{key: value or "" for key, value in answers.items()}), path)
    out.print(f"{plain(path)}: written, mode 0600")
    if secrets:
        out.print("Now give the daemon and your shell:")
    for secret in secrets:
        out.print(f"  environment variable {plain(secret.env)}" if secret.env else f"  file {plain(secret.file)} (chmod 600)")
    option = "" if path == configuration.find() else f"--config {path} "
    out.print(f"Then: lastcall {plain(option)}check")


def _ask(ctx: click.Context, answers: dict[str, str | None]) -> None:
    """Ask for what no option said."""

    def given(name: str) -> bool:
        source = ctx.get_parameter_source(name)
        return source is not None and source is not click.core.ParameterSource.DEFAULT

    def ask(name: str, question: str, default: str | None = None, choice: Any = None) -> None:
        if not given(name):
            answers[name] = click.prompt(question, default=default, type=choice, show_choices=True)

    ask("vendor", "Vendor", choice=click.Choice(configuration.VENDORS))
    vendor = answers["vendor"] or ""
    ask("name", "Name of the source (part of every key)", first.default_name(vendor))
    if configuration.needs_base_url(vendor):
        ask("base_url", f"Base URL, such as {first.BASE_URL_OF[vendor]}")
    ask("bucket", "Bucket")
    ask("prefix", "Prefix of every key", "archive")
    ask("endpoint_url", "S3 endpoint, empty for AWS", "")
    ask("region", "Region of the bucket, empty for the default", "")
    ask("redis_url", "Redis", "redis://127.0.0.1:6379/0")
    ask("secrets", "Secrets: env, or a folder with one file each", "env")


@click.command()
@json_option
@config_option
def check(settings: Settings, *, as_json: bool) -> None:
    """Check configuration, Redis, the bucket, and each source.

    Logs in everywhere and reads one page; writes one small object under
    _state/check/ to see that the bucket refuses to overwrite it.
    """
    problems = settings.secret_problems()
    if problems:
        raise ConfigurationError(problems)
    ledger = open_daemon(settings).ledger
    no_redis = _why_not(ledger.ping)
    daemon = open_daemon(settings, alone=no_redis is not None)  # sources can be asked all the same
    checks: dict[str, Callable[[], object]] = {"bucket": daemon.archive.check}
    for name in daemon.sources:
        checks[f"sources.{name}"] = functools.partial(_check_source, daemon, name)
    results: list[JsonObject] = [{"name": "redis", "ok": no_redis is None, "detail": no_redis or "ok"}]
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        for name, future in [(name, pool.submit(run)) for name, run in checks.items()]:
            try:
                detail, ok = str(future.result() or "ok"), True
            except LastcallError as exc:
                detail, ok = str(exc), False
            results.append({"name": name, "ok": ok, "detail": detail})
    disabled = [f"sources.{name}: not enabled, not checked" for name, source in settings.sources.items() if not source.enabled]
    warnings = [*disabled, *settings.polling_warnings(), *settings.secret_warnings()]
    bad = [result for result in results if not result["ok"]]
    if as_json:
        print_json({"ok": not bad, "config": str(settings.path), "checks": results, "warnings": warnings})
    else:
        printing.print_checks(results, warnings)
    sys.exit(BAD_NEWS if bad else 0)


def _why_not(ask: Callable[[], object]) -> str | None:
    try:
        ask()
    except LedgerUnavailableError as exc:
        return str(exc)
    return None


def _check_source(daemon: Daemon, name: str) -> str:
    """Log in and read one page."""
    source = daemon.settings.sources[name]
    job = next(iter(daemon.sources[name].jobs(datetime.now(UTC) - source.retention)), None)
    return f"{source.vendor}: logged in, " + ("its list has jobs" if job else "its list is empty")


@click.command()
@click.option("--keep", is_flag=True, help="Leave it running until Ctrl-C; print the URLs.")
@click.option("--logs", is_flag=True, help="Keep the folder with the logs.")
@click.option("--small", is_flag=True, help="A handful of outputs, in seconds.")
def demo(*, keep: bool, logs: bool, small: bool) -> None:
    """Run it all against simulated vendors with faults, and prove it."""
    from worker.demo import show

    sys.exit(show.run(keep=keep, logs=logs, small=small))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print the completion for a shell.

    Completes commands, options, states, and the sources of the configuration.

    \b
    bash, in ~/.bashrc:    eval "$(lastcall completion bash)"
    zsh, in ~/.zshrc:      eval "$(lastcall completion zsh)"
    fish:  lastcall completion fish > ~/.config/fish/completions/lastcall.fish
    """
    made = get_completion_class(shell)
    if made is None:  # a shell that click has dropped
        wrong_usage(f"no completion for {shell}")
    click.echo(made(ctx.find_root().command, {}, "lastcall", "_LASTCALL_COMPLETE").source())
