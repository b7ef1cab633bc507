"""deploy/prometheus, deploy/grafana and the runbook speak of every metric, alert and error that there is, and of no other."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import tomllib
import warnings
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.web.story import SOURCES, open_ledger, tell_story
from worker import alerts, app, errors, settings
from worker.web import metrics

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Grafana 13's own form is not what 12 reads
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/lastcall.rules.yml"
RUNBOOK = (ROOT / "deploy/RUNBOOK.md").read_text()
DASHBOARD = json.loads((ROOT / "deploy/grafana/lastcall.json").read_text())

# CONTRACT section 7: name, type, labels.
CONTRACT = {
    "lastcall_outputs": ("gauge", {"source", "state"}),
    "lastcall_nearest_deadline_seconds": ("gauge", {"source"}),
    "lastcall_at_risk": ("gauge", {"source"}),
    "lastcall_overdue": ("gauge", {"source"}),
    "lastcall_lost_total": ("counter", {"source", "reason"}),
    "lastcall_archived_total": ("counter", {"source"}),
    "lastcall_archived_bytes_total": ("counter", {"source"}),
    "lastcall_downloads_total": ("counter", {"source", "result"}),
    "lastcall_polls_total": ("counter", {"source", "result"}),
    "lastcall_last_poll_timestamp_seconds": ("gauge", {"source"}),
    "lastcall_ready_to_archived_seconds": ("histogram", {"source"}),
    "lastcall_unproven_total": ("counter", {"source"}),
    "lastcall_workers": ("gauge", set()),
    "lastcall_beat_timestamp_seconds": ("gauge", set()),
}


@pytest.fixture
def scraped(redis_url: str) -> str:
    """What /metrics says of a ledger with one output in every state."""
    ledger = open_ledger(redis_url)
    tell_story(ledger)
    return metrics.render(ledger, settings.parse(tomllib.loads('[archive]\nbucket = "exports"\n' + SOURCES))).decode()


def promtool(*arguments: str, **options: str) -> str:
    """Run promtool, which must be content."""
    executable = shutil.which("promtool")
    if executable is None:
        pytest.skip("promtool is not on PATH; `make tools` installs it")
    done = subprocess.run([executable, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def expressions() -> list[str]:
    """Give every PromQL expression of the rules, the dashboard and KEDA."""
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    scaling = yaml.safe_load((ROOT / "deploy/kubernetes/keda/scaledobject.yaml").read_text())
    rules += [trigger["metadata"]["query"] for trigger in scaling["spec"]["triggers"]]
    return rules + [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def alert_rules() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_every_metric_of_the_contract_is_there_with_its_type_its_labels_and_a_help_text(scraped: str) -> None:
    help_texts = dict(re.findall(r"^# HELP (\w+) (.+)$", scraped, re.MULTILINE))
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", scraped, re.MULTILINE))
    assert types.keys() == help_texts.keys()
    assert all(text.endswith(".") for text in help_texts.values())
    found = {sample.name: sample for family in text_string_to_metric_families(scraped) for sample in family.samples}
    for name, (kind, labels) in CONTRACT.items():
        assert types[name] == kind, name
        sample = found[f"{name}_sum" if kind == "histogram" else name]
        assert set(sample.labels) == labels, name


def test_promtool_finds_nothing_to_say_about_the_metrics(scraped: str) -> None:
    assert promtool("check", "metrics", input=scraped) == ""


def test_rules_and_dashboard_use_only_metrics_and_labels_that_there_are(scraped: str) -> None:
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(scraped):
        names = [family.name, *(f"{family.name}_{end}" for end in ("total", "bucket", "sum", "count"))]
        seen = {label for sample in family.samples for label in sample.labels} | {"source"}
        labels |= {name: seen for name in names if re.search(rf"^{name}\b|^# TYPE {name} gauge", scraped, re.MULTILINE)}
    used = set()
    for expression in expressions():
        for name, matchers in re.findall(r"\b(lastcall_\w+)(\{[^}]*\})?", expression):
            assert name in labels, f"{name} is no metric, in: {expression}"
            used.add(name)
            for label in re.findall(r"(\w+)\s*[=!]~?", matchers):
                assert label in labels[name], f"{name} has no label {label}, in: {expression}"
    assert used >= {name for name, (kind, _) in CONTRACT.items() if kind != "histogram"}, "a metric that nobody looks at"


def test_promtool_takes_the_rules_and_their_tests_pass() -> None:
    assert f"{len(alert_rules())} rules found" in promtool("check", "rules", str(RULES))
    assert "SUCCESS" in promtool("test", "rules", str(RULES.with_name("lastcall.rules.test.yml")))
    assert "SUCCESS" in promtool("check", "config", str(RULES.with_name("prometheus.yml")))


def test_promtool_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    texts = [text.replace("$__rate_interval", "1m").replace("$source", ".*") for text in expressions()]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(texts)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "rules.yml"))


def test_each_rule_is_tested_to_be_silent_and_to_speak() -> None:
    document = yaml.safe_load(RULES.with_name("lastcall.rules.test.yml").read_text())
    cases = [case for test in document["tests"] for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in alert_rules()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_the_dashboard_is_what_grafana_reads() -> None:
    """Read by the types that Grafana gives out and written again, it is the same: no key is unknown, none is misspelt."""
    assert json.loads(json.dumps(Dashboard.from_json(DASHBOARD), cls=JSONEncoder)) == DASHBOARD
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}", "no data source of our own"
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, f"{one} covers {other}"


# --- the runbook -----------------------------------------------------------------------------------------------------


def headings(text: str) -> set[str]:
    """Give the anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_alert_of_prometheus_has_its_entry_and_leads_to_it() -> None:
    for rule in alert_rules():
        entry = rule["alert"].lower()
        assert rule["annotations"]["runbook"] == f"deploy/RUNBOOK.md#{entry}"
        assert entry in headings(RUNBOOK), rule["alert"]
        severity = re.search(rf"### {rule['alert']}\n\n\*\*(\w+)\.\*\*", RUNBOOK)
        assert severity is not None, rule["alert"]
        assert severity[1] == rule["labels"]["severity"], rule["alert"]
    entries = set(re.findall(r"^### (Lastcall\w+)$", RUNBOOK, re.MULTILINE))
    assert entries == {rule["alert"] for rule in alert_rules()}, "an entry without a rule"


