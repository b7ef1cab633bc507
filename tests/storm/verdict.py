"""What must be true after a storm, checked from the outside: vendors' truth and logs, the bucket, and lastcall's own commands.

Each check gives the exceptions it found as lines; none means that it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.storm.plan import BUDGET
from tests.storm.stage import BUCKET, FILES, PREFIX, Stage
from worker.demo.embedded import wait_until
from worker.demo.server import Truth

# A source is listed every two seconds at the latest (CONTRACT section 2), but for the faults in the way: three of six seconds
# in a row.
UNSEEN_SECONDS = 20.0
# Lost is what the vendor has called gone twice, ten seconds apart (section 4), and each question may meet faults. Until it is
# lost, what is to be reported is in Redis alone.
REPORTED_SECONDS = 60.0
# Who looked for a receipt a moment before it stood asks the vendor a moment after. Two may hold one output at once: a zombie
# and its heir.
IN_FLIGHT_SECONDS = 1.0


@dataclass
class Evidence:
    """What stands after the storm."""

    truth: dict[str, Truth]
    receipts: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, tuple[int, str, str]] = field(default_factory=dict)  # key -> size, sha256, etag
    rows: dict[str, Any] = field(default_factory=dict)  # `outputs --json` by id
    gets: dict[str, list[tuple[float, int, bool]]] = field(default_factory=dict)  # id -> (when, status, ranged)
    spent: Counter[str] = field(default_factory=Counter)  # id -> spent events
    lost_events: set[str] = field(default_factory=set)
    unfinished: list[str] = field(default_factory=list)

    def state(self, output: str) -> str:
        return "archived" if output in self.receipts else self.rows.get(output, {}).get("state", "unreported")


def receipt_ids(stage: Stage) -> set[str]:
    """The outputs that have a receipt, by the bucket's own listing."""
    return {key.removeprefix(f"{PREFIX}/_receipts/").removesuffix(".json") for key in _keys(stage, f"{PREFIX}/_receipts/")}


def rows(stage: Stage) -> dict[str, Any]:
    """Give ``outputs --json`` by id; nothing when the command fails."""
    done = stage.run("outputs", "--json")
    return {row["id"]: row for row in json.loads(done.stdout)} if done.returncode == 0 else {}


def unsettled(stage: Stage) -> list[str]:
    """What is neither archived nor reported yet."""
    truth, receipts, known = stage.truth(), receipt_ids(stage), rows(stage)
    ended = {"lost", "held"}
    waiting = {
        output
        for output, true in truth.items()
        if output not in receipts
        and known.get(output, {}).get("state") not in ended
        and not (true.gone and output not in known)
    }
    waiting |= {output for output in stage.never["invalid"] if known.get(output, {}).get("state") not in ended}
    waiting |= {output for output, row in known.items() if row["state"] in {"owed", "claimed"}}
    return sorted(
        f"{output}: {known.get(output, {}).get('state')}, {known.get(output, {}).get('last_error')}" for output in waiting
    )


def gather(stage: Stage) -> Evidence:
    """Collect what the checks look at."""
    found = Evidence(truth=stage.truth(), rows=rows(stage))

    def read(key: str) -> tuple[str, bytes, str]:
        answer = stage.s3.get_object(Bucket=BUCKET, Key=key)
        return key, answer["Body"].read(), answer["ETag"].strip('"')

    keys = _keys(stage, f"{PREFIX}/")
    with ThreadPoolExecutor(4) as pool:
        for key, body, etag in pool.map(read, [key for key in keys if "/_state/" not in key]):
            if key.startswith(f"{PREFIX}/_receipts/"):
                found.receipts[key.removeprefix(f"{PREFIX}/_receipts/").removesuffix(".json")] = json.loads(body)
            else:
                found.objects[key] = (len(body), hashlib.sha256(body).hexdigest(), etag)
    for key in keys:
        if match := re.fullmatch(rf"{PREFIX}/_state/(spent|lost)/(.+)/[^/]+\.json", key):
            if match[1] == "spent":
                found.spent[match[2]] += 1
            else:
                found.lost_events.add(match[2])
    found.gets = _gets(stage)
    found.unfinished = [
        f"{upload['Key']} of {upload['Initiated']}"
        for upload in stage.s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())
    ]
    return found


