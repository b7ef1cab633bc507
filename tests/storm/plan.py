"""What happens in a storm, from its seed alone: which outputs the vendors produce when, and which faults strike when."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

MIB = 1 << 20
LONG_SECONDS = 45.0  # a shorter storm has no invalid results: each takes five answers over half a minute without a FLUSHALL
BUDGET = 9  # api2convert: max_downloads 10, reserve_downloads 1

# Each kind of fault with its weight; every storm has at least one of each.
BLOWS = {
    "worker-kill": 10,
    "worker-freeze": 6,  # SIGSTOP for longer than the lease, then SIGCONT: a zombie
    "worker-term": 4,
    "beat-kill": 3,
    "redis-kill": 2,  # kill -9, and back with all that it acknowledged
    "redis-older": 1,  # kill -9, and back as it was a moment before
    "redis-empty": 2,  # kill -9, and back empty
    "redis-freeze": 1,  # accepts connections and answers nothing
    "redis-drop": 2,  # every connection is cut
    "flushall": 3,
    "s3-error": 3,
    "s3-slowdown": 2,
    "s3-reset": 3,
    "s3-held": 2,
    "s3-lost": 4,  # done, and never said so
    "s3-cut": 2,  # what is read ends early
    "s3-restart": 2,
    "vendor-error": 3,
    "vendor-throttle": 3,
    "vendor-cut": 5,
    "vendor-reset": 4,
    "vendor-trickle": 4,
    "vendor-slow": 2,
    "vendor-page": 2,  # an HTML page under 200 in place of the file
    "vendor-list": 2,  # a list that is cut
    "vendor-down": 2,
    "token-revoke": 3,
    "link-expired": 3,
}
VENDORS = ("sellercloud", "api2convert", "spaaza", "crayon")


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A fault at `at` seconds. `target`, `lasts` (seconds) and `times` mean what the kind makes of them."""

    at: float
    kind: str
    target: int
    lasts: float
    times: int


@dataclass(frozen=True, kw_only=True)
class Addition:
    """A job that a vendor gets at `at` seconds. `fate`: what is special about it. `life`: seconds until its bytes are gone."""

    at: float
    vendor: str
    fate: str
    sizes: tuple[int, ...]
    kind: str = "csv"
    form: str = ""
    life: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A storm of `seconds` with at least `outputs` outputs. Equal arguments give an equal plan."""

    seed: int
    seconds: float
    outputs: int
    gap: float
    additions: list[Addition] = field(default_factory=list)
    blows: list[Blow] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = random.Random(f"lastcall storm {self.seed} {self.seconds} {self.outputs} {self.gap}")
        self.additions.extend(sorted(_additions(rng, self.seconds * 0.9, self.outputs), key=lambda one: one.at))
        self.blows.extend(sorted(_blows(rng, self.seconds, self.gap), key=lambda one: one.at))


def _blows(rng: random.Random, seconds: float, gap: float) -> Iterator[Blow]:
    kinds = list(BLOWS)
    kinds += rng.choices(list(BLOWS), weights=list(BLOWS.values()), k=max(0, int(seconds / gap) - len(kinds)))
    rng.shuffle(kinds)
    slot = seconds * 0.94 / len(kinds)
    for number, kind in enumerate(kinds):
        yield Blow(
            at=seconds * 0.04 + slot * (number + rng.random()),
            kind=kind,
            target=rng.randrange(1000),
            lasts=rng.uniform(0.5, 6.0),
            times=rng.randint(1, 6),
        )


def _size(rng: random.Random) -> int:
    return rng.choice(
        (0, rng.randint(1, 20_000), rng.randint(1000, 300_000), rng.randint(1000, 300_000), rng.randint(1, 2 * MIB))
    )


# What is special about a job, with its share among 100 of its vendor.
_FATES: dict[str, dict[str, int]] = {
    "sellercloud": {"empty": 3, "failed": 2, "partial": 4, "running": 4, "short": 3, "deleted": 3},
    "api2convert": {"empty": 3, "failed": 2, "running": 4, "short": 3, "deleted": 2, "expired": 2, "overused": 3, "tight": 3},
    "spaaza": {"failed": 2, "running": 4, "superseded": 8, "invalid": 2, "late": 4},
    "crayon": {"empty": 3, "failed": 2, "running": 4, "short": 3, "deleted": 3},
}
_FORMS: dict[str, tuple[str, ...]] = {
    "sellercloud": ("base64", "base64", "json-string", "object", "raw", "lines", "bom"),
    "api2convert": ("",),
    "spaaza": ("",),
    "crayon": ("raw", "raw", "file-content", "numbers", "data", "camel", "accept"),
}
_KINDS = ("csv", "csv", "xlsx", "zip", "pdf", "json", "bytes")


def _additions(rng: random.Random, seconds: float, outputs: int) -> Iterator[Addition]:
    produced = 0
    for vendor in itertools.cycle(VENDORS):
        if produced >= outputs:
            break
        addition = _addition(rng, vendor, seconds)
        if addition.fate not in {"empty", "failed", "invalid"}:
            produced += len(addition.sizes) * (2 if addition.fate == "superseded" else 1)
        yield addition
    for vendor in VENDORS * (2 if outputs >= 1000 else 1):
        form = "object" if vendor == "sellercloud" else "raw" if vendor == "crayon" else ""
        yield Addition(at=rng.uniform(0, seconds * 0.6), vendor=vendor, fate="", sizes=(20 * MIB,), kind="csv", form=form)


def _addition(rng: random.Random, vendor: str, seconds: float) -> Addition:
    fates = _FATES[vendor]
    fate = rng.choices(["", *fates], weights=[100 - sum(fates.values()), *fates.values()])[0]
    if fate == "invalid" and seconds < LONG_SECONDS:
        fate = ""
    count = rng.choice((1, 1, 2, 3)) if vendor == "api2convert" and fate not in {"tight", "overused"} else 1
    form, kind = rng.choice(_FORMS[vendor]), rng.choice(_KINDS)
    sizes = [_size(rng) for _ in range(count)]
    if vendor in {"sellercloud", "crayon"}:
        sizes = [max(1, size) for size in sizes]  # there, no bytes mean that there is no file
        if form in {"raw", "accept"}:
            # The start of a file must show that it is none of the wrappings, as that of a real one does.
            sizes, kind = [max(2000, size) for size in sizes], rng.choice(("csv", "xlsx", "zip", "pdf"))
        if form == "numbers":
            sizes = [min(50_000, size) for size in sizes]
    if vendor == "spaaza":
        kind = "csv"
    life = rng.uniform(0.4, 1) * min(60, seconds / 2) if fate in {"short", "deleted"} else rng.uniform(3, 20)
    # What takes its time, or is soon gone, comes early enough to be seen through.
    at = rng.uniform(
        0, seconds if fate in {"", "partial", "empty", "failed"} else seconds * (0.3 if fate == "invalid" else 0.6)
    )
    return Addition(at=at, vendor=vendor, fate=fate, sizes=tuple(sizes), kind=kind, form=form, life=life)
