"""The files in deploy/: they parse, name paths, metrics and options that the service has, and keep its promises."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from tests.serve.client import Client
from tests.serve.redis_server import DURABLE
from tests.serve.tiny import write_run
from twofold.cli.main import app
from twofold.serve import workers
from twofold.serve.app import build_app
from twofold.serve.event_store import open_histories
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.service import Service
from twofold.serve.workers import GRACE_S, ServeOptions

DEPLOY = Path(__file__).parents[1] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
OBJECTS: list[dict[str, Any]] = [
    each
    for name in ("twofold", "redis")
    for each in yaml.safe_load_all((DEPLOY / f"kubernetes/{name}.yaml").read_text())
]
(POD,) = (each["spec"]["template"]["spec"] for each in OBJECTS if each["kind"] == "Deployment")
(CONTAINER,) = POD["containers"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    run = write_run(tmp_path_factory.mktemp("runs") / "tiny")
    histories = open_histories(run.parent / "histories.db")
    return Client(build_app(Service(open_live_bundle(run), run.parent, histories, ServiceMetrics()), Limits()))


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_file_parses(path: Path) -> None:
    assert all(isinstance(each, dict) for each in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_every_probe_asks_a_path_that_answers_without_a_token(client: Client, probe: str) -> None:
    request = CONTAINER[probe]["httpGet"]
    assert request["port"] in {port["name"] for port in CONTAINER["ports"]}
    assert client.get(request["path"])[0] == 200


def test_a_service_that_stops_is_not_ready_but_alive() -> None:
    """Kubernetes must stop sending requests, and not kill the service."""
    paths = {name: CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    drain = float(CONTAINER["args"][CONTAINER["args"].index("--drain") + 1])
    readiness = CONTAINER["readinessProbe"]
    assert drain > readiness["periodSeconds"] * readiness["failureThreshold"]
    assert POD["terminationGracePeriodSeconds"] > drain + GRACE_S
    assert COMPOSE["twofold"]["stop_grace_period"] == f"{POD['terminationGracePeriodSeconds']}s"


def test_every_option_is_one_of_the_command() -> None:
    known = {name for option in get_command(app).commands["serve"].params for name in option.opts}  # type: ignore[attr-defined]
    compose = COMPOSE["twofold"]
    for words in ([*compose["entrypoint"], *compose["command"]], [*CONTAINER["command"], *CONTAINER["args"]]):
        assert words[:2] == ["twofold", "serve"]
        assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("named", [None, "redis://:secret@10.0.0.9:6379/0"])
def test_the_image_has_a_store_on_its_volume_unless_the_variable_names_another(
    named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DEPLOY.parent / "Dockerfile").read_text()
    variables = dict(re.findall(r"(TWOFOLD_\w+)=(\S+)", text))
    for name, value in (variables | ({"TWOFOLD_HISTORIES": named} if named else {})).items():
        monkeypatch.setenv(name, value)
    (entry,), (command,) = (re.findall(rf"^{word} (\[.*\])$", text, re.MULTILINE) for word in ("ENTRYPOINT", "CMD"))
    opened: list[ServeOptions] = []
    monkeypatch.setattr(workers, "serve", lambda options, on_listening: opened.append(options))
    app([*json.loads(entry)[1:], *json.loads(command)], standalone_mode=False)
    assert [options.histories for options in opened] == [named or "/histories/histories.db"]


def test_nginx_sends_no_request_again_that_would_count_twice() -> None:
    (text,) = re.findall(r"```nginx\n(.*?)```", (DEPLOY.parent / "docs" / "deploy.md").read_text(), re.DOTALL)
    locations = re.findall(r"^    location (= |\^~ |)(/\S*) \{(.*?)^    \}", text, re.DOTALL | re.MULTILINE)

    def is_repeated(path: str) -> bool:
        """Finds the location as nginx does: the one that is equal, else the longest with which the path begins."""
        fits = [each for each in locations if (path == each[1] if each[0] == "= " else path.startswith(each[1]))]
        return "non_idempotent" in max(fits, key=lambda each: (each[0] == "= ", len(each[1])))[2]

    routes = ("/v1/recommend", "/v1/recommend:batch", "/v1/rank", "/v1/events", "/v1/events:remove")
    assert [path for path in routes if not is_repeated(path)] == ["/v1/events", "/v1/events:remove"]


def expressions() -> list[str]:
    panels = json.loads((DEPLOY / "grafana/dashboards/twofold.json").read_text())["panels"]
    (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [
        rule["expr"] for rule in group["rules"]
    ]


def test_every_metric_of_dashboard_and_alerts_is_on_the_page_of_metrics(client: Client) -> None:
    assert client.post("/v1/recommend", {"user_id": 10})[0] == 200
    (page,) = client.send(("GET", "/metrics", b""))
    known = set(re.findall(r"twofold_\w+", page.text))
    named = {name for text in expressions() for name in re.findall(r"twofold_\w+", text)}
    assert len(named) > 8
    assert named <= known
    kinds = set(re.findall(r'of="(\w+)"', page.text))
    assert {kind for text in expressions() for kind in re.findall(r'of="(\w+)"', text)} <= kinds
    stages = set(re.findall(r'stage="(\w+)"', page.text))
    assert {stage for text in expressions() for stage in re.findall(r'stage!?="(\w+)"', text)} <= stages


def test_the_root_is_read_only_and_nothing_runs_as_root() -> None:
    assert all(COMPOSE[name]["read_only"] for name in ("twofold", "redis", "prometheus"))
    assert COMPOSE["twofold"]["cap_drop"] == ["ALL"]
    for each in OBJECTS:
        if each["kind"] in ("Deployment", "StatefulSet"):
            pod = each["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            for container in pod["containers"]:
                assert container["securityContext"]["readOnlyRootFilesystem"]
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_no_image_has_a_floating_version_and_no_secret_is_written_down() -> None:
    images = [service["image"] for name, service in COMPOSE.items() if name != "twofold"]
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in images)
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-slim-bookworm$", dockerfile, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${BASE}"}
    text = (DEPLOY / "compose.yaml").read_text()
    for name in ("TWOFOLD_TOKEN", "TWOFOLD_ADMIN_TOKEN", "REDIS_PASSWORD", "GRAFANA_PASSWORD"):
        assert f"${{{name}:?" in text  # refused without a value


def test_redis_stores_every_acknowledged_event() -> None:
    (redis,) = (each for each in OBJECTS if each["kind"] == "StatefulSet")
    for words in (COMPOSE["redis"]["command"], redis["spec"]["template"]["spec"]["containers"][0]["args"]):
        assert " ".join(DURABLE) in " ".join(words)


def run_tool(name: str, *arguments: object, missing: str) -> str:
    """Runs a program that checks its own kind of file; skips if it is not installed."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"no {name} on this machine: {missing}")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_the_alerts_and_its_configuration() -> None:
    for kind in (["rules", DEPLOY / "alerts.yaml"], ["config", "--syntax-only", DEPLOY / "prometheus.yaml"]):
        run_tool("promtool", "check", *kind, missing="apt-get install prometheus")