def texts_in(tree: ast.AST, *, formats_alone: bool) -> list[str]:
    """Give the constant texts of `tree`, or those of its f-strings alone."""
    inside = [part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values]
    parts = inside if inside or formats_alone else ast.walk(tree)
    return [part.value for part in parts if isinstance(part, ast.Constant) and str(part.value).strip()]


def queued_texts() -> list[str]:
    """Give the longest constant part of each text that any function of the worker hands to `queue_alert`."""
    texts = []
    for path in (ROOT / "worker").rglob("*.py"):
        for function in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            for call in calls:
                if isinstance(call.func, ast.Attribute) and call.func.attr == "queue_alert":
                    here = texts_in(call.args[0], formats_alone=False)  # else it was put together above, or passed on
                    texts += sorted(here or texts_in(function, formats_alone=True), key=len)[-1:]
    return texts


def test_every_text_that_people_are_sent_has_its_entry() -> None:
    texts = [*queued_texts(), *alerts._WHAT_TO_DO]
    assert len(texts) > 10
    for text in texts:
        assert text.strip(" :").split(", ")[0] in RUNBOOK, text


def test_every_class_of_error_has_its_row() -> None:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
    for cls in (*classes, app.DefectError):
        assert f"`{cls.__name__}`" in RUNBOOK, cls.__name__


@pytest.mark.parametrize("page", sorted((ROOT / "deploy").rglob("*.md")), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_of_deploy_leads_nowhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in headings(target.read_text()), f"{path}#{anchor}"
