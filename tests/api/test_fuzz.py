"""Odd requests for every documented route, with each kind of credential; `make fuzz` throws more of them.

Whatever comes in, the answer is one that `/openapi.json` tells of, and never a failure of ours.
"""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from schemathesis import Case, GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from app import create_app
from app.config import load_settings
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5"))
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


# An application of no settings is enough to read its document.
_described = openapi.from_wsgi("/openapi.json", create_app(load_settings({"LOG_LEVEL": "error"})))
LABELS = [found.ok().label for found in _described.get_all_operations()]


@pytest.fixture
def people(client, stripe_environ, console) -> dict[str, Any]:
    """A credential of each kind, and ids that the requests may tell of."""
    assert console("stripe", "setup").exit_code == 0
    ada, bob = make_customer(client, plan="starter"), make_customer(client)
    return {
        "ids": [ada["customerId"], bob["customerId"], ada["subscription"]["subscriptionId"], "cust_unknown"],
        "admin": ADMIN,
        "license": bearer(ada["license"]),
        "nobody": {},
    }


@pytest.mark.parametrize("who", ["admin", "license", "nobody"])
@pytest.mark.parametrize("label", LABELS)
def test_every_answer_is_documented(label: str, who: str, stripe_environ, app, people):
    schema = openapi.from_wsgi("/openapi.json", app)
    operation = next(found.ok() for found in schema.get_all_operations() if found.ok().label == label)
    cases = st.one_of(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases, st.none() | st.sampled_from(people["ids"]))
    def send(case: Case, known: str | None) -> None:
        if known:
            case.path_parameters = dict.fromkeys(case.path_parameters or {}, known)
        judged = CHECKS
        if known and isinstance(case.body, dict) and "customerId" in case.body:
            case.body["customerId"] = known  # which may mend what was wrong with the body
            judged = [check for check in CHECKS if check is not checks.negative_data_rejection]
        case.call_and_validate(headers=people[who], checks=judged)

    send()


def test_the_document_is_valid_openapi(client):
    document = client.get("/openapi.json").json
    assert document["openapi"] == "3.1.0"
    validate(document, cls=OpenAPIV31SpecValidator)


def test_the_document_tells_of_headers_and_pages(client):
    paths = client.get("/openapi.json").json["paths"]
    for path in ("/api/customers", "/api/subscriptions/create-checkout", "/api/subscriptions/create-trial"):
        headers = [p["name"] for p in paths[path]["post"]["parameters"] if p["in"] == "header"]
        assert headers == ["Idempotency-Key"]
        assert "Retry-After" in paths[path]["post"]["responses"]["429"]["headers"]
    for path in ("/api/customers", "/api/usage", "/api/usage/{customer_id}"):
        query = {p["name"]: p["schema"] for p in paths[path]["get"]["parameters"] if p["in"] == "query"}
        assert query["cursor"] == {"type": "string"}
        assert (query["limit"]["minimum"], query["limit"]["maximum"], query["limit"]["default"]) == (
            1,
            200,
            50,
        )
