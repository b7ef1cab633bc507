"""Everything Celery: the app, its settings with their reasons, beat's schedule, the tasks.

A message is a wake-up, not the work (docs/decisions): it names no output, so a lost or doubled one is harmless. The ledger
says what is most urgent, the tick sends what wake-ups are missing.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import structlog
from celery import Celery, Task, beat, signals
from celery.app.amqp import AMQP
from celery.worker import consumer
from celery.worker.state import maybe_shutdown
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import redis as redis_transport
from kombu.transport.virtual import Message

from worker import alerts, logs, proving, redis_address
from worker import settings as configuration
from worker.collect import Outcome, collect_while
from worker.daemon import Daemon, open_daemon
from worker.discover import discover, look, may_call
from worker.errors import LastcallError, LedgerUnavailableError
from worker.ledger import Ledger
from worker.recovery import sweep
from worker.settings import Settings
from worker.settle import look_after_bucket

log = structlog.get_logger()

COLLECT, POLL, TICK, PROVE = "lastcall.collect", "lastcall.poll", "lastcall.tick", "lastcall.prove"
_LONGEST_TICK_SECONDS = 2.0
_TICKS_KEPT = 10  # when no worker reads them
_ALERTS_EVERY = timedelta(seconds=10)
_STOP_SECONDS = 26  # of the 30 that a warm stop may take
_HEARTBEAT_EVERY = timedelta(minutes=1)
_COLLECT_SECONDS = 5.0  # how long a task goes on with further outputs; Flower hears of none before its task ends
_SWEEP_EVERY = timedelta(minutes=10)
_LOOK_AGAIN = timedelta(seconds=5)
_PROVE_AGAIN = timedelta(seconds=10)


def tick_seconds(settings: Settings) -> float:
    """How often beat ticks: a quarter of the shortest poll interval, so that no poll is later than twice its interval."""
    shortest = min((source.poll_every.total_seconds() for source in settings.sources.values()), default=60.0)
    return min(_LONGEST_TICK_SECONDS, shortest / 4)


def _broker(url: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give Celery's settings for a Redis URL, and its transport's options: for sentinels, how to ask them and for whom."""
    address = redis_address.read(url)
    given = {"broker_url": address.broker_urls(), "broker_use_ssl": dict(address.tls) or False}
    if address.master is None:
        return given, {}
    return given, {"master_name": address.master, "sentinel_kwargs": address.sentinel_options()}


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Give Celery's settings, each with its reason. A test asserts that every name is one that Celery knows."""
    seconds = tick_seconds(settings)
    broker, sentinel = _broker(settings.redis())
    return {
        **broker,
        # A half-open connection is noticed in 10 s, and no message is lost by noticing it (FACTS 4).
        "broker_transport_options": {
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "retry_on_timeout": True,
            "health_check_interval": 5,
            # Wake-ups are gone once they are taken: no twin comes back after a broken connection, and none is asked for.
            "ack_emulation": False,
            **sentinel,
        },
        # Redis may be away for as long as it likes; the worker is there when it comes back (FACTS 5).
        "broker_connection_max_retries": None,
        "worker_consumer": "worker.app:Consumer",
        "broker_connection_retry_on_startup": True,
        "broker_channel_error_retry": True,
        "broker_pool_limit": 4,
        # Nobody waits for results: the bucket and the ledger are the result. Flower reads them from the events.
        "task_ignore_result": True,
        "worker_send_task_events": True,
        "task_send_sent_event": False,
        # JSON only, from our own queues only. Messages name a queue alone, so they go through the anonymous exchange: after a
        # FLUSHALL the bindings of a named one would be gone, and what is sent to it would reach no queue.
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_queues": [Queue(name, Exchange("", type="direct"), routing_key=name) for name in (COLLECT, POLL, TICK, PROVE)],
        "task_default_queue": COLLECT,
        "task_create_missing_queues": False,
        # Transfers wait on sockets, and hashing releases the GIL: threads (FACTS 6, 7). Polls and ticks have threads of their
        # own beside the transfers, and so have looks at single jobs: neither these nor any amount of long downloads keep a
        # source from being listed; proofs have one.
        "worker_pool": "threads",
        "worker_concurrency": settings.worker.concurrency + 2 * len(settings.sources) + 3,
        "worker_prefetch_multiplier": 1,
        # A wake-up that is lost is sent again by the next tick; one that is acknowledged late would come twice (FACTS 1, 2).
        "task_acks_late": False,
        # Redis being away must not cancel the transfers that are going on.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # No state on disk, so any number of beats can run anywhere; ticks are idempotent (FACTS 9).
        "beat_scheduler": "worker.app:Scheduler",
        "beat_max_loop_interval": seconds,
        # What cannot be sent is sent by the next tick or poll: it is not worth a wait, least of all for a beat that is to stop.
        "task_publish_retry": False,
        # An old tick is worth nothing. Celery drops it when it is read; `_ticked` keeps them from piling up unread.
        "beat_schedule": {"tick": {"task": "tick", "schedule": seconds, "options": {"queue": TICK, "expires": 10}}},
        "timezone": "UTC",
    }