# Per alert: its labels, and series by minutes, of a service that is ill and of one that is well.
RISING, STILL, FEW = "0+600x60", "0x60", "0+1x60"
BUCKET = 'twofold_stage_seconds_bucket{instance="a", stage="request", le="%s"}'
ALERTS: dict[str, tuple[dict[str, str], dict[str, tuple[str, str]]]] = {
    "TwofoldDown": ({"job": "twofold", "instance": "a"}, {'up{job="twofold", instance="a"}': ("0x60", "1x60")}),
    "TwofoldErrors": (
        {"instance": "a"},
        {
            'twofold_requests_total{instance="a", status="200"}': (RISING, RISING),
            'twofold_requests_total{instance="a", status="503"}': (RISING, FEW),
        },
    ),
    "TwofoldSlow": (
        {"instance": "a"},
        {BUCKET % "0.1": (STILL, RISING), BUCKET % "0.5": (RISING, RISING), BUCKET % "+Inf": (RISING, RISING)},
    ),
    "TwofoldPointerLag": ({"instance": "a"}, {'twofold_pointer_lag{instance="a"}': ("1x60", "0x60")}),
    "TwofoldBundlesDiffer": (
        {},
        {
            'twofold_bundle_info{instance="a", bundle="one"}': ("1x60", "1x60"),
            'twofold_bundle_info{instance="b", bundle="two"}': ("1x60", "0x60"),
        },
    ),
    "TwofoldMostlyPopular": (
        {},
        {
            'twofold_lists_total{source="popularity"}': (RISING, FEW),
            'twofold_lists_total{source="model"}': (FEW, RISING),
        },
    ),
    "TwofoldUnknownItems": (
        {},
        {"twofold_events_total": (RISING, RISING), 'twofold_unknown_ids_total{of="posted_item"}': (RISING, FEW)},
    ),
}


def test_every_alert_fires_for_its_fault_and_for_no_service_that_is_well(tmp_path: Path) -> None:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    assert {rule["alert"] for rule in group["rules"]} == ALERTS.keys()
    tests = []
    for rule in group["rules"]:
        labels, series = ALERTS[rule["alert"]]
        texts = {name: text.replace("{{ $labels.instance }}", "a") for name, text in rule["annotations"].items()}
        alert = {"exp_labels": labels | rule["labels"], "exp_annotations": texts}
        for is_well, expected in ((False, [alert]), (True, [])):
            inputs = [{"series": name, "values": values[is_well]} for name, values in series.items()]
            check = {"eval_time": "55m", "alertname": rule["alert"], "exp_alerts": expected}
            tests.append({"interval": "1m", "input_series": inputs, "alert_rule_test": [check]})
    page = {"rule_files": [str(DEPLOY / "alerts.yaml")], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(page))
    run_tool("promtool", "test", "rules", tmp_path / "tests.yaml", missing="apt-get install prometheus")


def test_the_manifests_have_the_fields_of_kubernetes() -> None:
    files = [DEPLOY / f"kubernetes/{name}.yaml" for name in ("twofold", "redis")]
    options = ("--strict", "--kubernetes-version", "1.31")
    run_tool("kubernetes-validate", *options, *files, missing="pip install kubernetes-validate")


def test_kubectl_builds_the_manifests() -> None:
    built = list(yaml.safe_load_all(run_tool("kubectl", "kustomize", DEPLOY / "kubernetes", missing="install kubectl")))
    assert {each["metadata"]["namespace"] for each in built} == {"twofold"}
    assert len(built) == len(OBJECTS)
