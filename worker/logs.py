"""Structured logs on stderr: one event per change of state, readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
import sys

import structlog

# Libraries whose debug lines hold URLs and headers, and Celery's two lines a task, which our own events say better.
_QUIET = ("urllib3", "botocore", "boto3", "apprise", "kombu", "amqp", "celery.worker.strategy", "celery.app.trace")


def configure(level: int = logging.INFO) -> None:
    """Set up structlog and the standard library's logging, with the bound context (task, source, output) on every line."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if terminal
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    last = [] if terminal else [structlog.processors.format_exc_info]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("celery.beat").addFilter(_without_stack)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _without_stack(record: logging.LogRecord) -> bool:
    """Say in one line that a tick could not be sent: while Redis is away beat writes two stacks a tick, and goes on."""
    if record.exc_info and (exc := record.exc_info[1]):
        record.msg, record.args, record.exc_info = "tick not sent: %s: %s", (type(exc).__name__, exc), None
    return True