def _look_for_redis(conn: Any, callback: Callable[[], object] | None = None) -> Any:
    """Connect, looking every second until Redis is there; `callback` is called before each look."""
    told = False

    def tell(exc: Exception, _: float) -> None:
        nonlocal told
        if not told:
            log.warning("Redis does not answer; it is looked for every second", error=type(exc).__name__)
        told = True

    return conn.ensure_connection(tell, None, interval_start=1, interval_step=0, interval_max=1, callback=callback)


class Scheduler(beat.Scheduler):  # type: ignore[misc]
    """Celery's beat without state on disk; begun while Redis is away it would wait up to half a minute between two looks."""

    def _ensure_connected(self) -> Any:
        return _look_for_redis(self.connection, _leave_if_stopping)


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Celery's consumer, which else would wait up to half a minute between two looks for a Redis that is back."""

    def ensure_connected(self, conn: Any) -> Any:
        """Look every second until it is there."""
        _look_for_redis(conn, maybe_shutdown)
        self.first_connection_attempt = False
        return conn

    def create_task_handler(self, *arguments: Any) -> Any:
        """Give what takes each message. One that Celery cannot make sense of is dropped; it would end the worker."""
        handle = super().create_task_handler(*arguments)

        def take(message: Any) -> None:
            try:
                handle(message)
            except _SENSELESS as exc:
                log.warning("a message makes no sense; it is dropped", error=type(exc).__name__)
                if not message.acknowledged:
                    message.reject_log_error(log, self.connection_errors)  # or it would keep a place among those in hand

        return take


class _Process:
    """What this process holds; a worker has a daemon, beat has a ledger to stamp."""

    settings: Settings | None = None
    controller: object = None  # Celery's worker
    daemon: Daemon | None = None
    slots: threading.BoundedSemaphore | None = None
    proving = threading.Lock()
    beat_ledger: Ledger | None = None
    beat_stopping = False


def configure(settings: Settings) -> None:
    """Use these settings instead of looking for the configuration file."""
    _Process.settings = settings


def _settings() -> Settings:
    if _Process.settings is None:
        _Process.settings = configuration.load()
    return _Process.settings


# A closing channel would put the wake-ups that nobody began back into a Redis that is away, and fail: an "unrecoverable error",
# with which the worker ends. The next tick sends what is missing.
redis_transport.Channel.do_restore = False

_SENSELESS = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_loads = redis_transport.loads


def _read_message(text: str) -> Any:
    """Read what stands in a queue. What is no message is read as an empty one, which Celery drops; it would end the worker."""
    try:
        document = _loads(text)
        hash(Message(document, channel=_Bodies).delivery_tag)
    except _SENSELESS as exc:
        log.warning("what stood in a queue is no message; it is dropped", error=type(exc).__name__)
        return {"properties": {"delivery_tag": secrets.token_hex(8)}}
    return document


