"""The OpenAPI document: valid, readable, and of every route."""

import re

from openapi_spec_validator import OpenAPIV31SpecValidator


def test_it_is_valid_and_names_each_operation_once(client):
    document = client.get("/openapi.json").json
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


def test_it_describes_every_route(app, client):
    document = client.get("/openapi.json").json
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(("/api/", "/webhooks/", "/.well-known/")):
            path = re.sub(r"<(\w+)>", r"{\1}", rule.rule)
            for method in rule.methods - {"HEAD", "OPTIONS"}:
                assert method.lower() in document["paths"][path], rule