def _keys(stage: Stage, prefix: str) -> list[str]:
    pages = stage.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def _gets(stage: Stage) -> dict[str, list[tuple[float, int, bool]]]:
    """Each GET of a file as the vendors saw it, by output."""
    found: dict[str, list[tuple[float, int, bool]]] = defaultdict(list)
    folders = {
        (output.folder, output.filename): f"api2convert/{job.id}/{output.id}"
        for job, output in stage.api2convert._paths.values()
    }
    tasks = {task.filename: task for task in stage.spaaza._tasks.values()}
    for name, vendor in stage.vendors.items():
        for entry in vendor.requests(FILES[name]):
            parts = entry.path.strip("/").split("/")
            if name == "sellercloud":
                job = (entry.query.get("id") or parts[-1:])[0]
                output = f"{name}/{job}/{job}"
            elif name == "crayon":
                output = f"{name}/{parts[3]}/{parts[3]}"
            elif name == "api2convert":
                output = folders.get((parts[-2], parts[-1]), "?")
            else:
                task = tasks[parts[-1]]
                run = task.run(entry.at)
                output = f"{name}/{task.id}/{run.named_at:%Y%m%dT%H%M%SZ}" if run else "?"
            found[output].append((entry.at.timestamp(), entry.status, "range" in entry.headers))
    return found


# --- the checks ------------------------------------------------------------------------------------------------------


def nothing_missing(stage: Stage, found: Evidence) -> Iterator[str]:
    """Vendor truth − archived − reported is empty, and a report is never wrong."""
    for output, true in found.truth.items():
        state, row = found.state(output), found.rows.get(output, {})
        gets = [get for get in found.gets.get(output, ()) if get[1] == 200]
        if state == "archived":
            continue
        if state == "lost":
            if not true.gone:
                yield f"{output} is reported lost, but the vendor has it: {row.get('last_error')}"
            if output not in found.lost_events:
                yield f"{output} is lost, and no event in the bucket says so"
        elif state == "held":
            used = stage.preset_downloads.get(output, 0)
            budget_is_used = output.startswith("api2convert/") and max(used + len(gets), found.spent[output] + used) >= BUDGET
            if not budget_is_used:
                yield f"{output} is held without need ({used} + {len(gets)} downloads): {row.get('last_error')}"
        elif not (state == "unreported" and true.gone and _nobody_could_know(stage, output, true)):
            yield f"{output} is {state} (gone: {true.gone}): {row.get('last_error')}"


def _nobody_could_know(stage: Stage, output: str, true: Truth) -> bool:
    """Whether the vendor took the bytes back before a listing could show them, or Redis forgot the output while it was on offer
    or was being asked for once more: then nobody is left who could list it, and no contract promises it.
    """
    gone_at = stage.gone_at.get(output, time.time())
    offered_at = max(true.completed_at.timestamp(), stage.began)
    return gone_at - offered_at < UNSEEN_SECONDS or any(
        offered_at < at < gone_at + REPORTED_SECONDS and offered_at + UNSEEN_SECONDS > since for at, since in stage.forgot
    )


def nothing_invented(stage: Stage, found: Evidence) -> Iterator[str]:
    """Nothing is archived that no vendor produced; what is reported exists or is known to be nothing."""
    for output in found.receipts:
        if output not in found.truth:
            yield f"{output} is archived, but the vendor never produced it"
    known = {*found.truth, *stage.never["empty"], *stage.never["invalid"]}
    for output, row in found.rows.items():
        if output not in known:
            yield f"{output} is {row['state']}, but the vendor never produced it"
    for output in stage.never["empty"]:
        if found.state(output) != "empty":
            yield f"{output} produced nothing, but is {found.state(output)}"
    for output in stage.never["invalid"]:
        if found.state(output) != "lost":
            yield f"{output} has an invalid result, but is {found.state(output)}"


def every_byte(stage: Stage, found: Evidence) -> Iterator[str]:
    """Each output has exactly one object and one receipt, equal to the truth and to each other."""
    del stage
    objects = dict(found.objects)
    for output, receipt in found.receipts.items():
        true = found.truth.get(output)
        if true is None:
            continue
        stands = objects.pop(receipt["key"], None)
        if stands is None:
            yield f"{output}: no object of its own at {receipt['key']}"
            continue
        if stands[:2] != (true.size, true.sha256):
            yield f"{output}: the object has {stands[0]} bytes, {stands[1]}; the vendor made {true.size}, {true.sha256}"
        if (receipt["size"], receipt["sha256"], receipt["etag"]) != stands:
            yield f"{output}: receipt and object differ: {receipt['size']}, {receipt['sha256']}, {receipt['etag']}; {stands}"
        yield from _receipt_faults(output, true, receipt)
    for key in objects:
        yield f"an object that no receipt names: {key}"