class _Bodies:
    """What a message needs of a channel to be read."""

    codecs = redis_transport.Channel.codecs
    decode_body: Any = classmethod(redis_transport.Channel.decode_body)


redis_transport.loads = _read_message


class DefectError(Exception):
    """A task met what nobody foresaw. Where and what is in the log; Celery's events, which Flower shows, get the type alone."""


class _Discreet(Task):  # type: ignore[misc]
    """A task that fails without telling what the failure was about: that may be a secret, and Celery tells everybody."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        try:
            return self.run(*arguments, **options)
        except LastcallError as exc:
            raise exc.with_traceback(None) from None
        except Exception as exc:
            log.exception("defect", task=self.name)
            raise DefectError(f"{type(exc).__name__}; the log of this worker says where") from None


class _Connection(Connection):  # type: ignore[misc]
    """A connection as Celery shows it to whoever inspects a worker: without its password, but with those of sentinels."""

    def info(self) -> dict[str, Any]:
        found = super().info()
        options = {name: value for name, value in found["transport_options"].items() if name != "sentinel_kwargs"}
        return {**found, "alternates": [], "transport_options": options}


class _Amqp(AMQP):  # type: ignore[misc]
    Connection = _Connection


app = Celery("lastcall", set_as_current=True, task_cls=_Discreet, amqp=_Amqp)
app.add_defaults(lambda: celery_settings(_settings()))


def run_worker(settings: Settings) -> None:
    """Run one worker until it is told to stop. Its name is its own, so any number may run on one host."""
    configure(settings)
    signal.signal(signal.SIGTERM, _leave_early)
    name = f"lastcall-{secrets.token_hex(3)}@%h"
    app.worker_main(["worker", "--hostname", name, "--loglevel", "INFO", "--without-gossip", "--without-mingle"])
    # Celery forgets why the worker ended; a supervisor must know that it failed.
    sys.exit(getattr(_Process.controller, "exitcode", None) or os.EX_OK)


def _leave_early(*_: object) -> None:
    """Asked to stop before Celery listens for it: nothing is held yet. An exception might be lost wherever this one stands."""
    _close()
    os._exit(os.EX_OK)


def run_beat(settings: Settings) -> None:
    """Run one beat until it is told to stop."""
    configure(settings)
    app.start(["beat", "--loglevel", "WARNING"])


def _daemon() -> Daemon:
    if _Process.daemon is None:
        raise RuntimeError("this process is not a worker")
    return _Process.daemon


# --- tasks -----------------------------------------------------------------------------------------------------------


# Without events: one each two seconds would bury in Flower what people look for there.
@app.task(name="tick", throws=(LastcallError,), send_events=False)
def tick() -> str:
    """Send the polls that are due and the wake-ups that are missing; open a new ledger; tell people."""
    daemon = _daemon()
    look_after_bucket(daemon)
    due = [source for source in daemon.sources if daemon.ledger.poll_due(source) and may_call(daemon, source)]
    for source in due:
        every = daemon.settings.sources[source].poll_every
        if daemon.ledger.once(f"poll:{source}", min(every / 2, timedelta(seconds=10))):
            _send(poll, source, queue=POLL, expires=max(10.0, every.total_seconds()))
    for source in daemon.ledger.looks_due(daemon.sources):
        if daemon.ledger.once(f"looks:{source}", _LOOK_AGAIN):
            _send(look_at_jobs, source, queue=POLL, expires=10)
    sent = wake(daemon)
    if (proofs := proving.due(daemon)) and daemon.ledger.once("prove", _PROVE_AGAIN):
        for _ in proofs:  # for several workers; one of them runs one at a time
            _send(prove, queue=PROVE, expires=10)
    if daemon.ledger.once("alerts", _ALERTS_EVERY):
        tell_people(daemon)
    if daemon.ledger.once("sweep", _SWEEP_EVERY):
        sweep(daemon)
    tell_that_all_is_well(daemon)
    return f"{len(due)} polls due, {sent} wake-ups sent"


@app.task(name="poll", throws=(LastcallError,))
def poll(source: str) -> str:
    """List one source."""
    daemon = _daemon()
    if source not in daemon.sources:
        return f"{source}: not a source of this worker's configuration; restart it"
    found = discover(daemon, source, owed=lambda: wake(daemon))
    if found is None:
        return f"{source}: not its turn"
    wake(daemon)
    return str(found)


@app.task(name="collect", throws=(LastcallError,))
def collect_some() -> str:
    """Collect the most urgent output, and then the next ones for a moment: many small files are not worth a message each."""
    daemon, slots = _daemon(), _Process.slots
    if daemon.keeper.stopping:
        return "stopping"
    if slots is None or not slots.acquire(blocking=False):
        return "all slots of this worker are busy"
    try:
        outcomes = collect_for(daemon, _COLLECT_SECONDS)
    finally:
        slots.release()
    if not outcomes:
        return "nothing to collect"
    wake(daemon)
    return told(outcomes)


def collect_for(daemon: Daemon, seconds: float) -> list[Outcome]:
    """Collect one output after the other, and begin none once `seconds` have passed or the process is to stop."""
    ends = time.monotonic() + seconds
    return collect_while(daemon, lambda: not daemon.keeper.stopping and time.monotonic() < ends)


def told(outcomes: list[Outcome]) -> str:
    """Say what became of some outputs, as Flower shows it: trouble in full, what went well in numbers where it is several."""
    archived = [outcome for outcome in outcomes if outcome.archived is not None]
    lines = [str(outcome) for outcome in outcomes if outcome.archived is None]
    if len(archived) > 1:
        size = sum(outcome.archived or 0 for outcome in archived)
        lines.append(f"{len(archived)} outputs archived, {size:,} bytes, the last one {archived[-1].output}")
    else:
        lines += map(str, archived)
    return "; ".join(lines)  # Flower shows a line's end as the two characters of its escape


@app.task(name="prove", throws=(LastcallError,))
def prove() -> str:
    """Run the audits and verifications that are due. They may take hours, so a worker runs one at a time."""
    daemon = _daemon()
    if not _Process.proving.acquire(blocking=False):
        return "this worker is at it already"
    try:
        return "; ".join(proving.prove(daemon)) or "nothing is due"
    finally:
        _Process.proving.release()


@app.task(name="look", throws=(LastcallError,))
def look_at_jobs(source: str) -> str:
    """Ask for single jobs of a source that may have ended."""
    daemon = _daemon()
    ended = look(daemon, source) if source in daemon.sources else 0
    wake(daemon)
    return f"{source}: {ended} ended"


def tell_people(daemon: Daemon) -> None:
    """Send what people were not told yet, as one message; what nobody took is queued again."""
    proving.tell_late(daemon)
    for text in alerts.digest(daemon.ledger.tell(daemon.sources, daemon.settings.worker.at_risk)):
        daemon.ledger.queue_alert(text)
    waiting = daemon.ledger.take_alerts()
    if waiting and not alerts.send(daemon.settings.alerts, waiting):
        for text in waiting:
            daemon.ledger.queue_alert(text)


def tell_that_all_is_well(daemon: Daemon) -> None:
    """Ask for the heartbeat URL, at most once a minute over all workers, and not unless outputs can be collected now."""
    wanted = daemon.settings.alerts.heartbeat_url is not None
    if wanted and daemon.ledger.works() and daemon.ledger.once("heartbeat", _HEARTBEAT_EVERY):
        daemon.heartbeat.beat()


def wake(daemon: Daemon) -> int:
    """Send as many wake-ups as there is work that a free slot could take; gives how many."""
    missing = daemon.ledger.wakeups(daemon.slots, COLLECT)
    for _ in range(missing):
        _send(collect_some, queue=COLLECT, expires=60)
    return missing


def _send(task: Task, *arguments: str, **options: Any) -> None:
    """Send one message. Raises `LedgerUnavailableError`: it is the same Redis, and the next tick sends what is missing."""
    try:
        task.apply_async(arguments, **options)
    # kombu closes the connection under this thread's hands when another one finds Redis gone, and then misses its own parts.
    except (OperationalError, AttributeError) as exc:
        raise LedgerUnavailableError("Redis: the message could not be sent") from exc


# --- the life of a process -------------------------------------------------------------------------------------------


@signals.setup_logging.connect
def _set_up_logging(loglevel: int | str | None = None, **_: object) -> None:
    logs.configure(loglevel if isinstance(loglevel, int) else 20)


@signals.worker_init.connect
def _open(sender: object = None, **_: object) -> None:
    _Process.controller = sender
    settings = _settings()
    for problem in settings.secret_problems():
        log.error("secret cannot be read; its source will be paused", problem=problem)
    daemon = open_daemon(settings)
    _Process.daemon, _Process.slots = daemon, threading.BoundedSemaphore(settings.worker.concurrency)
    # What is loaded by now stays. The garbage collector spent a tenth of all CPU on looking at it again, and after each 700 new
    # objects at those; what one output takes is a few thousand, and nearly none of it in cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)
    daemon.keeper.start()
    try:
        for source in (None, *daemon.sources):  # a restart is a reason to try a refused log-in once more
            daemon.ledger.resume(source)
    except LedgerUnavailableError as exc:
        log.warning("ledger unreachable at start; going on when it comes back", error=str(exc))


@signals.worker_ready.connect
def _start(**_: object) -> None:
    """Poll and collect at once instead of waiting for beat's first tick."""
    try:
        _send(tick, queue=TICK, expires=10)
    except LedgerUnavailableError as exc:
        log.warning("first tick not sent; beat's comes", error=str(exc))


