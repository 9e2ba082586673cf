"""Odd requests for every documented route, with each kind of credential; `make fuzz` throws more of them.

Whatever comes in, the answer is one that `/openapi.json` describes, and never a failure of ours.
"""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from tests.conftest import ADMIN
from tests.factories import bearer, make_customer

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4"))
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,  # the last, as some bodies are mended below
]
pytestmark = pytest.mark.timeout(3600)
TAGS = ["customers", "subscriptions", "licenses", "usage", "overage", "webhooks"]


@pytest.fixture
def operations(stripe_environ, app, console):
    """Every documented operation by its tag."""
    assert console("stripe", "setup").exit_code == 0
    found = {}
    for result in openapi.from_wsgi("/openapi.json", app).get_all_operations():
        operation = result.ok()
        found.setdefault(operation.definition.raw["tags"][0], []).append(operation)
    assert set(found) == set(TAGS)
    return found


@pytest.mark.parametrize("tag", TAGS)
def test_every_answer_is_documented(operations, client, tag):
    ada, bob = make_customer(client, plan="starter"), make_customer(client)
    ids = [ada["customerId"], bob["customerId"], ada["subscription"]["subscriptionId"], "cust_unknown"]

    def throw(operation, headers):
        cases = st.one_of(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(cases, st.none() | st.sampled_from(ids))
        def send(case, known):
            # Each report of a batch is refused by itself.
            checked = CHECKS if operation.path != "/api/usage/reports" else CHECKS[:-1]
            if known:
                case.path_parameters = dict.fromkeys(case.path_parameters or {}, known)
            if known and isinstance(case.body, dict) and "customerId" in case.body:
                case.body["customerId"] = known  # which may mend what was wrong with the body
                checked = CHECKS[:-1]
            case.call_and_validate(headers=headers, checks=checked)

        send()

    for operation in operations[tag]:
        for headers in (ADMIN, bearer(ada["license"]), {}):
            throw(operation, headers)
