"""The errors: each says by its class what happens next, and shows nothing that must not be seen."""

from __future__ import annotations

import inspect
import re
from datetime import UTC, datetime, timedelta

import pytest

from worker import errors

CLASSES = [item for _, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__]
FAMILIES = re.findall(r"^`(\w+)` ", str(errors.__doc__), re.MULTILINE)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_ours_and_says_in_its_docstring_what_happened(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.LastcallError)
    assert kind.__name__.endswith("Error")
    assert kind.__doc__


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not errors.LastcallError])
def test_every_error_belongs_to_one_family_that_says_what_happens_next(kind: type[Exception]) -> None:
    """Two families would mean two different next steps."""
    assert len([name for name in FAMILIES if issubclass(kind, getattr(errors, name))]) == 1


def test_a_refusal_shows_its_status_and_nothing_that_the_vendor_sent() -> None:
    refusal = errors.RefusedError(403, "hunter2", {"location": "https://hunter2"}, b"hunter2")
    assert str(refusal) == "the download was answered with 403"
    assert "hunter2" not in repr(refusal)
    assert (refusal.status, refusal.reason, refusal.body) == (403, "hunter2", b"hunter2")
    assert errors.RefusedError(500).headers == {}


def test_try_later_carries_the_time_that_the_other_side_named() -> None:
    at = datetime(2026, 3, 26, 12, tzinfo=UTC)
    assert errors.ThrottledError("slow down", not_before=at).not_before == at
    assert errors.VendorUnavailableError("502").not_before is None


def test_bytes_are_lost_after_two_explicit_answers_ten_seconds_apart_unless_the_vendor_needs_more() -> None:
    gone = errors.OutputGoneError("404 for output 3 of job 5")
    assert (gone.reason, gone.answers, gone.over, gone.lost_at_deadline) == ("gone", 2, timedelta(seconds=10), False)
    patient = errors.OutputGoneError("x", reason="invalid-result", answers=5, over=timedelta(seconds=30), lost_at_deadline=True)
    assert (patient.answers, patient.over, patient.lost_at_deadline) == (5, timedelta(seconds=30), True)


def test_a_configuration_error_keeps_its_problems_apart_and_prints_one_a_line() -> None:
    error = errors.ConfigurationError(["a.b: missing", "c: unknown key"])
    assert error.problems == ["a.b: missing", "c: unknown key"]
    assert str(error) == "a.b: missing\nc: unknown key"