@signals.worker_shutting_down.connect
def _stop(**_: object) -> None:
    if _Process.daemon:
        _Process.daemon.keeper.request_stop()
    # What is held is given back after STOP_GRACE, save what waits for a vendor that hangs.
    last = threading.Timer(_STOP_SECONDS, _leave)
    last.daemon = True
    last.start()


def _leave() -> None:
    log.warning("a vendor did not answer in time; leaving without it")
    try:
        if _Process.daemon:
            _Process.daemon.keeper.give_back()
            _Process.daemon.ledger.sign_off()
    except LedgerUnavailableError as exc:
        log.warning("ledger unreachable; what is held is taken over when its lease ends", error=str(exc))
    finally:
        os._exit(os.EX_OK)


@signals.worker_shutdown.connect
def _close(**_: object) -> None:
    if _Process.daemon:
        _Process.daemon.keeper.end()


@signals.task_prerun.connect
def _bind(task_id: str, task: Any, **_: object) -> None:
    structlog.contextvars.bind_contextvars(task=task.name, task_id=task_id)


@signals.task_postrun.connect
def _unbind(**_: object) -> None:
    structlog.contextvars.clear_contextvars()


@signals.beat_init.connect
def _open_beat(sender: Any = None, **_: object) -> None:
    settings = _settings()
    _Process.beat_ledger = Ledger(settings.redis(), lease=settings.worker.lease, worker="beat")

    def stop(*_: object) -> None:
        """Let beat end between two ticks. Celery's own way, an exception wherever it stands, is lost where another one follows
        it (a connection is closed amid a send), and then beat would go on.
        """
        if not _Process.beat_stopping:  # what a second signal would wait for, the first one may be holding
            _Process.beat_stopping = True
            sender.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _leave_if_stopping() -> None:
    if _Process.beat_stopping:
        raise SystemExit(os.EX_OK)


@signals.after_task_publish.connect(sender="tick")
def _ticked(**_: object) -> None:
    """Beat itself says that it ticks, since a worker that does not run must not look like a dead beat."""
    if _Process.beat_ledger is None:
        return
    try:
        _Process.beat_ledger.stamp_beat()
        _Process.beat_ledger.trim_queue(TICK, _TICKS_KEPT)
    except LedgerUnavailableError as exc:
        log.warning("tick not stamped", error=str(exc))
