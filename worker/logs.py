"""Structured logs on stderr: one event per change of state, readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import TracebackType

import structlog

from worker.errors import LastcallError

# Libraries whose debug lines hold URLs and headers, and Celery's two lines a task, which our own events say better.
_QUIET = ("urllib3", "botocore", "boto3", "kombu", "amqp", "celery.worker.strategy", "celery.app.trace")
_SILENT = "apprise"  # writes addresses that it cannot use, which are secrets; `alerts` names them by their numbers


def configure(level: int = logging.INFO) -> None:
    """Set up structlog and the standard library's logging, with the bound context (task, source, output) on every line.

    Also what nobody caught, in any thread, is written as `trace` writes it.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _one_line,
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
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.ExceptionRenderer(_trace_of),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("celery.beat").addFilter(_without_stack)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.getLogger(_SILENT).setLevel(logging.CRITICAL + 1)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def trace(exc: BaseException) -> str:
    """Say where `exc` and what led to it came from: the frames and the types, and the words of our own errors alone.

    What other libraries say of an exchange holds its URL, a header or a part of a body: all of them secrets here.
    """
    told = [f"{_name(exc)}{_words(exc)}"]
    if exc.__traceback__ is not None:
        told[:0] = ["Traceback (most recent call last):", "".join(traceback.format_tb(exc.__traceback__)).rstrip()]
    before = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if before is not None:
        told[:0] = [trace(before), "", "which led to:", ""]
    return "\n".join(told)


def _name(exc: BaseException) -> str:
    kind = type(exc)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _words(exc: BaseException) -> str:
    if isinstance(exc, LastcallError):
        return f": {exc}"
    return f": {exc.strerror}" if isinstance(exc, OSError) and exc.strerror else ""


def _trace_of(exc_info: structlog.typing.ExcInfo) -> str:
    return trace(exc_info[1])


def _one_line(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Take out of a line what a stranger could command a terminal with."""
    return {key: _visible(value) if isinstance(value, str) else value for key, value in event.items()}


def _visible(text: str) -> str:
    return text if text.isprintable() else "".join(map(_visible_letter, text))


def _visible_letter(letter: str) -> str:
    return letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}"


def _uncaught(kind: type[BaseException], exc: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, exc, where)
    else:
        sys.stderr.write(f"{trace(exc)}\n")


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else ""
        logging.getLogger("worker").error("thread %s ended", name, exc_info=args.exc_value)


def _without_stack(record: logging.LogRecord) -> bool:
    """Say in one line that a tick could not be sent: while Redis is away beat writes two stacks a tick, and goes on."""
    if record.exc_info and (exc := record.exc_info[1]):
        record.msg, record.args, record.exc_info = "tick not sent: %s: %s", (type(exc).__name__, exc), None
    return True
