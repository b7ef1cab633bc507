"""The one interface that a vendor implements."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import ClassVar, Protocol

from worker.errors import LastcallError, RefusedError
from worker.model import Job, Link, Output


class Source(Protocol):
    """One account at one vendor, read only.

    Made once per process from its settings and a `Shared`; its methods are called by several threads at once. It raises
    only our errors, never sleeps past its request budget, and keeps nothing between calls but its HTTP connections.

    Every method may raise `VendorUnavailableError`, `ThrottledError`, `VendorReplyError`, `LogInRefusedError`,
    `BlockedAddressError` and `LedgerUnavailableError`.
    """

    asks_for_one: ClassVar[bool]
    """Whether `job` asks for that job alone. Where the vendor only has lists, it is asked for none between two listings."""

    def jobs(self, since: datetime) -> Iterator[Job]:
        """Yield each job of the window that starts at `since` once, paging as it is read.

        Completed jobs carry their outputs, each with a deadline. Asking again gives the same ids. An unknown status is
        RUNNING with a warning. One malformed item is skipped with a `Job` in state RUNNING where its id can be read
        (warning), else logged; it never ends the pass. A pass that ends without an error has seen the whole window.
        """

    def job(self, job_id: str) -> Job:
        """Ask for one job.

        Raises `OutputGoneError` when the vendor does not know it, `NotReadyError` when it may yet appear.
        """

    def link(self, output: Output) -> Link:
        """Get a link now, never a kept one.

        Raises `OutputGoneError` (the bytes are gone, not that a URL aged), `NotReadyError`, `OverusedError`, `HeldError`.
        """

    def refused(self, output: Output, refusal: RefusedError) -> LastcallError:
        """Say what a download answer that is not the file means; the caller raises what is returned. May ask the vendor again.

        `LinkExpiredError`: a new link helps. `OutputGoneError`, `NotReadyError`, `OverusedError`, `HeldError`,
        `ThrottledError`, `VendorUnavailableError`, `VendorReplyError`, `LogInRefusedError` as everywhere.
        """

    def confirm(self, output: Output) -> None:
        """After the last byte and before the file is archived: is this still the output that was asked for?

        Raises `OutputGoneError` (``superseded``) when the job ran again in the meantime. Most vendors have nothing to ask.
        """
