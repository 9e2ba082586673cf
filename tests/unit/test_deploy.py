"""What is deployed: metric names that exist, manifests that a cluster takes, an image without ballast."""

import json
import re
import subprocess
import sys

import kubernetes_validate
import yaml

from app.api import LONG_BODY_LIMIT
from app.config import KEEP_ALIVE_SECONDS, load_settings
from tests.server import ROOT, free_port

DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.stem != "kustomization")
DOCUMENTS = [found for path in MANIFESTS for found in yaml.safe_load_all(path.read_text()) if found]
SPECS = {document["kind"]: document["spec"] for document in DOCUMENTS}
PODS = [spec["template"]["spec"] for spec in SPECS.values() if "template" in spec]
KUBERNETES = "1.33"


def test_dashboard_and_alerts_name_all_metrics_that_exist_and_no_other(client):
    dashboard = json.loads((DEPLOY / "grafana" / "billing.json").read_text())
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for rule in alerts]
    series = {
        name + suffix: name
        for name, kind in re.findall(r"^# TYPE (billing_\S+) (\w+)$", client.get("/metrics").text, re.M)
        if not name.endswith("_created")
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    named = set(re.findall(r"\bbilling_\w+", " ".join(expressions)))
    assert named <= series.keys()
    assert {series[name] for name in named} == set(series.values())
    for expression in expressions:
        assert "billing_" in expression or expression.startswith("up{")
        assert expression.count("(") == expression.count(")")

    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 8
    for rule in alerts:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert re.fullmatch(r"\d+[mh]", rule["for"])


def test_manifests_fit_the_api_of_a_cluster_and_each_other():
    for document in DOCUMENTS:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    base = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert sorted(base["resources"]) == [path.name for path in MANIFESTS]
    # Selectors find the service and not the migration.
    name = {"app.kubernetes.io/name": "billing"}
    assert SPECS["Service"]["selector"] == SPECS["Deployment"]["template"]["metadata"]["labels"] == name
    assert SPECS["PodDisruptionBudget"]["selector"] == {"matchLabels": name}
    assert SPECS["Job"]["template"]["metadata"]["labels"] != name


def test_pods_have_no_more_rights_than_they_need():
    assert len(PODS) == 2
    for pod in PODS:
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
    service = SPECS["Deployment"]["template"]["spec"]
    container = service["containers"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert client.get(container[probe]["httpGet"]["path"]).status_code == 200
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert service["terminationGracePeriodSeconds"] > pause + gunicorn_settings()["graceful_timeout"]
    readiness = container["readinessProbe"]
    assert pause >= readiness["periodSeconds"] * readiness["failureThreshold"]


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
    service = (DEPLOY / "systemd" / "billing.service").read_text()
    listens = f"ListenStream={load_settings({}).port}\n"
    assert listens in (DEPLOY / "systemd" / "billing.socket").read_text()
    assert "Requires=billing.socket\n" in service
    stop_seconds = re.search(r"TimeoutStopSec=(\d+)", service)
    assert stop_seconds
    assert int(stop_seconds[1]) > gunicorn_settings()["graceful_timeout"]


DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_image_holds_what_the_service_imports_and_nothing_else():
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    copied = {source for line in lines for source in line.split()[:-1]}
    assert copied == {"requirements.txt", "wsgi.py", "gunicorn.conf.py", "app", "cli", "sql"}
    ignored = (ROOT / ".dockerignore").read_text()
    assert re.findall(r"^[^#!].*", ignored, re.MULTILINE)[0] == "*"
    assert set(re.findall(r"^!(.+)$", ignored, re.MULTILINE)) == copied
    for line in ("WORKDIR /app", "EXPOSE 3100", "USER 10001:10001", 'CMD ["gunicorn", "wsgi:app"]'):
        assert f"\n{line}\n" in DOCKERFILE


def test_the_health_check_of_the_image_passes_and_fails(url):
    (command,) = re.findall(r"CMD (\[\"python.*\])$", DOCKERFILE, re.MULTILINE)
    check = [sys.executable, *json.loads(command)[1:]]
    for port, passes in ((url.rpartition(":")[2], True), (str(free_port()), False)):
        done = subprocess.run(check, env={"PORT": port}, capture_output=True, check=False)
        assert (done.returncode == 0) is passes, done.stderr


def test_compose_migrates_before_it_serves_behind_the_proxy():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert services["migrate"]["command"] == ["flask", "db", "migrate"]
    assert services["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert services["api"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert "ports" not in services["api"]
    assert services["api"]["environment"]["TRUSTED_PROXIES"] == "1"
    proxy = services["proxy"]
    assert proxy["ports"] == ["3100:80"]
    assert proxy["depends_on"] == {"api": {"condition": "service_healthy", "restart": True}}
    for name in ("migrate", "api"):
        service = services[name]
        assert service["read_only"] is True
        assert service["volumes"] == ["./keys:/app/keys:ro"]
        assert service["environment"]["DATABASE_URL"].endswith("@database:5432/zemfyre_billing")
