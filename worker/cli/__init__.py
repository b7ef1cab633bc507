"""The operator's commands. Answers go to stdout (a table, or one JSON document with ``--json``), progress and logs to stderr.

Exit codes: 0 done, 1 the answer is bad news, 2 wrong usage or configuration. How answers look is in `printing`.
"""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from worker import logs
from worker.cli.options import BAD_NEWS, WRONG_USAGE
from worker.errors import ConfigurationError, LastcallError

# Heading → a module of this package, and its commands. It is imported when one of them is asked for: a process that only waits
# for others, or only looks, takes half the memory without what the rest needs.
_SECTIONS = {
    "Begin": ("begin", ("init", "check", "demo", "completion")),
    "Look": ("look", ("status", "outputs", "show", "health")),
    "Act": ("act", ("poll", "watch", "retry", "acknowledge", "rebuild")),
    "Prove": ("prove", ("audit", "verify")),
    "Run (Procfile)": ("run", ("worker", "beat", "web", "flower")),
}

_EPILOG = """
\b
Configuration: --config PATH, else $LASTCALL_CONFIG, else
config/lastcall.toml. `lastcall init` writes a first one;
config/example.toml has every key with its default.

\b
Environment:
  LASTCALL_CONFIG     the configuration file
  LASTCALL_REDIS_URL  wins over redis_url of the file
  AWS_…               the bucket's credentials, where the file has none
  and whatever the file names as { env = "NAME" }

\b
Exit codes:
  0  done
  1  the answer is bad news (a failed check, a loss nobody acknowledged,
     an audit that is not empty, Redis or the bucket out of reach)
  2  wrong usage or configuration

\b
Examples:
  lastcall check                            is everything set up?
  lastcall status                           is anything in danger?
  lastcall outputs --state held             what waits for me, and why?
  lastcall show SOURCE/JOB_ID/OUTPUT_ID     the story of one output
  lastcall audit --last 30d --json          proof, for a script

An OUTPUT is SOURCE/JOB_ID/OUTPUT_ID, as `lastcall outputs` prints it.
"""


class _Group(click.Group):
    """Turns our errors into messages and exit codes, for every command; lists commands by what one wants to do."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigurationError as exc:
            for problem in exc.problems:
                click.echo(problem, err=True)
            ctx.exit(WRONG_USAGE)
        except LastcallError as exc:
            click.echo(f"lastcall: {exc}", err=True)
            ctx.exit(BAD_NEWS)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [name for _, names in _SECTIONS.values() for name in names]

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        for module, names in _SECTIONS.values():
            if cmd_name in names:
                command: click.Command = getattr(import_module(f"worker.cli.{module}"), cmd_name)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in sections."""
        width = max(map(len, self.list_commands(ctx)))
        for title, (_, names) in _SECTIONS.items():
            with formatter.section(title):
                commands = [(name, self.get_command(ctx, name)) for name in names]
                rows = [(name.ljust(width), command.get_short_help_str(64)) for name, command in commands if command]
                formatter.write_dl(rows)


@click.group(
    cls=_Group,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration file.")
@click.version_option(package_name="lastcall")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Archive vendors' export files into S3 before they expire."""
    ctx.obj = config
    if ctx.invoked_subcommand not in {"worker", "beat"}:  # Celery sets up logging there
        logs.configure(logging.INFO if ctx.invoked_subcommand in {"web", "flower"} else logging.WARNING)
