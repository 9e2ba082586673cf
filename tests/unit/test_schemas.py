"""Answers are written in one pass; what comes out is what marshmallow itself would write."""

from marshmallow import Schema

from app.queries import licenses
from app.schemas.customers import CustomerSchema, CustomersPage
from app.schemas.licenses import LicenseAnswer, RevocationAnswer, VerifyAnswer
from app.schemas.subscriptions import SubscriptionAnswer
from app.services.customers import describe_one
from tests.factories import make_customer


def same(schema, value):
    return bool(schema.dump(value) == Schema.dump(schema, value))


def test_the_same_as_marshmallow(app, client):
    made = [make_customer(client, plan=plan)["customerId"] for plan in ("starter", "enterprise")]
    with app.app_context():
        rows = [describe_one(customer_id) for customer_id in made]
        with app.extensions["billing.db"].statement() as cur:
            current = licenses.select_current_license(cur, made[0])
    assert current is not None
    for row in rows:
        assert CustomerSchema().dump(row)["subscription"]["customerId"] == row["customer_id"]
        assert same(CustomerSchema(), row)
        assert same(CustomerSchema(), row | {"subscription": None})
        assert same(CustomerSchema(only=["email", "created_at"]), row)
        assert same(SubscriptionAnswer(), {"subscription": row["subscription"]})
    assert same(CustomersPage(), {"customers": rows, "next_cursor": None})
    assert same(CustomersPage(), {"customers": [], "next_cursor": "abc"})
    assert CustomerSchema(many=True).dump(rows) == [CustomerSchema().dump(row) for row in rows]
    assert same(LicenseAnswer(), current | {"license": current["token"], "public_key": "PEM"})
    assert same(VerifyAnswer(), {"valid": False, "code": "MALFORMED"})
    assert same(
        RevocationAnswer(), {"customer_id": "c", "revoked": False, "revoked_at": None, "revoke_reason": None}
    )
