"""The commands that are the processes of the Procfile."""

from __future__ import annotations

import click

from worker.cli.options import config_option
from worker.settings import Settings


@click.command()
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="How many workers to run as one. Each uses about one core.",
)
@config_option
def worker(settings: Settings, processes: int) -> None:
    """Run a worker: it lists, collects, and proves.

    Any number on any number of hosts. SIGTERM: what it holds is finished or
    given back, within 30 s. When one of several processes dies, all end, with
    70.
    """
    if processes > 1:
        from worker import siblings

        siblings.become(processes)
    from worker import app

    app.run_worker(settings)


@click.command()
@config_option
def beat(settings: Settings) -> None:
    """Run beat, the clock. Any number of them does no harm."""
    from worker import app

    app.run_beat(settings)


@click.command()
@config_option
def web(settings: Settings) -> None:
    """Run the board, /metrics and /healthz."""
    from worker import web as board

    board.serve(settings)


@click.command()
@config_option
def flower(settings: Settings) -> None:
    """Run Flower, the view of workers and tasks."""
    from worker import flower as view

    view.run(settings)
