"""The OpenAPI document: valid, readable, and good for generated clients."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.conftest import ADMIN_KEY

PYTHON_CLIENT = """
from billing_client import AuthenticatedClient
from billing_client.api.customers import create_customer, show_customer
from billing_client.api.usage import report_usage
from billing_client.models import Customer, NewCustomerAnswer, NewCustomerRequest
from billing_client.models import NewReport, ReportAnswer

client = AuthenticatedClient(base_url="{url}", token="{key}")
new = NewCustomerRequest(email="generated@example.com", name="Generated")
created = create_customer.sync(client=client, body=new)
assert isinstance(created, NewCustomerAnswer), created
own = AuthenticatedClient(base_url="{url}", token=created.license_)
report = NewReport(customer_id=created.customer_id, active_devices=4, total_devices=10)
answer = report_usage.sync(client=own, body=report)
assert isinstance(answer, ReportAnswer), answer
found = show_customer.sync(created.customer_id, client=own)
assert isinstance(found, Customer), found
print(found.email, answer.device_limit, answer.over_limit)
"""
TYPESCRIPT_CLIENT = """
import type { paths } from "./api";
type Answer<P extends keyof paths, M extends keyof paths[P], S extends number> =
  paths[P][M] extends { responses: { [K in S]: { content: { "application/json": infer A } } } } ? A : never;
type Body<P extends keyof paths> =
  paths[P] extends { post: { requestBody?: { content: { "application/json": infer B } } } } ? B : never;
const call = async (method: string, path: string, token: string, body?: unknown): Promise<any> => {
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  return (await fetch("URL" + path, { method, headers, body: body ? JSON.stringify(body) : null })).json();
};
const customer: Body<"/api/customers"> = { email: "typed@example.com", name: "Typed" };
const created: Answer<"/api/customers", "post", 201> = await call("POST", "/api/customers", "KEY", customer);
const report: Body<"/api/usage/report"> =
  { customerId: created.customerId, activeDevices: 4, totalDevices: 10 };
const answer: Answer<"/api/usage/report", "post", 201> =
  await call("POST", "/api/usage/report", created.license, report);
const found: Answer<"/api/customers/{customer_id}", "get", 200> =
  await call("GET", `/api/customers/${created.customerId}`, created.license);
console.log(found.email, answer.deviceLimit, answer.overLimit);
"""


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    return dict(client.get("/openapi.json").json or {})


def test_it_is_valid_and_names_each_operation_once(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    operations = [
        operation
        for path in document["paths"].values()
        for method, operation in path.items()
        if method in ("get", "post", "patch")
    ]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names)) > 25
    assert all(re.fullmatch(r"[a-z]+([A-Z][a-z]+)+", name) for name in names)
    assert all(operation["summary"] for operation in operations)
    assert document["servers"]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_generated_python_client_creates_reports_and_reads(
    url: str, client: FlaskClient, tmp_path: Path
) -> None:
    generator = shutil.which("openapi-python-client")
    if generator is None:
        pytest.skip("openapi-python-client is not installed")
    (tmp_path / "openapi.json").write_text(client.get("/openapi.json").text)
    (tmp_path / "config.yaml").write_text("package_name_override: billing_client\npost_hooks: []\n")
    options = "--path openapi.json --config config.yaml --meta none --output-path billing_client"
    run(generator, "generate", *options.split(), cwd=tmp_path)
    (tmp_path / "use.py").write_text(PYTHON_CLIENT.format(url=url, key=ADMIN_KEY))
    python = Path(generator).with_name("python")
    checks = "-m mypy --strict --follow-imports silent --python-executable"
    run(sys.executable, *checks.split(), python, "use.py", cwd=tmp_path)
    assert run(python, "use.py", cwd=tmp_path) == "generated@example.com 5 False\n"


def test_a_generated_typescript_client_creates_reports_and_reads(
    url: str, client: FlaskClient, tmp_path: Path
) -> None:
    generator, compiler, node = (shutil.which(name) for name in ("openapi-typescript", "tsc", "node"))
    if not (generator and compiler and node):
        pytest.skip("openapi-typescript, typescript and node are not installed")
    (tmp_path / "openapi.json").write_text(client.get("/openapi.json").text)
    run(generator, "openapi.json", "--output", "api.d.ts", cwd=tmp_path)
    (tmp_path / "use.ts").write_text(
        TYPESCRIPT_CLIENT.replace("URL", url, 1).replace('"KEY"', f'"{ADMIN_KEY}"')
    )
    options = "--strict --target es2022 --module es2022 --moduleResolution bundler --lib es2022,dom"
    run(compiler, *options.split(), "use.ts", cwd=tmp_path)
    (tmp_path / "use.js").rename(tmp_path / "use.mjs")
    assert run(node, "use.mjs", cwd=tmp_path) == "typed@example.com 5 false\n"