def _receipt_faults(output: str, true: Truth, receipt: dict[str, Any]) -> Iterator[str]:
    completed = datetime.fromisoformat(receipt["completed_at"])
    identity = f"{receipt['source']}/{receipt['job_id']}/{receipt['output_id']}"
    expected_key = (
        f"{PREFIX}/{receipt['source']}/{completed:%Y/%m/%d}/{receipt['job_id']}/{receipt['output_id']}/{receipt['filename']}"
    )
    for name, wrong in {
        "schema": receipt["schema"] != 1,
        "identity": identity != output,
        "vendor": receipt["vendor"] != receipt["source"],
        "bucket": receipt["bucket"] != BUCKET,
        "key": receipt["key"] != expected_key,
        "completed_at": abs((completed - true.completed_at).total_seconds()) > 1,
        "archived_at": not receipt["archived_at"] >= receipt["completed_at"][:19],
        "downloads": receipt["downloads"] < 1,
        "filename": receipt["filename"] != true.filename and receipt["source"] != "crayon",
        "proof": not receipt["proof"],
        "vendor_size": receipt["vendor_size"] not in {None, true.size},
    }.items():
        if wrong:
            yield f"{output}: the receipt's {name} is wrong: { ({**receipt, 'job': '…'}) }, vendor: {true}"


def budgets_kept(stage: Stage, found: Evidence) -> Iterator[str]:
    """Counted downloads stay within the budget, and each is in the bucket before it is made."""
    for output, gets in found.gets.items():
        if not output.startswith("api2convert/"):
            continue
        used = stage.preset_downloads.get(output, 0)
        if len(gets) > max(0, BUDGET - used):
            yield f"{output}: {len(gets)} GETs, and {used} before, of {BUDGET}"
        if len(gets) > found.spent[output]:
            yield f"{output}: {len(gets)} GETs, but {found.spent[output]} spent events"


def never_twice(stage: Stage, found: Evidence) -> Iterator[str]:
    """What has a receipt is never downloaded again, whatever Redis has forgotten."""
    for output, gets in found.gets.items():
        stood = stage.proxy.receipts.get(f"{PREFIX}/_receipts/{output}.json")
        if stood is None:
            continue
        for at, status, ranged in sorted(gets):
            # A zombie goes on where it stood until its next heartbeat, a third of a lease after it woke up.
            zombie = any(began <= at < ended + IN_FLIGHT_SECONDS for began, ended in stage.frozen)
            if at <= stood + IN_FLIGHT_SECONDS or zombie:
                continue
            how = "resumed" if ranged else "downloaded"
            yield f"{output} was {how} {at - stood:.1f} s after its receipt stood ({status}), at {_clock(at)}"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]


def counts_agree(stage: Stage, found: Evidence) -> Iterator[str]:
    """`status` says what the bucket and the ledger's list say; asked again for a while, since a count may be under way."""
    wrong: list[str] = []
    for _ in range(20):
        wrong = list(_count_faults(stage, found))
        if not wrong:
            return
        time.sleep(1)
    yield from wrong


def _count_faults(stage: Stage, found: Evidence) -> Iterator[str]:
    done = stage.run("status", "--json")
    states = {output: found.state(output) for output in {*found.truth, *found.rows}}
    expected_exit = int("lost" in states.values())
    if done.returncode != expected_exit:
        yield f"status exits with {done.returncode}, not {expected_exit}: {done.stderr[-500:]}"
        return
    for name, row in json.loads(done.stdout)["sources"].items():
        mine = Counter(state for output, state in states.items() if output.startswith(f"{name}/"))
        for state in ("archived", "lost", "held", "empty", "owed", "claimed"):
            if row[state] != mine[state]:
                yield f"status of {name}: {state} {row[state]}, in truth {mine[state]}"
        if row["paused_until"]:
            yield f"status of {name}: paused until {row['paused_until']}: {row['paused_why']}"


