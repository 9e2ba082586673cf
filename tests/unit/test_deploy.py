"""What is deployed: metric names that exist, manifests that a cluster takes, an image without ballast."""

import json
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from app.api import LONG_BODY_LIMIT
from app.config import KEEP_ALIVE_SECONDS, load_settings
from tests.server import ROOT, free_port

DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.stem != "kustomization")
DASHBOARD = json.loads((DEPLOY / "grafana" / "billing.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
KUBERNETES = "1.33"


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def pods():
    """The pod specs of everything that runs something."""
    found = [document for path in MANIFESTS for document in documents(path)]
    return [d["spec"]["template"]["spec"] for d in found if "template" in d["spec"]]


# Metrics


@pytest.fixture
def metrics(client):
    """Every metric name that /metrics can show."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", client.get("/metrics").text, re.MULTILINE):
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {name + suffix for suffix in suffixes}
    return names


EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]] + [
    rule["expr"] for rule in ALERTS
]


def test_expressions_name_metrics_that_exist(metrics):
    for expression in EXPRESSIONS:
        named = set(re.findall(r"\bbilling_\w+", expression))
        assert named or expression.startswith("up{")
        assert named <= metrics, named - metrics
        assert expression.count("(") == expression.count(")")


def test_every_metric_of_ours_is_on_the_dashboard(metrics):
    shown = " ".join(EXPRESSIONS)
    families = {
        re.sub(r"_(bucket|sum|count|created)$", "", name) for name in metrics if name.startswith("billing_")
    }
    assert {family for family in families if family not in shown} == set()


def test_every_alert_says_what_to_do():
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) >= 8
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert re.fullmatch(r"\d+[mh]", rule["for"])


# Kubernetes


def test_manifests_fit_the_api_of_a_cluster():
    for path in MANIFESTS:
        for document in documents(path):
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_selectors_find_the_service_and_not_the_migration():
    found = {document["kind"]: document["spec"] for path in MANIFESTS for document in documents(path)}
    name = {"app.kubernetes.io/name": "billing"}
    assert found["Deployment"]["template"]["metadata"]["labels"] == name
    assert found["Service"]["selector"] == name
    assert (
        found["Deployment"]["selector"] == found["PodDisruptionBudget"]["selector"] == {"matchLabels": name}
    )
    assert found["Job"]["template"]["metadata"]["labels"] != name


def test_kustomize_lists_every_manifest():
    base = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert sorted(base["resources"]) == [path.name for path in MANIFESTS]


def test_pods_have_no_more_rights_than_they_need():
    assert len(pods()) == 2
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
        for volume in pod["volumes"]:
            if "secret" in volume:  # readable by the group that fsGroup names, by nobody else
                assert volume["secret"]["defaultMode"] == 0o440


def test_probes_ask_routes_that_exist_and_stopping_has_time_enough(client):
    service = next(pod for pod in pods() if pod["containers"][0]["name"] == "billing")
    container = service["containers"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert client.get(container[probe]["httpGet"]["path"]).status_code == 200
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert service["terminationGracePeriodSeconds"] > pause + gunicorn_settings()["graceful_timeout"]
    readiness = container["readinessProbe"]
    assert pause >= readiness["periodSeconds"] * readiness["failureThreshold"]


# What stands in front


def gunicorn_settings():
    """The numbers that gunicorn.conf.py sets."""
    found = re.findall(r"^(\w+) = (\d+)\b", (ROOT / "gunicorn.conf.py").read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def test_the_limits_of_the_proxy_are_wider_than_those_of_the_service():
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    found = dict(re.findall(r"^ +(\w+) (\d+)(?:s|m)?;", text, re.MULTILINE))
    upstream = re.search(r"upstream billing \{.*?keepalive_timeout (\d+)s;", text, re.DOTALL)
    assert upstream
    assert int(upstream[1]) < KEEP_ALIVE_SECONDS
    assert int(found["client_max_body_size"]) * 2**20 > LONG_BODY_LIMIT
    assert int(found["proxy_read_timeout"]) > gunicorn_settings()["graceful_timeout"]
    assert "buffering off" not in text
    assert "non_idempotent" not in text


def test_systemd_keeps_the_port_and_waits_for_requests_under_way():
    socket_unit, service = (
        (DEPLOY / "systemd" / f"billing.{kind}").read_text() for kind in ("socket", "service")
    )
    assert f"ListenStream={load_settings({}).port}\n" in socket_unit
    assert "Requires=billing.socket\n" in service
    stop_seconds = re.search(r"TimeoutStopSec=(\d+)", service)
    assert stop_seconds
    assert int(stop_seconds[1]) > gunicorn_settings()["graceful_timeout"]


# Image and compose


def copied():
    """What the Dockerfile takes from this folder into the image."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_the_image_holds_what_the_service_imports_and_nothing_else():
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == set(copied())
    assert set(copied()) == {"requirements.txt", "wsgi.py", "gunicorn.conf.py", "app", "cli", "sql"}
    assert all((ROOT / name).exists() for name in copied())


def test_the_dockerfile_keeps_the_promises_of_the_seed():
    text = (ROOT / "Dockerfile").read_text()
    for line in ("WORKDIR /app", "EXPOSE 3100", "USER 10001:10001", 'CMD ["gunicorn", "wsgi:app"]'):
        assert f"\n{line}\n" in text
    assert text.count("\nFROM ") == 2
    assert "HEALTHCHECK" in text
    settings = load_settings({})
    assert (settings.port, settings.license_private_key_path.name) == (3100, "private-key.pem")


def test_the_health_check_of_the_image_passes_and_fails(url):
    (command,) = re.findall(r"CMD (\[\"python.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    check = [sys.executable, *json.loads(command)[1:]]
    for port, passes in ((url.rpartition(":")[2], True), (str(free_port()), False)):
        done = subprocess.run(check, env={"PORT": port}, capture_output=True, check=False)
        assert (done.returncode == 0) is passes, done.stderr


def test_compose_migrates_before_it_serves_behind_the_proxy():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert set(services) == {"database", "migrate", "api", "proxy"}
    assert services["migrate"]["command"] == ["flask", "db", "migrate"]
    assert services["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert services["api"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert "ports" not in services["api"]
    assert services["api"]["environment"]["TRUSTED_PROXIES"] == "1"
    proxy = services["proxy"]
    assert proxy["ports"] == ["3100:80"]
    assert proxy["depends_on"] == {"api": {"condition": "service_healthy", "restart": True}}
    assert proxy["volumes"] == ["./deploy/nginx/nginx.conf:/etc/nginx/nginx.conf:ro"]
    for name in ("migrate", "api"):
        service = services[name]
        assert service["read_only"] is True
        assert service["volumes"] == ["./keys:/app/keys:ro"]
        assert service["environment"]["DATABASE_URL"].endswith("@database:5432/zemfyre_billing")
