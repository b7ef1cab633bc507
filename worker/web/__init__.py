"""The web process: the board for people, ``/metrics`` for Prometheus, ``/healthz`` for probes. It only reads: the ledger,
and the bucket when a person opens a kept file.
"""

from worker.web.server import serve

__all__ = ["serve"]