def audit_agrees(stage: Stage, found: Evidence) -> Iterator[str]:
    """`audit` lists exactly the losses and what is held; acknowledged losses are no bad news any more."""
    for acknowledged in (False, True):
        lost = {output for output in {*found.truth, *stage.never["invalid"]} if found.state(output) == "lost"}
        held = {output for output in found.truth if found.state(output) == "held"}
        expected = {"lost": set() if acknowledged else lost, "explained": lost if acknowledged else set(), "held": held}
        done = stage.run("audit", "--json")
        if done.returncode not in {0, 1} or not done.stdout:
            yield f"audit exits with {done.returncode}: {done.stdout[-500:]} {done.stderr[-1500:]}"
            return
        sources = json.loads(done.stdout)["sources"]
        for what in ("lost", "held", "explained", "missing", "damaged", "pending"):
            listed = {row["id"] for audit in sources.values() for row in audit["exceptions"][what]}
            for output in listed ^ expected.get(what, set()):
                yield f"audit ({acknowledged=}) of {output}: {'' if output in listed else 'not '}listed as {what}"
        if done.returncode != int(bool(held or expected["lost"])):
            yield f"audit ({acknowledged=}) exits with {done.returncode}"
        if lost and not acknowledged:
            done = stage.run("acknowledge", *sorted(lost), "--reason", "the storm took it")
            if done.returncode:
                yield f"acknowledge exits with {done.returncode}: {done.stderr[-500:]}"
    if (code := stage.run("status").returncode) != 0:
        yield f"status exits with {code} though every loss is acknowledged"


def proofs_agree(stage: Stage, found: Evidence) -> Iterator[str]:
    """What was proved by schedule amid the faults never called a whole object damaged, and the record of it is unbroken."""
    done = stage.run("audit", "--history", "--json")
    if done.returncode != 0:
        yield f"the record of proofs: exit {done.returncode}: {done.stdout[-500:]} {done.stderr[-1500:]}"
        return
    for record in json.loads(done.stdout)["records"]:
        for source, row in record["sources"].items():
            if row["damaged"]:
                yield f"record {record['number']} ({record['proof']}) of {source}: {row['damaged']} damaged"


def rebuild_changes_nothing(stage: Stage, found: Evidence) -> Iterator[str]:
    """`rebuild` gives the same ledger again, without a single download."""
    before = sum(len(vendor.requests(FILES[name])) for name, vendor in stage.vendors.items())
    done = stage.run("rebuild")
    if done.returncode:
        yield f"rebuild exits with {done.returncode}: {done.stdout[-300:]} {done.stderr[-500:]}"
        return
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        after = rows(stage)
        changed = {output: row["state"] for output, row in after.items() if row["state"] != found.state(output)}
        if not changed and len(after) >= len(found.truth) * 0.9:
            break
        time.sleep(1)
    else:
        yield f"after rebuild {len(changed)} outputs differ: {dict(list(changed.items())[:5])}"
    downloads = sum(len(vendor.requests(FILES[name])) for name, vendor in stage.vendors.items()) - before
    # What is held because its budget is used may be looked at again, what is lost may be probed; neither is archived.
    if downloads:
        again = {output for output, gets in _gets(stage).items() if len(gets) > len(found.gets.get(output, ()))}
        for output in sorted(again & set(found.receipts)):
            yield f"{output} was downloaded again after rebuild"


def nothing_left(stage: Stage, found: Evidence) -> Iterator[str]:
    """No unfinished upload remains, no simulator failed, and nothing was written that looks like a defect."""
    for upload in found.unfinished:
        yield f"unfinished upload: {upload}"
    for name, vendor in stage.vendors.items():
        for crash in vendor.crashes:
            yield f"the simulator {name} failed: {crash}"
    for path in sorted(stage.folder.glob("*.log")):
        if path.name == "s3.log":
            continue
        text = path.read_text(errors="replace")
        for word in ("Traceback", "defect:"):
            if word in text:
                at = text.index(word)
                yield f"{path.name}: {word} ({text.count(word)} times), first: {text[max(0, at - 500) : at + 1500]}"


def nobody_left(stage: Stage) -> Iterator[str]:
    """Each process ends with 0 within 30 s of SIGTERM, and none outlives its supervisor."""
    for crew in stage.crew:
        if crew.child.running:
            crew.terminate()
        else:
            yield f"{crew.name} does not run at the end ({crew.child.returncode})"
    for crew in stage.crew:
        if crew.told_to_stop:
            with suppress(TimeoutError):  # it is killed then, and its code tells
                wait_until(lambda crew=crew: not crew.child.running, 32, crew.name)
            stage.stop_seconds.append(time.monotonic() - crew.told_to_stop)
            crew.child.kill()
            if crew.child.returncode != 0:
                yield f"{crew.name} ended with {crew.child.returncode} after SIGTERM"
    mark = f"LASTCALL_CONFIG={stage.config}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue  # it ended, or is not ours
        if mark in environment.split(b"\0") and int(process.name) != os.getpid():
            yield f"process {process.name} is left: {(process / 'cmdline').read_bytes()!r}"
